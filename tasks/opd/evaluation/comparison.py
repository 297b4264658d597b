"""The product: variants against a baseline, paired over prompts and seeds, with intervals that say what they cover.

Each cell (variant, seed) is a mean reward a prompt. A variant's difference to the baseline is taken prompt by prompt
and seed by seed; its interval covers the choice of both where there are three seeds or more, else that of the prompts
alone (see `statistics`). Verdicts are adjusted for the number of comparisons: of several it is not p but its bound that
is adjusted, since p is an approximation that fails at small levels where seeds are few. The difference to a variant's
placebo is made the same way. A cell that failed stays a failed cell. `comparison_tables` prints it. No torch.
"""
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from tasks.opd.core.costs import TRAINED
from tasks.opd.evaluation import cell_costs
from tasks.opd.evaluation.cell_costs import Costs, mean_of
from tasks.opd.evaluation.seed_pools import SeedPool, seed_pool
from tasks.opd.evaluation.statistics import ALPHA, Estimate, Interval, holm, paired_difference
from tasks.opd.evaluation.tuned import Tuned

EQUAL = 0.01                      # what cells spent is called equal when no two cells differ by more, of the largest
START = "start"                   # the untrained student: one cell, the same for every seed
VERDICTS = ("worse", "not distinguishable", "better")
BEATEN = ("not above its placebo", "above its placebo")
NOTHING = Estimate(difference=None, error=None, degrees=0.0, interval=None, p=None, p_bound=None,
                   seed_sd=None)

Rewards = dict[str, float]                      # prompt_id -> mean reward over its samples
Cells = dict[int, np.ndarray]                   # seed -> mean rewards, prompts in one order


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One variant."""
    variant: str
    mean: float | None                          # mean reward over prompts and the seeds that finished
    by_seed: dict[int, float | None]            # mean reward of each seed; None: failed
    seed_sd: float | None                       # standard deviation of these means; None: fewer than two
    reverse_kl: float | None                    # to the teacher, nats a token of the answers, mean over seeds
    difference: float | None                    # mean paired difference to the baseline
    interval: Interval | None                   # of the difference; None: not to be had
    seeds_covered: bool                         # whether the interval covers the choice of seeds too
    p: float | None                             # of no difference, that of the interval
    p_bound: float | None                       # at least its true value, however small
    p_adjusted: float | None                    # p; of several comparisons with the baseline, p_bound by Holm's method
    difference_seed_sd: float | None            # between seeds, what prompts add taken out; None: not estimable
    difference_by_seed: dict[int, float]        # of the seeds that both sides finished
    verdict: str                                # better, worse, not distinguishable, baseline, failed, no baseline
    placebo: str                                # the variant this one must beat; empty: none
    placebo_difference: float | None            # mean paired difference to the placebo; None: not to be had
    placebo_interval: Interval | None
    placebo_p: float | None
    placebo_p_bound: float | None
    placebo_p_adjusted: float | None            # as p_adjusted, over the comparisons with placebos
    placebo_difference_by_seed: dict[int, float]
    placebo_verdict: str                        # one of BEATEN; empty: not compared
    costs: Costs                                # means over the seeds that finished
    spent_by_seed: dict[int, float]             # of the comparison's currency, where known
    errors: dict[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class PassAt:
    """One variant at one k."""
    k: int
    mean: float | None                          # pass@k over prompts and the seeds that finished
    difference: float | None                    # to the baseline's
    interval: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Variants compared with a baseline."""
    baseline: str
    num_prompts: int
    num_clusters: int                           # of prompts; as many as prompts where none are kin
    seeds: list[int]
    currency: str                               # in which cells are said to have spent alike: that of their budget
    spent_difference: float | None              # (largest - smallest) / largest of it over cells; None: < 2
    spent_equal: bool | None                    # whether that is at most EQUAL
    rows: list[Row]
    seed_pool: SeedPool | None = None           # the variance between seeds that all variants share; None: each its own
    tuning: dict[str, Tuned] = field(default_factory=dict)  # by variant; empty: the suite does not tune
    pass_at: dict[str, list[PassAt]] = field(default_factory=dict)  # by variant, over k; empty: no k above 1

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)


def compare(cells: dict[tuple[str, int], Rewards | str], baseline: str, *,
            spent: dict[tuple[str, int], Costs] | None = None,
            divergences: dict[tuple[str, int], float] | None = None, placebos: dict[str, str] | None = None,
            clusters: dict[str, str] | None = None, currency: str = TRAINED, pooled: bool = False) -> Comparison:
    """Compare every variant with `baseline`. A cell is {prompt_id: mean reward}, or the text of its error.

    `spent` has the costs of cells, `divergences` their mean reverse KL to the teacher in nats a token, `placebos` the
    variant that a variant must beat, `clusters` what a prompt has in common with others; all may be incomplete.
    `currency` is a name of costs, or seconds; `pooled`: the variance between seeds is all variants' (`seed_pools`).
    `start` has one cell of any seed, which stands for every seed. A difference uses the seeds that both sides finished.
    Raises: ValueError when the baseline has no cell, or when cells were asked different prompts.
    """
    variants = list(dict.fromkeys(variant for variant, _ in cells))
    if baseline not in variants:
        raise ValueError(f"the baseline is {baseline!r}, but there are only {variants}")
    finished = {key: cell for key, cell in cells.items() if not isinstance(cell, str)}
    prompts = sorted(next(iter(finished.values()), {}))
    for key, cell in finished.items():
        if sorted(cell) != prompts:
            raise ValueError(f"{key} was asked other prompts ({len(cell)}) than {next(iter(finished))} "
                             f"({len(prompts)}); compare on one benchmark")
    kin = [(clusters or {}).get(prompt, prompt) for prompt in prompts]
    rewards = {key: np.array([cell[p] for p in prompts]) for key, cell in finished.items()}
    errors = {key: cell for key, cell in cells.items() if isinstance(cell, str)}
    grouped = {variant: seeds_of(variant, rewards) for variant in variants}
    pool = seed_pool([means_of(cell) for variant, cell in grouped.items() if variant != START]) if pooled else None
    rows = judged([row_of(variant, baseline, (placebos or {}).get(variant, ""), grouped, seeds_of(variant, errors),
                          seeds_of(variant, spent or {}), [*seeds_of(variant, divergences or {}).values()], kin,
                          currency, pool)
                   for variant in variants])
    amounts = [amount for row in rows for amount in row.spent_by_seed.values()]
    apart = (max(amounts) - min(amounts)) / (max(amounts) or 1) if len(amounts) > 1 else None
    seeds = sorted({s for variant, s in cells if variant != START} or {s for _, s in cells})
    return Comparison(baseline=baseline, num_prompts=len(prompts), num_clusters=len(set(kin)), seeds=seeds, rows=rows,
                      currency=currency, spent_difference=apart, spent_equal=None if apart is None else apart <= EQUAL,
                      seed_pool=pool)


def seeds_of(variant: str, values: dict[tuple[str, int], Any]) -> dict[int, Any]:
    """By seed what is given by (variant, seed)."""
    return {s: value for (name, s), value in values.items() if name == variant}


def row_of(variant: str, baseline: str, placebo: str, rewards: dict[str, Cells], errors: dict[int, str],
           spent: dict[int, Costs], divergences: list[float], clusters: list[str], currency: str,
           pool: SeedPool | None) -> Row:
    """One variant against the baseline and its placebo, without verdicts; `rewards` are all variants'."""
    own = means_of(rewards[variant])
    means = [*own.values()]
    found, by_seed = paired(variant, baseline, rewards, clusters, pool)
    control, control_by_seed = paired(variant, placebo, rewards, clusters, pool)
    return Row(variant=variant, mean=float(np.mean(means)) if own else None,
               by_seed=own | dict.fromkeys(errors), seed_sd=float(np.std(means, ddof=1)) if means[1:] else None,
               reverse_kl=float(np.mean(divergences)) if divergences else None,
               difference=found.difference, interval=found.interval, seeds_covered=found.seed_sd is not None,
               p=found.p, p_bound=found.p_bound, p_adjusted=None, difference_seed_sd=found.seed_sd,
               difference_by_seed=by_seed,
               verdict="baseline" if variant == baseline and own else "failed" if not own else "no baseline",
               placebo=placebo, placebo_difference=control.difference, placebo_interval=control.interval,
               placebo_p=control.p, placebo_p_bound=control.p_bound, placebo_p_adjusted=None,
               placebo_difference_by_seed=control_by_seed,
               placebo_verdict="", costs=mean_of(list(spent.values())), errors=errors,
               spent_by_seed={s: amount for s, c in sorted(spent.items())
                              if (amount := cell_costs.amount_of(c, currency)) is not None})


def means_of(cells: Cells) -> dict[int, float]:
    """The mean over prompts of each seed."""
    return {seed: float(values.mean()) for seed, values in sorted(cells.items())}


def paired(variant: str, other: str, rewards: dict[str, Cells], clusters: list[str], pool: SeedPool | None
           ) -> tuple[Estimate, dict[int, float]]:
    """The paired difference of a variant to another, and its mean by seed; NOTHING where no seed has both."""
    own, against = rewards[variant], rewards.get(other, {})
    left, right = spread(own, variant, against), spread(against, other, own)
    found = {s: left[s] - right[s] for s in sorted(left) if s in right and variant != other}
    if not found:
        return NOTHING, {}
    known = pool and pool.of_difference(2 - (START in (variant, other)))
    return paired_difference(np.array([*found.values()]), clusters, known), means_of(found)


def spread(cells: Cells, name: str, other: Cells) -> Cells:
    """The cells by seed; the one of `start` stands for every seed of the other side."""
    return dict.fromkeys(other, next(iter(cells.values()))) if name == START and cells else cells


def judged(rows: list[Row]) -> list[Row]:
    """The rows with their verdicts: p values adjusted over all comparisons with the baseline, and all with placebos."""
    against = adjusted([row.p for row in rows], [row.p_bound for row in rows])
    controls = adjusted([row.placebo_p for row in rows], [row.placebo_p_bound for row in rows])
    return [replace(row, p_adjusted=p, placebo_p_adjusted=control, verdict=verdict_of(row, p),
                    placebo_verdict="" if row.placebo_difference is None else
                    BEATEN[int(is_told(control) and row.placebo_difference > 0)])
            for row, p, control in zip(rows, against, controls)]


def adjusted(single: list[float | None], bounds: list[float | None]) -> list[float | None]:
    """A single comparison's p as it is; of several their bounds by Holm's method."""
    return single if sum(p is not None for p in single) < 2 else holm(bounds)


def verdict_of(row: Row, p: float | None) -> str:
    """One of VERDICTS where there is a difference; else the one the row has."""
    if row.difference is None:
        return row.verdict
    return VERDICTS[1 + is_told(p) * (1 if row.difference > 0 else -1)]


def is_told(p: float | None) -> bool:
    """Whether an adjusted p tells a difference from none."""
    return p is not None and p < ALPHA
