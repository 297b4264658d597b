"""A refresh as it is triggered, by its schedule or from its form: what it decided is the state's message."""
from prefect import flow
from prefect.states import State

from flows.forms import verdicts
from flows.refresh import refresh as refresh_now
from tasks.opd.recipe import refreshes
from tasks.opd.recipe.schema import Recipe
from tasks.opd.refresh import journal


@flow(name="refresh", flow_run_name="{name}", persist_result=False)
def refresh(name: str, accept_drift: bool = False, note: str = "") -> State:
    """Check the file, refresh, and end with the decision and its reason."""
    def load() -> list[Recipe]:
        return [refreshes.recipe_of(refreshes.load(name))]

    def refreshed(recipes: list[Recipe]) -> verdicts.Ending:
        line = refresh_now.fn(name, accept_drift)
        return journal.described(line), []
    return verdicts.ended(load, refreshed, note)
