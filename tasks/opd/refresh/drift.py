"""How far what comes in is from what was learnt: prompts, teacher, the champion's age and score. Plain numbers.

A measure is held against a limit, and against its own values of the last refreshes by a z-score.
"""
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.opd.recipe.refreshes import Drift
from tasks.opd.refresh.rows import Row

BINS = 10                               # of the population stability index
LEAST_COMPARED = 100                    # prompts on either side, below which chance alone looks like drift
LEAST_HISTORY = 3                       # values below which there is no z-score
ALARM, REFRESH = "alarm", "refresh"     # what drift of a measure leads to


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One number that may have drifted."""
    name: str
    value: float | None                 # None: there was nothing to compare with
    limit: float
    z: float | None                     # None: fewer than LEAST_HISTORY earlier values, or all of them alike
    drifted: bool
    leads_to: str                       # ALARM: look at it before anything is trained; REFRESH: a reason to train


def population_stability_index(expected: Sequence[float], actual: Sequence[float], bins: int = BINS) -> float:
    """sum (a - e) ln(a / e) over the shares of values in bins whose edges are quantiles of `expected`.

    Equal quantiles make one bin; a bin that one side leaves empty counts half a value there. Customary: below 0.1 no
    shift, above 0.25 one. Without any it is about (bins - 1) (1 / n + 1 / m) for n and m values: 0.18 for 100 each.
    """
    cuts = statistics.quantiles(expected, n=bins, method="inclusive") if len(expected) > 1 else list(expected)
    edges = sorted(set(cuts))
    e, a = (Counter(sum(value > edge for edge in edges) for value in values) for values in (expected, actual))
    shares = [(max(e[i], 0.5) / len(expected), max(a[i], 0.5) / len(actual)) for i in e.keys() | a.keys()]
    return sum((y - x) * math.log(y / x) for x, y in shares)


def jensen_shannon(p: Counter, q: Counter) -> float:
    """Jensen-Shannon divergence of two counts' shares, nats: 0 for equal ones, ln 2 where none is shared.

    KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2.
    """
    total_p, total_q, result = p.total(), q.total(), 0.0
    for word in p.keys() | q.keys():
        x, y = p[word] / total_p, q[word] / total_q
        middle = (x + y) / 2
        result += sum(share / 2 * math.log(share / middle) for share in (x, y) if share)
    return result


def z_score(value: float, history: Sequence[float]) -> float | None:
    """(value - mean) / standard deviation (ddof 1) of earlier values; None for fewer than three, or for equal ones."""
    if len(history) < LEAST_HISTORY or (spread := statistics.stdev(history)) == 0:
        return None
    return (value - statistics.fmean(history)) / spread


def words(rows: Iterable[Row]) -> Counter:
    """How often each word stands in the prompts; numbers count as one word."""
    return Counter("0" if word.isdigit() else word for row in rows for word in row.text.lower().split())


def prompt_measures(old: Sequence[Row], new: Sequence[Row], history: Sequence[dict], limits: Drift) -> list[Measure]:
    """How far new prompts are from those learnt; no value where either are fewer than LEAST_COMPARED."""
    length = words_js = None
    if min(len(old), len(new)) >= LEAST_COMPARED:
        length = population_stability_index([len(r.text) for r in old], [len(r.text) for r in new])
        words_js = jensen_shannon(words(old), words(new))
    return [judged("length_psi", length, limits.length_psi, history, limits, ALARM),
            judged("words_js", words_js, limits.words_js, history, limits, ALARM)]


def champion_measures(*, teacher_changed: bool | None, age_days: float | None, score: float | None,
                      history: Sequence[dict], limits: Drift) -> list[Measure]:
    """Whether the teacher is another than the champion's, how old the champion is, how far its score fell."""
    best = max((values["score"] for values in history if values.get("score") is not None), default=None)
    fell = None if score is None or best is None else best - score
    changed = None if teacher_changed is None else float(teacher_changed)
    return [Measure(name="teacher_changed", value=changed, limit=0.0, z=None, drifted=bool(changed), leads_to=REFRESH),
            Measure(name="age_days", value=age_days, limit=limits.age_days, z=None, leads_to=REFRESH,
                    drifted=bool(limits.age_days) and (age_days or 0) > limits.age_days),
            judged("score_drop", fell, limits.score_drop, history, limits, REFRESH)]


def judged(name: str, value: float | None, limit: float, history: Sequence[dict], limits: Drift,
           leads_to: str) -> Measure:
    """A measure that drifts upwards: above its limit, or by z-score above the last `over` refreshes."""
    earlier = [values[name] for values in history if values.get(name) is not None][-limits.over:]
    z = None if value is None else z_score(value, earlier)
    drifted = value is not None and (value > limit or z is not None and z > limits.z and value > limit / 2)
    return Measure(name=name, value=value, limit=limit, z=z, drifted=drifted, leads_to=leads_to)
