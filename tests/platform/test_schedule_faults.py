"""A schedule whose runs are hurt: whatever dies during a tick, a later tick ends the work, and nothing is left.

The ticks of a deployment have the same recipe, so a later one takes up the artifacts of the one that was hurt, and
MLflow's run of both must hold what it holds of a run that nothing happened to. Slower than its neighbours: `make
test-faults`.
"""
import os
import signal
from datetime import UTC, datetime

import pytest

from flows.platform import api, children, reconcile, state
from flows.platform.servers import POOL
from tests.platform.runs_for_tests import ROOT, pid_of, wait_for

pytestmark = pytest.mark.faults
EVERY_SECONDS = 10
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def scheduled(prefect: api.Api, seed: int) -> str:
    """The id of a deployment of a smoke run that starts every few seconds, one at a time, as refreshes do."""
    flow = prefect.post("/flows/", {"name": "distill"})["id"]
    return prefect.post("/deployments/", {
        "name": f"tick-{seed}", "flow_id": flow, "work_pool_name": POOL, "path": str(ROOT), "pull_steps": [],
        "entrypoint": "flows.triggered.distill.distill", "concurrency_limit": 1,
        "concurrency_options": {"collision_strategy": "CANCEL_NEW", "grace_period_seconds": 60},
        "parameters": {"variant": "opd_reverse_kl", "smoke": True, "seeds": str(seed), "overrides": ["workers=inline"]},
        "schedules": [{"active": True, "schedule": {"interval": EVERY_SECONDS}}]})["id"]


def ticks(prefect: api.Api, deployment: str, *states: str) -> list[dict]:
    """The deployment's runs in one of these states, by the time for which they were scheduled."""
    return prefect.post("/flow_runs/filter", {
        "deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": [*states]}}},
        "sort": "EXPECTED_START_TIME_ASC"})


def points(mlflow: api.Api, seed: int) -> dict[str, list[int]]:
    """Metric -> steps of all its points in the run of a seed, in order; those of the machine apart."""
    [experiment] = [one["experiment_id"] for one in mlflow.get(
        "/api/2.0/mlflow/experiments/search", max_results=100)["experiments"] if one["name"] == "opd"]
    [run] = mlflow.post("/api/2.0/mlflow/runs/search", {
        "experiment_ids": [experiment], "filter": f"tags.seed = '{seed}'"})["runs"]
    assert run["info"]["status"] == "FINISHED"
    keys = [metric["key"] for metric in run["data"]["metrics"] if not metric["key"].startswith("system/")]
    return {key: sorted(int(point["step"]) for point in mlflow.get(
        "/api/2.0/mlflow/metrics/get-history", run_id=run["info"]["run_id"], metric_key=key)["metrics"])
        for key in keys}


def answered(ask):
    """What a server answers once it is back."""
    return wait_for(lambda: state.running() and (ask(),), "the servers")[0]


def finish(platform, deployment: str, after: datetime) -> None:
    """Wait for a tick from after that moment to complete, and for the one that runs now; then end the schedule."""
    def complete() -> bool:
        return any(datetime.fromisoformat(run["start_time"]) > after
                   for run in answered(lambda: ticks(platform.prefect, deployment, "COMPLETED")))
    wait_for(complete, "a tick after the fault")
    prefect = platform.prefect
    prefect.patch(f"/deployments/{deployment}", {"paused": True})
    for run in ticks(prefect, deployment, "SCHEDULED"):
        prefect.client.delete(f"/flow_runs/{run['id']}")
    wait_for(lambda: not ticks(prefect, deployment, *reconcile.ACTIVE), "the last tick")


def processes_of_runs() -> list[int]:
    """Processes of this platform that were started for a run, orphans too."""
    return [pid for pid, process in children.family().items() if reconcile.RUN_TAG in process.environment]


def kill(name: str) -> None:
    """Kill a child as the kernel does when memory is short."""
    os.kill(pid_of(name), signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed() -> dict:
    """What MLflow holds of a run that nothing happened to, filled by the first test."""
    return {}


@pytest.mark.parametrize("seed, victim, during", [
    (100, None, None), (101, "prefect", "RUNNING"), (102, "worker", "RUNNING"), (103, "worker", "PENDING"),
    (104, "mlflow", "RUNNING")])
def test_a_tick_after_the_fault_ends_the_work_and_nothing_is_left(platform, undisturbed, seed, victim, during):
    prefect, mlflow = platform.prefect, api.mlflow(platform.settings)
    deployment = scheduled(prefect, seed)
    hurt = datetime.now(UTC)
    if victim:
        wait_for(lambda: ticks(prefect, deployment, during), f"a tick that is {during}")
        kill(victim)
        hurt = datetime.now(UTC)
    finish(platform, deployment, hurt)

    wait_for(lambda: not processes_of_runs(), "the end of all processes of runs")
    [limit] = [one for one in prefect.post("/v2/concurrency_limits/filter", {"limit": 200})
               if one["name"] == f"deployment:{deployment}"]
    wait_for(lambda: prefect.get(f"/v2/concurrency_limits/{limit['id']}")["active_slots"] == 0, "the slot")
    if not victim:
        undisturbed.update(points(mlflow, seed))
        assert undisturbed["eval/tiny/avg"] == [0, 2]
    assert points(mlflow, seed) == undisturbed  # none lost, none doubled
    prefect.client.delete(f"/deployments/{deployment}")
