"""The tasks of the gate: a tick's candidate, judged and registered; how the tick ended."""
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.opd.recipe.refreshes import Refresh
from tasks.opd.refresh import candidates, gate, journal, models
from tasks.opd.refresh.journal import Tick
from tasks.tracking import registry
from tasks.tracking.registry import Version


@task(cache_policy=NO_CACHE, task_run_name="gate-{tick.number:04d}")
def gate_candidate(ask: Refresh, tick: Tick, result: dict) -> Version:
    """The registered version of what `distill` returned for a tick, with the gate's table among its tags."""
    return registry.register(ask.name, *candidates.described(ask, tick, result))


@task(cache_policy=NO_CACHE, task_run_name="end-{tick.number:04d}")
def end_tick(ask: Refresh, tick: Tick, version: Version, *, promoted: bool) -> dict:
    """The journal's last line of a tick; models of versions that nobody goes back to are removed."""
    checks = gate.from_json(version.tags["table"])
    outcome = journal.PROMOTED if promoted else journal.CANDIDATE if gate.passed(checks) else journal.REFUSED
    why = gate.failures(checks) or next((f"{one.name} {one.value}" for one in checks), "")
    models.remove_others(ask.name, {one.tags["fingerprint"] for one in registry.worth_keeping(ask)})
    return journal.end(tick, outcome, why, version=version.number)
