"""Makes Prefect's account of this machine true: runs without a process are not running, and hold no slot.

A run of the pool is alive while a process with its id in the environment descends from the living worker; one that was
started from a terminal carries its process as a tag. Processes are listed before runs are asked for, so a run whose
state is older than that list and which is not in it has no process. Whatever a dead run left running is ended.
"""
import time
from datetime import UTC, datetime
from uuid import UUID

import httpx

from flows.platform import children, processes
from flows.platform.api import Api
from flows.platform.processes import Process
from flows.platform.servers import POOL

ACTIVE = ("PENDING", "RUNNING", "CANCELLING")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
RUN_TAG = "PREFECT__FLOW_RUN_ID"        # in the environment of a run's process, set by the worker
TERMINAL_TAG = "terminal"               # terminal:PID@TICKS, the process that runs a flow outside the pool
MLFLOW_TAG = "prefect.flow_run_id"       # on the runs that a run of Prefect's fills
MLFLOW_ENDS = {"CANCELLED": "KILLED", "CRASHED": "KILLED", "FAILED": "FAILED"}
GRACE_SECONDS = {"PENDING": 30, "RUNNING": 5, "CANCELLING": 5}  # a pending run's process is about to start
LOST = "its process is gone (killed, out of memory, or its worker died); run it again, finished stages are kept"


def terminal_tag(pid: int) -> str:
    """The tag of runs that a process executes itself."""
    return f"{TERMINAL_TAG}:{pid}@{processes.started(pid)}"


def is_in_terminal(run: dict) -> bool | None:
    """Whether the process that a run is tagged with lives; None for a run without such a tag."""
    for tag in run["tags"]:
        name, _, process = tag.partition(":")
        pid, _, ticks = process.partition("@")
        if name == TERMINAL_TAG and pid.isdigit() and ticks.isdigit():
            return processes.started(int(pid)) == int(ticks)
    return None


def living_runs(family: dict[int, Process]) -> tuple[set[str], set[int]]:
    """Ids of the runs whose process descends from the living worker, and the pids below it and the other children."""
    below = set()
    for name in children.NAMES:
        if child := children.living(name):
            below |= processes.tree(child.pid, family)
    return {family[pid].environment[RUN_TAG] for pid in below if RUN_TAG in family[pid].environment}, below


def orphans() -> dict[int, Process]:
    """Processes of this platform that neither descend from its children nor belong to a living run, by pid."""
    family = children.family()
    runs, below = living_runs(family)
    return {pid: process for pid, process in family.items()
            if pid not in below and process.environment.get(RUN_TAG) not in runs}


def end_orphans(grace_seconds: float = 2.0) -> int:
    """End processes whose worker or run died; how many there were. Twice seen, for a run may just be ending."""
    found = orphans()
    if found:
        time.sleep(0.5)
        found = {pid: process for pid, process in orphans().items() if found.get(pid) == process}
    processes.end(lambda: {pid: process for pid, process in orphans().items() if found.get(pid) == process},
                  grace_seconds=grace_seconds)
    return len(found)


def reconcile(prefect: Api, *, message: str = LOST, at_once: bool = False) -> list[dict]:
    """End the runs that claim to be at work without a process; those ended. `at_once`: without a period of grace."""
    now, (living, _) = datetime.now(UTC), living_runs(children.family())
    runs = prefect.post("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": [*ACTIVE]}}}, "limit": 200})
    ended = []
    for run in runs:
        grace = 0 if at_once else GRACE_SECONDS[run["state_type"]]
        age = (now - datetime.fromisoformat(run["state"]["timestamp"])).total_seconds()
        if age >= grace and (state := end_of(prefect, run, living)):
            if set_state(prefect, run, state, message):
                ended.append(run)
    return ended


def end_in_mlflow(prefect: Api, mlflow: Api) -> None:
    """MLflow's runs that claim to run end as the runs of Prefect's did that filled them, where these could not say so.

    A run that is resumed goes on in them. One that Prefect says is completed lacks points: the next try sends them.
    """
    experiments = mlflow.get("/api/2.0/mlflow/experiments/search", max_results=1000).get("experiments", [])
    found = mlflow.post("/api/2.0/mlflow/runs/search", {
        "experiment_ids": [experiment["experiment_id"] for experiment in experiments],
        "filter": f"attributes.status = 'RUNNING' and tags.`{MLFLOW_TAG}` LIKE '%'"}).get("runs", [])
    filled_by = {run["info"]["run_id"]: tag["value"] for run in found for tag in run["data"]["tags"]
                 if tag["key"] == MLFLOW_TAG and is_uuid(tag["value"])}
    runs = prefect.post("/flow_runs/filter", {  # asked for last: one that was resumed meanwhile is at work
        "flow_runs": {"id": {"any_": [*set(filled_by.values())]}, "state": {"type": {"any_": [*MLFLOW_ENDS]}}}})
    ends = {run["id"]: MLFLOW_ENDS[run["state_type"]] for run in runs}
    for known, run in filled_by.items():
        if run in ends:
            mlflow.post("/api/2.0/mlflow/runs/update", {"run_id": known, "status": ends[run],
                                                        "end_time": int(time.time() * 1000)})


def is_uuid(text: str) -> bool:
    """Whether a text is an id as Prefect gives them."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def end_of(prefect: Api, run: dict, living: set[str]) -> str | None:
    """The state that a run which claims to be at work should have: CANCELLED, CRASHED, or None: it is at work."""
    if run["parent_task_run_id"] and run["id"] not in living:  # a flow within a flow ends with it
        parent = prefect.get(f"/task_runs/{run['parent_task_run_id']}")["flow_run_id"]
        state = prefect.get(f"/flow_runs/{parent}")["state_type"] if parent else "CRASHED"
        dead, state = state in ENDED, "CANCELLED" if state == "CANCELLED" else "CRASHED"
    elif run["work_pool_name"] == POOL:
        dead, state = run["id"] not in living, "CANCELLED" if run["state_type"] == "CANCELLING" else "CRASHED"
    else:
        dead, state = is_in_terminal(run) is False, "CRASHED"
    return state if dead else None


def set_state(prefect: Api, run: dict, state: str, message: str) -> bool:
    """End a run, unless it ended by itself meanwhile; its tasks end with it. Whether it took the state."""
    latest = prefect.get(f"/flow_runs/{run['id']}")
    if latest["state_id"] != run["state_id"]:
        return False
    body = {"state": {"type": state, "name": state.capitalize(), "message": message}, "force": False}
    accepted = prefect.post(f"/flow_runs/{run['id']}/set_state", body)["status"] == "ACCEPT"
    tasks = prefect.post("/task_runs/filter", {
        "flow_runs": {"id": {"any_": [run["id"]]}}, "task_runs": {"state": {"type": {"any_": [*ACTIVE]}}}})
    for task in tasks if accepted else []:
        prefect.post(f"/task_runs/{task['id']}/set_state", {**body, "force": True})
    return accepted


class Slots:
    """Finds slots of deployments that no run holds: more than runs are active, in two looks one after the other."""

    def __init__(self):
        self.suspected: dict[str, int] = {}

    def free_leaked(self, prefect: Api) -> list[str]:
        """Free them; the names of the limits."""
        limits = prefect.post("/v2/concurrency_limits/filter", {"limit": 200})
        leaked = {}
        for limit in (limit for limit in limits if limit["name"].startswith("deployment:") and limit["active_slots"]):
            deployment = limit["name"].partition(":")[2]
            active = prefect.post("/flow_runs/count", {
                "deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": [*ACTIVE]}}}})
            if limit["active_slots"] > active:
                leaked[limit["id"]] = active
        freed = [limit["name"] for limit in limits
                 if limit["id"] in leaked and self.suspected.get(limit["id"]) == leaked[limit["id"]]]
        for limit in (limit for limit in limits if limit["name"] in freed):
            prefect.patch(f"/v2/concurrency_limits/{limit['id']}", {"active_slots": leaked[limit["id"]]})
        self.suspected = leaked
        return freed


def tidy(prefect: Api, mlflow: Api, slots: Slots) -> list[str]:
    """One pass; lines that say what was done. What Prefect does not answer now is done in the next one."""
    try:
        ended, freed = reconcile(prefect), slots.free_leaked(prefect)
    except httpx.HTTPError as error:
        return [unanswered(error)]
    lines = [f"run {run['name']} had no process" for run in ended] + [f"freed a slot of {name}" for name in freed]
    try:
        end_in_mlflow(prefect, mlflow)
    except httpx.HTTPError as error:
        lines.append(unanswered(error))
    return lines


def unanswered(error: httpx.HTTPError) -> str:
    """A line that says which server did not answer, and how."""
    return f"{error.request.url} is not answered: {type(error).__name__}"
