"""What recipes say differently, setting by setting."""
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ABSENT = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """Settings in which at least two recipes differ."""
    settings: list[str]                     # dotted keys
    values: dict[str, list[str]]            # variant -> what it says, in the settings' order
    num_equal: int                          # settings that are the same in all


def differences(recipes: dict[str, dict[str, Any]]) -> Differences:
    """Of resolved recipes by variant; their names, papers and seeds are not settings."""
    flat = {variant: dict(flattened({key: value for key, value in recipe.items()
                                     if key not in ("name", "about", "seed")})) for variant, recipe in recipes.items()}
    keys = list(dict.fromkeys(key for settings in flat.values() for key in settings))
    differing = [key for key in keys if len({settings.get(key, ABSENT) for settings in flat.values()}) > 1]
    return Differences(settings=differing, num_equal=len(keys) - len(differing), values={
        variant: [settings.get(key, ABSENT) for key in differing] for variant, settings in flat.items()})


def flattened(value: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Every setting as (dotted key, what it says): a slot with its parameters is one, anything else its JSON.

    An empty list or mapping is a setting, too.
    """
    if isinstance(value, dict) and {"name", "params"} <= value.keys():
        yield above, slot_text(value)
        value = {key: inner for key, inner in value.items() if key not in ("name", "params")}
        if not value:
            return
    items = value.items() if isinstance(value, dict) else [*enumerate(value)] if isinstance(value, list) else ()
    if not items:
        yield above, text(value)
    for key, inner in items:
        yield from flattened(inner, f"{above}.{key}" if above else str(key))


def slot_text(slot: dict) -> str:
    """`jsd(beta 0.5)`."""
    inside = ", ".join(f"{key} {text(value)}" for key, value in slot["params"].items())
    return f"{slot['name']}({inside})" if inside else slot["name"]


def text(value: Any) -> str:
    """A string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
