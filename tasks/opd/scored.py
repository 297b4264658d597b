"""A round's scored set, as the trainer reads it: rollouts, the teacher's signal laid flat over all tokens, its head."""
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tasks.opd.artifacts import model_folder
from tasks.opd.engines import Signal
from tasks.opd.heads import Head, load_head
from tasks.opd.records import Rollout, read_rows
from tasks.opd.scoring import read_signal
from tasks.opd.supports import TeacherTokens


@dataclass(frozen=True, kw_only=True)
class ScoredSet:
    """R rollouts with N tokens, and what the teacher says of them; `signal` is None when no term needs a teacher."""
    rollouts: list[Rollout]
    signal: list[Signal | None] | None
    flat: dict[str, Tensor]               # sampled [N], ids [N, K], logprobs [N, K], hidden [N, d]; zeros: no signal
    head: Head | None
    temperature: float

    @property
    def sampled(self) -> list[Tensor | None]:
        """The teacher's log-probabilities [T] of each rollout's tokens, NaN if not asked for; None without a signal."""
        if self.signal is None:
            return [None] * len(self.rollouts)
        return [None if s is None else torch.full((len(r.token_ids),), torch.nan) if s.sampled is None else s.sampled
                for r, s in zip(self.rollouts, self.signal)]

    def tokens(self, index: Tensor, device) -> TeacherTokens | None:
        """The teacher's signal at tokens `index` of the flat set, on a device."""
        if self.signal is None:
            return None
        part = {name: values[index].to(device) for name, values in self.flat.items()}
        return TeacherTokens(**part, head=self.head, temperature=self.temperature, num_tokens=index.numel())


def lay_flat(rollouts: list[Rollout], signal: list[Signal | None]) -> dict[str, Tensor]:
    """Signals of R rollouts as tensors over all N tokens, with zeros where a rollout has none."""
    flat = {}
    for name in ("sampled", "ids", "logprobs", "hidden"):
        some = next((getattr(s, name) for s in signal if s is not None and getattr(s, name) is not None), None)
        if some is not None:
            blank = some.new_zeros((1, *some.shape[1:]))
            flat[name] = torch.cat([blank.expand(len(r.token_ids), *some.shape[1:]) if s is None else getattr(s, name)
                                    for r, s in zip(rollouts, signal)])
    return flat


def make_scored(rollouts: list[Rollout], signal: list[Signal | None] | None, head: Head | None,
                temperature: float) -> ScoredSet:
    """A scored set of rollouts and signals at hand."""
    return ScoredSet(rollouts=rollouts, signal=signal, flat={} if signal is None else lay_flat(rollouts, signal),
                     head=head, temperature=temperature)


def read_scored(inputs: dict[str, Path], spec: dict, device) -> ScoredSet:
    """The scored set of the checkpoint stage's inputs; `spec["scored"]` names the teacher, or is empty."""
    rollouts = read_rows(inputs["rollouts"] / "rollouts.parquet", Rollout)
    if not spec["scored"]:
        return make_scored(rollouts, None, None, spec["loss"]["temperature"])
    name = spec["scored"][0]
    head = None
    if f"model:{name}" in inputs:
        folder = model_folder(inputs[f"model:{name}"], spec.get("folder", "model"))
        head = load_head(folder, spec["vocabulary"]).to(device)
    return make_scored(rollouts, read_signal(inputs[f"scores:{name}"]), head, spec["loss"]["temperature"])
