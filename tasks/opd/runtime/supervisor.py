"""Stands between a flow and its worker, so that nothing of a run outlives it.

`python -m tasks.opd.runtime.supervisor COMMAND`

It leads a process group of its own and starts the command in it. Standard input is a pipe from the flow: at its end,
however the flow died, all that descends from this process is killed. Orphans come to it instead of init (a subreaper),
so that whatever left the group, or lost its parent, is found. What the command prints goes to standard error and to the
file $OPD_WORKER_LOG. Where this process itself is killed, the kernel kills the command; a command that has descendants
of its own does better to `watch` its standard input, a pipe that ends with this process.
"""
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
KILL_SECONDS = 5  # a process in the middle of I/O may take a while to die


def main(command: list[str]) -> None:
    """Run `command` until it ends or standard input does; then kill all its descendants, and this process."""
    prctl, this = ctypes.CDLL(None).prctl, os.getpid()
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    log = open(os.environ["OPD_WORKER_LOG"], "ab", buffering=0)

    def die_with_this_process() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # of the thread that starts it, which waits for it below
        if os.getppid() != this:
            os.kill(os.getpid(), signal.SIGKILL)
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             preexec_fn=die_with_this_process)
    copier = threading.Thread(target=copy, args=(child.stdout.fileno(), log), daemon=True)
    copier.start()
    threading.Thread(target=watch, args=(sys.stdin.fileno(),), daemon=True).start()
    code = child.wait()
    copier.join(timeout=0.5)  # a grandchild may hold the pipe open
    if code:
        last = f"worker ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}\n".encode()
        copy_bytes(last, log)
    end()


def watch(pipe: int) -> None:
    """Kill everything at the end of the pipe."""
    while os.read(pipe, 4096):
        pass
    end()


def end() -> None:
    """Kill all descendants, those included that they start meanwhile, then the group, this process included."""
    until = time.monotonic() + KILL_SECONDS
    while (living := descendants(os.getpid())) and time.monotonic() < until:
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    os.killpg(0, signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """The living processes below one, in any group or session."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            state, parent = (place / "stat").read_text().rpartition(")")[2].split()[:2]
            parents[int(place.name)] = int(parent) if state not in "ZX" else 0
    found = [root]
    for above in found:  # it grows as it goes
        found += [pid for pid, parent in parents.items() if parent == above]
    return found[1:]


def copy(source: int, log) -> None:
    """Copy what the command prints, as it comes."""
    while data := os.read(source, 1 << 16):
        copy_bytes(data, log)


def copy_bytes(data: bytes, log) -> None:
    """Write to the terminal and to the log; a closed terminal or a full disk must not stop the worker."""
    for write in (lambda: os.write(sys.stderr.fileno(), data), lambda: log.write(data)):
        try:
            write()
        except OSError:
            continue


if __name__ == "__main__":
    main(sys.argv[1:])
