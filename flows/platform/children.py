"""The platform's processes: each in a session of its own with a log, a record and a tag that its descendants inherit.

A record says pid, boot and start, port and command; it stays until the child is stopped, so that whoever comes later
knows what was there. Whatever a dead child left is found by its tag.
"""
import json
import os
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.platform import processes
from flows.platform.processes import Process
from flows.platform.settings import folder
from tasks.opd.core.files import room_to_write
from tasks.opd.store.artifacts import home
from tasks.workers.launchers import ROOT

NAMES = ("prefect", "mlflow", "worker", "keeper")
HOME_TAG, NAME_TAG = "OPD_PLATFORM", "OPD_PLATFORM_CHILD"  # in the environment: whose platform's, which child's
LOG_BYTES = 20 << 20                    # of a log, before a start sets it aside


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """A child as it was started."""
    name: str
    pid: int
    boot: str
    started: int                        # clock ticks since that boot
    since: float                        # Unix time of the start, for people
    port: int | None
    command: list[str]
    log: str

    def is_alive(self) -> bool:
        """Whether this very process lives; another of the same pid is not it."""
        return self.boot == processes.boot() and processes.started(self.pid) == self.started


def record_of(name: str) -> Path:
    """Where a child's record lies."""
    return folder() / f"{name}.json"


def log_of(name: str) -> Path:
    """Where a child's output goes."""
    return folder() / "logs" / f"{name}.log"


def read(name: str) -> Child | None:
    """The record of a child, dead or alive; None without one, or where a crash left half of it."""
    try:
        return Child(**json.loads(record_of(name).read_text()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def living(name: str) -> Child | None:
    """The child of that name, if it lives."""
    child = read(name)
    return child if child and child.is_alive() else None


def start(name: str, command: list[str], environment: dict[str, str], port: int | None = None) -> Child:
    """Start a child in a session of its own: no terminal's end and no Ctrl-C reaches it."""
    log = log_of(name)
    with room_to_write(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > LOG_BYTES:
            os.replace(log, log.with_suffix(".log.1"))
        with open(log, "ab") as output:
            output.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} started\n".encode())
            output.flush()
            child = subprocess.Popen(command, cwd=ROOT, env=environment | {HOME_TAG: str(home()), NAME_TAG: name},
                                     stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    record = Child(name=name, pid=child.pid, boot=processes.boot(), started=processes.started(child.pid) or 0,
                   since=time.time(), port=port, command=command, log=str(log))
    write(record)
    return record


def write(child: Child) -> None:
    """Keep a child's record, whole or not at all."""
    file, draft = record_of(child.name), record_of(f".{child.name}")
    with room_to_write(file):
        draft.write_text(json.dumps(asdict(child), indent=1))
        os.replace(draft, file)


def family() -> dict[int, Process]:
    """All processes of this platform but this one, by pid: its children and all that ever descended from them."""
    found = processes.tagged(HOME_TAG, str(home()))
    found.pop(os.getpid(), None)
    return found


def family_of(name: str) -> dict[int, Process]:
    """A child and what descends or descended from it, by pid."""
    return {pid: process for pid, process in family().items() if process.environment.get(NAME_TAG) == name}


def stop(name: str, *, grace_seconds: float = 3.0) -> bool:
    """End a child and all that it left: the child is asked first, then all are killed. Whether nothing is left."""
    child = read(name)
    gone = processes.end(lambda: family_of(name), lambda process: child is not None and process.pid == child.pid,
                         grace_seconds=grace_seconds)
    if gone:
        record_of(name).unlink(missing_ok=True)
    return gone


def last_lines(name: str, number: int = 20) -> str:
    """The end of a child's log."""
    try:
        with open(log_of(name), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-number:])
    except FileNotFoundError:
        return ""
