"""What a mean paired difference is worth: its interval over seeds and prompts, many comparisons, what can be detected.

The model of a difference, of seed s on prompt p: d[s, p] = mu + a_s + b_p + e_sp, all of them random, where b and e may
be alike within a cluster of prompts (those made from one template). Variance components by the method of moments
(Henderson, 1953), degrees of freedom by Satterthwaite (1946). scipy gives the quantiles. No torch.

At 0.05 / m, the level of one among m comparisons, Satterthwaite's approximation fails with few seeds: a variance
between three of them is often estimated near 0, which then also gives many degrees of freedom (simulated: 3 to 23 times
as many false positives as allowed). What is adjusted for m is therefore Banerjee's (1960) bound of p, see `p_bound_of`.

Left out: a likelihood (REML) fit, which differs little from the moments in balanced layouts and needs an optimizer.
"""
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
ALPHA = 0.05                      # 1 - LEVEL
POWER = 0.8
MIN_SEEDS = 3                     # of fewer the variance between seeds is not estimated
ROUNDING = 1e-12                  # a standard error, or a difference, below this is 0
LEAST_P = 1e-100                  # of smaller ones the quantiles lose their digits
QUANTILES = 200                   # of each variance's distribution, over which the power is averaged
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
    p: float | None               # two-sided, of no difference, by Satterthwaite: that of the interval
    p_bound: float | None         # at least p's true value at every level: what is adjusted for many comparisons
    seed_sd: float | None         # between seeds, what prompts add to their means taken out; None: not estimable


def paired_difference(differences: np.ndarray, clusters: Sequence[Hashable] | None = None,
                      pooled: tuple[float, float] | None = None) -> Estimate:
    """The mean of differences [S seeds, P prompts], over the choice of both; `clusters` [P] says which prompts are kin.

    With A = var(seeds' means) / S, C the variance of the mean over the choice of prompts, E what both of them hold of
    e_sp: Var(mean) = max(A, E) + max(C, E) - E, and its degrees of freedom are
    Var^2 / (A^2 / (S - 1) + C^2 / df_C + E^2 / df_E). With fewer than MIN_SEEDS seeds it is C, over the choice of
    prompts alone. Where prompts of a cluster are no more alike than others, the interval is somewhat too wide.
    `pooled` is a variance between seeds known from more than these, with its degrees of freedom (see `seed_pools`): it
    takes the place of var(seeds' means) and of S - 1, and two seeds are enough then.
    In simulations the interval covers the truth in 92 to 97 %, least with three seeds that lie far apart.
    """
    num_seeds, num_prompts = differences.shape
    clusters = range(num_prompts) if clusters is None else clusters
    members = np.unique([str(cluster) for cluster in clusters], return_inverse=True)[1]
    by_seed, by_prompt = differences.mean(axis=1), differences.mean(axis=0)
    mean, seed_sd = float(by_seed.mean()), None
    if members.max() == 0:
        return Estimate(difference=mean, error=None, degrees=0.0, interval=None, p=None, p_bound=None, seed_sd=None)
    parts = [of_mean(by_prompt[None], members, rows=1)]
    variance, degrees = parts[0]
    if num_seeds >= MIN_SEEDS or pooled and num_seeds > 1:
        spread, seed_degrees = pooled or (float(by_seed.var(ddof=1)), num_seeds - 1.0)
        between = spread / num_seeds
        residuals = differences - by_seed[:, None] - by_prompt + mean
        rest, rest_degrees = of_mean(residuals, members, rows=num_seeds - 1)
        rest /= num_seeds
        seed_sd = math.sqrt(max(between - rest, 0) * num_seeds)
        parts.append((between, seed_degrees))
        variance, degrees = crossed(parts[1], parts[0], (rest, rest_degrees))
    return with_interval(mean, math.sqrt(variance), degrees, seed_sd, p_bound_of(mean, parts))


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


def reach_of(level: float, parts: Sequence[tuple[Any, float]]) -> Any:
    """How far from 0 a mean must lie to be told from it at `level`: sqrt(sum v t(degrees, 1 - level / 2)^2).

    `parts` are (variance v, degrees of freedom) of estimates whose expectations add up to Var(mean) or more; v may be
    arrays. With w the shares of Var(mean), z standard normal and x_i = chi-squared / degrees, the test keeps its level
    since P(z^2 <= sum w t^2 x) >= sum w P(z^2 <= t^2 x) = 1 - level: the distribution function of z^2 is concave.
    Source: Banerjee, Sankhya 22, 1960.
    """
    from scipy import special
    return np.sqrt(sum(variance * special.stdtrit(degrees, 1 - level / 2) ** 2 for variance, degrees in parts))


def p_bound_of(mean: float, parts: Sequence[tuple[float, float]]) -> float:
    """The level at which `mean` is just told from 0 by `reach_of`; of a single part Student's p.

    It lies between Student's p with the most and with the fewest degrees of freedom. Never below LEAST_P.
    """
    from scipy import optimize, special
    error = math.sqrt(sum(variance for variance, _ in parts))
    if error < ROUNDING or abs(mean) < ROUNDING:
        return float(abs(mean) < ROUNDING)
    low, high = (max(2 * float(special.stdtr(which(degrees for _, degrees in parts), -abs(mean) / error)), LEAST_P)
                 for which in (max, min))
    if high <= low:
        return high

    def beyond(log_level: float) -> float:
        return float(reach_of(math.exp(log_level), parts)) - abs(mean)
    low, high = math.log(low) - 1e-6, min(math.log(high) + 1e-6, 0.0)
    return math.exp(optimize.brentq(beyond, low, high)) if beyond(low) > 0 > beyond(high) else math.exp(high)


def with_interval(mean: float, error: float, degrees: float, seed_sd: float | None, p_bound: float) -> Estimate:
    """The estimate with Student's interval and p; of an error of 0 a point, that differs from 0 or does not."""
    from scipy import special
    if error < ROUNDING:
        return Estimate(difference=mean, error=0.0, degrees=degrees, interval=(mean, mean), seed_sd=seed_sd,
                        p=float(abs(mean) < ROUNDING), p_bound=float(abs(mean) < ROUNDING))
    reach = float(special.stdtrit(degrees, 1 - ALPHA / 2)) * error
    return Estimate(difference=mean, error=error, degrees=degrees, interval=(mean - reach, mean + reach),
                    seed_sd=seed_sd, p=float(2 * special.stdtr(degrees, -abs(mean) / error)), p_bound=p_bound)


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
               comparisons: int = 1, power: float = POWER, seed_degrees: float | None = None) -> float:
    """The smallest true difference that is told from 0 with probability `power`, given the components' deviations.

    `seed_degrees` are those of a variance between seeds that is pooled over variants; None: each has its own.

    The test is that of `paired_difference` on prompts without clusters: of several comparisons `p_bound` at Holm's
    first step, ALPHA / comparisons, of one `p`, by the noncentral t distribution; with fewer than MIN_SEEDS seeds it is
    over the choice of prompts alone.
    Raises: ValueError for fewer than two prompts.
    """
    from scipy import special
    if num_prompts < 2:
        raise ValueError(f"num_prompts is {num_prompts}: a difference needs two prompts or more")
    rest = rest_sd ** 2 / (num_seeds * num_prompts)
    variance, degrees = prompt_sd ** 2 / num_prompts + rest, num_prompts - 1.0
    if num_seeds >= MIN_SEEDS or seed_degrees and num_seeds > 1:
        seeds, seed_degrees = seed_sd ** 2 / num_seeds + rest, seed_degrees or num_seeds - 1.0
        if comparisons > 1:
            return told_by_bound((seeds, seed_degrees), (variance, degrees), seeds + variance - rest,
                                 level=ALPHA / comparisons, power=power)
        variance, degrees = crossed((seeds, seed_degrees), (variance, degrees),
                                    (rest, (num_seeds - 1) * degrees))
    critical = special.stdtrit(degrees, 1 - ALPHA / comparisons / 2)
    return float(special.nctdtrinc(degrees, 1 - power, critical)) * math.sqrt(variance)


def told_by_bound(seeds: tuple[float, float], prompts: tuple[float, float], variance: float, *, level: float,
                  power: float) -> float:
    """The true difference at which a mean of `variance` lies beyond `reach_of` with probability `power`.

    `seeds` and `prompts` are expected variances with their degrees of freedom; their estimates, independent and
    chi-squared over the degrees, are averaged over QUANTILES of each.
    """
    from scipy import optimize, special
    if variance < ROUNDING ** 2:
        return 0.0
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    drawn = [expected * special.chdtri(degrees, shares) / degrees for expected, degrees in (seeds, prompts)]
    reach = reach_of(level, [(drawn[0][:, None], seeds[1]), (drawn[1], prompts[1])])
    error = math.sqrt(variance)
    return optimize.brentq(lambda true: special.ndtr((true - reach) / error).mean() - power, 0, reach.max() + 9 * error)


def bootstrap(differences: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The percentile interval (LEVEL) of the mean of n paired differences, by resampling them with replacement.

    It knows neither seeds nor clusters: where there are several, its interval is too narrow.
    """
    rng, count = np.random.default_rng(seed), len(differences)
    means = np.concatenate([differences[rng.integers(0, count, (min(CHUNK, resamples - i), count))].mean(axis=1)
                            for i in range(0, resamples, CHUNK)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
