"""Statistics over a term's tokens, for weights: the n tokens of `columns.mask` out of N, in float64, and laid back.

What stands outside the mask, NaN included, cannot matter. A NaN inside it is an error, never a weight. Quantiles are
values of the set, not interpolated.
"""
import math

import torch
from torch import Tensor

from tasks.opd.objective.columns import Columns

Reported = tuple[Tensor, dict[str, float]]  # weights [N], and numbers for the round's metrics by name
ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996, and means 29


def masked(columns: Columns, name: str, *, infinite: bool = False) -> Tensor:
    """A column at the term's tokens: [n] float64. Raises ValueError on NaN and, unless `infinite`, on infinities."""
    values = columns.named(name)[columns.mask].double()
    bad = values.isnan() if infinite else ~values.isfinite()
    if bad.any():
        raise ValueError(f"a weight reads {name}, but it is not finite at {int(bad.sum())} of the term's {bad.numel()} "
                         f"tokens; name {name} in the entry's needs, and use models of one vocabulary")
    return values


def scatter(columns: Columns, values: Tensor) -> Tensor:
    """Values of the term's tokens [n] among all tokens: [N] float64, zero outside the mask."""
    return torch.zeros(columns.num_tokens, dtype=torch.float64).masked_scatter(columns.mask, values.double())


def positions(columns: Columns) -> tuple[Tensor, Tensor, Tensor]:
    """Of the term's tokens: index from 0, place in the rollout from 0, and how many the rollout has. [n] each."""
    rollout = columns.rollout[columns.mask]
    size = rollout.bincount(minlength=columns.num_rollouts)
    index = torch.arange(rollout.numel())
    return index, index - (size.cumsum(0) - size)[rollout], size[rollout]


def per_rollout(columns: Columns, values: Tensor) -> Tensor:
    """The sum of values [n] over the rollout of each of the term's tokens: [n]."""
    rollout = columns.rollout[columns.mask]
    return torch.zeros(columns.num_rollouts, dtype=values.dtype).index_add_(0, rollout, values)[rollout]


def keep_top(columns: Columns, score: Tensor, share: float, scope: str) -> Tensor:
    """One on the floor(share * n) tokens of highest score [n] of each rollout, or of the batch; zero elsewhere. [N].

    At least one of each unless `share` is 0; of equal scores the earlier token stays.
    """
    unit = columns.rollout[columns.mask] if scope == "rollout" else torch.zeros(score.numel(), dtype=torch.long)
    order = score.argsort(descending=True, stable=True)
    order = order[unit[order].argsort(stable=True)]                 # by unit, then by score
    size = unit.bincount(minlength=1)
    rank = torch.arange(score.numel()) - (size.cumsum(0) - size)[unit]  # units lie in order, before and after sorting
    room = (share * size.double() + ROUNDING).floor().clamp(min=1 if share > 0 else 0)
    return scatter(columns, torch.zeros_like(score).index_put_((order,), (rank < room[unit]).double()))


def min_max(values: Tensor) -> Tensor:
    """(values - minimum) / (maximum - minimum), and 0 where all are equal. [n] in [0, 1]."""
    if values.numel() == 0:
        return values
    low, high = values.aminmax()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def of_largest(values: Tensor) -> Tensor:
    """Values >= 0 over their maximum: [n] in [0, 1], and 0 where the maximum is."""
    largest = float(values.max()) if values.numel() else 0.0
    return (values / largest).clamp(0, 1) if largest > 0 else torch.zeros_like(values)


def quantile(values: Tensor, q: float) -> float:
    """The smallest of the values [n] not below their q-quantile; 0 without values."""
    if values.numel() == 0:
        return 0.0
    return float(values.sort().values[math.ceil(q * (values.numel() - 1) - ROUNDING)])
