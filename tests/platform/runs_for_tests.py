"""Runs on the platform under test, and patience."""
import time
from pathlib import Path
from types import SimpleNamespace

from flows.platform import api, children
from flows.platform.servers import POOL

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 300                  # of a test that is going to fail; a busy machine is slow


def wait_for(happened, what: str, seconds: float = PATIENCE_SECONDS):
    """What `happened()` returns, once that is true."""
    until = time.monotonic() + seconds
    while not (result := happened()):
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.2)
    return result


def deploy(prefect: api.Api, flow: str, **fields) -> str:
    """The id of a deployment of a flow of flows_for_tests."""
    flow_id = prefect.post("/flows/", {"name": flow})["id"]
    body = {"name": f"test-{flow}", "flow_id": flow_id, "work_pool_name": POOL, "path": str(ROOT), "pull_steps": [],
            "entrypoint": f"tests.platform.flows_for_tests.{flow}", **fields}
    return prefect.post("/deployments/", body)["id"]


def state_of(prefect: api.Api, run: str) -> str:
    """The type of a run's state."""
    return prefect.get(f"/flow_runs/{run}")["state_type"]


def lingering(platform: SimpleNamespace, tmp_path: Path) -> tuple[str, int]:
    """A run that lingers, and the pid of the process that it started in another session."""
    file = tmp_path / "pid"
    deployment = deploy(platform.prefect, "linger")
    run = platform.prefect.post(f"/deployments/{deployment}/create_flow_run", {"parameters": {"file": str(file)}})["id"]
    wait_for(lambda: file.exists() and file.read_text(), "the run's own process")
    assert state_of(platform.prefect, run) == "RUNNING"
    return run, int(file.read_text())


def pid_of(name: str) -> int | None:
    """The pid of a living child."""
    child = children.living(name)
    return child and child.pid
