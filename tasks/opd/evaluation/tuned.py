"""What tuning found and what it cost: a variant's trials, the setting chosen, a table of both. No torch."""
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tasks.opd.core.costs import TRAINED
from tasks.opd.evaluation.cell_costs import Costs, number

NOTE = ("Tuned: every variant by as many trials with one seed of their own, each judged by its mean on validation "
        "questions that are neither trained on nor graded; the best setting (the first of equals) was then run on the "
        "suite's seeds. What trials cost is in no other table. *: at an end of the values tried, which may lie beyond.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """One trial."""
    settings: dict[str, Any]            # dotted key -> value
    mean: float | None                  # mean reward on the validation questions; None: failed
    costs: Costs | None
    error: str                          # why it failed; empty: it did not


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """One variant's trials and the choice among them."""
    chosen: dict[str, Any] | None       # the settings of the best trial; None: all failed
    mean: float | None                  # its mean reward on the validation questions
    trials: list[Tried]
    costs: Costs                        # sums over the trials that finished


def tuned_by(trials: list[Tried]) -> Tuned:
    """The best trial by its mean, the first of equals, and what all of them cost together."""
    finished = [trial for trial in trials if trial.mean is not None]
    best = max(finished, key=lambda trial: trial.mean, default=None)
    fields = {field: Counter() for field in Costs.__dataclass_fields__}
    for trial in finished:
        for field, total in fields.items():
            total.update(getattr(trial.costs, field))
    return Tuned(chosen=best.settings if best else None, mean=best.mean if best else None, trials=trials,
                 costs=Costs(**{field: dict(total) for field, total in fields.items()}))


def tuning_table(tuned: dict[str, Tuned]) -> list[list[str]]:
    """Header and lines, as text: chosen values, validation mean, trials, and what they cost; empty without tuning."""
    if not tuned:
        return []
    keys = list(next(iter(tuned.values())).trials[0].settings)
    lines = []
    for variant, one in tuned.items():
        done = sum(trial.mean is not None for trial in one.trials)
        lines.append([variant, *(shown(one, key) for key in keys),
                      "failed" if one.mean is None else f"{100 * one.mean:.1f}", f"{done} of {len(one.trials)}",
                      number(one.costs.tokens.get(TRAINED), 1000), number(sum(one.costs.seconds.values()))])
    return [["tuned", *keys, "validation", "trials", "1,000 trained", "seconds"], *lines]


def shown(one: Tuned, key: str) -> str:
    """The value chosen, marked where it is the least or the greatest of several numbers tried."""
    if one.chosen is None:
        return "-"
    value, tried = one.chosen[key], {repr(trial.settings[key]): trial.settings[key] for trial in one.trials}.values()
    numbers = all(isinstance(other, int | float) and not isinstance(other, bool) for other in tried)
    return f"{value}{'*' if numbers and len(tried) > 1 and value in (min(tried), max(tried)) else ''}"


def failures(tuned: dict[str, Tuned]) -> list[str]:
    """One line a trial that failed."""
    return [f"{variant}, trial {trial.settings}: failed: {(trial.error.strip().splitlines() or ['no message'])[-1]}"
            for variant, one in tuned.items() for trial in one.trials if trial.error]
