"""A round's scored set, as the trainer reads it: rollouts, and what each model says of all their tokens, laid flat."""
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

AT_TOKENS = ("sampled", "ids", "logprobs", "hidden")


@dataclass(frozen=True, kw_only=True)
class ScoredSet:
    """R rollouts with N tokens, and what the models that scored say of them, by name."""
    rollouts: list[Rollout]
    signals: dict[str, list[Signal | None]]
    flat: dict[str, dict[str, Tensor]]    # sampled, entropy [N], ids, logprobs [N, K], hidden [N, d]; zeros: no signal
    heads: dict[str, Head]                # of those asked for hidden states
    temperature: float

    def has_signal(self, name: str) -> Tensor:
        """Which rollouts the model had a context for: bool [R]."""
        return torch.tensor([signal is not None for signal in self.signals[name]])

    def column(self, name: str, which: str) -> Tensor:
        """A model's `sampled` or `entropy` at all tokens, [N] nats; NaN where it gave none."""
        if which in self.flat[name]:
            lengths = torch.tensor([len(r.token_ids) for r in self.rollouts])
            there = self.has_signal(name).repeat_interleave(lengths)
            return torch.where(there, self.flat[name][which], torch.nan)
        return torch.full((sum(len(r.token_ids) for r in self.rollouts),), torch.nan)

    def tokens(self, index: Tensor, device) -> dict[str, TeacherTokens]:
        """Every model's signal at tokens `index` of the flat set, on a device."""
        found = {}
        for name, flat in self.flat.items():
            part = {column: flat[column][index].to(device) for column in AT_TOKENS if column in flat}
            found[name] = TeacherTokens(**part, head=self.heads.get(name), temperature=self.temperature,
                                        num_tokens=index.numel())
        return found


def lay_flat(rollouts: list[Rollout], signal: list[Signal | None]) -> dict[str, Tensor]:
    """Signals of R rollouts as tensors over all N tokens, with zeros where a rollout has none."""
    flat = {}
    for name in (*AT_TOKENS, "entropy"):
        some = next((getattr(s, name) for s in signal if s is not None and getattr(s, name) is not None), None)
        if some is not None:
            blank = some.new_zeros((1, *some.shape[1:]))
            flat[name] = torch.cat([blank.expand(len(r.token_ids), *some.shape[1:]) if s is None else getattr(s, name)
                                    for r, s in zip(rollouts, signal)])
    return flat


def make_scored(rollouts: list[Rollout], signals: dict[str, list[Signal | None]], heads: dict[str, Head],
                temperature: float) -> ScoredSet:
    """A scored set of rollouts and signals at hand."""
    return ScoredSet(rollouts=rollouts, signals=signals, temperature=temperature, heads=heads,
                     flat={name: lay_flat(rollouts, signal) for name, signal in signals.items()})


def read_scored(inputs: dict[str, Path], spec: dict, device) -> ScoredSet:
    """The scored set of the checkpoint stage's inputs; `spec["scored"]`: name of each model that scored -> folder."""
    rollouts = read_rows(inputs["rollouts"] / "rollouts.parquet", Rollout)
    heads = {name: load_head(model_folder(inputs[f"model:{name}"], folder), spec["vocabulary"]).to(device)
             for name, folder in spec["scored"].items() if f"model:{name}" in inputs}
    signals = {name: read_signal(inputs[f"scores:{name}"]) for name in spec["scored"]}
    return make_scored(rollouts, signals, heads, spec["loss"]["temperature"])
