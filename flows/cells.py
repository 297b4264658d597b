"""A suite's cells, one after the other; one that fails is kept as its error, for the others do not depend on it."""
from collections.abc import Callable

from prefect import tags

from flows.distill import distill
from tasks.hidden_states import held_for
from tasks.opd.core.errors import DataError
from tasks.opd.evaluation.tuned import Tuned
from tasks.opd.recipe.schema import Recipe
from tasks.workers.pools import WorkerPool

Key = tuple[str, int]                   # variant and seed


def run_cells(cells: list[tuple[str, int, Recipe]], pool: WorkerPool, suite: str, tuning: dict[str, Tuned],
              show: Callable[[dict, dict], None]) -> tuple[dict[Key, dict], dict[Key, Exception]]:
    """What `distill` returned for the cells, and the errors of those that failed; `show` is given both after each."""
    done, failed = {}, {}
    with held_for(cells, pool):
        for variant, seed, recipe in cells:
            pool.later = pool.later[1:]
            try:
                done[variant, seed] = run_cell(variant, recipe, suite, tuning.get(variant))
            except Exception as error:  # it is shown in the table
                failed[variant, seed] = error
            show(done, failed)
    return done, failed


def run_cell(variant: str, recipe: Recipe, suite: str, tuned: Tuned | None) -> dict:
    """A cell's distillation, found by its tags in Prefect. Raises DataError where all trials of the variant failed."""
    if tuned and tuned.chosen is None:
        raise DataError(f"none of {len(tuned.trials)} trials finished: {tuned.trials[0].error}")
    with tags(f"suite:{suite}", f"variant:{variant}", f"seed:{recipe.seed}"):
        return distill(recipe, suite)
