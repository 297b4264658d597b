"""A suite: recipes compared."""
import math
from typing import Any, Literal

from pydantic import model_validator

from tasks.opd.recipe.schedule import granted
from tasks.opd.recipe.schema import Model, Name, Recipe, setting
from tasks.opd.recipe.slots import Problem


class Assumptions(Model):
    """What is assumed of rewards before a suite runs, so as to say which difference it can detect."""
    accuracy: float = setting(0.5, "Accuracy", "Share of right answers; 0.5 is the worst case.", gt=0, lt=1)
    correlation: float = setting(0.3, "Correlation", "Between two students' answers to one prompt.", ge=0, lt=1)
    seed_sd: float = setting(0.03, "Seed deviation", "Standard deviation between seeds; 0.03 is three points.", ge=0)


class Suite(Model):
    """Recipes compared: every variant with every seed, on one pair, against a baseline."""
    name: Name = setting(..., "Name", "Name of the suite; the MLflow experiment.")
    variants: list[str] = setting(..., "Variants", "Names of files in configs/variants.", min_length=1)
    seeds: list[int] = setting([0, 1], "Seeds", "Each variant runs once a seed.", min_length=1)
    baseline: str = setting(..., "Baseline", "The variant others are compared with, or `start`: the untrained student.")
    benchmark: str = setting("", "Benchmark", "The benchmark compared; empty: the first.")
    set: list[str] = setting([], "Overrides", "key=value, for all recipes.")
    variant_set: dict[str, list[str]] = setting({}, "Variant overrides", "key=value by variant.")
    detect: float = setting(
        0.0, "Detect", "The difference that the suite looks for, 0.05 is five points; one that cannot detect it is "
        "refused. 0: none is stated.", ge=0, lt=1)
    assume: Assumptions = setting(Assumptions(), "Assumptions", "Of rewards, for what the suite can detect.")
    seed_variance: Literal["own", "pooled"] = setting(
        "own", "Seed variance", "Between seeds: of each comparison its own, or pooled over all variants, which assumes "
        "that all are equally stable over seeds.")
    tune: dict[str, list[Any]] = setting(
        {}, "Tune", "Values tried by dotted key, as {train.learning_rate: [1e-4, 5e-4]}, for every variant alike.")
    trials: int = setting(0, "Trials", "Settings tried of each variant, drawn from all; 0: all of them.", ge=0)
    tune_seed: int = setting(1000, "Tuning seed", "Of all trials; none of `seeds`.", ge=0)
    validation: dict[str, Any] = setting(
        {}, "Validation", "What of the benchmark is other in the questions that trials are judged on, as "
        "{first: 2000000}; no text may stand in the prompts trained on or in the benchmark.")

    @model_validator(mode="after")
    def tuning_is_whole(self):
        if not self.tune:
            return self
        if empty := [key for key, values in self.tune.items() if not values]:
            raise ValueError(f"tune: {', '.join(empty)} has no values")
        if not self.validation:
            raise ValueError("a suite that tunes needs validation, for example {first: 2000000}: other questions of "
                             "the benchmark's source")
        if self.tune_seed in self.seeds:
            raise ValueError(f"tune_seed {self.tune_seed} is one of seeds {self.seeds}; tuned runs need fresh seeds")
        if self.trials > (number := math.prod(map(len, self.tune.values()))):
            raise ValueError(f"trials is {self.trials}, but tune has only {number} settings")
        return self


def budgets_differ(recipes: list[Recipe]) -> list[Problem]:
    """What is wrong where some recipes of a suite have another budget than the first: they would not be compared."""
    given = {recipe.name: granted(recipe.budget.model_dump()) for recipe in recipes}
    first, *others = given or [""]
    return [Problem("budget", f"{name} may spend {shown(given[name])}, {first} {shown(given[first])}: give all "
                    "variants the same, under `set`") for name in others if given[name] != given[first]]


def shown(given: tuple[str, float] | None) -> str:
    """A budget in words."""
    return f"{given[1]:,.10g} {given[0]}" if given else "what its rounds take"
