"""Which rollouts are unfit to learn from: a filter says why a rollout goes, or None. What goes is kept and counted.

`filter(rollout, earlier, *, ..) -> reason | None`; `earlier` holds the rollouts of the same group that were kept.
"""
from collections import defaultdict
from typing import Annotated, Literal

from pydantic import Field

from tasks.opd.core.entries import Entry
from tasks.opd.core.records import Quarantined, Rollout


def malformed(rollout: Rollout, earlier: list[Rollout], *, vocabulary: Annotated[int, Field(ge=0)] = 0) -> str | None:
    """Goes when nothing was written before the end, or an id is not below `vocabulary` (0: not asked)."""
    if is_empty(rollout):
        return "the completion is empty"
    outside = [t for t in rollout.token_ids if t < 0 or (vocabulary and t >= vocabulary)]
    return f"id {outside[0]} is not in the vocabulary" if outside else None


def is_empty(rollout: Rollout) -> bool:
    """Whether nothing was written before the end."""
    return len(rollout.token_ids) - (rollout.finish_reason == "stop") < 1


def too_long(rollout: Rollout, earlier: list[Rollout], *, tokens: Annotated[int, Field(ge=1)]) -> str | None:
    """Goes when the completion, EOS included, has more than `tokens` tokens."""
    length = len(rollout.token_ids)
    return f"{length} tokens are more than {tokens}" if length > tokens else None


def duplicate(rollout: Rollout, earlier: list[Rollout]) -> str | None:
    """Goes when an earlier rollout of its group has the same tokens; the first stays."""
    same = next((other.rollout_id for other in earlier if other.token_ids == rollout.token_ids), None)
    return f"the same tokens as {same}" if same is not None else None


def graded(rollout: Rollout, earlier: list[Rollout], *, minimum: float | None = None, maximum: float | None = None,
           keep: Literal["all", "succeeded", "failed"] = "all") -> str | None:
    """Goes when the reward is outside [minimum, maximum], or not what is kept (succeeded: at least 1), or not there."""
    reward = rollout.reward
    if reward is None:
        return "it has no reward"
    if minimum is not None and reward < minimum:
        return f"reward {reward:g} is below {minimum:g}"
    if maximum is not None and reward > maximum:
        return f"reward {reward:g} is above {maximum:g}"
    if keep != "all" and (reward >= 1) != (keep == "succeeded"):
        return f"reward {reward:g}, and only those that {keep} are kept"
    return None


FILTERS = {"malformed": Entry(malformed), "too_long": Entry(too_long), "duplicate": Entry(duplicate),
           "graded": Entry(graded)}


def apply_filters(rollouts: list[Rollout], slots: list[dict]) -> tuple[list[Rollout], list[Quarantined]]:
    """Kept and dropped rollouts, in order. The first filter to object gives its name as reason, its words as text."""
    kept, dropped = [], []
    groups: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        objection = first_objection(rollout, groups[rollout.group_id], slots)
        if objection:
            dropped.append(Quarantined(item_id=rollout.rollout_id, reason=objection[0], text=objection[1]))
        else:
            kept.append(rollout)
            groups[rollout.group_id].append(rollout)
    return kept, dropped


def first_objection(rollout: Rollout, earlier: list[Rollout], slots: list[dict]) -> tuple[str, str] | None:
    """Name and words of the first filter that objects."""
    for slot in slots:
        if words := FILTERS[slot["name"]](rollout, earlier, **slot["params"]):
            return slot["name"], words
    return None
