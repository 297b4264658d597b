"""Go back to the champion before: in one step, without training anything."""
from prefect import flow

from tasks.registry import return_champion


@flow(flow_run_name="{name}", persist_result=False)
def rollback(name: str, by: str = "", reason: str = "") -> dict:
    """The alias `champion` moves to the version that the champion was promoted over; the event is the same."""
    champion = return_champion(name, by=by, reason=reason)
    return {"name": name, "version": champion.number, "folder": champion.tags["folder"]}
