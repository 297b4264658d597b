"""The platform itself, with real servers: up, in use, hurt, mended, down. The last test stops it."""
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import httpx
import pytest

from flows.cli import main as cli
from flows.platform import api, automations, children, lifecycle, pools, processes, settings, state
from flows.platform.servers import POOL
from tasks.opd.core.files import is_locked
from tests.platform.runs_for_tests import ROOT, deploy, lingering, pid_of, state_of, wait_for


def test_up_again_starts_nothing(platform):
    before = {name: pid_of(name) for name in children.NAMES}
    again, started = lifecycle.up(settings.asked_for("127.0.0.1", 0, 0, "", 1))
    assert (again, started) == (platform.settings, [])
    assert {name: pid_of(name) for name in children.NAMES} == before and None not in before.values()


def test_up_again_keeps_no_command_of_the_home_waiting_for_servers_that_may_hang(platform, shared_home, monkeypatch):
    locks, held, answer = ("tracking/.lock", "prefect/prefect-start.lock"), [], lifecycle.await_answer

    def asked(name, runs):
        held.append([is_locked(shared_home / lock) for lock in locks])
        answer(name, runs)
    monkeypatch.setattr(lifecycle, "await_answer", asked)
    lifecycle.up(settings.asked_for("127.0.0.1", 0, 0, "", 1))
    assert held == [[False, False]] * 2


def test_two_ups_at_once_start_one_platform(platform):
    os.kill(pid_of("keeper"), signal.SIGKILL)
    wait_for(lambda: pid_of("keeper") is None, "its death")
    script = "from flows.platform import lifecycle, settings\n" \
             "print(*lifecycle.up(settings.asked_for('127.0.0.1', 0, 0, '', 1))[1])"
    two = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
           for _ in range(2)]
    assert sorted(one.communicate(timeout=300)[0].strip() for one in two) == ["", "keeper"]


def test_up_with_other_settings_is_refused(platform):
    with pytest.raises(settings.PlatformError, match="runs with another prefect_port .*opd down first"):
        lifecycle.up(settings.asked_for("127.0.0.1", platform.settings.prefect_port + 1, 0, "", 1))


def test_no_password_is_on_a_command_line_or_in_a_record(platform):
    commands = [" ".join(children.read(name).command) for name in children.NAMES]
    commands += [(processes.PROC / str(pid) / "cmdline").read_text() for pid in children.family()]
    written = [file.read_text() for file in settings.folder().glob("*.json") if file.name != "settings.json"]
    assert len(commands) > 4 and not [text for text in commands + written if "horse" in text or "staple" in text]


@pytest.mark.parametrize("auth", ["", "opd:wrong horse", "admin:wrong staple"])
def test_a_wrong_password_is_refused_by_both_servers(platform, auth):
    for server, path in ((f"{platform.settings.prefect_url}/api", "/work_pools/opd"),
                         (platform.settings.mlflow_url, "/api/2.0/mlflow/experiments/get?experiment_id=0")):
        with pytest.raises(httpx.HTTPStatusError) as refusal:
            api.Api(server, auth).get(path)
        assert refusal.value.response.status_code == 401
    assert api.mlflow(platform.settings).get("/api/2.0/mlflow/experiments/get", experiment_id=0)["experiment"]


def test_mlflow_starts_two_processes(platform):
    assert len(children.family_of("mlflow")) == 2


def test_the_pool_has_a_slot_a_device_and_the_automations_stand_once(platform):
    pool = platform.prefect.get(f"/work_pools/{POOL}")
    assert (pool["type"], pool["concurrency_limit"], pool["status"]) == ("process", 1, "READY")
    for _ in range(2):
        automations.ensure(platform.prefect, "")
    names = [found["name"] for found in platform.prefect.post("/automations/filter")]
    assert sorted(names) == sorted([automations.ZOMBIES, automations.FAILURES])


def test_with_a_webhook_the_failure_automation_calls_it(platform):
    for _ in range(2):
        automations.ensure(platform.prefect, "http://127.0.0.1:9/hook")
    [found] = platform.prefect.post("/automations/filter", {"automations": {"name": {"any_": [automations.FAILURES]}}})
    [action] = found["actions"]
    block = platform.prefect.get(f"/block_documents/{action['block_document_id']}")
    assert action["type"] == "call-webhook" and block["name"].startswith("opd-alarm-")
    automations.ensure(platform.prefect, "")
    assert platform.prefect.get(f"/automations/{found['id']}")["actions"] == [action]  # people's actions stay


def test_automations_may_be_changed_while_runs_are_made(platform):
    deployment = deploy(platform.prefect, "greet", paused=True)
    later = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}}

    def trigger(number: int) -> str:
        return api.prefect(platform.settings).post(f"/deployments/{deployment}/create_flow_run", later)["id"]

    def change(number: int) -> None:
        automations.replace(api.prefect(platform.settings), automations.zombies())
    with ThreadPoolExecutor(4) as threads:
        changed, made = threads.map(change, range(30)), threads.map(trigger, range(30))
        assert len(set(made)) == 30 and len(list(changed)) == 30
    platform.prefect.client.delete(f"/deployments/{deployment}")


def test_a_command_uses_the_platform_unless_the_user_named_a_server(platform, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert state.use() == state.running() is not None
    assert os.environ["PREFECT_API_URL"] == f"{platform.settings.prefect_url}/api"
    assert os.environ["MLFLOW_TRACKING_URI"] == platform.settings.mlflow_url
    assert os.environ["PREFECT_API_AUTH_STRING"] == "opd:correct horse"
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    state.use()
    assert os.environ["PREFECT_API_URL"] == "http://elsewhere/api"
    assert os.environ["MLFLOW_TRACKING_URI"] == platform.settings.mlflow_url


def test_a_schedule_fires(platform):
    anchor = datetime.now(UTC).isoformat()
    deployment = deploy(platform.prefect, "greet", schedules=[
        {"active": True, "schedule": {"interval": 3600, "anchor_date": anchor}}])
    only = {"deployments": {"id": {"any_": [deployment]}}}
    runs = wait_for(lambda: platform.prefect.post("/flow_runs/filter", only), "a scheduled run")
    assert {run["state_type"] for run in runs} == {"SCHEDULED"} and all(run["auto_scheduled"] for run in runs)
    assert cli.main(["status", "--json"]) == 0
    platform.prefect.client.delete(f"/deployments/{deployment}")


def test_a_triggered_run_completes_on_the_worker(platform):
    deployment = deploy(platform.prefect, "greet")
    run = platform.prefect.post(f"/deployments/{deployment}/create_flow_run", {"parameters": {"name": "world"}})["id"]
    wait_for(lambda: state_of(platform.prefect, run) == "COMPLETED", "the run")
    assert "hello world" in children.last_lines("worker")


def test_a_killed_worker_leaves_no_process_and_no_run_at_work_and_is_replaced(platform, tmp_path, capsys):
    run, grandchild = lingering(platform, tmp_path)
    assert cli.main(["status"]) == 0 and "1 of 1 used" in capsys.readouterr().out
    before = pid_of("worker")
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: processes.started(grandchild) is None, "the end of the grandchild")
    wait_for(lambda: state_of(platform.prefect, run) == "CRASHED", "the run's end")
    assert "its process is gone" in platform.prefect.get(f"/flow_runs/{run}")["state"]["message"]
    assert wait_for(lambda: pid_of("worker"), "another worker") != before
    wait_for(lambda: pools.is_served(platform.prefect), "its report")
    test_a_triggered_run_completes_on_the_worker(platform)  # the slot is free


def test_killed_servers_come_back_with_what_they_knew(platform):
    flows = platform.prefect.post("/flows/count")
    for name in ("prefect", "mlflow"):
        os.kill(pid_of(name), signal.SIGKILL)
    wait_for(lambda: state.running() is None, "their death")
    wait_for(state.running, "their return")
    assert platform.prefect.post("/flows/count") == flows


def test_up_mends_what_died_with_the_keeper(platform):
    os.kill(pid_of("keeper"), signal.SIGKILL)
    os.kill(pid_of("mlflow"), signal.SIGKILL)  # its own child lives on and holds the port
    wait_for(lambda: pid_of("mlflow") is None and pid_of("keeper") is None, "their death")
    again, started = lifecycle.up(settings.asked_for("127.0.0.1", 0, 0, "", 1))
    assert (again, started) == (platform.settings, ["mlflow", "keeper"])


def test_logs_and_status_tell_people_and_programs(platform, capsys):
    assert cli.main(["logs", "worker", "-n", "1000"]) == 0 and "Worker 'opd-" in capsys.readouterr().out
    assert cli.main(["logs", "nobody"]) == 1 and "prefect, mlflow, worker, keeper" in capsys.readouterr().err
    assert cli.main(["status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["running"] and told["slots"] == {"used": 0, "of": 1} and told["database"] == "SQLite"
    assert {child["name"]: child["state"] for child in told["children"]} == dict.fromkeys(children.NAMES, "running")


def test_down_leaves_nothing_and_marks_what_ran(platform, tmp_path, monkeypatch, capsys):
    run, grandchild = lingering(platform, tmp_path)
    began = time.monotonic()
    assert cli.main(["down"]) == 0
    print(f"down took {time.monotonic() - began:.1f} s")
    assert children.family() == {} and processes.started(grandchild) is None and state.running() is None
    assert cli.main(["down"]) == 0 and "nothing ran" in capsys.readouterr().out
    again, started = lifecycle.up(settings.asked_for("127.0.0.1", 0, 0, "", 1))
    assert started == [*children.NAMES]
    ended = api.prefect(again).get(f"/flow_runs/{run}")["state"]
    assert ended["type"] == "CRASHED"
