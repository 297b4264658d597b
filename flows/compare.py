"""The product: every variant of a suite with every seed, each cell a distillation of its own, in one table."""
import json

from prefect import flow, tags

from flows.distill import distill, shared_crew
from tasks import tracking, workers
from tasks.opd import comparison, loading
from tasks.opd.artifacts import Artifact
from tasks.opd.fingerprints import environment
from tasks.opd.recipe import Recipe
from tasks.publish import publish


@flow(flow_run_name="{suite}", persist_result=False)
def compare(suite: str, overrides: list[str] = ()) -> dict:
    """Run a suite's cells, go on where one fails, and compare what finished with the baseline, paired over prompts."""
    plan, cells = loading.load_suite(suite, overrides)
    first, done, failed = cells[0][2], {}, {}
    with tracking.suite_for(plan.name) as study, workers.for_run(first) as crew:
        token = shared_crew.set({first.workers: crew})
        for variant, seed, recipe in cells:
            try:
                done[variant, seed] = tagged(variant, seed, recipe, plan.name)
            except Exception as error:  # it is shown in the table; the other cells do not depend on it
                failed[variant, seed] = error
        shared_crew.reset(token)
        if not done:
            raise next(iter(failed.values()))
        benchmark = plan.benchmark or first.benchmarks[0].name
        table = table_of(done, failed, benchmark, plan.baseline, cells)
        facts = comparison.made_by(suite, overrides, benchmark, environment(first.model_dump()))
        texts = {"comparison.json": table.to_json(), "comparison.md": table.to_markdown(facts)}
        study.add_files(texts)
    return {"suite": plan.name, "benchmark": benchmark, "text": table.to_text(), "failed": [*map(list, failed)],
            "comparison": json.loads(table.to_json()), "folder": publish(plan.name, texts, study.url())}


def tagged(variant: str, seed: int, recipe: Recipe, suite: str) -> dict:
    """A cell's distillation, found by its tags in Prefect."""
    with tags(f"suite:{suite}", f"variant:{variant}", f"seed:{seed}"):
        return distill(recipe, suite)


def table_of(done: dict[tuple[str, int], dict], failed: dict[tuple[str, int], Exception], benchmark: str,
             baseline: str, cells: list[tuple[str, int, Recipe]] = ()) -> comparison.Comparison:
    """What `distill` returned for cells, and the errors of others, on one benchmark; a suite's stand in its order."""
    start = next(iter(done.values()))["start"][benchmark]
    errors = {cell: f"{type(error).__name__}: {' '.join(str(error).split())}"[:300] for cell, error in failed.items()}
    ends = {cell: rewards(result["end"][benchmark]) for cell, result in done.items()}
    order = dict.fromkeys((variant, seed) for variant, seed, _ in cells)
    return comparison.compare(
        {(comparison.START, 0): rewards(start), **order, **errors, **ends}, baseline,
        spent={cell: comparison.spent_in(result["checkpoint"].counts) for cell, result in done.items()},
        placebos={variant: recipe.about.placebo for variant, _, recipe in cells})


def rewards(report: Artifact) -> dict[str, float]:
    """Mean reward by prompt."""
    return json.loads((report.path / "report.json").read_text())["mean_reward"]
