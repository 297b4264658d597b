"""A Prefect server of a command's own, under the workers' supervisor: Prefect's ephemeral one outlives a kill -9.

It holds Prefect's Secrets, and every user of this machine reaches its port, so it asks for a password that only this
command and what it starts know.
"""
import atexit
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request

from tasks.opd.core.addresses import without_user
from tasks.opd.core.errors import EngineError
from tasks.opd.core.files import FULL_BYTES, disk_full, free_bytes, room_to_write
from tasks.opd.store.artifacts import home
from tasks.workers.launchers import ROOT, quiet_environment

OWN = "OPD_PREFECT_OWN"                 # in the environment: the address of the server that the command started
QUIET = ("TRIGGERS", "EVENT_PERSISTER", "TASK_RUN_RECORDER")  # 17 ms of its time a task, for nobody to look at


def is_own() -> bool:
    """Whether the server in use is this command's own, which has no pages and ends with it."""
    return os.environ.get("PREFECT_API_URL", "") == os.environ.get(OWN, "none")


def keep_password_apart() -> None:
    """Move user and password out of PREFECT_API_URL, which is shown and stored, to PREFECT_API_AUTH_STRING."""
    address, user, password = without_user(os.environ.get("PREFECT_API_URL", ""))
    if user:
        os.environ.update(PREFECT_API_URL=address, PREFECT_API_AUTH_STRING=f"{user}:{password}")


def start(timeout_seconds: float = 90) -> None:
    """Start the server and name it in PREFECT_API_URL, unless one is named there; it ends with this process."""
    keep_password_apart()
    if os.environ.get("PREFECT_API_URL"):
        return
    quiet_environment()
    with socket.socket() as free, room_to_write(home()):
        free.bind(("127.0.0.1", 0))
        port, log = free.getsockname()[1], home() / "logs" / "prefect.log"
        log.parent.mkdir(parents=True, exist_ok=True)
    own = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in QUIET} | {"PREFECT_UI_ENABLED": "false"}
    os.environ.pop("PREFECT_API_KEY", None)  # it would be sent in place of the password
    os.environ["PREFECT_API_AUTH_STRING"] = f"opd:{secrets.token_urlsafe(32)}"
    fixed = {"OPD_WORKER_LOG": str(log), "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1",
             "PREFECT_SERVER_API_AUTH_STRING": os.environ["PREFECT_API_AUTH_STRING"]}
    command = ["-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port",
               str(port), "--log-level", "error", "--lifespan", "on"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.opd.runtime.supervisor", sys.executable, *command], cwd=ROOT,
        start_new_session=True, env={**own, **os.environ, **fixed}, stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(process.stdin.close)  # before Prefect is imported, so after it has said its last word
    os.environ["PREFECT_API_URL"] = os.environ[OWN] = f"http://127.0.0.1:{port}/api"
    until = time.monotonic() + timeout_seconds
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{os.environ['PREFECT_API_URL']}/health", timeout=5).close()
        time.sleep(0.1)
    if free_bytes(home()) < FULL_BYTES:
        raise disk_full(home(), OSError("Prefect's server, whose database lies there, did not start"))
    raise EngineError(f"Prefect's server did not start; see {log}, or set PREFECT_API_URL to one that runs")
