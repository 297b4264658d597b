"""What was filled into a form, as the command line's own key=value; so that one place checks both."""
import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from tasks.opd.core.errors import RecipeError
from tasks.opd.evaluation import power
from tasks.opd.recipe import loading
from tasks.opd.recipe.layers import override_label
from tasks.opd.recipe.schema import Budget, Recipe
from tasks.opd.recipe.tuning import load_trials

OWN = "own"                     # of a choice: as the recipe has it; of a number 0 says so, of a text nothing
KEYS = {"pair": "pair", "prompts": "prompts", "benchmarks": "benchmarks", "rounds": "rounds",
        "learning_rate": "train.learning_rate", "trained_tokens": "budget.trained_tokens", "engine": "engine.name"}
SMOKE = ("pair=smoke", "rounds=2", *(f"budget.{currency}=0" for currency in Budget.model_fields))  # suites set these
SMOKE_DECIDES = {"pair", "prompts", "benchmarks", "rounds", "trained_tokens"}


class Given(NamedTuple):
    """A `key=value`, and the field of the form that says so."""
    override: str
    field: str


def overrides_of(form: Mapping[str, Any]) -> list[Given]:
    """The overrides of a form, later ones win: its fields, then a smoke run's settings, then its own `overrides`."""
    decided = SMOKE_DECIDES if form.get("smoke") else ()
    given = [Given(f"{key}={form[field]}", field) for field, key in KEYS.items()
             if field not in decided and form.get(field, OWN) not in (OWN, 0, "")]
    given += [Given(override, "smoke") for override in SMOKE if form.get("smoke")]
    return given + [Given(line.strip(), "overrides") for line in form.get("overrides") or () if line.strip()]


def seeds_of(text: str) -> list[int]:
    """The seeds in a text like `0, 1`, each once. Raises RecipeError when there is none, or something else."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise RecipeError(f"field seeds: {text!r} must be whole numbers with commas between them, for example 0,1")
    return list(dict.fromkeys(map(int, words)))


@contextlib.contextmanager
def by_field(given: list[Given]):
    """Errors of recipes name the form's fields in place of the overrides that these were made into."""
    try:
        yield
    except RecipeError as error:
        message = str(error)
        for override, field in given:
            if field != "overrides":
                message = message.replace(f"{override_label(override)}:", f"field {field}:")
        raise RecipeError(message) from None


def recipes_of(variant: str, given: list[Given], seeds: str) -> list[Recipe]:
    """A variant's recipe under a form, once a seed. Raises RecipeError with all that is wrong, by field."""
    wanted, overrides = [Given(f"seed={seed}", "seeds") for seed in seeds_of(seeds)], [one.override for one in given]
    with by_field([*wanted, *given]):
        return [loading.load(variant, [seed.override, *overrides]) for seed in wanted]


def cells_of(suite: str, overrides: list[Given]) -> list[Recipe]:
    """The recipes of a suite's cells under a form.

    Raises: RecipeError with all that is wrong, by field; also, a smoke run apart, where the suite cannot detect what it
    looks for.
    """
    with by_field(overrides):
        asked = [one.override for one in overrides]
        (plan, cells), _ = loading.load_suite(suite, asked), load_trials(suite, asked)
        if not any(one.field == "smoke" for one in overrides):
            power.refuse_undetectable(plan, cells)
        return [recipe for _, _, recipe in cells]
