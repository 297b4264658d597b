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


def return_to_go(columns: Columns, *, discount: Annotated[float, Field(ge=0, le=1)] = 1.0, ahead: bool = False,
                 mean: bool = False) -> Tensor:
    """G_t = gap_t + discount * G_{t+1} within each completion, gap as in `teacher_gap`. [N] nats.

    Tokens that are not the term's (an environment's, say) add nothing. Discount 0 is `teacher_gap`; discount 1 is the
    unbiased gradient of the sequence's reverse KL. `ahead` leaves the token's own gap out: what is then missing is the
    gradient of the reverse KL at its prefix, which an exact term gives. `mean` divides by the number of gaps summed.
    Source: arXiv:2603.25562; MiniLLM, arXiv:2306.08543 (ahead and mean).
    """
    own = columns.mask.to(columns.old_logprobs.dtype)
    gap = torch.where(columns.mask, teacher_gap(columns), 0.0)
    (gaps, there), (counts, _) = columns.by_rollout(gap), columns.by_rollout(own)
    returns, running, ahead_of = torch.zeros_like(gaps), torch.zeros_like(gaps[:, 0]), torch.zeros_like(gaps[:, 0])
    for t in range(gaps.shape[1] - 1, -1, -1):
        total, number = gaps[:, t] + discount * running, ahead_of + counts[:, t]
        returns[:, t] = discount * running if ahead else total
        if mean:
            returns[:, t] /= (ahead_of if ahead else number).clamp(min=1)
        running, ahead_of = total, number
    return returns[there]


def proximal_gap(columns: Columns, *, share: Annotated[float, Field(gt=0, le=1)] = 0.5, future: bool = True,
                 standardise: bool = True) -> Tensor:
    """log(share * teacher + (1 - share) * old) - log old, at least log(1 - share): a teacher within reach. [N] nats.

    `future` adds the mean of what follows in the completion; `standardise` then takes the mean off and divides by the
    standard deviation (sample's, + 1e-4), both over the term's tokens of the prompt. Without either, share 1 is
    `teacher_gap`, and the mean gradient is that of KL(old || mixture).
    Source: TOP-D, arXiv:2607.04751; share 0.5 and the kind of deviation are reconstructed.
    """
    gap = teacher_gap(columns)
    near = torch.logaddexp(gap + math.log(share), torch.full_like(gap, math.log1p(-share) if share < 1 else -math.inf))
    near = torch.where(columns.mask, near, 0.0)
    if future:
        (padded, there), (own, _) = columns.by_rollout(near), columns.by_rollout(columns.mask.to(near.dtype))
        after = [values.flip(1).cumsum(1).flip(1) - values for values in (padded, own)]
        near = near + (after[0] / after[1].clamp(min=1))[there]
    if standardise:
        group = columns.group[columns.rollout]
        near = near - mean_of(near, columns.mask, group)
        count = torch.zeros_like(near).index_add(0, group, columns.mask.to(near.dtype))[group]
        variance = mean_of(near ** 2, columns.mask, group) * count / (count - 1).clamp(min=1)
        near = near / (variance.sqrt() + 1e-4)
    return near


def mean_of(values: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """The mean of values [N] over the mask's tokens of the same group: [N]; `group` [N] is below N."""
    sums = torch.zeros_like(values).index_add(0, group, torch.where(mask, values, 0.0))
    return (sums / torch.zeros_like(values).index_add(0, group, mask.to(values.dtype)).clamp(min=1))[group]
