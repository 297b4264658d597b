"""What was sent to a run, written down in one file a run under `tracking/`; and the name of this home.

A state is {run, experiment, sent, files, samples, uri}: the ids of MLflow's run and experiment, the key of every stage
whose points were sent, the SHA-256 of every file, the number of samples of the machine. Where it is lost, the run is
found by its tag, and what it holds is asked for.
"""
import contextlib
import fcntl
import json
import os
import threading
import uuid
from pathlib import Path

from tasks.opd.core.files import sync
from tasks.opd.store.artifacts import home


def read(file: Path) -> dict | None:
    """A run's state; None when there is none, or the file is damaged."""
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(state, dict) and isinstance(state.get("run"), str) and isinstance(state.get("sent"), dict)
    return state if whole else None


def write(file: Path, state: dict) -> None:
    """Keep a run's state: after a crash of the machine, too, the file holds this or what it held before."""
    put(file, json.dumps(state))


def put(file: Path, text: str) -> None:
    """Replace a small file in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    draft.write_text(text, encoding="utf-8")
    sync(draft)
    os.replace(draft, file)
    sync(file.parent)


@contextlib.contextmanager
def locked(file: Path):
    """While one process sends to a run, others of this home that have the same run wait."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file.with_name(f".{file.stem}.lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def home_name() -> str:
    """Tells this home from others that send to the same MLflow, wherever it is moved to; made once, at random.

    Whoever asks holds the lock of this home (`client.alone`).
    """
    file = home() / "home_id"
    with contextlib.suppress(FileNotFoundError):
        if name := file.read_text(encoding="utf-8").strip():
            return name
    put(file, uuid.uuid4().hex[:12])
    return file.read_text(encoding="utf-8")
