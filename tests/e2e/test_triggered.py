"""Triggered from Prefect: registration, a refused form, verdicts, Cancel; with a real server and a real worker."""
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling, Scheduled

from flows.forms import fields
from flows.forms.registration import Deployed, register
from flows.triggered.distill import distill
from tasks.opd.core.errors import EngineError
from tasks.opd.recipe import loading
from tasks.opd.store import artifacts
from tasks.tracking.client import client_at, tracking_uri
from tests import prefect_harness
from tests.e2e.test_flows import flow_run, lately, mlflow_runs, pages

ROOT = Path(__file__).resolve().parents[2]
POOL = "tests"


@pytest.fixture(scope="module", autouse=True)
def server():
    """A server of these tests' own with a process work pool of one slot."""
    with prefect_harness.prefect_server(), get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", concurrency_limit=1))
        yield client


@pytest.fixture
def variant() -> Deployed:
    """The deployment of one variant, as `opd deploy` makes it."""
    recipe = loading.load("opd_reverse_kl")
    return Deployed(flow="distill", name="opd_reverse_kl", entrypoint="flows.triggered.distill.distill",
                    parameters={"variant": "opd_reverse_kl"}, tags=("variant:opd_reverse_kl",), description="as it is",
                    form=fields.schema_of(fields.recipe_fields(recipe, [0])))


def changes(*wanted: Deployed, keep: frozenset[str] = frozenset()) -> dict[str, list[str]]:
    """What a registration did, without what it left."""
    done = register(wanted, POOL, keep)
    return {what: done[what] for what in ("added", "updated", "removed", "unchanged") if done[what]}


def test_deployments_become_those_of_the_list_and_others_are_left_alone(server, variant):
    server.create_deployment(server.create_flow_from_name("distill"), "somebodys")
    label, other = "distill/opd_reverse_kl", replace(variant, flow="compare", name="demo")
    assert changes(variant, other) == {"added": [label, "compare/demo"]}
    made = server.read_deployment_by_name(label)
    assert (made.work_pool_name, made.entrypoint, made.job_variables) == (
        POOL, "flows.triggered.distill.distill", {"working_dir": str(ROOT)})
    assert made.parameter_openapi_schema == variant.form and made.enforce_parameter_schema and not made.pull_steps
    assert {"opdlab", "variant:opd_reverse_kl"} == set(made.tags) and made.description == "as it is"
    server.pause_deployment(made.id)
    assert changes(variant, other) == {"unchanged": [label, "compare/demo"]}
    assert server.read_deployment_by_name(label).paused  # what a person decided is not undone
    changed = replace(variant, schedule={"interval": 3600}, concurrency=1, when_full="CANCEL_NEW")
    assert changes(changed, keep=frozenset({"compare/demo"})) == {"updated": [label]}
    now = server.read_deployment_by_name(label)
    assert now.id == made.id and [one.schedule.interval.seconds for one in now.schedules] == [3600]
    assert now.global_concurrency_limit.limit == 1
    assert changes(changed) == {"removed": ["compare/demo"], "unchanged": [label]}
    assert changes() == {"removed": [label]} and not server.read_automations()
    assert [one.name for one in server.read_deployments()] == ["somebodys"]


def test_an_event_runs_a_deployment_once_and_its_automation_goes_with_it(server, variant):
    waiting = replace(variant, event="opd.prompts.arrived")
    for given, wanted in ((waiting, 1), (replace(waiting, description="changed"), 1), (replace(variant, event=""), 0)):
        register([given], POOL)
        assert len(server.read_automations()) == wanted
    register([waiting], POOL)
    deployment = server.read_deployment_by_name("distill/opd_reverse_kl").id

    def started() -> list[dict]:
        return pages("flow_runs", flow_runs={"deployment_id": {"any_": [str(deployment)]}})
    subprocess.run([sys.executable, "-m", "prefect", "event", "emit", "opd.prompts.arrived", "--resource-id",
                    "opd.prompts.incoming"], check=True, env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()})
    [run] = lately(started, lambda found: found)
    assert run["parameters"] == variant.parameters and run["created_by"]["type"] == "AUTOMATION"
    assert changes() == {"removed": ["distill/opd_reverse_kl"]} and not server.read_automations()


def test_a_pool_that_is_not_there_is_named_with_the_way_out(variant):
    with pytest.raises(EngineError, match="no work pool 'elsewhere'; make one: prefect work-pool create elsewhere"):
        register([variant], "elsewhere")


def test_a_wrong_form_fails_in_its_first_task_with_all_errors_as_the_message():
    state = distill("gkd", learning_rate=7.0, overrides=["terms.0.divergence.beta=9"], return_state=True)
    assert state.type == StateType.FAILED
    first, second = state.message.splitlines()
    assert first.startswith("field learning_rate: train.learning_rate = 7.0: must be less")
    assert second.startswith("override 'terms.0.divergence.beta=9': ")
    run = flow_run("gkd-seed0")
    tasks = lately(lambda: pages("task_runs", flow_runs={"id": {"any_": [run["id"]]}}), lambda found: found)
    assert [task["name"] for task in tasks] == ["check"] and not (artifacts.home() / "artifacts").exists()


@pytest.mark.parametrize("seeds", ["0", "0,1"])
def test_a_run_ends_with_its_verdict_on_the_state_and_on_top_of_its_first_artifact(seeds):
    state = distill("opd_reverse_kl", smoke=True, seeds=seeds, note="tried by a test", overrides=["workers=inline"],
                    return_state=True)
    verdict = "opd_reverse_kl not distinguishable from start: +0.0 [+0.0, +0.0] points on tiny"
    assert (state.type, state.message) == (StateType.COMPLETED, verdict)
    run = flow_run(f"opd_reverse_kl-seed{'s' * (len(seeds) > 1)}{seeds}-smoke")
    shown = pages("artifacts", artifacts={"flow_run_id": {"any_": [run["id"]]}})
    summary = min(shown, key=lambda artifact: artifact["created"])
    assert summary["data"].splitlines()[0] == f"**{verdict}**"
    assert all(part in summary["data"] for part in ("Note: tried by a test", "#/experiments/", "| opd_reverse_kl |",
                                                    "name: smoke"))
    found = [one for name, one in mlflow_runs("opd").items()]
    assert len(found) == seeds.count(",") + 1 and {one.data.tags["note"] for one in found} == {"tried by a test"}
    assert all("tried by a test" in one.data.tags["mlflow.note.content"] for one in found)
    children = [one for one in pages("flow_runs", flow_runs={"tags": {"any_": ["seed:0", "seed:1"]}})
                if one["parent_task_run_id"]]
    assert len(children) == (2 if seeds == "0,1" else 0)
    assert run["id"] in {one.data.tags["prefect.flow_run_id"] for one in found} or children


@pytest.fixture
def worker(opd_home):
    """A worker of the pool whose runs write to this test's home."""
    opd_home.mkdir()
    quick = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_API_URL": PREFECT_API_URL.value(), "OMP_NUM_THREADS": "1"}
    with open(opd_home / "worker.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"], cwd=ROOT,
            stdout=log, stderr=log, env={**os.environ, **quick}, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def of_run(home: Path) -> list[str]:
    """The command lines of the processes that work for a home's runs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment, state = (process / "environ").read_bytes(), (process / "stat").read_text()
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"OPD_HOME={home}".encode() in environment.split(b"\0") and state.rpartition(")")[2].split()[0] not in "ZX":
            found += [command] if "prefect.engine" in command or "tasks.opd.runtime" in command else []
    return found


def wait_for(condition, home: Path, seconds: float = 300):
    """The first true value of a condition; fails with what the worker said."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > until:
            pytest.fail((home / "worker.log").read_text(errors="replace")[-5000:])
        time.sleep(0.1)
    return value


def test_a_cancelled_run_is_gone_its_retry_goes_on_where_it_was_and_ends_with_its_worker(
        server, variant, worker, opd_home):
    register([variant], POOL)
    form = {"smoke": True, "overrides": ["rounds=400"]}
    run = server.create_flow_run_from_deployment(server.read_deployment_by_name("distill/opd_reverse_kl").id,
                                                 parameters=form)

    def checkpoints() -> dict[str, tuple]:
        """By round, when each was made and how long that took."""
        records = [artifacts.read_record(path) for path in opd_home.glob("artifacts/checkpoint/[!.]*")]
        return {record["spec"]["round"]: (record["created"], record["seconds"]) for record in records if record}

    def state() -> StateType:
        return server.read_flow_run(run.id).state.type

    def status() -> str:
        client = client_at(tracking_uri())
        [found] = client.search_runs([client.get_experiment_by_name("opd").experiment_id])
        return found.info.status
    wait_for(lambda: len(checkpoints()) >= 2, opd_home)
    assert state() == StateType.RUNNING and len(of_run(opd_home)) == 3  # the flow, the supervisor and its worker
    server.set_flow_run_state(run.id, Cancelling())
    wait_for(lambda: state() == StateType.CANCELLED, opd_home)
    assert of_run(opd_home) == [] and status() == "KILLED"
    assert server.read_flow_run(run.id).parameters["variant"] == "opd_reverse_kl"  # which the form does not show
    first = checkpoints()

    server.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry"), force=True)  # as the pages' Retry does
    wait_for(lambda: len(checkpoints()) > len(first) + 1, opd_home)
    assert first.items() <= checkpoints().items()  # what was finished is not made again
    worker.send_signal(signal.SIGKILL)
    wait_for(lambda: not of_run(opd_home), opd_home)
    assert state() == StateType.CRASHED and status() == "KILLED"
