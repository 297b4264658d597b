"""What recipes say differently, setting by setting."""
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ABSENT = "(none)"


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
    """Every leaf as (dotted key, its JSON); an empty list or mapping is a leaf."""
    items = value.items() if isinstance(value, dict) else [*enumerate(value)] if isinstance(value, list) else ()
    if not items:
        yield above, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for key, inner in items:
        yield from flattened(inner, f"{above}.{key}" if above else str(key))
