"""Missed ticks: those that did not run collapse into the one that does; many in a row raise an alarm."""
from datetime import UTC, datetime

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.events import emit_event
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled

from tasks.opd.refresh import journal


def collapse_missed(name: str) -> dict | None:
    """Cancel late runs of this run's deployment, and note them with those cancelled since the last run that began."""
    if not deployment.id:
        return None
    mine, now = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id])), datetime.now(UTC)
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs(flow_run_filter=mine, limit=200) if str(run.id) != flow_run.id]
        late = [run for run in runs if run.state.is_scheduled() and run.expected_start_time < now]
        for run in late:
            client.set_flow_run_state(run.id, Cancelled(message="missed: the run at work does its part"), force=True)
    begun = max((run.start_time for run in runs if run.start_time), default=now)
    missed = late + [run for run in runs if run.state.is_cancelled() and begun < run.expected_start_time < now]
    return note_missed(name, len(missed)) if missed else None


def note_missed(name: str, missed: int) -> dict:
    """The journal's line on ticks that did not run; an alarm, in Prefect and the journal, from three in a row on."""
    line = journal.append(name, journal.OVERLAP, missed=missed)
    if (count := journal.overlaps_in_a_row(journal.read(name))) >= journal.OVERLAPS:
        raise_alarm(name, reason := f"{count} ticks in a row did not run")
        journal.append(name, journal.ALARM, reason=reason)
    return line


def raise_alarm(name: str, reason: str) -> None:
    """Tell Prefect, whose automations may tell people."""
    emit_event("opd.refresh.alarm", {"prefect.resource.id": f"opd.refresh.{name}"}, payload={"reason": reason})
