"""What is deleted, cannot be written or is damaged in MLflow is restored or said, each in its own sentence."""
import shutil
import time
from unittest.mock import ANY

import pytest
from mlflow import MlflowClient
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException

from tasks.opd.core.errors import EngineError
from tasks.opd.store.artifacts import home
from tasks.stage import run_stage
from tasks.tracking import outbox
from tasks.tracking.client import client_at, is_refusal, tracking_uri
from tasks.tracking.registry import champion_of
from tasks.tracking.runs import log_artifact, run_for
from tests.tracked_runs import NUMBERS, history, recipe, runs, text_of, track


@pytest.fixture(autouse=True)
def with_store(empty_store, opd_home, monkeypatch):
    """This test's own copy of the empty store, which a run tries again at once."""
    opd_home.mkdir()
    shutil.copy(empty_store, opd_home / "mlflow.db")
    monkeypatch.setattr(outbox, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.05)


def begun(run) -> None:
    """Wait until the run stands in MLflow."""
    while not (run.state["run"] and "about" in run.state["sent"]):
        time.sleep(0.01)


def said(capture) -> list[str]:
    """The lines about MLflow."""
    return [line for line in capture.readouterr().err.splitlines() if "MLflow" in line]


def delete_experiment() -> None:
    client = client_at(tracking_uri())
    client.delete_experiment(client.get_experiment_by_name("opd").experiment_id)


def delete_run() -> None:
    client_at(tracking_uri()).delete_run(runs()[0].info.run_id)


def test_an_experiment_that_was_deleted_is_restored_with_its_runs(pool, capsys):
    track(pool, "rounds=7")
    delete_experiment()
    assert track(pool).counts == {"count": 3}
    found = runs()
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED"]
    assert [len(history(run, "numbers/count")) for run in found] == [1, 1]
    [line] = said(capsys)
    assert "experiment opd was deleted" in line and "it is restored, with the runs that it had" in line


@pytest.mark.parametrize("delete", [delete_experiment, delete_run])
def test_what_is_deleted_while_a_run_is_at_work_is_there_at_its_end_with_all_points(pool, delete, capsys):
    with run_for(recipe()) as run:
        begun(run)
        made = log_artifact(run_stage(NUMBERS, {"count": 3}, {}, pool), "0002", step=2)
        while "numbers/0002" not in run.state["sent"]:
            time.sleep(0.01)
        delete()
        log_artifact(made, "0003", step=3)
    [left] = runs()
    assert said(capsys) == ([] if delete is delete_run else [ANY])
    assert left.info.status == "FINISHED" and left.info.run_id == run.state["run"]
    assert [step for step, _, _ in history(left, "numbers/count")] == [2, 3]


def test_only_what_is_deleted_or_missing_counts_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")      # old servers keep files, and say it in other words

    def refused(ask, *arguments, **named) -> bool:
        with pytest.raises(MlflowException) as caught:
            ask(*arguments, **named)
        return is_refusal(caught.value)
    for client in (client_at(tracking_uri()), MlflowClient((tmp_path / "files").as_uri())):
        experiment = client.create_experiment("one")
        run = client.create_run(experiment).info.run_id
        client.log_param(run, "name", "1")
        assert not refused(client.log_param, run, "name", "2") and not refused(client.log_metric, run, "a\nb", 1.0)
        assert not refused(client.search_runs, [experiment], "no filter")
        assert refused(client.log_metric, "0" * 32, "a", 1.0)
        client.delete_run(run)
        assert refused(client.log_batch, run, tags=[RunTag("a", "1")])
        client.delete_experiment(experiment)
        assert refused(client.create_run, experiment)


def test_files_that_cannot_be_put_are_said_to_lack_the_run_ends_and_the_next_one_sends_them(pool, capsys):
    (home() / "mlartifacts").write_text("a file, where a folder should be")
    track(pool)
    [run] = runs()
    assert run.info.status == "FINISHED" and len(history(run, "numbers/seconds")) == 1
    [line] = said(capsys)
    assert "takes no files (" in line and "the points are there" in line and "not reached" not in line
    (home() / "mlartifacts").unlink()
    track(pool)
    [again] = runs()
    assert "numbers/0002" in text_of(again, "stages.json") and "seed: 0" in text_of(again, "recipe.yaml")
    assert again.info.end_time == run.info.end_time and said(capsys) == []


@pytest.mark.parametrize("damage", [
    lambda file: file.write_bytes(b"no database at all" * 1000),
    lambda file: file.write_bytes(file.read_bytes()[:40] + bytes(4096) + file.read_bytes()[4136:])],
    ids=["another file", "a page of zeros"])
def test_a_damaged_database_has_a_sentence_of_its_own_and_a_new_one_gets_all_points(
        pool, damage, empty_store, monkeypatch, capsys):
    track(pool)
    damage(home() / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home()}/./mlflow.db")     # opened afresh by that name
    assert track(pool).counts == {"count": 3}
    [line] = said(capsys)
    assert "has a damaged database (" in line and "move it away" in line and "is not reached" not in line
    shutil.copy(empty_store, home() / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home()}/././mlflow.db")
    track(pool)
    [run] = runs()
    assert run.info.status == "FINISHED" and len(history(run, "numbers/seconds")) == 1


def test_the_registry_says_of_a_damaged_database_what_to_do():
    client_at.cache_clear()
    (home() / "mlflow.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(EngineError, match="it holds the registry: file is not a database"):
        champion_of("demo")
