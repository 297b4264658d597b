"""What moves a setting after each round: `controller(value, history, *, ..) -> value`. Plain data; no torch.

`value` is what the setting was in the last finished round, `history` the records of all finished rounds
(`tasks.history.round_record`), the first first. A controller keeps no state: what it needs to know of earlier decisions
it reads off the records, so that a resumed run decides as the first one did. Its result is cut to the bounds that the
recipe declares, see `schedule.decided`.
"""
import difflib
from typing import Annotated

from pydantic import Field

from tasks.opd.core.entries import Entry
from tasks.opd.core.errors import RecipeError

Record = dict


def metric_of(record: Record, metric: str) -> float:
    """A metric's mean over a finished round. Raises RecipeError when the round has no such metric."""
    known = record["metrics"]
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=5, cutoff=0.4)
        raise RecipeError(f"controllers: metric {metric!r} is not among the {len(known)} of round {record['round']}; "
                          f"{'near: ' + ', '.join(near) if near else 'known: ' + ', '.join(sorted(known))}")
    return known[metric]


def measured(history: list[Record], metric: str) -> list[float]:
    """A metric's means over the finished rounds that have it: one whose term learnt from nothing reports nothing.

    Raises: RecipeError when no round has it.
    """
    return [record["metrics"][metric] for record in history if metric in record["metrics"]] \
        or [metric_of(history[-1], metric)]


def proportional(value: float, history: list[Record], *, metric: str, target: Annotated[float, Field(gt=0)],
                 gain: float = 0.1, limit: Annotated[float, Field(gt=0)] = 0.2) -> float:
    """value * (1 + gain * error), with error = (metric - target) / target cut to +-limit.

    With a KL as metric and its coefficient as the setting this is the adaptive KL penalty: above the target the
    coefficient grows. A negative gain lowers the setting where the metric is above the target: the sampling
    temperature, for an entropy. A whole number moves only by steps of one half and more.
    Source: Ziegler et al., arXiv:1909.08593, section 2.2 (gain 0.1, limit 0.2).
    """
    error = (measured(history, metric)[-1] - target) / target
    return value * (1 + gain * min(max(error, -limit), limit))


def stepwise(value: float, history: list[Record], *, metric: str, above: float, step: Annotated[float, Field(gt=0)],
             patience: Annotated[int, Field(ge=1)] = 3) -> float:
    """value + step when the metric is at least `above`; value - step after every `patience` rounds in a row below it.

    With the share of truncated completions as metric and the completion limit as the setting this is a budget that
    grows while answers do not fit and shrinks when they do.
    Source: Prune-OPD, arXiv:2605.07804 (above 0.1, step 100, patience 3, from 1024 to 12288 tokens).
    """
    below = 0
    for known in reversed(measured(history, metric)):
        if known >= above:
            break
        below += 1
    return value + step if below == 0 else value - step if below % patience == 0 else value


def multiple(value: float, history: list[Record], *, metric: str,
             factor: Annotated[float, Field(gt=0)] = 1.25) -> float:
    """factor * metric: a budget that follows what was of use in the last round.

    Source: ShortOPD, arXiv:2607.13124, with the length that nine tenths of the rollouts need; 1.25 is reconstructed.
    """
    return factor * measured(history, metric)[-1]


CONTROLLERS = {"multiple": Entry(multiple),
               "proportional": Entry(proportional), "stepwise": Entry(stepwise)}
