"""What a mean paired difference is worth: its interval over seeds and prompts, many comparisons, what can be detected.

The model of a difference, of seed s on prompt p: d[s, p] = mu + a_s + b_p + e_sp, all of them random, where b and e may
be alike within a cluster of prompts (those made from one template). Variance components by the method of moments
(Henderson, 1953), degrees of freedom by Satterthwaite (1946). scipy gives the quantiles. No torch.

Left out: a likelihood (REML) fit, which differs little from the moments in balanced layouts and needs an optimizer.
"""
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
ALPHA = 0.05                      # 1 - LEVEL
POWER = 0.8
MIN_SEEDS = 3                     # of fewer the variance between seeds is not estimated
ROUNDING = 1e-12                  # a standard error, or a difference, below this is 0
RESAMPLES = 10_000
CHUNK = 500                       # resamples drawn at once

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean paired difference and how sure it is."""
    difference: float | None      # None: there was nothing to compare
    error: float | None           # standard error; None of a single cluster: not estimable
    degrees: float                # of freedom
    interval: Interval | None     # LEVEL, two-sided
    p: float | None               # two-sided, of no difference
    seed_sd: float | None         # between seeds, what prompts add to their means taken out; None: not estimable


def paired_difference(differences: np.ndarray, clusters: Sequence[Hashable] | None = None) -> Estimate:
    """The mean of differences [S seeds, P prompts], over the choice of both; `clusters` [P] says which prompts are kin.

    With A = var(seeds' means) / S, C the variance of the mean over the choice of prompts, E what both of them hold of
    e_sp: Var(mean) = max(A, E) + max(C, E) - E, and its degrees of freedom are
    Var^2 / (A^2 / (S - 1) + C^2 / df_C + E^2 / df_E). With fewer than MIN_SEEDS seeds it is C, over the choice of
    prompts alone. Where prompts of a cluster are no more alike than others, the interval is somewhat too wide.
    """
    num_seeds, num_prompts = differences.shape
    clusters = range(num_prompts) if clusters is None else clusters
    members = np.unique([str(cluster) for cluster in clusters], return_inverse=True)[1]
    by_seed, by_prompt = differences.mean(axis=1), differences.mean(axis=0)
    mean, seed_sd = float(by_seed.mean()), None
    if members.max() == 0:
        return Estimate(difference=mean, error=None, degrees=0.0, interval=None, p=None, seed_sd=None)
    variance, degrees = of_mean(by_prompt[None], members, rows=1)
    if num_seeds >= MIN_SEEDS:
        between = float(by_seed.var(ddof=1)) / num_seeds
        residuals = differences - by_seed[:, None] - by_prompt + mean
        rest, rest_degrees = of_mean(residuals, members, rows=num_seeds - 1)
        rest /= num_seeds
        seed_sd = math.sqrt(max(between - rest, 0) * num_seeds)
        variance, degrees = crossed((between, num_seeds - 1), (variance, degrees), (rest, rest_degrees))
    return with_interval(mean, math.sqrt(variance), degrees, seed_sd)


def of_mean(values: np.ndarray, members: np.ndarray, rows: int) -> tuple[float, float]:
    """Variance of the mean of P values over the choice of clusters, and its degrees of freedom.

    `values` [R, P] are `rows` independent draws (R, or one less where a mean was taken out), `members` [P] cluster
    numbers from 0. One-way analysis of variance with unequal sizes n: between = (MS_between - MS_within) / n0, never
    below 0; Var = between * sum (n / P)^2 + within / P. Degrees of freedom are those of MS_between under that model.
    """
    sizes = np.bincount(members)
    count, num_clusters = int(sizes.sum()), len(sizes)
    means = np.array([np.bincount(members, row) for row in values]) / sizes
    ss_between = float((sizes * (means - values.mean(axis=1, keepdims=True)) ** 2).sum())
    ms_between = ss_between / (rows * (num_clusters - 1))
    if num_clusters == count:
        return ms_between / count, rows * (count - 1.0)
    ss_within = float(((values - means[:, members]) ** 2).sum())
    within = ss_within / (rows * (count - num_clusters))
    typical = (count - (sizes ** 2).sum() / count) / (num_clusters - 1)     # n0
    between = max((ms_between - within) / typical, 0.0)
    if not between:
        within = (ss_between + ss_within) / (rows * (count - 1))
    of_cluster = between + within / sizes                                   # variance of a cluster's mean
    scaled = sizes * of_cluster
    expected = scaled.sum() - (sizes * scaled).sum() / count
    spread = (scaled ** 2).sum() - 2 * (sizes * scaled ** 2).sum() / count + ((sizes * scaled).sum() / count) ** 2
    degrees = rows * float(expected ** 2 / spread) if spread else rows * (num_clusters - 1.0)
    return float(((sizes / count) ** 2 * of_cluster).sum()), degrees


def crossed(*parts: tuple[float, float]) -> tuple[float, float]:
    """Variance and degrees of freedom of the mean, of (variance, degrees) of A, C and E; see `paired_difference`."""
    seeds, prompts, rest = (variance for variance, _ in parts)
    variance = max(seeds, rest) + max(prompts, rest) - rest
    spread = sum(part ** 2 / degrees for part, degrees in parts)
    return variance, variance ** 2 / spread if spread else parts[1][1]


def with_interval(mean: float, error: float, degrees: float, seed_sd: float | None) -> Estimate:
    """The estimate with Student's interval and p; of an error of 0 a point, that differs from 0 or does not."""
    from scipy import special
    if error < ROUNDING:
        return Estimate(difference=mean, error=0.0, degrees=degrees, interval=(mean, mean), seed_sd=seed_sd,
                        p=float(abs(mean) < ROUNDING))
    reach = float(special.stdtrit(degrees, 1 - ALPHA / 2)) * error
    return Estimate(difference=mean, error=error, degrees=degrees, interval=(mean - reach, mean + reach),
                    seed_sd=seed_sd, p=float(2 * special.stdtr(degrees, -abs(mean) / error)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values adjusted for their number: with the i-th smallest of m, max over j <= i of (m - j + 1) p_j, at most 1.

    None stays None and does not count. Source: Holm, 1979.
    """
    known = sorted((p, i) for i, p in enumerate(values) if p is not None)
    adjusted, highest = list(values), 0.0
    for place, (p, i) in enumerate(known):
        highest = max(highest, min((len(known) - place) * p, 1.0))
        adjusted[i] = highest
    return adjusted


def detectable(*, num_seeds: int, num_prompts: int, seed_sd: float, prompt_sd: float, rest_sd: float,
               comparisons: int = 1, power: float = POWER) -> float:
    """The smallest true difference that is told from 0 with probability `power`, given the components' deviations.

    The test is that of `paired_difference` with Holm's first step, ALPHA / comparisons, on prompts without clusters;
    with fewer than MIN_SEEDS seeds it is over the choice of prompts alone. By the noncentral t distribution.
    Raises: ValueError for fewer than two prompts.
    """
    from scipy import special
    if num_prompts < 2:
        raise ValueError(f"num_prompts is {num_prompts}: a difference needs two prompts or more")
    rest = rest_sd ** 2 / (num_seeds * num_prompts)
    variance, degrees = prompt_sd ** 2 / num_prompts + rest, num_prompts - 1.0
    if num_seeds >= MIN_SEEDS:
        seeds = seed_sd ** 2 / num_seeds + rest
        variance, degrees = crossed((seeds, num_seeds - 1), (variance, degrees),
                                    (rest, (num_seeds - 1) * degrees))
    critical = special.stdtrit(degrees, 1 - ALPHA / comparisons / 2)
    return float(special.nctdtrinc(degrees, 1 - power, critical)) * math.sqrt(variance)


def bootstrap(differences: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The percentile interval (LEVEL) of the mean of n paired differences, by resampling them with replacement.

    It knows neither seeds nor clusters: where there are several, its interval is too narrow.
    """
    rng, count = np.random.default_rng(seed), len(differences)
    means = np.concatenate([differences[rng.integers(0, count, (min(CHUNK, resamples - i), count))].mean(axis=1)
                            for i in range(0, resamples, CHUNK)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
