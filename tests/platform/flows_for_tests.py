"""Flows that the platform's tests run on its worker."""
import subprocess
import sys
import time
from pathlib import Path

from prefect import flow


@flow
def greet(name: str = "nobody") -> None:
    """End at once."""
    print(f"hello {name}")


@flow
def linger(file: str) -> None:
    """Start a process that ignores SIGTERM in a session of its own, note its pid in a file, and wait."""
    ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", ignoring], start_new_session=True)
    Path(file).write_text(str(child.pid))
    time.sleep(600)
