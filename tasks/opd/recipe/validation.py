"""Plain data held against the schema, the slots and the static checks; what is wrong is said with its source."""
import difflib
import json
from collections.abc import Callable
from operator import attrgetter
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import schedule, slots
from tasks.opd.recipe.checks import recipes, schedules
from tasks.opd.recipe.layers import Layer
from tasks.opd.recipe.schema import Recipe
from tasks.opd.recipe.slots import UNSET, Problem

Resolve = Callable[[dict], dict]  # fills in `${key}`; raises RecipeError
WHOLE_RUN = (  # settings that no round can change
    "name", "about", "seed", "rounds", "benchmarks", "evaluate_every", "schedule", "controllers", "workers", "accepts",
    "pair.name", "pair.student", "pair.teacher", "pair.others", "pair.tiny", "pair.context_tokens", "prompts.name",
    "prompts.source", "prompts.first", "prompts.count", "prompts.max_prompt_tokens", "prompts.max_quarantined",
    "prompts.domain", "extra_prompts", "train.lora", "budget", "engine.memory_share",
    "engine.patience_seconds")


def validated(layer: Layer, resolve: Resolve, errors: list[str]) -> Recipe:
    """The layer as a recipe with all slots' parameters filled in.

    Raises: RecipeError with all that is wrong, after the `errors` found before (a group whose file is missing is one).
    """
    recipe, problems = parsed(Recipe, layer.data, resolve)
    if recipe is None:
        lost = {group for group in ("pair", "prompts", "benchmarks") if any(f": {group} = " in e for e in errors)}
        lost |= {"prompts", "benchmarks"} if "pair" in lost else set()  # the pair's file names them
        problems = [problem for problem in problems if problem.key.split(".")[0] not in lost]
        refuse(problems + slots.check_all(layer.data)[1], layer.sources, errors)
    recipe, wrong = completed(recipe)
    found = wrong + recipes.problems(recipe)
    refuse(found + schedule_problems(recipe, found), layer.sources, errors)
    return recipe


def completed(recipe: Recipe) -> tuple[Recipe, list[Problem]]:
    """The recipe with the defaults of its slots' functions written out, and what is wrong with its slots."""
    data = recipe.model_dump(mode="json")
    filled, problems = slots.check_all(data)
    if problems:
        return recipe, problems
    for (*parents, last), slot in filled.items():
        place = data
        for part in parents:
            place = place[part]
        place[last]["params"] = slot.params
    return Recipe.model_validate(data), []


def schedule_problems(recipe: Recipe, known: list[Problem]) -> list[Problem]:
    """What is wrong from some round on that was not wrong before, or wherever controllers may lead it.

    The recipe is looked at as its patches make it, one after the other, each with its controllers at their bounds.
    """
    if wrong := list(schedules.start_problems(recipe)):
        return wrong
    versions, data = [], recipe.model_dump(mode="json")
    try:
        for index, version in schedule.versions(data):
            key = f"schedule.{index}.set"
            begins = f"from {schedule.start_of(data['schedule'][index])} on, " if index >= 0 else ""
            now, new = changed_recipe(recipe, version, known) if begins else (recipe, [])
            if now is None or new:
                return [Problem(key, f"{begins if now else ''}{p}") for p in new]
            versions.append((index, now))
            if wrong := list(schedules.controller_problems(recipe, version)) or at_bounds(recipe, version, known):
                return wrong
    except (KeyError, IndexError, ValueError, TypeError) as error:
        patch = data["schedule"][len(versions) - 1]
        return [Problem(f"schedule.{len(versions) - 1}.set", f"no such key ({type(error).__name__}: {error})",
                        patch["set"])]
    return list(schedules.average_is_kept(versions))


def at_bounds(recipe: Recipe, version: dict, known: list[Problem]) -> list[Problem]:
    """What is wrong with a version of the recipe where its controllers are at their bounds, first corner first."""
    for corner in schedules.corners(recipe.controllers, version):
        _, new = changed_recipe(recipe, schedule.patched(version, corner), known)
        if new:
            where = ", ".join(f"{key} = {value:g}" for key, value in corner.items())
            return [Problem("controllers", f"may lead to {where}; then {p}") for p in new]
    return []


def changed_recipe(recipe: Recipe, data: dict, known: list[Problem]) -> tuple[Recipe | None, list[Problem]]:
    """A recipe changed as it goes, complete (None: it is none), and what is wrong with it that was not `known`."""
    try:
        now = Recipe.model_validate(data)
    except ValidationError as error:
        return None, schema_problems(error, Recipe)
    now, wrong = completed(now)
    moved = [Problem(whole, "holds for a whole run; set it outside the schedule") for whole in WHOLE_RUN
             if attrgetter(whole)(now) != attrgetter(whole)(recipe)]
    return now, [p for p in wrong + recipes.problems(now) if p not in known] or moved


def parsed(model: type[BaseModel], data: dict, resolve: Resolve) -> tuple[Any, list[Problem]]:
    """Plain data as a model (or None), references resolved, and what the schema has against it."""
    try:
        return model.model_validate_json(json.dumps(resolve(data)), strict=True), []
    except ValidationError as error:
        return None, schema_problems(error, model)
    except RecipeError as error:
        return None, [Problem(*str(error).split(": ", 1))]


def schema_problems(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Pydantic's errors in our words."""
    problems = []
    for one in error.errors():
        key, value = ".".join(map(str, one["loc"])), one["input"]
        if one["type"] == "extra_forbidden":
            message = f"unknown key; {nearest_key(model, one['loc'])}"
        elif one["type"] == "missing":
            message, value = "missing", UNSET
        else:
            message = slots.allowed(one["msg"])
            if one["type"] == "model_type":
                is_slot = one["ctx"]["class_name"] in ("Slot", "Writer", "Controller")
                message = "must be a name, or a mapping with a name" if is_slot else "must be a mapping"
            value = UNSET if one["type"] == "value_error" else value
        problems.append(Problem(key, message, value))
    return problems


def nearest_key(model: type[BaseModel], loc: tuple) -> str:
    """`did you mean ...` among the keys beside an unknown one, or else the key of that name elsewhere."""
    beside, name = fields_at(model, loc[:-1]), str(loc[-1])
    elsewhere = [key for key in keys_of(model) if difflib.get_close_matches(name, [key.split(".")[-1]], cutoff=0.8)]
    if elsewhere and not difflib.get_close_matches(name, beside):
        return f"did you mean {elsewhere[0]}? known: {', '.join(beside)}"
    return slots.nearest(name, beside)


def keys_of(model: type[BaseModel]) -> list[str]:
    """All dotted keys of the schema."""
    below = [(name, m) for name, field in model.model_fields.items() for m in models_in(field.annotation)]
    return [*model.model_fields, *(f"{name}.{key}" for name, m in below for key in keys_of(m))]


def fields_at(model: type[BaseModel], loc: tuple) -> list[str]:
    """The fields of the model at a location of the schema."""
    for part in loc:
        if part in model.model_fields:
            model = next(iter(models_in(model.model_fields[part].annotation)), model)
    return list(model.model_fields)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def refuse(problems: list[Problem], sources: dict[tuple[str, ...], str], errors: list[str]) -> None:
    """Raise RecipeError with the errors and a line for each problem, if there are any."""
    all_lines = errors + [f"{source_of(problem.key, sources)}: {problem}" for problem in problems]
    if all_lines:
        raise RecipeError("\n".join(dict.fromkeys(all_lines)))


def source_of(key: str, sources: dict[tuple[str, ...], str]) -> str:
    """Who set a key, else something below it, else the nearest thing above it."""
    parts = tuple(part for part in key.split(".") if part and part != "params")
    below = next((source for at, source in sources.items() if parts and at[:len(parts)] == parts), None)
    if parts not in sources and below:
        return below
    while parts and parts not in sources:
        parts = parts[:-1]
    return sources.get(parts, "recipe")
