"""An evaluation as it is triggered from its form."""
from prefect import flow
from prefect.states import State

from flows.cli.runs import format_counts
from flows.evaluate import evaluate as evaluate_folder
from flows.evaluate import run_name
from flows.forms import verdicts
from flows.forms.values import OWN, by_field, overrides_of
from tasks.opd.recipe import loading
from tasks.opd.recipe.schema import Recipe


@flow(name="evaluate", flow_run_name=run_name, persist_result=False)
def evaluate(folder: str, benchmark: str, engine: str = OWN, note: str = "", overrides: list[str] = ()) -> State:
    """Check the form, grade the model's answers, and end with what came out."""
    given = overrides_of(locals() | {"benchmarks": benchmark})

    def load() -> list[Recipe]:
        with by_field(given):
            return [loading.load(loading.CONFIGS / "base.yaml", [one.override for one in given])]

    def evaluated(recipes: list[Recipe]) -> verdicts.Ending:
        reports = evaluate_folder.fn(recipes[0], folder)
        said = [f"{name}: {format_counts(report.counts)}" for name, report in reports.items()]
        return "; ".join(said), [f"Report: `{report.path}`" for report in reports.values()]
    return verdicts.ended(load, evaluated, note)
