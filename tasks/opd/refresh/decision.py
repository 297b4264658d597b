"""Skip, refresh or alarm, and why."""
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.opd.refresh.drift import ALARM, REFRESH, Measure

SKIP = "skip"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a tick does."""
    action: str                         # SKIP, REFRESH or ALARM
    reason: str


def decide(num_new: int, at_least: int, measures: Sequence[Measure], *, num_old: int, accept_drift: bool) -> Decision:
    """What to do about `num_new` new rows and drift; `num_old` rows were learnt or wait from an earlier tick.

    An alarm comes before all else, and trains nothing until somebody accepts the drift.
    """
    drifted = [measure for measure in measures if measure.drifted]
    alarming = [measure for measure in drifted if measure.leads_to == ALARM]
    if alarming and not accept_drift:
        return Decision(action=ALARM, reason=f"{described(alarming)}; look at the new prompts, then accept the drift")
    reasons = [measure for measure in drifted if measure.leads_to == REFRESH]
    if num_new >= at_least:
        why = f"{num_new} new prompts"
        return Decision(action=REFRESH, reason="; ".join([why, *([described(drifted)] if drifted else [])]))
    if reasons and num_new + num_old:
        return Decision(action=REFRESH, reason=f"{described(reasons)}; {num_new} new prompts")
    if num_new:
        return Decision(action=SKIP, reason=f"{num_new} new prompts, {at_least} are wanted: they wait")
    return Decision(action=SKIP, reason="nothing new")


def described(measures: Sequence[Measure]) -> str:
    """Measures on a line: `words_js 0.412, at most 0.2 (z 5.1)`."""
    def one(measure: Measure) -> str:
        z = "" if measure.z is None else f" (z {measure.z:.1f})"
        return f"{measure.name} {measure.value:.3g}, at most {measure.limit:g}{z}"
    return ", ".join(map(one, measures))
