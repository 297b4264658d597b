"""Stands between a flow and its worker, so that nothing of a run outlives it: `python -m tasks.opd.supervisor COMMAND`.

It leads a process group of its own and starts the command in it. Standard input is a pipe from the flow: at its end,
however the flow died, the whole group is killed, grandchildren included. What the command prints goes to standard
error and to the file $OPD_WORKER_LOG. Left out: parent-death signals; they follow the creating thread and miss
grandchildren.
"""
import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> None:
    """Run `command` until it ends or standard input does; then kill the group, this process included."""
    log = open(os.environ["OPD_WORKER_LOG"], "ab", buffering=0)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    copier = threading.Thread(target=copy, args=(child.stdout.fileno(), log), daemon=True)
    copier.start()
    threading.Thread(target=watch, args=(sys.stdin.fileno(),), daemon=True).start()
    code = child.wait()
    copier.join(timeout=0.5)  # a grandchild may hold the pipe open
    if code:
        last = f"worker ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}\n".encode()
        copy_bytes(last, log)
    os.killpg(0, signal.SIGKILL)


def watch(pipe: int) -> None:
    """Kill the group at the end of the pipe."""
    while os.read(pipe, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


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
