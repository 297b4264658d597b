"""What Prefect's server believes of runs, made true: on the real server, with runs whose processes are not there."""
import os
import subprocess
import sys

import pytest

from flows.platform import api, automations, processes
from flows.platform import reconcile as reconcile_of
from flows.platform.reconcile import Slots, end_in_mlflow, end_orphans, is_in_terminal, orphans, reconcile, terminal_tag
from tests.platform.runs_for_tests import deploy, state_of


@pytest.fixture
def gone() -> str:
    """The tag of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tag = terminal_tag(process.pid)
    process.communicate()
    return tag


def claim(platform, state: str, **fields) -> str:
    """The id of a run outside any pool that claims a state."""
    flow = platform.prefect.post("/flows/", {"name": "claimed"})["id"]
    run = platform.prefect.post("/flow_runs/", {"flow_id": flow, "state": {"type": "SCHEDULED"}, **fields})["id"]
    set_state(platform, run, state)
    return run


def set_state(platform, run: str, state: str) -> None:
    """A run's state, without a question."""
    platform.prefect.post(f"/flow_runs/{run}/set_state", {"state": {"type": state}, "force": True})


def test_a_terminals_tag_names_its_process(gone):
    assert is_in_terminal({"tags": ["seed:0", terminal_tag(os.getpid())]}) is True
    assert is_in_terminal({"tags": [gone]}) is False
    recycled = f"terminal:{os.getpid()}@{processes.started(os.getpid()) - 1}"  # the pid lives, the process does not
    assert is_in_terminal({"tags": [recycled]}) is False
    assert is_in_terminal({"tags": ["terminal:", "terminal:x@1", "variant:gkd"]}) is None


def test_a_run_whose_terminal_died_has_crashed_and_others_are_left(platform, gone):
    dead, alive = claim(platform, "RUNNING", tags=[gone]), claim(platform, "RUNNING", tags=[terminal_tag(os.getpid())])
    foreign = claim(platform, "RUNNING")
    reconcile(platform.prefect, at_once=True)  # the keeper, which also does this, gives it a few seconds
    assert [state_of(platform.prefect, run) for run in (dead, alive, foreign)] == ["CRASHED", "RUNNING", "RUNNING"]
    assert reconcile(platform.prefect, at_once=True) == []
    for run in (alive, foreign):
        set_state(platform, run, "COMPLETED")


@pytest.mark.parametrize("claimed, true", [("PENDING", "CRASHED"), ("RUNNING", "CRASHED"), ("CANCELLING", "CANCELLED")])
def test_a_run_of_the_pool_without_a_process(platform, claimed, true):
    deployment = deploy(platform.prefect, "greet", paused=True)
    start = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}}
    run = platform.prefect.post(f"/deployments/{deployment}/create_flow_run", start)["id"]
    set_state(platform, run, claimed)
    reconcile(platform.prefect, at_once=True)
    assert state_of(platform.prefect, run) == true
    platform.prefect.client.delete(f"/deployments/{deployment}")


@pytest.mark.parametrize("ending, inner_ending", [("FAILED", "CRASHED"), ("CANCELLED", "CANCELLED")])
def test_a_flow_within_a_flow_ends_with_it(platform, ending, inner_ending):
    outer = claim(platform, "RUNNING", tags=[terminal_tag(os.getpid())])
    task = platform.prefect.post("/task_runs/", {"flow_run_id": outer, "task_key": "inner", "dynamic_key": "0"})["id"]
    inner = claim(platform, "RUNNING", parent_task_run_id=task)
    reconcile(platform.prefect, at_once=True)
    assert state_of(platform.prefect, inner) == "RUNNING"
    set_state(platform, outer, ending)
    reconcile(platform.prefect, at_once=True)
    assert state_of(platform.prefect, inner) == inner_ending


def test_a_run_that_claims_so_since_a_moment_only_is_left(platform, gone, monkeypatch):
    run = claim(platform, "RUNNING", tags=[gone])
    monkeypatch.setitem(reconcile_of.GRACE_SECONDS, "RUNNING", 600)
    assert run not in [ended["id"] for ended in reconcile(platform.prefect)]
    monkeypatch.setitem(reconcile_of.GRACE_SECONDS, "RUNNING", 0)
    reconcile(platform.prefect)
    assert state_of(platform.prefect, run) == "CRASHED"


def test_the_tasks_of_a_dead_run_end_with_it(platform, gone):
    run = claim(platform, "RUNNING", tags=[gone])
    task = platform.prefect.post("/task_runs/", {"flow_run_id": run, "task_key": "train", "dynamic_key": "0",
                                                 "state": {"type": "RUNNING"}})["id"]
    reconcile(platform.prefect, at_once=True)
    assert platform.prefect.get(f"/task_runs/{task}")["state_type"] == "CRASHED"


@pytest.mark.parametrize("state, mlflows, end", [
    ("CRASHED", "RUNNING", "KILLED"), ("CANCELLED", "RUNNING", "KILLED"), ("FAILED", "RUNNING", "FAILED"),
    ("CANCELLED", "FINISHED", "FINISHED"), ("COMPLETED", "RUNNING", "RUNNING"), ("RUNNING", "RUNNING", "RUNNING"),
    (None, "RUNNING", "RUNNING")])
def test_mlflows_run_ends_as_prefects_did_that_filled_it(platform, state, mlflows, end):
    mlflow = api.mlflow(platform.settings)
    filled_by = claim(platform, state) if state else "somebody's"
    made = mlflow.post("/api/2.0/mlflow/runs/create", {
        "experiment_id": "0", "tags": [{"key": "prefect.flow_run_id", "value": filled_by}]})["run"]["info"]["run_id"]
    mlflow.post("/api/2.0/mlflow/runs/update", {"run_id": made, "status": mlflows})
    end_in_mlflow(platform.prefect, mlflow)
    assert mlflow.get("/api/2.0/mlflow/runs/get", run_id=made)["run"]["info"]["status"] == end


def test_a_run_that_ended_meanwhile_keeps_its_own_end(platform, gone):
    run = claim(platform, "RUNNING", tags=[gone])
    seen = platform.prefect.get(f"/flow_runs/{run}")
    set_state(platform, run, "COMPLETED")
    assert not reconcile_of.set_state(platform.prefect, seen, "CRASHED", "too late")
    assert state_of(platform.prefect, run) == "COMPLETED"


def test_a_slot_that_no_run_holds_is_freed_at_the_second_look(platform):
    deployment = deploy(platform.prefect, "greet", paused=True, concurrency_limit=1)
    [limit] = [limit for limit in platform.prefect.post("/v2/concurrency_limits/filter", {})
               if limit["name"] == f"deployment:{deployment}"]
    platform.prefect.patch(f"/v2/concurrency_limits/{limit['id']}", {"active_slots": 1})
    slots = Slots()
    assert slots.free_leaked(platform.prefect) == []  # it may just have been taken
    assert slots.free_leaked(platform.prefect) == [limit["name"]]
    assert platform.prefect.get(f"/v2/concurrency_limits/{limit['id']}")["active_slots"] == 0
    assert slots.free_leaked(platform.prefect) == []
    platform.prefect.client.delete(f"/deployments/{deployment}")


def test_orphans_are_what_descends_from_no_child_and_no_living_run(platform):
    tags = {"OPD_PLATFORM": platform.settings.home, "OPD_PLATFORM_CHILD": "worker", "PREFECT__FLOW_RUN_ID": "no run"}
    script = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], " \
             "start_new_session=True, stdout=subprocess.DEVNULL).pid)"
    pid = int(subprocess.run([sys.executable, "-c", script], env=os.environ | tags, stdout=subprocess.PIPE).stdout)
    assert pid in orphans()
    assert end_orphans() >= 1 or processes.started(pid) is None  # the keeper may have been quicker
    assert processes.started(pid) is None and orphans() == {}


def test_a_run_without_a_heartbeat_is_what_the_automation_waits_for(platform):
    [zombies] = platform.prefect.post("/automations/filter", {
        "automations": {"name": {"any_": [automations.ZOMBIES]}}})
    assert zombies["enabled"] and zombies["trigger"]["within"] == 180 and zombies["trigger"]["posture"] == "Proactive"
    assert zombies["trigger"]["after"] == ["prefect.flow-run.heartbeat"]
    assert [action["type"] for action in zombies["actions"]] == ["change-flow-run-state"]
