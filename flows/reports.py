"""The page of a suite, written anew after every cell."""
from flows.tables import table_of
from tasks.opd.evaluation.comparison import START
from tasks.opd.evaluation.comparison_tables import provenance
from tasks.opd.evaluation.report import suites
from tasks.opd.evaluation.report.runs import write
from tasks.opd.evaluation.tuned import Tuned
from tasks.opd.recipe.schema import Recipe
from tasks.opd.recipe.suite import Suite
from tasks.opd.store import run_records
from tasks.opd.store.fingerprints import environment
from tasks.pages import only_warned
from tasks.tracking.about import REPORT
from tasks.tracking.outbox import Run

Cells = list[tuple[str, int, Recipe]]


def show_suite(suite: str, plan: Suite, overrides: list[str], cells: Cells, tuning: dict[str, Tuned], study: Run,
               done: dict, failed: dict) -> None:
    """Write a suite's page as it stands, and have its run in MLflow hold it; a page that cannot be made is a warning.

    `suite` is the plan's name or file, as it was asked for; `done` has what `distill` returned for cells, by variant
    and seed, `failed` the errors of others.
    """
    with only_warned(plan.name):
        first, benchmark = cells[0][2], plan.benchmark or cells[0][2].benchmarks[0].name
        ended = [(variant, seed, recipe) for variant, seed, recipe in cells if (variant, seed) in {**done, **failed}]
        has_baseline = plan.baseline == START or any(variant == plan.baseline for variant, _ in done)
        table = table_of(done, failed, benchmark, plan.baseline, ended, tuning,
                         pooled=plan.seed_variance == "pooled") if done and has_baseline else None
        state = suites.state_of(
            plan.name, benchmark, plan.baseline,
            provenance(suite, overrides, benchmark, environment(first.model_dump())),
            [(variant, seed, stem_of(recipe, plan.name)) for variant, seed, recipe in cells],
            {key: f"{type(error).__name__}: {error}" for key, error in failed.items()}, len(cells) - len(ended), table)
        suites.write_state(state)
        study.files[REPORT] = write(suites.file_of(plan.name), suites.html_of(state))


def stem_of(recipe: Recipe, suite: str) -> str:
    """How the files of a cell's run are called."""
    return run_records.stem_of(f"{recipe.name}-seed{recipe.seed}", suite=suite, recipe=recipe.model_dump(mode="json"))
