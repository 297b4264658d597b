"""What distillations returned, as tables: a suite's, or one run's against its own start."""
import json

from tasks.opd.evaluation import cell_costs, comparison
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact


def of_run(result: dict) -> dict[str, comparison.Comparison]:
    """A run's student against the one it started from, by benchmark."""
    return {name: table_of({(result["recipe"], result["seed"]): result}, {}, name, comparison.START)
            for name in result["end"]}


def table_of(done: dict[tuple[str, int], dict], failed: dict[tuple[str, int], Exception], benchmark: str,
             baseline: str, cells: list[tuple[str, int, Recipe]] = ()) -> comparison.Comparison:
    """What `distill` returned for cells, and the errors of others, on one benchmark; a suite's stand in its order."""
    start = next(iter(done.values()))["start"][benchmark]
    errors = {cell: f"{type(error).__name__}: {' '.join(str(error).split())}"[:300] for cell, error in failed.items()}
    ends = {cell: rewards(result["end"][benchmark]) for cell, result in done.items()}
    order = dict.fromkeys((variant, seed) for variant, seed, _ in cells)
    return comparison.compare(
        {(comparison.START, 0): rewards(start), **order, **errors, **ends}, baseline,
        spent={cell: cell_costs.costs_of(result["checkpoint"], [*result["start"].values(), *result["end"].values()])
               for cell, result in done.items()},
        placebos={variant: recipe.about.placebo for variant, _, recipe in cells})


def rewards(report: Artifact) -> dict[str, float]:
    """Mean reward by prompt."""
    return json.loads((report.path / "report.json").read_text())["mean_reward"]
