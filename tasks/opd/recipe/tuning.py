"""Equal tuning: the same trials for every variant of a suite, controls included, on questions of their own. No torch.

A trial is a cell as any other, with one setting of the grid, the suite's `tune_seed`, and the validation questions as
its only benchmark. The setting with the best mean is run with the suite's seeds and graded on its benchmark.
"""
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.opd.core.seeds import derive_seed
from tasks.opd.recipe import loading, validation
from tasks.opd.recipe.layers import Layer, merged
from tasks.opd.recipe.questions import Benchmark
from tasks.opd.recipe.schema import Recipe
from tasks.opd.recipe.suite import Suite

Settings = dict[str, Any]               # dotted key -> value


class Trial(NamedTuple):
    """One setting of one variant."""
    variant: str
    settings: Settings
    recipe: Recipe                      # its only benchmark is the validation
    test: Benchmark                     # what the variant is graded on afterwards


def grid(plan: Suite) -> list[Settings]:
    """The settings tried, alike for every variant: all combinations, or `trials` of them drawn by the suite's name."""
    combinations = [dict(zip(plan.tune, values)) for values in itertools.product(*plan.tune.values())]
    if not plan.trials or plan.trials >= len(combinations):
        return combinations
    drawn = random.Random(derive_seed("tune", plan.name)).sample(range(len(combinations)), plan.trials)
    return [combinations[i] for i in sorted(drawn)]


def load_trials(path: str | Path, overrides: Sequence[str] = ()) -> list[Trial]:
    """All trials of a suite, variant by variant; none where it does not tune. Raises RecipeError with all errors."""
    plan, file, rest = loading.opened_suite(path, overrides)
    errors: list[str] = []
    found = [trial for variant in plan.variants if plan.tune
             for trial in loading.tried(errors, [], trials_of, plan, variant, file, rest)]
    validation.refuse([], {}, list(dict.fromkeys(errors)))
    return found


def trials_of(plan: Suite, variant: str, file: Path, overrides: Sequence[str]) -> list[Trial]:
    """One variant's trials. Raises RecipeError."""
    recipe = loading.cells_of(plan, variant, file, overrides)[0][2]
    test = next((one for one in recipe.benchmarks if one.name == plan.benchmark), recipe.benchmarks[0])
    asked = validation_of(plan, test)
    alone = plan.model_copy(update={"seeds": [plan.tune_seed], "benchmark": ""})
    found = []
    for number, settings in enumerate(grid(plan)):
        chosen = [*overrides, f"benchmarks={json.dumps([asked])}", *overrides_of(settings)]
        [(_, _, tried)] = loading.cells_of(alone, variant, file, chosen)
        found.append(Trial(variant, settings, tried.model_copy(update={"name": f"{tried.name}-trial{number}"}), test))
    return found


def validation_of(plan: Suite, test: Benchmark) -> dict[str, Any]:
    """The questions of trials as a benchmark: `validation` over the test benchmark, as an override goes over it.

    Raises: RecipeError for an entry that a list of the benchmark lacks.
    """
    below = Layer({"benchmarks": [test.model_dump(mode="json")]}, {})
    above = Layer({"benchmarks": {"0": {**plan.validation, "name": test.name}}}, {})
    [asked] = merged(below, above, "validation: ").data["benchmarks"]
    return {**asked, "name": f"{test.name}-validation"}


def cells_with(path: str | Path, overrides: Sequence[str], chosen: dict[str, Settings]
               ) -> list[tuple[str, int, Recipe]]:
    """A suite's cells, each variant's with the settings chosen for it."""
    plan, file, rest = loading.opened_suite(path, overrides)
    return [cell for variant in plan.variants
            for cell in loading.cells_of(plan, variant, file, [*rest, *overrides_of(chosen.get(variant, {}))])]


def overrides_of(settings: Settings) -> list[str]:
    """Settings as `key=value`."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
