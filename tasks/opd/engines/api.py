"""What the rest of the library needs of an engine: token ids in, token ids and log-probabilities out.

`Want` says which columns of a `Signal` are asked for; `Capabilities` which of them an engine can give.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

LARGEST_MASS = -1e-7  # log of the mass on a support, at most: the tail stays above zero


@dataclass(frozen=True, kw_only=True)
class Want:
    """Which columns of a signal are asked for."""
    sampled: bool = True
    top_k: int = 0
    entropy: bool = False
    hidden: bool = False


@dataclass(kw_only=True)
class Signal:
    """What a model says about the tokens of one completion; columns not asked for are None. All on the CPU."""
    sampled: Tensor | None = None   # [T] log-probability of the token written
    ids: Tensor | None = None       # [T, K] likeliest tokens, best first
    logprobs: Tensor | None = None  # [T, K] theirs
    tail: Tensor | None = None      # [T] log of the mass of all others
    entropy: Tensor | None = None   # [T] nats
    hidden: Tensor | None = None    # [T, d] what enters the head's product


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What an engine can give."""
    columns: frozenset[str]         # of sampled, top_k, entropy, hidden


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a model wrote after a prompt."""
    token_ids: list[int]          # [T] its EOS included
    logprobs: list[float]         # [T] nats, of the distribution sampled from; 0 when greedy
    finish_reason: str            # "stop" (EOS) or "length"


class Engine(Protocol):
    """A model that continues prompts and scores completions."""
    eos_ids: set[int]

    def generate(self, prompts: list[list[int]], sampling: dict, seeds: list[int], *,
                 progress=None) -> list[Completion]:
        """One completion a prompt, from its seed, under `sampling`: temperature, top_p, top_k, max_new_tokens.

        `progress.update(n, tokens=t)` hears of n completions more, and of t tokens.
        """

    def score(self, prompts: list[list[int]], completions: list[list[int]], want: Want, *, temperature: float = 1.0,
              progress=None) -> list[Signal]:
        """The model's distribution (logits / temperature) at each token of each completion after its prompt."""

    def load(self, folder: Path) -> dict[str, str]:
        """Take other weights in place; the digests (`models.digests`) of the tensors held then, by saved name."""

    def capabilities(self) -> Capabilities:
        """What can be asked of this engine."""

    def sleep(self) -> None:
        """Leave the device to others until the next call, where the engine can."""

    def close(self) -> None:
        """Give the memory back."""


def tail_of(logprobs: Tensor) -> Tensor:
    """Log of the mass [T] that log-probabilities [T, K] leave to all other tokens; never log 0."""
    return torch.log(-torch.expm1(logprobs.logsumexp(-1).clamp(max=LARGEST_MASS)))
