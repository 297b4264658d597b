"""Learning curves by round, and what a quantity is by position and round: the trust maps."""
import functools
import re
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tasks.opd.core import metrics
from tasks.opd.core.costs import READ, WRITTEN
from tasks.opd.core.records import STUDENT, TEACHER
from tasks.opd.evaluation.report.lineage import Lineage, Round, Stage

LOSS = re.compile(r"train/loss_nats$")
BY_POSITION = re.compile(r"(?:.*/)?position/(?P<quantity>.+)/(?P<bucket>\d+)$")
CURRENCIES = (WRITTEN[STUDENT], WRITTEN[TEACHER], READ)     # beside those that stand in a point by their names
GAP = re.compile(r"train/[^/]+/teacher_gap_mean_nats$")


class Point(NamedTuple):
    """A number after a round."""
    round: int                              # rounds finished
    tokens: int                             # trained up to there
    seconds: float                          # of making, up to there
    value: float
    student_wrote: int = 0                  # tokens, up to there, as the next two
    teacher_wrote: int = 0
    teacher_read: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Map:
    """One quantity by round and position."""
    quantity: str
    rounds: list[int]                       # from 1
    buckets: list[int]                      # first position of each
    values: list[list[float | None]]        # mean over the round, a row a round; None: no token was there


def curves_of(run: Lineage, benchmark: str) -> dict[str, list[Point]]:
    """Mean reward and reverse KL on a benchmark, and loss and teacher gap in training; what was not measured is left
    out. Reward and divergence have a point at the start."""
    spent = {0: (0, 0.0, [0] * len(CURRENCIES))} | {
        one.index + 1: (one.trained_tokens, round(one.seconds, 2), [one.spent.get(name, 0) for name in CURRENCIES])
        for one in run.rounds}
    curves = {"reward": [(one.step, one.report.record["counts"]["avg"]) for one in run.on(benchmark)],
              "reverse KL": [(one.step, value) for one in run.on(benchmark)
                             if (value := one.reverse_kl()) is not None],
              "loss": [(one.index + 1, value) for one in run.rounds
                       if (value := mean_of(one, LOSS)) is not None],
              "teacher gap": [(one.index + 1, value) for one in run.rounds
                              if (value := mean_of(one, GAP)) is not None]}
    return {name: [Point(step, *spent[step][:2], rounded(value), *spent[step][2])
                   for step, value in points if step in spent] for name, points in curves.items() if points}


def mean_of(one: Round, pattern: re.Pattern) -> float | None:
    """The mean over a round's training of the metrics with such a key; None where there are none."""
    values = [value for key, some in logged(one.checkpoint).items() if pattern.match(key) for value in some]
    return statistics.fmean(values) if values else None


def logged(stage: Stage) -> dict[str, list[float]]:
    """What figures show of a stage's metrics, see `values_of`."""
    file = stage.record["files"].get(metrics.FILE)
    return values_of(stage.path / metrics.FILE, file["sha256"]) if file else {}


@functools.lru_cache(maxsize=16_384)
def values_of(file: Path, sha256: str) -> dict[str, list[float]]:
    """The values by key that figures show of a file of metrics with this hash: a suite's page is made after every cell.
    """
    found = defaultdict(list)
    for point in metrics.read(file):
        if any(pattern.match(point["key"]) for pattern in (LOSS, GAP, BY_POSITION)):
            found[sys.intern(point["key"])].append(point["value"])
    return dict(found)


def maps_of(run: Lineage) -> list[Map]:
    """Every quantity that the rounds logged by position, as `position/<quantity>/<first position>`."""
    found = defaultdict(lambda: defaultdict(list))
    shown = ((one, key, values) for one in run.rounds for stage in one.stages for key, values in logged(stage).items())
    for one, key, values in shown:
        if match := BY_POSITION.match(key):
            found[match["quantity"]][one.index + 1, int(match["bucket"])] += values
    return [map_of(quantity, cells) for quantity, cells in sorted(found.items())]


def map_of(quantity: str, cells: dict[tuple[int, int], list[float]]) -> Map:
    """A quantity's values by (round, bucket) as rows."""
    rounds, buckets = ([*dict.fromkeys(sorted(place[axis] for place in cells))] for axis in (0, 1))
    return Map(quantity=quantity.replace("_", " "), rounds=rounds, buckets=buckets,
               values=[[rounded(statistics.fmean(cells[one, bucket])) if (one, bucket) in cells else None
                        for bucket in buckets] for one in rounds])


def thinned(items: list, most: int) -> list:
    """At most `most` items, evenly spaced, the first and the last among them."""
    if len(items) <= max(most, 2):
        return items
    return [items[round(i * (len(items) - 1) / (max(most, 2) - 1))] for i in range(max(most, 2))]


def thin_map(one: Map, most: int) -> Map:
    """A map of at most `most` rounds."""
    kept = thinned([*zip(one.rounds, one.values)], most)
    return replace(one, rounds=[number for number, _ in kept], values=[values for _, values in kept])


def rounded(value: float) -> float:
    """To four significant digits: what a figure can show."""
    return float(f"{value:.4g}")
