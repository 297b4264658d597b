"""Processes of this machine, by what outlives their parents: start time, environment, ancestry. Reads /proc.

A pid alone names nobody: the kernel gives it out again. With the boot and the clock ticks since then at which the
process started it does, whatever becomes of the machine's clock. Left out: process groups; what leaves its session
keeps its environment.
"""
import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """A living process."""
    pid: int
    parent: int                         # pid
    started: int                        # clock ticks since the machine's boot
    environment: dict[str, str]         # as it was started with; empty where we may not read it


@functools.cache
def boot() -> str:
    """Tells this boot of the machine from all others."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def parent_and_start(pid: int) -> tuple[int, int] | None:
    """The parent's pid and the start in ticks; None when there is no such process, or only its exit code is left."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[19]))


def started(pid: int) -> int | None:
    """When a living process started, in ticks since boot; None when it does not live."""
    found = parent_and_start(pid)
    return found and found[1]


def environment_of(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty when it has ended or is another user's."""
    try:
        data = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in data.decode(errors="replace").split("\0") if "=" in line)


def tagged(name: str, value: str) -> dict[int, Process]:
    """The living processes that were started with `name=value` in their environment, by pid."""
    found = {}
    for pid in (int(place.name) for place in PROC.glob("[0-9]*")):
        environment = environment_of(pid)
        if environment.get(name) == value and (known := parent_and_start(pid)):
            found[pid] = Process(pid=pid, parent=known[0], started=known[1], environment=environment)
    return found


def tree(root: int, among: dict[int, Process]) -> set[int]:
    """The pids of `root` and of what descends from it over living processes of `among`; empty without the root."""
    found = [root] if root in among else []
    for above in found:  # it grows as it goes
        found += [pid for pid, process in among.items() if process.parent == above]
    return set(found)


def send(process: Process, number: int) -> None:
    """Signal a process, unless its pid is another's by now."""
    with contextlib.suppress(ProcessLookupError):
        if started(process.pid) == process.started:
            os.kill(process.pid, number)


def end(find: Callable[[], dict[int, Process]], first: Callable[[Process], bool] = lambda process: True, *,
        grace_seconds: float = 3.0, kill_seconds: float = 3.0) -> bool:
    """End what `find` finds, again and again until it finds nothing; whether it came to that.

    Those chosen by `first` get a SIGTERM and all have `grace_seconds`; what is left then gets a SIGKILL.
    """
    for process in find().values():
        if first(process):
            send(process, signal.SIGTERM)
    until = time.monotonic() + grace_seconds
    while (left := find()) and time.monotonic() < until:
        time.sleep(0.1)
    until = time.monotonic() + kill_seconds
    while left and time.monotonic() < until:
        for process in left.values():
            send(process, signal.SIGKILL)
        time.sleep(0.02)
        reap(left)
        left = find()
    return not left


def reap(processes: dict[int, Process]) -> None:
    """Take the exit codes of those that were this process's children, so that they do not stay as zombies."""
    for pid in processes:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
