"""What of a stage's spec can change its result: its settings without the effort, and the code that it chooses.

A spec names entries of tables: slots', the engine's, columns of the scored set. Of a table only the entries chosen
belong to what a stage is derived from, so that another entry, or a new one, makes nothing anew. No torch.
"""
from collections.abc import Iterable
from typing import Any

from tasks.opd.recipe import slots
from tasks.opd.recipe.schema import EngineInUse, Recipe, Train
from tasks.opd.recipe.settings import effort_of
from tasks.opd.store.closures import Scope, source_hash

PACKAGE = "tasks.opd"
EFFORT = "effort"   # the part of a spec that is told how to go about it, never what to make
PARTS = {           # part of a stage's spec -> whose settings it holds, and where a recipe has them
    "engine": (EngineInUse, "engine"), "scoring_engine": (EngineInUse, "engine"), EFFORT: (Train, "train")}
STAGE_SLOTS = {     # where a stage's spec has slots; * stands for any index. Absent: its table counts in whole
    "maker": "maker", "source": "source", "grader": "grader", "graders.*": "grader", "benchmark.grader": "grader",
    "benchmarks.*.source": "source",
    "writers.*": "writer", "filters.*": "filter", "refiners.*": "refiner", "context": "context",
    **{path: kind for path, kind in slots.SLOTS.items() if path.startswith("terms.")}}
ENGINES, COLUMNS = ("engines.pool", "ENGINES"), ("training.prepass", "COLUMNS")  # tables that are no slots
SESSION = (f"{PACKAGE}.engines.pool", "Session")    # what every stage is given
OUTSIDE = frozenset(f"{PACKAGE}.{name}" for name in (  # they report, or compare bytes with their hashes
    "core.metrics", "core.progress", "training.diagnostics", "training.repetition", "objective.positions",
    "store.artifacts:Artifact", "store.artifacts:read_record",
    "store.artifacts:verify", "store.artifacts:hash_record", "store.artifacts:agreed", "core.files:damage_named"))


def result_settings(spec: dict) -> dict:
    """A spec without the settings that the schema marks as effort."""
    kept = {part: value for part, value in spec.items() if part != EFFORT}
    return kept | {part: {key: value for key, value in kept[part].items() if key not in effort_of(model)}
                   for part, (model, _) in PARTS.items() if part in kept}


def training_settings(recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint's spec says of `recipe.train`: the settings, the engine's precision, and the effort apart."""
    own = "bfloat16" if recipe.engine.dtype == "bfloat16" else "off"
    train = recipe.train.model_dump(mode="json", exclude=effort_of(Train))
    train |= {"autocast": own} if train["autocast"] == "auto" else {}
    return {"train": train | rounding_settings(recipe.train, train["autocast"]), "canary_autocast": own,
            EFFORT: recipe.train.model_dump(include=effort_of(Train))}


def rounding_settings(train: Train, autocast: str) -> dict:
    """Those settings of training's effort that move its result by more than float32 rounds, as a part of its spec.

    Under bfloat16 autocast a weight's gradient is summed over a micro-batch in bfloat16: other micro-batches give
    another gradient by about 1 % (in float32 by 2e-6), and of AdamW's first steps, which look at the sign, some weights
    move the other way. So checkpoints of other `micro_batch_tokens` are other artifacts there, and so are those without
    `share_prompts`. Both stay settings, and are not made a function of the data, for they are what fits a model into
    memory. A second attempt with half the tokens, after memory was short, is the same artifact; its record counts the
    attempts. `chunk_tokens` parts the head only, whose factors round by themselves and whose sums are float32.
    """
    return train.model_dump(include={"micro_batch_tokens", "share_prompts"}) if autocast == "bfloat16" else {}


def halved(spec: dict) -> tuple[dict, dict[str, str]]:
    """A copy of a spec that holds half as much at once; setting of the recipe -> `before -> after`."""
    smaller, changes = dict(spec), {}
    for part, (model, owner) in PARTS.items():
        batch, held = effort_of(model, "batch"), spec.get(part, {})
        for name in (name for name in model.model_fields if name in batch and name in held):
            if (before := held[name]) > 1:
                smaller[part] = {**smaller[part], name: before // 2}
                changes.setdefault(f"{owner}.{name}", f"{before} -> {before // 2}")
    return smaller, changes


def source_of(entry: tuple[str, str], spec: dict, engines: Iterable[str] = ()) -> str:
    """Hash of the source that a stage's result can depend on; `entry` is its module and function.

    `engines` are those that its inputs choose, beyond the spec's.
    """
    return source_hash(*entry, scope_of(spec, engines))


def scope_of(spec: dict, engines: Iterable[str] = ()) -> Scope:
    """What belongs to the closure of a stage with this spec."""
    tables = {slots.TABLES[kind]: names for kind, names in slots_chosen(spec).items()}
    tables[ENGINES] = {*engines, *(spec[part]["name"] for part, (model, _) in PARTS.items()
                                   if model is EngineInUse and part in spec)}
    if "terms" in spec:
        tables[COLUMNS] = {column.partition(":")[0] for term in spec["terms"] for column in term["needs"]}
    found = {((f"{PACKAGE}.{module}", table), frozenset(names)) for (module, table), names in tables.items()}
    return Scope(package=PACKAGE, tables=frozenset(found), handed=SESSION, outside=OUTSIDE)


def slots_chosen(spec: dict) -> dict[str, set[str]]:
    """Kind of slot -> the entries that a spec names, for every kind that it has a place for."""
    chosen: dict[str, set[str]] = {}
    for pattern, kind in STAGE_SLOTS.items():
        first, *rest = pattern.split(".")
        if first in spec:
            found = values_at(spec[first], rest)
            chosen.setdefault(kind, set()).update(slot["name"] for slot in found if slot is not None)
    return chosen


def values_at(data: Any, path: list[str]) -> list:
    """The values at a path of keys, in which * stands for every entry of a list or mapping."""
    if not path:
        return [data]
    first, *rest = path
    entries = [data[first]] if first != "*" else data.values() if isinstance(data, dict) else data
    return [value for entry in entries for value in values_at(entry, rest)]
