"""Tracking against a real SQLite store: what a run leaves there, replays, outages, ends."""
import base64
import getpass
import json
import re
import shutil
import sqlite3
import threading
import zlib

import pytest

from tasks.opd.recipe import loading
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import home
from tasks.stage import run_stage
from tasks.tracking import outages
from tasks.tracking.client import client_at, tracking_uri
from tasks.tracking.runs import log_artifact, run_for, suite_for
from tests.tracked_runs import NUMBERS, history, recipe, runs, text_of, track


@pytest.fixture(autouse=True)
def with_store(empty_store, opd_home):
    """This test's own copy of the empty store."""
    opd_home.mkdir()
    shutil.copy(empty_store, opd_home / "mlflow.db")


def test_a_run_holds_recipe_params_points_counts_and_records(pool):
    made = track(pool, "rounds=7")
    [run] = runs()
    assert run.info.status == "FINISHED" and run.info.run_name == "opd_reverse_kl-seed0"
    assert run.data.params["rounds"] == "7" and run.data.params["slot.advantage"] == "teacher_gap"
    assert run.data.tags["variant"] == "opd_reverse_kl" and len(run.data.tags["config.sha256"]) == 64
    [point] = json.loads("[" + (made.path / "metrics.jsonl").read_text() + "]")
    assert history(run, "numbers/seconds") == [(2, point["timestamp"], point["value"])]
    assert [(step, value) for step, _, value in history(run, "numbers/count")] == [(2, 3)]
    [record] = json.loads(text_of(run, "stages.json"))
    assert record["as"] == "numbers/0002" and record["fingerprint"] == made.fingerprint
    names = {file.path for file in client_at(tracking_uri()).list_artifacts(run.info.run_id)}
    assert names == {"recipe.yaml", "stages.json"}


def test_a_replay_continues_the_run_and_adds_no_point(pool):
    track(pool)
    [first] = runs()
    before = history(first, "numbers/seconds"), history(first, "numbers/count")
    track(pool)
    [second] = runs()
    assert second.info.run_id == first.info.run_id
    assert (history(second, "numbers/seconds"), history(second, "numbers/count")) == before


def test_a_replay_adds_no_point_when_what_was_sent_was_not_written_down(pool):
    track(pool)
    [file] = (home() / "tracking").glob("*.json")
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, "sent": {}}))  # as when the run is killed between the two
    track(pool)
    [run] = runs()
    assert len(history(run, "numbers/seconds")) == len(history(run, "numbers/count")) == 1


def test_a_stage_made_anew_begins_another_run_so_that_no_point_stands_twice(pool):
    made = track(pool)
    artifacts.discard(made.path)
    track(pool)
    found = runs()
    assert len(found) == 2 and all(len(history(run, "numbers/seconds")) == 1 for run in found)


def test_runs_of_a_suite_stand_under_one_parent(pool):
    with suite_for("small"):
        for seed in (0, 1):
            track(pool, f"seed={seed}", suite="small")
    found = {run.info.run_name: run for run in runs("small")}
    assert set(found) == {"small", "opd_reverse_kl-seed0", "opd_reverse_kl-seed1"}
    parent = found.pop("small").info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent}
    assert runs() == []


@pytest.mark.parametrize("error, status", [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_ends_early_says_how(error, status):
    with pytest.raises(error), run_for(recipe()):
        raise error
    assert [run.info.status for run in runs()] == [status]


def test_an_error_on_the_way_out_after_a_signal_does_not_make_a_failure_of_it():
    with pytest.raises(ValueError), run_for(recipe()):
        try:
            raise KeyboardInterrupt
        finally:
            raise ValueError
    assert [run.info.status for run in runs()] == ["KILLED"]


def test_a_resumed_run_is_the_same_run_and_finishes(pool):
    with pytest.raises(ValueError), run_for(recipe()):
        raise ValueError
    track(pool)
    assert [run.info.status for run in runs()] == ["FINISHED"]


def test_a_run_goes_on_when_its_store_is_reached_by_another_address(pool, monkeypatch):
    track(pool)
    [before] = runs()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home()}/./mlflow.db")  # as with a server in front of it
    track(pool)
    [after] = runs()
    assert after.info.run_id == before.info.run_id


def test_a_run_begins_anew_in_a_store_that_does_not_have_it(pool, empty_store, tmp_path, monkeypatch):
    track(pool)
    [before] = runs()
    shutil.copy(empty_store, tmp_path / "another.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'another.db'}")
    track(pool)
    [after] = runs()
    assert after.info.run_id != before.info.run_id and after.data.metrics.keys() == before.data.metrics.keys()


def test_an_outage_gives_one_warning_and_the_run_goes_on(pool, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens there
    made = track(pool)
    assert made.counts == {"count": 3}
    assert capsys.readouterr().err.count("is not reached") == 1


def test_a_store_that_hung_and_answers_a_run_is_waited_for_in_full_again():
    outages.note_hang(tracking_uri())
    assert outages.patience(tracking_uri(), 30) == 1
    with run_for(recipe()) as run:
        pass
    run.thread.join(60)
    assert outages.patience(run.uri, 30) == 30


def test_what_an_outage_kept_back_is_sent_by_the_next_run(pool, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    track(pool)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    track(pool)
    [run] = runs()
    assert len(history(run, "numbers/seconds")) == 1


def test_a_store_that_refuses_gives_one_line_and_no_dump(pool, capfd):
    with sqlite3.connect(home() / "mlflow.db") as store:  # an OperationalError, as a full disk is one
        store.execute("DROP TABLE metrics")
    track(pool)
    said = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("opd: made")]
    assert len(said) == 1 and "is not reached" in said[0] and "OperationalError: table metrics" in said[0]


def test_a_stage_that_cannot_be_read_is_not_blamed_on_the_store(pool, capsys):
    with run_for(recipe()):
        made = run_stage(NUMBERS, {"count": 3}, {}, pool)
        record = made.path / "artifact.json"
        record.write_text(record.read_text().replace('"count": 3', '"count": 4'))
        log_artifact(made, "0002")
    said = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    assert len(said) == 1 and "lacks a stage:" in said[0] and f"{record}: sha256 of its contents" in said[0]
    assert "not reached" not in said[0] and "the run goes on" in said[0]
    assert [run.info.status for run in runs()] == ["FINISHED"]


def test_points_whose_file_is_gone_are_missed_aloud_and_sent_once_the_stage_is_made_again(pool, capsys):
    with run_for(recipe()):
        made = run_stage(NUMBERS, {"count": 3}, {}, pool)
        (made.path / "metrics.jsonl").unlink()
        log_artifact(made, "0002", step=2)
    [run] = runs()
    said = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    assert len(said) == 1 and "lacks a stage:" in said[0] and f"{made.path}/metrics.jsonl is not there" in said[0]
    assert run.info.status == "FINISHED" and run.data.metrics.keys() <= {"system"}
    artifacts._verified.clear()                             # another process
    track(pool)
    [run] = runs()
    assert len(history(run, "numbers/seconds")) == len(history(run, "numbers/count")) == 1


def test_the_artifacts_of_a_sqlite_store_named_by_the_person_lie_under_home_not_in_the_current_directory(
        pool, empty_store, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copy(empty_store, tmp_path / "own.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    track(pool)
    [run] = runs()
    assert run.info.artifact_uri.startswith((home() / "mlartifacts").as_uri())
    assert list((tmp_path / "here").iterdir()) == []


def test_a_run_says_its_paper_and_idea_who_made_it_and_opens_on_the_page_of_runs(pool):
    with run_for(loading.load("gkd")) as tracked:
        pass
    [run] = runs()
    about = loading.load("gkd").about
    assert run.data.tags["mlflow.note.content"].endswith(
        f"\n\n{about.paper}, [arXiv:2306.13649](https://arxiv.org/abs/2306.13649)\n\n{about.idea}")
    assert run.data.tags["about.placebo"] == about.placebo and run.data.tags["about.idea"] == about.idea
    assert not any(key.startswith("about") for key in run.data.params)
    assert run.data.tags["mlflow.user"] == getpass.getuser() and run.data.tags["mlflow.source.name"]
    assert tracked.url() == (f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
                             "?workflowType=machine_learning")


def test_a_suites_run_shows_a_note_and_numbers_and_a_replay_adds_only_what_changed(pool):
    for mean in (0.5, 0.5, 0.75):
        with suite_for("small") as study:
            study.show({"comparison.md": "| a |"}, "| a |" + "b" * 9000, numbers={"mean/gkd": mean, "mean/start": 0.25})
    [run] = runs("small")
    note, charts = run.data.tags["mlflow.note.content"], study.charts(base="")
    before = f"[Charts of all runs, side by side]({charts})\n\n"
    assert note == before + "| a |" + "b" * (7995 - len(before))      # as much as a tag may hold
    assert [value for _, _, value in history(run, "mean/gkd")] == [0.5, 0.75]
    assert [value for _, _, value in history(run, "mean/start")] == [0.25]
    client = client_at(tracking_uri())
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["comparison.md"]


def test_a_suites_link_opens_its_cells_and_stands_in_the_descriptions(pool):
    with suite_for("small") as study:
        for seed in (0, 1):
            track(pool, f"seed={seed}", suite="small")
    found = {run.info.run_name: run for run in runs("small")}
    parent = found.pop("small")
    experiment = client_at(tracking_uri()).get_experiment(parent.info.experiment_id)
    key = study.charts().rpartition("=")[2]
    view = json.loads(zlib.decompress(base64.b64decode(experiment.tags[f"mlflow.sharedViewState.{key}"][8:])))
    assert {run.info.run_id for run in found.values()} == {*re.findall("'(.+?)'", view["searchFilter"])}
    assert "metrics.`eval/tiny/avg`" in view["selectedColumns"]
    assert study.charts(base="") in experiment.tags["mlflow.note.content"]
    assert study.charts(base="") in parent.data.tags["mlflow.note.content"]
    assert study.charts().startswith("http://127.0.0.1:5000/#/experiments/")


def test_runs_without_a_suite_share_a_view_of_all(pool):
    track(pool)
    with run_for(recipe("rounds=7")) as tracked:
        pass
    assert {run.info.run_name for run in runs()} == {"opd_reverse_kl-seed0", "opd_reverse_kl-seed0 rounds=7"}
    assert tracked.charts().endswith("viewStateShareKey=all")
    tags = client_at(tracking_uri()).get_experiment_by_name("opd").tags
    assert "mlflow.sharedViewState.all" in tags


def test_records_of_a_run_before_stay_when_it_is_continued(pool):
    track(pool)
    with pytest.raises(ValueError), run_for(recipe()):
        log_artifact(run_stage(NUMBERS, {"count": 4}, {}, pool), "0003", step=3)
        raise ValueError                                    # before it asked for its first stage again
    [run] = runs()
    assert {record["as"] for record in json.loads(text_of(run, "stages.json"))} == {"numbers/0002", "numbers/0003"}


def test_home_may_be_moved(pool, opd_home, tmp_path, monkeypatch):
    track(pool)
    client_at.cache_clear()                                 # another process
    opd_home.rename(tmp_path / "moved")
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "moved"))
    [run] = runs()
    assert "seed: 0" in text_of(run, "recipe.yaml")
    track(pool)
    assert [run.info.run_id for run in runs()] == [run.info.run_id]


def test_an_experiment_that_a_server_made_takes_files_without_the_server(pool):
    client_at(tracking_uri()).create_experiment("opd", artifact_location="mlflow-artifacts:/7")
    track(pool)
    [run] = runs()
    assert run.info.status == "FINISHED"
    assert (home() / "mlartifacts" / "7" / run.info.run_id / "artifacts" / "recipe.yaml").exists()


def test_no_thread_and_no_sample_outlives_a_run(pool, monkeypatch):
    monkeypatch.setattr("tasks.tracking.machine.FIRST_SECONDS", 0)
    before = set(threading.enumerate())
    with run_for(recipe()):
        pass
    [run] = runs()
    assert [step for step, _, _ in history(run, "system/cpu_utilization_percentage")] == [1]
    assert not [thread for thread in threading.enumerate() if thread.name == "tracking" and thread not in before]
