"""Which rollouts a term learns from: columns -> bool [R].

Only tokens of the policy train, except under rows of `any_author`, where teacher's and dataset's tokens do too.
"""
import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tasks.opd.core.entries import Entry
from tasks.opd.core.records import STUDENT
from tasks.opd.objective.columns import Columns


def all_rows(columns: Columns) -> Tensor:
    """Every rollout, whoever wrote it. bool [R]."""
    return torch.ones(columns.num_rollouts, dtype=torch.bool)


def sampled(columns: Columns) -> Tensor:
    """Rollouts in which the student wrote at least one token. bool [R]."""
    written = torch.zeros(columns.num_rollouts, dtype=torch.long)
    written.index_add_(0, columns.rollout, (columns.author == STUDENT).long())
    return written > 0


def golden(columns: Columns) -> Tensor:
    """Rollouts in which the student wrote nothing: a teacher's or a dataset's. bool [R]."""
    return ~sampled(columns)


def succeeded(columns: Columns, *, threshold: float = 1.0) -> Tensor:
    """The student's rollouts with a reward of at least `threshold`. bool [R]."""
    return sampled(columns) & (columns.reward >= threshold)


def failed(columns: Columns, *, threshold: float = 1.0) -> Tensor:
    """The student's rollouts with a reward below `threshold`; ungraded rollouts are neither. bool [R]."""
    return sampled(columns) & (columns.reward < threshold)


def mixed_groups(columns: Columns) -> Tensor:
    """The student's graded rollouts of groups whose rewards are not all equal, whoever wrote the others. bool [R].

    Source: DAPO, arXiv:2503.14476, dynamic sampling; what goes is not sampled anew.
    """
    graded = ~columns.reward.isnan()
    reward, group = columns.reward[graded], columns.group[graded]
    highest = torch.full_like(columns.reward, -math.inf).scatter_reduce(0, group, reward, "amax")
    lowest = torch.full_like(columns.reward, math.inf).scatter_reduce(0, group, reward, "amin")
    return sampled(columns) & graded & (highest > lowest)[columns.group]


def likely_to_teacher(columns: Columns, *, share: Annotated[float, Field(gt=0, le=1)] = 0.8) -> Tensor:
    """The `share` of the student's rollouts that the teacher finds likeliest, by mean log-probability. bool [R].

    The mean is over the tokens the student wrote; rollouts at or above the (1 - share)-quantile of all that have a
    signal stay, ties included.
    Source: FiRe-OPD, arXiv:2606.02684.
    Raises: ValueError when the teacher's log-probability of such a token is NaN.
    """
    could = sampled(columns) & columns.has_signal
    written = could[columns.rollout] & (columns.author == STUDENT)
    if columns.teacher[written].isnan().any():
        raise ValueError("likely_to_teacher needs the teacher's log-probability of every token the student wrote")
    if not could.any():
        return could
    total = columns.per_rollout(torch.where(written, columns.teacher, 0.0))
    mean = total / columns.per_rollout(written).clamp(min=1)
    ordered = mean[could].sort().values
    dropped = math.ceil((1 - share) * (len(ordered) - 1) - 1e-9)  # not 4 when rounding makes 3 a little more
    return could & (mean >= ordered[dropped])


ROWS = {"all": Entry(all_rows, any_author=True, ignores_token=True), "sampled": Entry(sampled, ignores_token=True),
        "succeeded": Entry(succeeded), "failed": Entry(failed, disjoint=("succeeded",)),
        "golden": Entry(golden, any_author=True, ignores_token=True, disjoint=("sampled", "succeeded", "failed")),
        "mixed_groups": Entry(mixed_groups, grouped=True),
        "likely_to_teacher": Entry(likely_to_teacher, needs=("teacher",))}
