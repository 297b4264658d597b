"""Which rollouts a term learns from: columns -> bool [R].

Only tokens of the policy train, except under the rows in `ANY_AUTHOR`, where teacher's and dataset's tokens do too.
"""
import torch
from torch import Tensor

from tasks.opd.columns import Columns
from tasks.opd.records import STUDENT


def all_rows(columns: Columns) -> Tensor:
    """Every rollout, whoever wrote it. bool [R]."""
    return torch.ones(columns.num_rollouts, dtype=torch.bool)


def sampled(columns: Columns) -> Tensor:
    """Rollouts in which the student wrote at least one token. bool [R]."""
    written = torch.zeros(columns.num_rollouts, dtype=torch.long)
    written.index_add_(0, columns.rollout, (columns.author == STUDENT).long())
    return written > 0


def succeeded(columns: Columns, *, threshold: float = 1.0) -> Tensor:
    """The student's rollouts with a reward of at least `threshold`. bool [R]."""
    return sampled(columns) & (columns.reward >= threshold)


def failed(columns: Columns, *, threshold: float = 1.0) -> Tensor:
    """The student's rollouts with a reward below `threshold`; ungraded rollouts are neither. bool [R]."""
    return sampled(columns) & (columns.reward < threshold)


ROWS = {"all": all_rows, "sampled": sampled, "succeeded": succeeded, "failed": failed}
ANY_AUTHOR = frozenset({"all"})
