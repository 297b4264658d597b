"""Quantities of tokens by their position in a completion: moments in fixed buckets, and where a signal ends in noise.

Buckets begin at 0, 8, 16, 32, ..: they double, so that a completion of twenty tokens has several, and one of a hundred
thousand few enough to read. A bucket is named by its first position.
"""
import math
from dataclasses import dataclass

import torch
from torch import Tensor

STARTS = torch.tensor([0, *(2 ** power for power in range(3, 18))])  # the first position of each of the B buckets
BUCKETS = len(STARTS)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """A quantity in each bucket, [B] float64: how many values, their mean and their variance (ddof 0); 0 without."""
    count: Tensor
    mean: Tensor
    variance: Tensor


def bucket_of(position: Tensor) -> Tensor:
    """The index of each position's bucket: [n] -> [n] long."""
    return torch.bucketize(position, STARTS, right=True) - 1


def moments_of(position: Tensor, values: Tensor) -> Moments:
    """The moments of values [n] at positions [n]; values that are not finite are left out."""
    there = torch.isfinite(values)
    bucket, values = bucket_of(position[there]), values[there].double()

    def summed(parts: Tensor) -> Tensor:
        return torch.zeros(BUCKETS, dtype=torch.float64).index_add_(0, bucket, parts)

    count = summed(torch.ones_like(values))
    mean = summed(values) / count.clamp(min=1)
    return Moments(count=count, mean=mean, variance=summed((values - mean[bucket]) ** 2) / count.clamp(min=1))


def signal_horizon(moments: Moments) -> int:
    """Where signal meets noise: how many tokens from a completion's first on have a mean that is told from 0. Tokens.

    The fit is a change point. Up to it every bucket has a mean of its own, behind it the mean is 0, and all else is
    noise of the bucket's variance. The Bayesian information criterion chooses it: the buckets up to b gain
    2 (log-likelihood) - parameters * ln N = sum over them of (n mean^2 / variance - ln N), with n the bucket's values
    and N those of all; the horizon is the end of the buckets that gain most, and 0 where none gains anything. The end
    of the last bucket that has values means that none was found. Values count as independent, and twice as many tell
    means 1 / sqrt(2) as large: compare horizons of batches of one size.
    Source: BIC, Schwarz 1978; as rule to release a suffix arXiv:2605.13643, whose own margin is not known.
    """
    total, gain, best, horizon = float(moments.count.sum()), 0.0, 0.0, 0
    ends = [*STARTS[1:].tolist(), 2 * int(STARTS[-1])]
    for count, mean, variance, end in zip(*(part.tolist() for part in (moments.count, moments.mean, moments.variance)),
                                          ends):
        if count < 2:                   # one value has no noise to be told from
            continue
        told = count * mean ** 2 / variance if variance > 0 else math.inf if mean else 0.0
        gain += min(told, total) - math.log(total)
        if gain > best:
            best, horizon = gain, end
    return horizon
