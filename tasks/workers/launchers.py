"""Starts a worker process under its supervisor, in an environment that is quiet. No torch."""
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tasks.opd.store import artifacts

PR_SET_PDEATHSIG = 1
ROOT = Path(__file__).resolve().parents[2]
# torch's threads wait awake, but not for long: asleep at once, a decode step takes half as long again; awake as long as
# they like to be, two processes on the same cores stall each other tenfold.
SPIN = "3000"
LONGEST_FOLDER = 107 - len("/") - 36    # bytes: a Unix socket's path may have 107, and vLLM names one by a UUID
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def quiet_environment() -> None:
    """Say how threads wait, turn telemetry off, where the user has not decided; call it before importing any tool.

    Servers of this machine are reached without a proxy, whatever the user decided for others.
    """
    os.environ.update(without_proxy())
    for name, value in {**QUIET, "TORCH_CPP_LOG_LEVEL": "ERROR"}.items():  # vLLM's kernels tell where memory lies
        os.environ.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_FOLDER:
        os.environ.setdefault("VLLM_RPC_BASE_PATH", "/tmp")  # vLLM's sockets, else in $TMPDIR


def without_proxy(*hosts: str) -> dict[str, str]:
    """Variables for no proxy to this machine and `hosts`: a cluster's proxy catches requests to loopback too."""
    listed = [*map(str.strip, f"{os.environ.get('NO_PROXY', '')},{os.environ.get('no_proxy', '')}".split(","))]
    spared = "*" if "*" in listed else ",".join(     # which counts only where it stands alone
        dict.fromkeys(filter(None, [*listed, "127.0.0.1", "localhost", "::1", *hosts])))
    return {"NO_PROXY": spared, "no_proxy": spared}


def launch(path: str, log: Path) -> subprocess.Popen:
    """Start the supervisor, which leads a new session and starts a worker that connects to the socket at `path`."""
    quiet_environment()
    environment = {**os.environ, "OPD_WORKER_LOG": str(log), "OPD_HOME": str(artifacts.home()), "PYTHONUNBUFFERED": "1",
                   "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    if sys.stderr.isatty():
        environment["COLUMNS"] = str(shutil.get_terminal_size().columns)
    command = [sys.executable, "-m", "tasks.opd.runtime.supervisor", sys.executable,
               "-m", "tasks.opd.runtime.worker", "--socket", path]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=sys.__stderr__.fileno(),
                            start_new_session=True)


def end_with_parent() -> None:
    """Raise KeyboardInterrupt here when the process that started this one dies; at once when it is dead already.

    What is written to its pipes from then on goes nowhere, instead of being an error that hides the reason. Prefect
    takes an interrupt for a crash, and says so; a SIGTERM would end this process before it does.
    """
    def leave(number: int, frame) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        raise KeyboardInterrupt
    parent = os.getppid()
    signal.signal(signal.SIGHUP, leave)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGHUP), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGHUP)


def await_end(process: subprocess.Popen, timeout_seconds: float = 10) -> None:
    """Wait for a process, but not for ever."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout_seconds)


def accept(listener: socket.socket, supervisor: subprocess.Popen, patience: float) -> socket.socket | None:
    """The worker's connection; None when its supervisor ends before there is one.

    Raises: TimeoutError after `patience` seconds of neither.
    """
    until = time.monotonic() + patience
    while supervisor.poll() is None:
        try:
            return listener.accept()[0]
        except TimeoutError:
            if time.monotonic() > until:
                raise
    return None
