"""A suite as it is triggered from its form."""
from prefect import flow
from prefect.runtime import flow_run
from prefect.states import State

from flows.compare import compare as compare_suite
from flows.forms import verdicts
from flows.forms.values import OWN, Given, cells_of, overrides_of
from tasks.opd.recipe.schema import Recipe


def run_name() -> str:
    """`zoo`, or `zoo-smoke`."""
    return flow_run.parameters["suite"] + ("-smoke" if flow_run.parameters.get("smoke") else "")


@flow(name="compare", flow_run_name=run_name, persist_result=False)
def compare(suite: str, pair: str = OWN, prompts: str = OWN, benchmarks: str = OWN, seeds: str = "0,1", rounds: int = 0,
            learning_rate: float = 0, trained_tokens: int = 0, engine: str = OWN, smoke: bool = False, note: str = "",
            overrides: list[str] = ()) -> State:
    """Check the form, run the suite's cells, and end with the table's verdict."""
    given = [Given(f"seeds=[{seeds}]", "seeds"), *overrides_of(locals())]

    def compared(_: list[Recipe]) -> verdicts.Ending:
        result = compare_suite.fn(suite, [one.override for one in given])
        return verdicts.of_suite(result["comparison"], result["benchmark"]), [
            f"[MLflow]({result['mlflow_page']})", f"```text\n{result['text']}\n```"]
    return verdicts.ended(lambda: cells_of(suite, given), compared, note)
