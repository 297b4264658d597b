"""A round's scored set, as the trainer reads it: rollouts, and what each model says of all their tokens, laid flat."""
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tasks.opd.core.records import Rollout, read_rows
from tasks.opd.engines.api import Signal
from tasks.opd.models.heads import Head, load_head
from tasks.opd.objective.supports import TeacherTokens
from tasks.opd.scoring.score import read_signal
from tasks.opd.store.artifacts import model_folder

AT_TOKENS = ("sampled", "ids", "logprobs", "hidden")


@dataclass(frozen=True, kw_only=True)
class ScoredSet:
    """R rollouts with N tokens, and what the models that scored say of them, by name."""
    rollouts: list[Rollout]
    present: dict[str, Tensor]            # bool [R]: the rollouts that the model had a context for
    flat: dict[str, dict[str, Tensor]]    # sampled, entropy [N], ids, logprobs [N, K], hidden [N, d]; zeros: no signal
    heads: dict[str, Head]                # of those asked for hidden states
    temperature: float

    def has_signal(self, name: str) -> Tensor:
        """Which rollouts the model had a context for: bool [R]."""
        return self.present[name]

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


def present_in(signal: list[Signal | None]) -> Tensor:
    """Which of R rollouts have a signal: bool [R]."""
    return torch.tensor([s is not None for s in signal], dtype=torch.bool)


def make_scored(rollouts: list[Rollout], signals: dict[str, list[Signal | None]], heads: dict[str, Head],
                temperature: float) -> ScoredSet:
    """A scored set of rollouts and signals at hand; it keeps a copy of its own, laid flat."""
    return ScoredSet(rollouts=rollouts, temperature=temperature, heads=heads,
                     present={name: present_in(signal) for name, signal in signals.items()},
                     flat={name: lay_flat(rollouts, signal) for name, signal in signals.items()})


def read_scored(inputs: dict[str, Path], spec: dict, device) -> ScoredSet:
    """The scored set of the checkpoint stage's inputs; `spec["scored"]`: name of each model that scored -> folder."""
    rollouts = read_rows(inputs["rollouts"] / "rollouts.parquet", Rollout)
    heads = {name: load_head(model_folder(inputs[f"model:{name}"], folder), spec["vocabulary"]).to(device)
             for name, folder in spec["scored"].items() if f"model:{name}" in inputs}
    present, flat = {}, {}
    for name in spec["scored"]:  # one after the other: as files' tensors and laid flat, only one is there twice
        signal = read_signal(inputs[f"scores:{name}"])
        present[name], flat[name] = present_in(signal), lay_flat(rollouts, signal)
        del signal
    return ScoredSet(rollouts=rollouts, temperature=spec["loss"]["temperature"], heads=heads, present=present,
                     flat=flat)
