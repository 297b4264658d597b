"""What changes as a run goes: patches that hold from some point on, then what controllers decide. No torch.

Everything is plain data, a recipe as `model_dump(mode="json")` gives it, so that the schema can build on it. A record
of a finished round (`tasks.history.round_record`) holds `round`, `set` (what controllers had set in it, by dotted key),
`counts` (of its checkpoint), `metrics` (means over the round, by name), `spent` (by the run up to its end, by currency)
and `cut` (whether its rollouts were cut to fit into the budget).
"""
import copy
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tasks.opd.recipe.controllers import CONTROLLERS


def resolved(data: dict, round_index: int, history: Sequence[dict]) -> dict:
    """A recipe as it is in a round: with the patches that have begun, in their order, then the controllers' values.

    Changes and returns `data`.
    Raises: ValueError when controllers or a budget need the records of the rounds before and some are missing.
    """
    budget, controllers = data["budget"], data["controllers"]
    by_share = any(patch["at"] is not None for patch in data["schedule"])
    if (controllers or granted(budget) and by_share) and len(history) < round_index:
        raise ValueError(f"round {round_index} depends on the rounds before it, but {len(history)} of their records "
                         "were given; pass a history with a record for each")
    behind = share_behind(round_index, data["rounds"], budget, history)
    for patch in data["schedule"]:
        if round_index >= patch["round"] if patch["at"] is None else behind >= patch["at"]:
            apply(data, patch["set"])
    for controller in controllers if round_index else ():
        value = decided(controller, history, value_at(data, controller["moves"]), limit_of(controller["moves"], data))
        apply(data, {controller["moves"]: value})
    return data


def limit_of(key: str, data: dict) -> float:
    """What a setting exceeds without effect: of a writer's tokens the recipe's limit, which cuts them off anyway."""
    tokens = re.fullmatch(r"rollout\.writers\.\d+(\.params)?\.tokens", key)
    return data["rollout"]["sampling"]["max_new_tokens"] if tokens else math.inf


def granted(budget: dict[str, float]) -> tuple[str, float] | None:
    """The currency of a budget and its amount; None without one."""
    return next(((currency, amount) for currency, amount in budget.items() if amount), None)


def share_behind(round_index: int, rounds: int, budget: dict[str, float], history: Sequence[dict]) -> float:
    """How much of a run lies behind as a round begins: of its budget, where it may exceed 1, else of its rounds."""
    if not (given := granted(budget)):
        return round_index / rounds
    currency, amount = given
    return history[-1]["spent"][currency] / amount if history else 0.0


def decided(controller: dict, history: Sequence[dict], start: float, limit: float = math.inf) -> float:
    """What a controller sets after the rounds of `history`: within its bounds, a whole number where `start` is one."""
    before = min(history[-1]["set"].get(controller["moves"], start), limit)
    value = CONTROLLERS[controller["name"]](before, list(history), **controller["params"])
    value = min(max(value, controller["low"]), controller["high"], limit)
    return round(value) if isinstance(start, int) else value


def versions(data: dict) -> Iterator[tuple[int, dict]]:
    """What the patches make of a recipe, one after the other: (index of the last patch, recipe), first (-1, as is)."""
    yield -1, data
    for index, patch in enumerate(data["schedule"]):
        data = patched(data, patch["set"])
        yield index, data


def patched(data: Any, settings: dict[str, Any]) -> Any:
    """A copy of nested dicts and lists with dotted settings applied. Raises KeyError and the like, see `set_dotted`."""
    changed = copy.deepcopy(data)
    apply(changed, settings)
    return changed


def apply(data: dict, settings: dict[str, Any]) -> None:
    """Set all dotted keys, in place."""
    for key, value in settings.items():
        set_dotted(data, key, value)


def set_dotted(data: dict, key: str, value: Any) -> None:
    """Set `a.b.0.c` in nested dicts and lists, in place. Raises KeyError naming the part that does not exist."""
    *path, last = key.split(".")
    for part in path:
        data = data[int(part)] if isinstance(data, list) else data[part]
    if isinstance(data, list):
        data[int(last)] = value
    else:
        data[last] = value


def value_at(data: Any, key: str) -> Any:
    """What stands at `a.b.0.c` of nested dicts and lists; a slot's parameter may be named without `params`.

    Raises: KeyError, IndexError, TypeError or ValueError when nothing does.
    """
    for part in key.split("."):
        if isinstance(data, dict) and part not in data and isinstance(data.get("params"), dict):
            data = data["params"]
        data = data[int(part)] if isinstance(data, list) else data[part]
    return data


def controlled(data: dict) -> dict[str, float]:
    """The value of every setting that a controller moves, by dotted key."""
    return {controller["moves"]: value_at(data, controller["moves"]) for controller in data["controllers"]}


def start_of(patch: dict) -> str:
    """From where a patch holds, in words: `round 3`, or `20% of the run`."""
    return f"round {patch['round']}" if patch.get("at") is None else f"{100 * patch['at']:g}% of the run"
