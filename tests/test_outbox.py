"""How a run that is stopped ends in MLflow, whatever the store does meanwhile."""
import threading
import time

import pytest

from tasks.opd.recipe import loading
from tasks.tracking import outbox
from tasks.tracking.about import About
from tasks.tracking.client import client_at, tracking_uri
from tasks.tracking.runs import annotated, run_for


def runs() -> list:
    client = client_at(tracking_uri())
    return client.search_runs([client.get_experiment_by_name("opd").experiment_id])


def begun(run) -> None:
    """Wait until a run stands in MLflow."""
    while not run.ensured:
        time.sleep(0.01)


def test_a_killed_run_says_so_before_it_ships_anything_and_is_not_waited_for(monkeypatch, capsys):
    shipping = threading.Event()

    def never(*arguments):  # a store that takes no points any more
        shipping.set()
        threading.Event().wait()
    monkeypatch.setattr(outbox, "END_SECONDS", 0.5)
    with pytest.raises(KeyboardInterrupt), run_for(loading.load("opd_reverse_kl")) as run:
        begun(run)
        monkeypatch.setattr(outbox.Run, "_ship", never)
        raise KeyboardInterrupt
    assert shipping.wait(600) and [found.info.status for found in runs()] == ["KILLED"]
    assert "did not answer in 0.5 s" in capsys.readouterr().err


@pytest.mark.parametrize("uri, wanted", [("sqlite:////tmp/mlflow.db", 30), ("http://127.0.0.1:1", 4)])
def test_who_stops_a_run_waits_for_a_file_and_hardly_for_a_server(monkeypatch, uri, wanted):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run, waited = outbox.Run("key", "opd", About(name="a", tags={}, params={}, files={})), []
    monkeypatch.setattr(run.thread, "join", waited.append)
    run.close("KILLED")
    assert waited == [wanted]


def test_a_persons_note_stands_in_the_description_and_as_a_tag():
    with annotated("tried twice"), run_for(loading.load("gkd")) as run:
        begun(run)
    with run_for(loading.load("gkd", ["seed=1"])):
        pass
    notes = {found.data.tags["seed"]: (found.data.tags.get("note"), "tried twice" in
                                       found.data.tags["mlflow.note.content"]) for found in runs()}
    assert notes == {"0": ("tried twice", True), "1": (None, False)}
