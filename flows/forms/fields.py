"""The fields of the forms, as a JSON schema that Prefect's pages draw and its server holds submissions against.

Flat and without unions, for Prefect's pages draw nothing else well: `own` stands first in every list of choices, 0 in
every number, and both leave the recipe as it is. The browser enforces no bounds, so descriptions name them too. Choices
are the files in configs at the time of registration.
"""
from typing import Any, Literal

from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from flows.forms.values import OWN
from tasks.opd.recipe import loading
from tasks.opd.recipe.schema import Engine, Recipe

Fields = dict[str, tuple[Any, FieldInfo]]           # name -> type and field, in the order of the form
SEEDS = r"^\s*\d+\s*(,\s*\d+\s*)*$"
SMOKE_TEXT = ("The same graph on untrained models, under two minutes; numbers mean nothing. Sizes, pair and prompts do "
              "not count.")


def recipe_fields(recipe: Recipe, seeds: list[int]) -> Fields:
    """The form of a variant or, with its first cell's recipe, of a suite; what is the recipe's own is written out."""
    names = ", ".join(benchmark.name for benchmark in recipe.benchmarks)
    return {
        "pair": choice("Pair", f"The models. {OWN}: {recipe.pair.name}.", files("pairs")),
        "prompts": choice("Prompts", f"The training prompts. {OWN}: the recipe's or else the pair's, here "
                          f"{recipe.prompts.name}.", files("prompts")),
        "benchmarks": choice("Benchmark", f"Held-out questions, before and after. {OWN}: the recipe's or else the "
                             f"pair's, here {names}. Several: benchmarks=a,b under Overrides.", files("benchmarks")),
        "seeds": (str, Field(",".join(map(str, seeds)), title="Seeds", pattern=SEEDS, description="Whole numbers from "
                             "0 on, with commas between them. Each seed is a run of its own; several end in a table.")),
        "rounds": number(int, "Rounds", "Rollouts, then an update, this often", recipe.rounds, le=100_000),
        "learning_rate": number(float, "Learning rate", "AdamW's peak, at most 1", recipe.train.learning_rate, le=1),
        "trained_tokens": number(int, "Token budget", "Tokens trained on, after which the run ends",
                                 recipe.budget.trained_tokens or "none"),
        "engine": choice("Engine", f"What generates and scores. {OWN}: {recipe.engine.name}.", engines()),
        "smoke": (bool, Field(False, title="Smoke test", description=SMOKE_TEXT)),
        **last_fields()}


def evaluation_fields() -> Fields:
    """The form of an evaluation."""
    return {
        "folder": (str, Field(..., title="Model", min_length=1, description="A checkpoint's folder below "
                              ".opd/artifacts/checkpoint, or any Hugging Face model folder, on the worker's machine.")),
        "benchmark": (Literal[tuple(files("benchmarks"))], Field(
            ..., title="Benchmark", description="The questions, a file in configs/benchmarks.")),
        "engine": choice("Engine", f"What answers. {OWN}: torch.", engines()),
        **last_fields()}


def last_fields() -> Fields:
    """What every form ends with."""
    return {
        "note": (str, Field("", title="Note", max_length=500, description="For people: stands in the run's summary and "
                            "in MLflow. At most 500 characters.")),
        "overrides": (list[str], Field([], title="Overrides", description="Any other setting of configs/base.yaml, as "
                                       "key=value: train.epochs=2. They go over all fields above."))}


def files(folder: str) -> list[str]:
    """The names that a folder of configs offers."""
    return sorted(file.stem for file in (loading.CONFIGS / folder).glob("*.yaml"))


def engines() -> list[str]:
    """The engines that the schema of recipes knows."""
    return list(Engine.model_fields["name"].annotation.__args__)


def choice(title: str, description: str, names: list[str]) -> tuple[Any, FieldInfo]:
    """A list to choose one from, `own` first."""
    return Literal[(OWN, *names)], Field(OWN, title=title, description=description)


def number(kind: type, title: str, description: str, own: float | str, **bounds) -> tuple[Any, FieldInfo]:
    """A number, where 0 is the recipe's own."""
    return kind, Field(0, title=title, ge=0, description=f"{description}. 0: the recipe's own, {own:,}."
                       if isinstance(own, int) else f"{description}. 0: the recipe's own, {own}.", **bounds)


def schema_of(fields: Fields) -> dict[str, Any]:
    """The form as Prefect stores it: {title, type, properties} and, where some must be filled in, `required`.

    `position` keeps the fields' order.
    """
    drawn = create_model("Parameters", **fields).model_json_schema()
    for position, name in enumerate(fields):
        drawn["properties"][name]["position"] = position
    return drawn
