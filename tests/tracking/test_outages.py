"""A store that hangs costs a process one wait, not one a run."""
import socket
import threading
import time

import pytest

from tasks.tracking import outages, outbox
from tasks.tracking.runs import run_for
from tests.tracked_runs import recipe


@pytest.fixture
def hung(monkeypatch):
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def take() -> None:
            try:
                while True:
                    kept.append(server.accept())
            except OSError:                                 # the end
                return
        threading.Thread(target=take, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield address
        outages.note_answer(address)


def test_a_store_that_hangs_is_waited_for_once_a_process(hung, monkeypatch):
    waits = []
    monkeypatch.setattr(outbox, "END_SECONDS", 0.3)
    monkeypatch.setattr(outages, "HURRIED_SECONDS", 0.01)
    for seed in range(4):
        with run_for(recipe(f"seed={seed}")) as run:
            monkeypatch.setattr(run.thread, "join", lambda seconds, join=run.thread.join: (
                waits.append(seconds), join(seconds)))
    assert waits == [0.3, 0.01, 0.01, 0.01]


def test_a_store_that_hung_is_waited_for_again_after_a_while_and_at_once_where_it_answers(monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(outages.time, "monotonic", lambda: now)
    outages.note_hang("http://there")
    assert [outages.patience("http://there", 30), outages.patience("http://elsewhere", 30)] == [1, 30]
    now += outages.AGAIN_SECONDS - 1
    outages.note_hang("http://there")                       # a short wait in vain begins no new pause
    now += 2
    assert outages.patience("http://there", 30) == 30
    outages.note_hang("http://there")
    outages.note_answer("http://there")
    assert outages.patience("http://there", 30) == 30
