"""Commands with servers of their own on a fresh home, two at once or with a server killed: no point lost or doubled."""
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from flows.platform import processes
from tasks.opd.core.errors import EngineError
from tasks.server import PATIENCE, start
from tests.platform.commands_for_tests import ROUNDS
from tests.platform.runs_for_tests import PATIENCE_SECONDS, ROOT, wait_for
from tests.tracked_runs import history, runs

CELL = "opd_reverse_kl-seed0"


@pytest.fixture(autouse=True)
def fresh_home(opd_home, monkeypatch):
    """No server is named, and what runs here is found by its home."""
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "OPD_PREFECT_OWN"):
        monkeypatch.setenv(name, "")                        # so that what is set here is forgotten at the end
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    return opd_home


def command(**environment) -> subprocess.Popen:
    """Start the command."""
    return subprocess.Popen([sys.executable, "-m", "tests.platform.commands_for_tests"], cwd=ROOT, text=True,
                            env={**os.environ, "OPD_START_SECONDS": str(PATIENCE_SECONDS), **environment},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def outcome(process: subprocess.Popen) -> str:
    """What a command printed; its complaints where it failed."""
    out, complaints = process.communicate(timeout=2 * PATIENCE_SECONDS)
    return out.strip() if process.returncode == 0 else complaints[-4000:]


def assert_all_points_once() -> None:
    """The suite's run and its cell have ended well and hold every number once."""
    found = {run.info.run_name: run for run in runs("small")}
    assert {name: run.info.status for name, run in found.items()} == {"small": "FINISHED", CELL: "FINISHED"}
    assert [value for _, _, value in history(found["small"], "final/reward_mean")] == [0.5]
    for key in ("numbers/count", "numbers/seconds"):
        assert [step for step, _, _ in history(found[CELL], key)] == [*range(1, ROUNDS + 1)]


def killed(home, name: str) -> None:
    """Kill the processes of a home whose command line has a name, as the kernel does where memory ends."""
    there = [pid for pid in processes.tagged("OPD_HOME", str(home)) if pid != os.getpid()
             and name in (processes.PROC / str(pid) / "cmdline").read_text().replace("\0", " ")]
    assert there
    for pid in there:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_two_commands_at_once_on_a_fresh_home_with_one_suite_end_well(fresh_home):
    assert [outcome(one) for one in [command(), command()]] == ["ended well", "ended well"]
    assert_all_points_once()


def test_a_command_whose_prefect_server_is_killed_goes_on_with_another(fresh_home, tmp_path):
    running = command(STOPPED=str(tmp_path / "stopped"))
    wait_for((tmp_path / "stopped").exists, "the first rounds")
    killed(fresh_home, "prefect.server.api.server:create_app")
    (tmp_path / "stopped").unlink()
    assert outcome(running) == "ended well"
    assert_all_points_once()
    left = processes.tagged("OPD_HOME", str(fresh_home))
    assert set(left) <= {os.getpid()}                       # the second server ended, too


def test_a_run_whose_mlflow_server_is_killed_has_all_points_once_it_is_back(
        fresh_home, empty_store, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with served(tmp_path / "served.db", tmp_path, port):
        running = command(STOPPED=str(tmp_path / "stopped"), MLFLOW_TRACKING_URI=address)
        wait_for((tmp_path / "stopped").exists, "the first rounds")
    with served(tmp_path / "served.db", tmp_path, port):
        (tmp_path / "stopped").unlink()
        assert outcome(running) == "ended well"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert_all_points_once()


@contextlib.contextmanager
def served(database, folder, port: int):
    """MLflow's server over a database, which is killed at the end without a word."""
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", "--backend-store-uri",
         f"sqlite:///{database}", "--artifacts-destination", str(folder / "files")], env=environment, cwd=folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
        return False
    try:
        wait_for(answers, "MLflow's server")
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_patience_with_a_server_is_a_number_of_seconds(fresh_home, monkeypatch):
    monkeypatch.setenv(PATIENCE, "long")
    with pytest.raises(EngineError, match="OPD_START_SECONDS is 'long'; it is a number of seconds"):
        start()
    began = time.monotonic()
    monkeypatch.setenv(PATIENCE, "0")
    with pytest.raises(EngineError, match="did not start within 0 s.*OPD_START_SECONDS"):
        start()
    assert time.monotonic() - began < PATIENCE_SECONDS
