"""Starts, feeds and ends the workers of a flow run. No torch: a run that only reuses artifacts never starts one.

A pool makes stages' files: `InlinePool` in this process, `ProcessPool` in a worker process that is started at the first
stage to be made and lives as long as the flow run. Both keep the derivations of the run's artifacts, so that a damaged
one can be made again, and tell their `listener` what happens.
"""
import abc
import contextlib
import json
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path

from tasks.opd.core.errors import ERRORS, EngineLost
from tasks.opd.core.files import FULL_BYTES, disk_full, free_bytes, room_to_write, socket_address
from tasks.opd.core.progress import print_line
from tasks.opd.engines.pool import Session
from tasks.opd.runtime.worker import SMALLER, perform
from tasks.opd.store import artifacts, disk
from tasks.workers.launchers import accept, await_end, launch, quiet_environment


class WorkerFailed(RuntimeError):
    """A stage raised an error nobody foresaw; the message carries the worker's traceback."""


class Listener:
    """What a pool tells about its stages, on the thread that makes them; whoever wants to know overrides it."""

    def stage_progress(self, progress: dict) -> None:
        """A stage is at work: {label, done, total, unit, seconds, tokens}, about once a second."""


class WorkerPool(abc.ABC):
    """What the makers of a run share: memory of derivations, counts of what was made, a listener."""

    def __init__(self, patience: float = math.inf):
        self.patience = patience  # seconds of silence after which a stage counts as hung; the next stage looks anew
        self.listener = Listener()
        self.derivations = {}  # (kind, fingerprint) -> (stage, spec, inputs)
        self.made = self.reused = 0
        self.later = []        # recipes of the suite's cells that are still to come
        self.held = []         # scores whose hidden states one of them will read
        self.bar = None        # of the rounds, while they run and a person is told so

    @abc.abstractmethod
    def make(self, stage: str, spec: dict, inputs: dict[str, str], out: Path) -> dict:
        """Have a stage write its files to `out`: {counts, peak_memory_bytes}, as `perform` has it.

        Raises: what the stage raises; EngineLost when its engine or worker died, hung or ran out of memory.
        """

    @abc.abstractmethod
    def close(self, *, at_once: bool) -> None:
        """End what was started; without ceremony when `at_once`. What is made later is started anew."""


class InlinePool(WorkerPool):
    """Makes stages in this process, with one session."""

    def __init__(self):
        super().__init__()
        self.session = Session()
        self.session.report = lambda progress: self.listener.stage_progress(progress)  # whoever listens by then

    def make(self, stage: str, spec: dict, inputs: dict[str, str], out: Path) -> dict:
        return perform({"stage": stage, "spec": spec, "inputs": inputs, "out": str(out)}, self.session)

    def close(self, *, at_once: bool) -> None:
        self.session.close()


class ProcessPool(WorkerPool):
    """Makes stages in a worker process under a supervisor; see tasks.opd.runtime.supervisor for how they end.

    A worker that gives no sign of life for `patience` seconds, neither progress nor a reply, counts as hung.
    """

    def __init__(self, patience: float):
        super().__init__(patience)
        self.lock = threading.Lock()  # one command at a time
        self.supervisor = self.connection = self.log = None

    def make(self, stage: str, spec: dict, inputs: dict[str, str], out: Path) -> dict:
        command = {"stage": stage, "spec": spec, "inputs": inputs, "out": str(out)}
        with self.lock:
            if self.supervisor is None:
                self.start()
            reply = self.ask(command)
        if reply is None:
            raise self.death(stage, out)
        if reply["ok"]:
            return {name: reply[name] for name in ("counts", "peak_memory_bytes")}
        error = ERRORS.get(reply["error"])
        if error is None:
            self.close(at_once=True)  # an error nobody foresaw, a CUDA fault say, may have left anything behind
            raise WorkerFailed(f"stage {stage} failed with {reply['error']}: {reply['message']}\n{reply['traceback']}")
        failure = error(reply["message"])
        failure.add_note(reply["traceback"])
        if isinstance(failure, EngineLost):
            self.close(at_once=True)  # what a lost engine leaves behind is nothing to go on with
        raise failure

    def start(self) -> None:
        """Start supervisor and worker, and wait until the worker connects.

        Raises: EngineLost when it dies before that, or does not connect within `patience` seconds.
        """
        self.log = artifacts.home() / "logs" / f"worker-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        with room_to_write(self.log):
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.touch()
        folder = tempfile.mkdtemp(prefix="opd-")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                with socket_address(Path(folder, "socket")) as address:
                    listener.bind(address)
                listener.listen(1)
                listener.settimeout(0.2)
                self.supervisor = launch(f"{folder}/socket", self.log)
                self.connection = accept(listener, self.supervisor, self.patience)
        except TimeoutError:
            raise self.absence() from None
        finally:
            shutil.rmtree(folder)
        if self.connection is None:
            raise self.death("start", self.log.parent)
        self.replies = self.connection.makefile("r", encoding="utf-8")

    def ask(self, command: dict) -> dict | None:
        """Send a command and wait for its reply, None when the worker dies; the listener hears of progress meanwhile.

        Raises: EngineLost when the worker is silent for longer than `patience`.
        """
        self.connection.settimeout(self.patience)
        try:
            self.connection.sendall((json.dumps(command) + "\n").encode())
            while (line := self.replies.readline()).endswith("\n"):
                reply = json.loads(line)
                if "progress" not in reply:
                    return reply
                self.listener.stage_progress(reply["progress"])
        except TimeoutError:
            raise self.hang(command["stage"]) from None
        except OSError:
            return None
        return None

    def hang(self, stage: str) -> EngineLost:
        """The error for a silent worker, which is killed."""
        self.close(at_once=True)
        return EngineLost(f"stage {stage} hung: neither progress nor a result for {self.patience:g} s, so its "
                          "worker was killed. If it was at work (a large model loads in silence), raise "
                          "engine.patience_seconds\n"
                          f"{self.log} ends:\n{self.last_words()}")

    def absence(self) -> EngineLost:
        """The error for a worker that lives but did not connect; it is killed."""
        self.close(at_once=True)
        return EngineLost(f"the worker did not connect within {self.patience:g} s of its start, so it was killed. It "
                          "imports nothing heavy before that: see whether the disk that holds Python's packages "
                          f"answers (a network file system, say), or raise engine.patience_seconds\n"
                          f"{self.log} ends:\n{self.last_words()}")

    def last_words(self) -> str:
        """The last lines of the worker's log."""
        lines = self.log.read_bytes().decode(errors="replace").replace("\r", "\n").splitlines()
        return "\n".join(line for line in lines[-60:] if line.strip())

    def death(self, stage: str, out: Path) -> Exception:
        """The error for a dead worker, with the last lines of its log; a full disk is named as such."""
        await_end(self.supervisor)  # it has written the worker's last words
        self.close(at_once=True)
        last = self.last_words()
        if free_bytes(out) < FULL_BYTES:
            return disk_full(out, OSError(f"the worker died in stage {stage}; its last lines:\n{last}\n"))
        killed = "SIGKILL below" if "worker ended with" in last else "That its supervisor died too, without a word,"
        return EngineLost(f"the worker died in stage {stage}. {killed} means that the machine's memory was short: "
                          f"{SMALLER}\n{self.log} ends:\n{last}")

    def close(self, *, at_once: bool) -> None:
        """End the worker and everything it started: asked first, then killed; killed `at_once` after an error."""
        supervisor, self.supervisor = self.supervisor, None
        if supervisor is None:
            return
        if self.connection is not None:
            self.replies.close()
            self.connection.close()
        if not at_once:
            await_end(supervisor)
        supervisor.stdin.close()  # upon which it kills all that descends from it
        await_end(supervisor)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(supervisor.pid, signal.SIGKILL)  # if it is dead or stuck, its group is not
        supervisor.wait()
        self.connection = None


@contextlib.contextmanager
def for_run(recipe):
    """The pool of a flow run (`recipe.workers`: inline or process); ends with everything it started, on any way out."""
    quiet_environment()
    artifacts.sweep()
    if warning := disk.warning():
        print_line(f"opd: {warning}")
    pool = InlinePool() if recipe.workers == "inline" else ProcessPool(patience=recipe.engine.patience_seconds)
    at_once = True
    try:
        yield pool
        at_once = False
    finally:
        pool.close(at_once=at_once)
        print_line(f"opd: made {pool.made} artifacts, reused {pool.reused}")
