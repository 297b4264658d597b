"""The worker: makes stages' files, one command after another, keeping engines and training state between them.

`python -m tasks.opd.runtime.worker --socket PATH` takes JSON lines {stage, spec, inputs, out} from a Unix socket and
answers {ok, counts, peak_memory_bytes} or {ok: false, error, message, traceback}, after lines {progress: {label, done,
total, unit, seconds, tokens}} at most once a second while it works; `--once FILE` runs the one command in a file. No
torch is imported before a stage needs it.
"""
import argparse
import contextlib
import ctypes
import importlib
import json
import os
import resource
import socket
import sys
import threading
import traceback
from pathlib import Path

from tasks.opd.core.errors import ERRORS, EngineLost, OpdError
from tasks.opd.core.files import disk_error, socket_address
from tasks.opd.core.streams import keep_printing
from tasks.opd.engines.pool import Session
from tasks.opd.runtime import supervisor
from tasks.opd.runtime.stages import entry_of
from tasks.opd.store.fingerprints import canonical

SMALLER = ("lower engine.batch_tokens (generate, score), train.micro_batch_tokens or train.chunk_tokens (train): "
           "none changes results beyond rounding")


def perform(command: dict, session: Session) -> dict:
    """Run one command {stage, spec, inputs, out}: {counts, peak_memory_bytes: see `peak_memory`}.

    Raises: OpdError as the stage raised it; DiskFull for a full disk and EngineLost for a lack of memory or an engine
    that died, however a library says so; anything else unchanged. After an error the session is empty: nothing
    half-updated survives.
    """
    try:
        module, function = entry_of(command["stage"])
        inputs = {name: Path(path) for name, path in command["inputs"].items()}
        out = Path(command["out"])
        reset_peak_memory()
        counts = getattr(importlib.import_module(module), function)(inputs, command["spec"], out, session) or {}
        canonical(counts)  # a tensor or a NaN among the counts is the stage's error, named here
        return {"counts": counts, "peak_memory_bytes": peak_memory()}
    except Exception as error:
        session.close()
        meant = actionable(error, command)
        if meant is error:
            raise
        raise meant from error


def reset_peak_memory() -> None:
    """Begin a new peak: what is held now is in it, what was held before and freed is not, where the system can tell."""
    with contextlib.suppress(OSError):  # not Linux, or /proc is read-only
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
    if cuda := device_memory():
        cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Bytes held at most since `reset_peak_memory`: {process: resident set, device: allocated by torch}.

    The device is absent where torch has not used one. An engine in a process of its own is in neither. Where /proc does
    not tell the resident set, it is the largest since the process began.
    """
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak["process"] = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    if cuda := device_memory():
        peak["device"] = cuda.max_memory_allocated()
    return peak


def device_memory():
    """torch.cuda when this process has used it; None otherwise. It is never imported or started for this."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def actionable(error: Exception, command: dict) -> Exception:
    """The error a user can act on behind `error`; `error` itself when there is none."""
    if isinstance(error, OpdError):
        return error
    stage = command["stage"]
    return disk_error(error, Path(command["out"])) or memory_error(error, stage) or engine_death(error, stage) or error


def memory_error(error: Exception, stage: str) -> EngineLost | None:
    """EngineLost with the way out when `error` is a lack of memory, on the host or on a device."""
    text = str(error)
    lacking = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not lacking and "out of memory" not in text.lower() and "can't allocate memory" not in text:
        return None
    return EngineLost(f"out of memory in stage {stage}: {text.splitlines()[0] if text else type(error).__name__}; "
                      f"{SMALLER}")


def engine_death(error: Exception, stage: str) -> EngineLost | None:
    """EngineLost when `error` says that vLLM's engine, a process of its own, died or did not come up."""
    if type(error).__name__ != "EngineDeadError" and "Engine core initialization failed" not in str(error):
        return None
    return EngineLost(f"the engine's process died in stage {stage}: {str(error).splitlines()[0]} Its last words are "
                      f"in the worker's log. If memory was short, {SMALLER}")


def answer(command: dict, session: Session) -> dict:
    """`perform` as a reply; errors become {ok: false, error: class name, message, traceback}."""
    try:
        return {"ok": True, **perform(command, session)}
    except Exception as error:
        known = [cls.__name__ for cls in type(error).__mro__ if cls.__name__ in ERRORS]
        return {"ok": False, "error": known[0] if known else type(error).__name__, "message": str(error),
                "traceback": traceback.format_exc()}


def serve(path: str) -> None:
    """Answer the commands that come over a Unix socket until it is closed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, Session() as session:
        def send(line: dict) -> None:
            connection.sendall((json.dumps(line) + "\n").encode())
        with socket_address(Path(path)) as address:
            connection.connect(address)
        session.report = lambda progress: send({"progress": progress})
        with contextlib.suppress(ConnectionResetError):  # a flow that is stopped leaves a reply unread
            for line in connection.makefile("r", encoding="utf-8"):
                send(answer(json.loads(line), session))


def end_with_supervisor() -> None:
    """Kill what descends from this process, then this process, when its supervisor dies: the pipe from it ends.

    The kernel would kill this process alone. From now on standard input is empty.
    """
    line = os.dup(0)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    threading.Thread(target=supervisor.watch, args=(line,), daemon=True, name="supervisor").start()
    ctypes.CDLL(None).prctl(supervisor.PR_SET_PDEATHSIG, 0, 0, 0, 0)


def main() -> int:
    """The command line; `--once` prints the reply and exits with the error's code."""
    keep_printing()
    parser = argparse.ArgumentParser(prog="python -m tasks.opd.runtime.worker", description="Makes stages' files.")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--socket", metavar="PATH", help="Unix socket to take commands from")
    way.add_argument("--once", metavar="FILE", help="JSON file with one command")
    arguments = parser.parse_args()
    if arguments.socket:
        end_with_supervisor()
        with contextlib.redirect_stdout(sys.stderr):  # of the same pipe, which may end before this process does
            serve(arguments.socket)
        return 0
    with Session() as session:
        reply = answer(json.loads(Path(arguments.once).read_text(encoding="utf-8")), session)
    print(json.dumps(reply))
    return 0 if reply["ok"] else ERRORS.get(reply["error"], OpdError).exit_code


if __name__ == "__main__":
    sys.exit(main())
