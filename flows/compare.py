"""The product: every variant of a suite with every seed, each cell a distillation of its own, in one table."""
import json

from prefect import flow, tags
from prefect.runtime import flow_run

from flows.distill import distill
from flows.pools import own_pool
from flows.tables import table_of
from tasks.hidden_states import held_for
from tasks.opd.evaluation import comparison_tables
from tasks.opd.recipe import loading
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import home
from tasks.opd.store.fingerprints import environment
from tasks.publish import publish
from tasks.tracking import runs


def suite_name() -> str:
    """The suite's own name, whatever its file is called."""
    return loading.load_suite(flow_run.parameters["suite"], flow_run.parameters["overrides"])[0].name


@flow(flow_run_name=suite_name, persist_result=False)
def compare(suite: str, overrides: list[str] = ()) -> dict:
    """Run a suite's cells, go on where one fails, and compare what finished with the baseline, paired over prompts."""
    plan, cells = loading.load_suite(suite, overrides)
    first, done, failed = cells[0][2], {}, {}
    with runs.suite_for(plan.name) as study, own_pool(first) as pool, held_for(cells, pool):
        for variant, seed, recipe in cells:
            pool.later = pool.later[1:]
            try:
                done[variant, seed] = tagged(variant, seed, recipe, plan.name)
            except Exception as error:  # it is shown in the table; the other cells do not depend on it
                failed[variant, seed] = error
        if not done:
            raise next(iter(failed.values()))
        benchmark = plan.benchmark or first.benchmarks[0].name
        table = table_of(done, failed, benchmark, plan.baseline, cells)
        facts = comparison_tables.provenance(suite, overrides, benchmark, environment(first.model_dump()))
        texts = {"comparison.json": table.to_json(), "comparison.md": comparison_tables.to_markdown(table, facts)}
        numbers = {f"suite/{name}/{row.variant}": value for row in table.rows
                   for name, value in (("mean", row.mean), ("difference", row.difference)) if value is not None}
        study.show(texts, texts["comparison.md"], numbers)
    folder = publish(plan.name, texts, folder=home() / "suites" / plan.name, **study.links())
    return {"suite": plan.name, "benchmark": benchmark, "text": comparison_tables.to_text(table),
            "failed": [*map(list, failed)], "comparison": json.loads(table.to_json()), "folder": str(folder),
            "mlflow_page": study.url(), "mlflow_charts": study.charts()}


def tagged(variant: str, seed: int, recipe: Recipe, suite: str) -> dict:
    """A cell's distillation, found by its tags in Prefect."""
    with tags(f"suite:{suite}", f"variant:{variant}", f"seed:{seed}"):
        return distill(recipe, suite)
