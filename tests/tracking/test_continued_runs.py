"""A run is found again, and holds every point once, whatever became of the notes about it or of the store."""
import contextlib
import shutil
import time

import pytest

from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import home
from tasks.stage import run_stage
from tasks.tracking import outbox, states
from tasks.tracking.client import client_at, tracking_uri
from tasks.tracking.points import Note
from tasks.tracking.runs import log_artifact, run_for, suite_for
from tests.tracked_runs import NUMBERS, history, recipe, runs, track

KEYS = ("numbers/seconds", "numbers/count")


@pytest.fixture(autouse=True)
def with_store(empty_store, opd_home):
    """This test's own copy of the empty store."""
    opd_home.mkdir()
    shutil.copy(empty_store, opd_home / "mlflow.db")


def points(run) -> list:
    """All points of the small run."""
    return [history(run, key) for key in KEYS]


def await_first_look(run) -> None:
    """Wait until a run was taken up, and what is sent is what comes after."""
    while not (run.state["run"] and "about" in run.state["sent"]):
        time.sleep(0.01)


def state_file():
    """The one run's state."""
    [file] = (home() / "tracking").glob("*.json")
    return file


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A new store's tables take longer than a run's end waits, on a busy machine."""
    monkeypatch.setattr(outbox, "END_SECONDS", 600)


@pytest.mark.parametrize("damage", [
    lambda file: file.unlink(), lambda file: file.write_text(file.read_text()[:40]), lambda file: file.write_text(""),
    lambda file: file.write_text("[]"), lambda file: file.write_text('{"run": null, "sent": {}}'),
    lambda file: shutil.rmtree(file.parent)],
    ids=["deleted", "truncated", "empty", "of another kind", "without a run", "the folder deleted"])
def test_a_run_whose_state_is_lost_is_found_by_its_tag_and_nothing_stands_twice(pool, damage):
    track(pool)
    [before] = runs()
    held = points(before)
    damage(state_file())
    track(pool)
    [after] = runs()
    assert after.info.run_id == before.info.run_id and points(after) == held and len(held[0]) == len(held[1]) == 1
    assert states.read(state_file())["run"] == before.info.run_id


def test_a_stage_made_anew_is_noticed_where_the_state_is_lost_too(pool):
    made = track(pool)
    artifacts.discard(made.path)
    time.sleep(1.1)                                         # an artifact says in seconds when it was created
    state_file().unlink()
    with run_for(recipe()) as run:
        await_first_look(run)
        log_artifact(run_stage(NUMBERS, {"count": 3}, {}, pool), "0002", step=2)
    new, old = runs()
    assert len(history(old, "numbers/count")) == len(history(new, "numbers/count")) == 1
    assert old.data.tags["superseded"] == "true" and "superseded" not in new.data.tags


def test_a_store_of_files_keeps_every_point_once(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    track(pool)
    state_file().unlink()
    with run_for(recipe()):                                 # one report stands for two evaluations
        made = run_stage(NUMBERS, {"count": 3}, {}, pool)
        for name in ("0002", "final"):
            log_artifact(made, name, step=2)
    [run] = runs()
    assert [len(some) for some in points(run)] == [1, 1]


def test_homes_that_share_a_store_have_a_run_each_of_the_same_recipe(pool, empty_store, tmp_path, monkeypatch):
    shutil.copy(empty_store, tmp_path / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    track(pool)
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "another"))
    track(pool)
    track(pool)
    found = runs()
    assert len(found) == 2 and all([len(some) for some in points(run)] == [1, 1] for run in found)
    assert not any("superseded" in run.data.tags for run in found)


def test_a_run_in_a_database_elsewhere_is_found_when_home_was_moved_and_its_files_lie_in_the_new_place(
        pool, opd_home, empty_store, tmp_path, monkeypatch):
    shutil.copy(empty_store, tmp_path / "own.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    track(pool)
    client_at.cache_clear()                                 # another process
    opd_home.rename(tmp_path / "moved")
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "moved"))
    track(pool, "rounds=7")
    track(pool)
    assert len(runs()) == 2 and not opd_home.exists()
    for run in runs():
        assert run.info.artifact_uri.startswith((home() / "mlartifacts").as_uri())


def test_two_processes_with_one_run_send_each_point_once(pool):
    """Two Runs of one key share nothing but the files of this home, as two processes do."""
    with run_for(recipe()) as one, run_for(recipe()) as two:
        made = run_stage(NUMBERS, {"count": 3}, {}, pool)
        for run in (one, two):
            run.notes.append(Note(artifact=made, name="0002", step=2, prefix="numbers"))
    [run] = runs()
    assert [len(some) for some in points(run)] == [1, 1] and run.info.status == "FINISHED"


def test_two_suites_at_once_show_every_number_once(pool):
    with suite_for("small") as one, suite_for("small") as two:
        for study in (one, two):
            study.show({"comparison.md": "| a |"}, "| a |", numbers={"final/reward_mean": 0.5})
    state_file().unlink()
    with suite_for("small") as again:
        await_first_look(again)                             # as when its cells are replayed meanwhile
        again.show({"comparison.md": "| a |"}, "| a |", numbers={"final/reward_mean": 0.5})
    [run] = runs("small")
    assert [value for _, _, value in history(run, "final/reward_mean")] == [0.5] and run.info.status == "FINISHED"


def test_a_run_that_another_took_the_place_of_has_ended(pool):
    with pytest.raises(KeyboardInterrupt):
        with run_for(recipe()):
            made = log_artifact(run_stage(NUMBERS, {"count": 3}, {}, pool), "0002", step=2)
            raise KeyboardInterrupt
    [killed] = runs()
    artifacts.discard(made.path)
    track(pool)
    new, old = runs()
    assert (old.info.run_id, old.info.status, old.info.end_time) == (
        killed.info.run_id, "KILLED", killed.info.end_time)
    assert new.info.status == "FINISHED" and old.data.tags["superseded"] == "true"


def end_of(run) -> tuple:
    """How and when a run ended, and what its page says of who made it."""
    return run.info.status, run.info.end_time, run.data.tags


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_a_replay_that_adds_nothing_leaves_a_finished_run_as_it_was_however_it_ends(pool, monkeypatch, error):
    monkeypatch.setattr("tasks.tracking.machine.FIRST_SECONDS", 0)
    monkeypatch.setattr("tasks.tracking.runs.prefect_tags", lambda: {"prefect.flow_run_id": "of the work"})
    track(pool)
    [before] = runs()
    monkeypatch.setattr("tasks.tracking.runs.prefect_tags", lambda: {"prefect.flow_run_id": "of the replay"})
    with pytest.raises(error) if error else contextlib.nullcontext():
        with run_for(recipe()) as run:
            await_first_look(run)
            assert end_of(runs()[0]) == end_of(before)      # nor does it seem to be at work meanwhile
            log_artifact(run_stage(NUMBERS, {"count": 3}, {}, pool), "0002", step=2)
            if error:
                raise error
    [after] = runs()
    assert end_of(after) == end_of(before) and after.data.tags["prefect.flow_run_id"] == "of the work"
    assert [step for step, _, _ in history(after, "system/cpu_utilization_percentage")] == [1]


def test_a_replay_of_a_suite_leaves_its_run_as_it_was_until_a_number_changes(pool):
    ends = []
    for mean in (0.5, 0.5, 0.75):
        with suite_for("small") as study:
            track(pool, suite="small")
            study.show({"comparison.md": "| a |"}, f"| {mean} |", numbers={"final/reward_mean": mean})
        ends.append({run.info.run_name: end_of(run)[:2] for run in runs("small")})
    assert ends[0] == ends[1] and ends[2]["opd_reverse_kl-seed0"] == ends[0]["opd_reverse_kl-seed0"]
    assert ends[2]["small"][0] == "FINISHED" and ends[2]["small"][1] > ends[0]["small"][1]


def test_a_run_that_failed_and_is_repeated_without_new_points_keeps_its_end_time(pool):
    with pytest.raises(ValueError), run_for(recipe()):
        log_artifact(run_stage(NUMBERS, {"count": 3}, {}, pool), "0002", step=2)
        raise ValueError
    [before] = runs()
    track(pool)
    [after] = runs()
    assert (before.info.status, after.info.status) == ("FAILED", "FINISHED")
    assert after.info.end_time == before.info.end_time


def test_a_run_that_was_resumed_and_killed_without_a_word_ends_where_another_takes_its_place(pool):
    with pytest.raises(ValueError), run_for(recipe()):
        made = log_artifact(run_stage(NUMBERS, {"count": 3}, {}, pool), "0002", step=2)
        raise ValueError
    client_at(tracking_uri()).update_run(runs()[0].info.run_id, status="RUNNING")   # resumed; its process is gone
    artifacts.discard(made.path)
    track(pool)
    assert [run.info.status for run in runs()] == ["FINISHED", "KILLED"]


def test_a_new_cell_has_its_finished_suite_at_work_again_and_moves_its_end(pool):
    with suite_for("small"):
        track(pool, suite="small")
    before = {run.info.run_name: run for run in runs("small")}["small"]
    with suite_for("small"), run_for(recipe("seed=1"), "small") as cell:
        await_first_look(cell)
        assert {run.info.run_name: run.info.status for run in runs("small")}["small"] == "RUNNING"
        log_artifact(run_stage(NUMBERS, {"count": 4}, {}, pool), "0002", step=2)
    after = {run.info.run_name: run for run in runs("small")}["small"]
    assert after.info.status == "FINISHED" and after.info.end_time > before.info.end_time
