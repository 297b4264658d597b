"""Advantages from the teacher alone: columns -> [N] nats, see `advantages`. All begin with `teacher_gap`."""
import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tasks.opd.core.seeds import derive_seed
from tasks.opd.objective.columns import Columns


def teacher_gap(columns: Columns) -> Tensor:
    """log teacher - log student of the token written, the student at the round's start. [N] nats.

    With the policy gradient its mean is the reverse KL's gradient at the visited prefixes, the prefixes held fixed.
    Source: On-Policy Distillation, Thinking Machines 2025.
    """
    return columns.teacher - columns.old_logprobs


def centred_gap(columns: Columns) -> Tensor:
    """`teacher_gap` + reverse KL at the token's prefix: the gap less its own mean under the student. [N] nats.

    The mean gradient is `teacher_gap`'s, for a baseline that does not know the token written cannot bias it; its mean
    over the vocabulary is 0. The variance is usually, not always, smaller.
    Source: vOPD, arXiv:2605.07865.
    """
    return teacher_gap(columns) + columns.reverse_kl


def floored_gap(columns: Columns, *, share: Annotated[float, Field(gt=0, lt=1)] = 0.1) -> Tensor:
    """max(`teacher_gap`, ln(share) / (1 - share)): no token is worth less than the floor, -2.558 at 0.1. [N] nats.

    Source: REOPOLD, arXiv:2603.11137.
    """
    return teacher_gap(columns).clamp(min=math.log(share) / (1 - share))


def shifted_gap(columns: Columns) -> Tensor:
    """A control: `teacher_gap` with the teacher moved by one token in each completion, like an off-by-one. [N] nats.

    Over the term's tokens of the completion; the first gets the last one's.
    """
    owner, moved = columns.rollout[columns.mask], columns.teacher[columns.mask].roll(1)
    first, last = owner != owner.roll(1), owner != owner.roll(-1)  # both all False where there is one completion only
    moved[first] = columns.teacher[columns.mask][last]
    gap = teacher_gap(columns)
    gap[columns.mask] = moved - columns.old_logprobs[columns.mask]
    return gap


def shuffled_gap(columns: Columns, *, seed: Annotated[int, Field(ge=0)] = 0) -> Tensor:
    """A placebo: `teacher_gap` permuted among all of the term's tokens: sizes stay, meaning goes. [N] nats."""
    gap = teacher_gap(columns)
    own = gap[columns.mask]
    generator = torch.Generator().manual_seed(derive_seed("shuffled_gap", seed))
    gap[columns.mask] = own[torch.randperm(own.numel(), generator=generator)]
    return gap


def return_to_go(columns: Columns, *, discount: Annotated[float, Field(ge=0, le=1)] = 1.0) -> Tensor:
    """G_t = gap_t + discount * G_{t+1} within each completion, gap as in `teacher_gap`. [N] nats.

    Tokens that are not the term's (an environment's, say) add nothing. Discount 0 is `teacher_gap`; discount 1 is the
    unbiased gradient of the sequence's reverse KL.
    Source: arXiv:2603.25562; MiniLLM, arXiv:2306.08543.
    """
    gap = torch.where(columns.mask, teacher_gap(columns), 0.0)
    padded, there = columns.by_rollout(gap)
    returns = torch.zeros_like(padded)
    running = torch.zeros(columns.num_rollouts, dtype=gap.dtype)
    for t in range(padded.shape[1] - 1, -1, -1):
        running = padded[:, t] + discount * running
        returns[:, t] = running
    return returns[there]
