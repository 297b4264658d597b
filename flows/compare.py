"""The product: every variant of a suite with every seed, each cell a distillation of its own, in one table."""
import json
from functools import partial

from prefect import flow
from prefect.runtime import flow_run

from flows.cells import run_cells
from flows.forms.verdicts import of_suite
from flows.pools import own_pool
from flows.reports import show_suite
from flows.tables import table_of
from flows.tuning import tune
from tasks.opd.evaluation import comparison_tables
from tasks.opd.recipe import loading
from tasks.opd.recipe.tuning import cells_with, load_trials
from tasks.opd.store.artifacts import home
from tasks.opd.store.fingerprints import environment
from tasks.publish import publish
from tasks.tracking import runs


def suite_name() -> str:
    """The suite's own name, whatever its file is called."""
    return loading.load_suite(flow_run.parameters["suite"], flow_run.parameters["overrides"])[0].name


@flow(flow_run_name=suite_name, persist_result=False)
def compare(suite: str, overrides: list[str] = ()) -> dict:
    """Tune a suite's variants where it says so, run its cells, and compare what finished with the baseline."""
    (plan, cells), trials = loading.load_suite(suite, overrides), load_trials(suite, overrides)
    first = cells[0][2]
    with runs.suite_for(plan.name) as study, own_pool(first) as pool:
        tuning = tune(plan, trials, pool) if trials else {}
        cells = cells_with(suite, overrides, {variant: one.chosen or {} for variant, one in tuning.items()})
        show = partial(show_suite, suite, plan, overrides, cells, tuning, study)
        done, failed = run_cells(cells, pool, plan.name, tuning, show)
        if not done:
            raise next(iter(failed.values()))
        benchmark = plan.benchmark or first.benchmarks[0].name
        table = table_of(done, failed, benchmark, plan.baseline, cells, tuning,
                         pooled=plan.seed_variance == "pooled")
        facts = comparison_tables.provenance(suite, overrides, benchmark, environment(first.model_dump()))
        texts = {"comparison.json": table.to_json(), "comparison.md": comparison_tables.to_markdown(table, facts)}
        study.show(texts, texts["comparison.md"], tags={"verdict": of_suite(json.loads(table.to_json()), benchmark)})
    folder = publish(plan.name, texts, folder=home() / "suites" / plan.name, **study.links())
    return {"suite": plan.name, "benchmark": benchmark, "text": comparison_tables.to_text(table),
            "failed": [*map(list, failed)], "comparison": json.loads(table.to_json()), "folder": str(folder),
            "mlflow_page": study.url(), "mlflow_charts": study.charts()}
