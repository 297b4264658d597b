"""Garbage: exactly what nobody refers to, makes or reads; and what goes with a run that is forgotten."""
import os
import subprocess
import sys
import time

import pytest

from tasks.opd.core.errors import CorruptArtifact, DataError
from tasks.opd.store import artifacts, garbage, run_records
from tasks.opd.store.artifacts import HIDDEN, Artifact, begin, find, lease, lock, place, seal
from tasks.opd.store.garbage import collect, readable_size, seconds_of, survey
from tasks.opd.store.run_records import recorded, refer

FILES = {"checkpoint": ["model/w", "trainer.safetensors", "metrics.jsonl"], "scores": ["signal.parquet", HIDDEN]}


def made(kind: str, letter: str, **inputs: Artifact) -> Artifact:
    """An artifact of 100 bytes a file, made from others; the run at work, if any, refers to it."""
    refer(kind, letter * 32)
    folder = begin(kind, letter * 32)
    for name in FILES.get(kind, ["rows"]):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(bytes(100))
    inputs = {name: {"kind": a.kind, "fingerprint": a.fingerprint, "digest": a.digest} for name, a in inputs.items()}
    return seal(folder, {"kind": kind, "fingerprint": letter * 32, "counts": {}, "inputs": inputs})


def run(name: str, first: int = 0, rounds: int = 1, suite: str = "", retire: bool = False) -> list[Artifact]:
    """A run: a model that all share, and for each round scores and a checkpoint, whose letters begin at `first`."""
    with recorded(name, suite=suite):
        student = made("model", "m")
        checkpoints = []
        for letter in "abcdef"[first:first + rounds]:
            scores = made("scores", letter, student=student)
            student = made("checkpoint", letter, student=student, scores=scores)
            checkpoints.append(student)
            if retire:
                artifacts.retire(scores, (HIDDEN,))
    return checkpoints


def found(**options) -> set[str]:
    """`kind letter` of what may go; of files, with what they are."""
    return {f"{item.key[0]} {item.key[1][0]}{' ' + item.what if item.patterns else ''}"
            for item in survey(**options).garbage}


def test_what_no_run_refers_to_goes_and_a_second_look_finds_nothing():
    run("kept", retire=True)
    stray = made("scores", "e", student=made("model", "n"))
    before = survey()
    assert found() == {"scores e", "model n"} and before.num_kept == 3
    assert garbage.totals(before.garbage) == {kind: (1, garbage.size_of(path)) for kind, path in (
        ("scores", stray.path), ("model", place("model", "n" * 32)))}
    assert collect(before) == [] and not stray.path.exists()
    after = survey()
    assert after.garbage == [] and (after.num_kept, after.kept_bytes) == (before.num_kept, before.kept_bytes)
    assert {(path.parent.name, path.name[0]) for path in artifacts.home().glob("artifacts/*/*")} == {
        ("model", "m"), ("scores", "a"), ("checkpoint", "a")}


def test_a_run_that_is_forgotten_frees_what_is_its_own():
    run("one", suite="demo", retire=True)
    run("two", first=1, suite="demo", retire=True)
    assert found() == set()
    assert found(forget=["one"]) == {"scores a", "checkpoint a"}
    assert found(forget=["demo"]) == {"scores a", "checkpoint a", "scores b", "checkpoint b", "model m"}
    assert found() == set() and len(run_records.read_all()) == 2  # to look forgets nobody
    pages = [run_records.page_of(record.path.stem) for record in run_records.read_all()]
    for page in pages:
        page.parent.mkdir(exist_ok=True)
        page.touch()
    collect(survey(forget=["o*"]))
    assert [page.exists() for page in pages] == [page.name.startswith("two") for page in pages]
    assert [record.name for record in run_records.read_all()] == ["two"] and found() == set()
    assert find("model", "m" * 32) and find("checkpoint", "b" * 32) and not find("checkpoint", "a" * 32)


def test_what_an_artifact_was_made_from_stays_with_it():
    last = run("one", rounds=3, retire=True)[-1]
    with recorded("evaluate-c"):
        made("report", "r", student=last)
    assert found(forget=["one"]) == {"checkpoint a weights", "checkpoint b weights", "checkpoint c weights"}
    with recorded("evaluate-c"):
        refer(last.kind, last.fingerprint)  # the model that was asked
        made("report", "r", student=last)
    assert found(forget=["one"]) == {"checkpoint a weights", "checkpoint b weights"}


def test_a_runs_last_two_checkpoints_keep_their_weights_and_no_finished_run_its_hidden_states():
    checkpoints = run("one", rounds=4)
    artifacts.keep(find("scores", "b" * 32))
    spare = survey().garbage
    assert found() == {"checkpoint a weights", "checkpoint b weights", "checkpoint c optimizer state",
                       "scores a hidden states", "scores c hidden states", "scores d hidden states"}
    assert {item.num_bytes for item in spare} == {200, 100}
    assert collect(survey()) == [] and found() == set()
    assert [artifacts.is_retired(checkpoint) for checkpoint in checkpoints] == [True, True, False, False]
    assert [artifacts.is_retired(each, with_state=True) for each in checkpoints] == [True, True, True, False]
    assert sorted(path.parent.name[0] for path in artifacts.home().glob(f"artifacts/scores/*/{HIDDEN}")) == ["b"]


def test_weights_that_a_death_left_in_a_retired_checkpoint_are_found():
    first, *_ = run("one", rounds=3, retire=True)
    artifacts.write_record(first.path, artifacts.read_record(first.path) | {"retired": True})   # its files stayed
    assert found() == {"checkpoint a weights", "checkpoint b optimizer state"}
    assert collect(survey()) == [] and found() == set() and not [*first.path.glob("model/*")]


def test_a_run_that_was_cut_off_keeps_what_it_needs_to_go_on():
    with pytest.raises(KeyError), recorded("one"):
        for letter in "abc":
            made("checkpoint", letter, scores=made("scores", letter))
        refer("checkpoint", "d" * 32)  # asked for, but not made
        raise KeyError("trouble")
    # b and c stay, and what the next round may read: c's optimizer state, the hidden states
    assert found() == {"checkpoint a weights", "checkpoint b optimizer state"}


def test_a_run_at_work_keeps_all_that_it_asked_for_and_cannot_be_forgotten():
    stray = made("model", "s")
    early = survey()
    with recorded("one"):
        made("scores", "a")
        for letter in "abc":
            made("checkpoint", letter)
        refer(stray.kind, stray.fingerprint)  # since the survey
        assert collect(early) == early.garbage and stray.path.exists()
        assert found() == set() and survey().num_at_work == 1
        with pytest.raises(DataError, match="one is at work and cannot be forgotten"):
            survey(forget=["one"])
    assert found() == {"checkpoint a weights", "checkpoint b optimizer state", "scores a hidden states"}
    assert survey().num_at_work == 0


def test_a_run_that_came_and_ended_since_the_survey_keeps_its_artifacts():
    stray = made("model", "s")
    early = survey()
    with recorded("one"):
        refer(stray.kind, stray.fingerprint)
    assert collect(early) == early.garbage and stray.path.exists()


@pytest.mark.parametrize("hold", [lock, lease])
def test_what_is_being_made_or_read_is_left(hold):
    stray = made("model", "s")
    with hold("model", stray.fingerprint):
        assert [item.key for item in collect(survey())] == [("model", stray.fingerprint)] and stray.path.exists()
    assert collect(survey()) == [] and not stray.path.exists()


def test_a_killed_process_holds_nothing():
    stray = made("model", "s")
    script = ("import sys; from tasks.opd.store.artifacts import begin, lease, lock\n"
              "with lock('model', sys.argv[1]), lease('model', sys.argv[1]):\n"
              "    begin('model', sys.argv[1]); print('held', flush=True); sys.stdin.read()")
    holder = subprocess.Popen([sys.executable, "-c", script, stray.fingerprint], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert [item.what for item in survey().garbage] == ["model"]  # what is being made is none
    assert len(collect(survey())) == 1
    holder.kill()
    holder.communicate()
    assert [item.what for item in survey().garbage] == ["model", "unfinished"]
    assert collect(survey()) == [] and survey().garbage == []
    assert not list(artifacts.home().glob("artifacts/*/.*"))


def test_what_was_damaged_and_set_aside_goes_and_locks_go_with_their_artifacts():
    run("kept", retire=True)
    stray = made("model", "s")
    artifacts.set_aside(stray.path)
    for kind, letter in (("model", "s"), ("model", "m")):
        for hold in (lock, lease):
            with hold(kind, letter * 32):
                pass
    assert [item.what for item in survey().garbage] == ["damaged"]
    collect(survey())
    assert survey().garbage == [] and not list(artifacts.home().glob("artifacts/*/.*"))
    assert {path.stem[:7] for path in (artifacts.home() / "locks").iterdir()} == {"model-m", "scores-"}


def test_only_what_is_older_goes():
    old, new = made("model", "o"), made("model", "n")
    run("kept", retire=True)
    week_ago = time.time() - 7 * 86400
    os.utime(old.path / "artifact.json", (week_ago - 60, week_ago - 60))
    assert found(older_than_seconds=7 * 86400) == {"model o"} and found() == {"model o", "model n"}
    assert found(forget=["kept"], older_than_seconds=7 * 86400) == {"model o"}
    collect(survey(forget=["kept"], older_than_seconds=7 * 86400))
    assert len(run_records.read_all()) == 1 and new.path.exists()  # a young run is not forgotten either


def test_without_a_store_a_run_of_that_name_or_a_readable_record_nothing_is_touched(opd_home):
    with pytest.raises(DataError, match=f"{opd_home} holds no artifacts; set OPD_HOME"):
        survey()
    run("one", suite="demo")
    with pytest.raises(DataError, match="no run or suite is called 'tow'; recorded are demo, one"):
        survey(forget=["tow"])
    stray = made("model", "s")
    run_records.read_all()[0].path.write_text("{\n")
    with pytest.raises(CorruptArtifact, match="Delete the file"):
        survey()
    assert stray.path.exists()


@pytest.mark.parametrize("text, seconds", [("90m", 5400), ("12h", 43200), ("7d", 604800), ("0.5w", 302400)])
def test_ages_have_a_unit(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["7", "d", "-7d", "7 d", "7y"])
def test_other_ages_are_refused(text):
    with pytest.raises(ValueError, match="for example 7d"):
        seconds_of(text)


def test_sizes_are_read_at_a_glance():
    assert [readable_size(n) for n in (0, 999, 1000, 999_949, 999_950, 1_234_567_890, 5e15)] == [
        "0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "1.2 GB", "5000.0 TB"]
