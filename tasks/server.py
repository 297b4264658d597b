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
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tasks.opd.core.addresses import without_user
from tasks.opd.core.errors import EngineError, OpdError
from tasks.opd.core.files import FULL_BYTES, disk_full, flock, free_bytes, room_to_write
from tasks.opd.core.progress import print_line
from tasks.opd.store.artifacts import home
from tasks.workers.launchers import ROOT, quiet_environment

PATIENCE = "OPD_START_SECONDS"          # in the environment: how long a server may take to start
USUAL_SECONDS = 90
RESTART_SECONDS, LONGEST_PAUSE_SECONDS = 1, 60
OWN = "OPD_PREFECT_OWN"                 # in the environment: the address of the server that the command started
QUIET = ("TRIGGERS", "EVENT_PERSISTER", "TASK_RUN_RECORDER")  # 17 ms of its time a task, for nobody to look at
# What its pages would show, which it has not; to register all types of blocks takes a quarter of its time to start. Who
# saves a block, a Secret say, registers its type.
WITHOUT_PAGES = {"PREFECT_UI_ENABLED": "false", "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
                 "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false"}


def is_own() -> bool:
    """Whether the server in use is this command's own, which has no pages and ends with it."""
    return os.environ.get("PREFECT_API_URL", "") == os.environ.get(OWN, "none")


def keep_password_apart() -> None:
    """Move user and password out of PREFECT_API_URL, which is shown and stored, to PREFECT_API_AUTH_STRING."""
    address, user, password = without_user(os.environ.get("PREFECT_API_URL", ""))
    if password:
        os.environ.update(PREFECT_API_URL=address, PREFECT_API_AUTH_STRING=f"{user}:{password}")


def start_seconds(usual: float) -> float:
    """How long a server may take to start: $OPD_START_SECONDS, else what is usual. Raises EngineError for no number."""
    given = os.environ.get(PATIENCE) or usual
    try:
        return float(given)
    except ValueError as error:
        raise EngineError(f"{PATIENCE} is {given!r}; it is a number of seconds, for example 300") from error


def starting():
    """Hold the lock under which a Prefect server starts: two that make the tables of one database break each other."""
    return flock(Path(os.environ.get("PREFECT_HOME") or home() / "prefect") / "prefect-start.lock")


def start(timeout_seconds: float | None = None, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Start the server and name it in PREFECT_API_URL, unless one is named there; it ends with this process.

    It takes seconds, in which `meanwhile` is called. Where it dies before this process, it is started again at the same
    address: Prefect's client asks again meanwhile.
    """
    keep_password_apart()
    if os.environ.get("PREFECT_API_URL"):
        return
    quiet_environment()
    with socket.socket() as free, room_to_write(home()):
        free.bind(("127.0.0.1", 0))
        port, log = free.getsockname()[1], home() / "logs" / "prefect.log"
        log.parent.mkdir(parents=True, exist_ok=True)
    own = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in QUIET} | WITHOUT_PAGES
    os.environ.pop("PREFECT_API_KEY", None)  # it would be sent in place of the password
    os.environ["PREFECT_API_AUTH_STRING"] = f"opd:{secrets.token_urlsafe(32)}"
    fixed = {"OPD_WORKER_LOG": str(log), "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1",
             "PREFECT_SERVER_API_AUTH_STRING": os.environ["PREFECT_API_AUTH_STRING"]}
    command = ["-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port",
               str(port), "--log-level", "error", "--lifespan", "on"]
    server = Server([sys.executable, "-m", "tasks.opd.runtime.supervisor", sys.executable, *command],
                    {**own, **os.environ, **fixed})
    seconds = start_seconds(USUAL_SECONDS) if timeout_seconds is None else timeout_seconds
    with starting():
        server.launch()
        atexit.register(server.end)     # before Prefect is imported, so after it has said its last word
        os.environ["PREFECT_API_URL"] = os.environ[OWN] = f"http://127.0.0.1:{port}/api"
        try:
            meanwhile()
            server.await_answer(seconds, log)
        except OpdError:
            server.end()
            raise
    threading.Thread(target=server.keep, daemon=True, name="prefect-server").start()


class Server:
    """The process, which is started again when it dies."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.command, self.environment, self.ended, self.lock = command, environment, False, threading.Lock()

    def launch(self) -> None:
        """Start the process, which ends with this one."""
        self.process = subprocess.Popen(self.command, cwd=ROOT, start_new_session=True, env=self.environment,
                                        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def await_answer(self, seconds: float, log: Path) -> None:
        """Wait until it answers. Raises DiskFull or EngineError when it ends, or takes longer."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(f"{os.environ['PREFECT_API_URL']}/health", timeout=5).close()
            time.sleep(0.1)
        if free_bytes(home()) < FULL_BYTES:
            raise disk_full(home(), OSError("Prefect's server, whose database lies there, did not start"))
        raise EngineError(f"Prefect's server did not start within {seconds:g} s; see {log}. Give it more time with "
                          f"{PATIENCE}, or set PREFECT_API_URL to one that runs")

    def keep(self) -> None:
        """Start it again whenever it dies, until `end`; each pause is twice the one before."""
        pause = RESTART_SECONDS
        while True:
            self.process.wait()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            with self.lock:
                if self.ended:
                    return
                print_line("opd: Prefect's server died and is started again; the run goes on")
                self.launch()

    def end(self) -> None:
        """Let it end."""
        with self.lock:
            self.ended = True
            self.process.stdin.close()
