"""What several cells or runs read at once: hidden states made again alone, kept while they are read, missed aloud."""
import json
import subprocess
import sys
import time

import pytest

from tasks.hidden_states import held_for, is_shared, release_hidden
from tasks.opd.core.errors import CorruptArtifact
from tasks.opd.recipe import loading, requirements
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import HIDDEN, Artifact, retire
from tasks.stage import run_stage
from tasks.workers import launchers, pools
from tests.stages_for_tests import HERE

RECIPE = loading.load("opd_reverse_kl_full", ["rounds=2"])


def again():
    """A new run: a pool without memory, in a process that has verified nothing."""
    artifacts._verified.clear()
    return pools.InlinePool()


def cell(pool, number, release=True, **effort):
    """Scores that all cells share, and a checkpoint of the cell's own, after which the hidden states go."""
    scores = run_stage(f"{HERE}:scored", {"effort": effort}, {}, pool)
    made = run_stage(f"{HERE}:trained", {"cell": number, "effort": effort}, {"scores": scores}, pool)
    if release:
        retire(scores, (HIDDEN,))
    return scores, made


def test_a_second_cell_makes_only_hidden_states_again_and_the_firsts_checkpoint_stays(tmp_path):
    journal = {"journal": str(tmp_path / "journal")}
    scores, first = cell(again(), 1, batch_tokens=64, **journal)
    before, signal = artifacts.read_record(scores.path), (scores.path / "signal").stat()
    _, second = cell(again(), 2, release=False, batch_tokens=8, **journal)
    assert (tmp_path / "journal").read_text().split() == ["scored", "trained", "scored", "trained"]
    assert (second.path / "model" / "w").read_text() == "of a batch of 8"  # other bytes than the first cell read
    after = artifacts.read_record(scores.path)
    assert after["digest"] == before["digest"] and (scores.path / "signal").stat().st_ino == signal.st_ino
    assert after["files"][HIDDEN]["sha256"] != before["files"][HIDDEN]["sha256"] and not after["retired"]
    artifacts._verified.clear()
    artifacts.verify(scores)
    retire(scores, (HIDDEN,))
    for number, made in ((1, first), (2, second)):
        assert cell(again(), number, **journal) == (scores, made)  # nothing is outdated
    assert (tmp_path / "journal").read_text().split()[4:] == []
    assert sorted(path.name for path in scores.path.iterdir()) == ["artifact.json", "signal"]


def test_scores_that_were_damaged_and_made_again_by_another_batch_size_outdate_no_checkpoint():
    scores, first = cell(again(), 1, release=False, batch_tokens=64)
    (scores.path / HIDDEN).write_text("damaged")
    pool = again()
    assert cell(pool, 1, batch_tokens=8) == (scores, first) and (pool.made, pool.reused) == (1, 1)


def test_hidden_states_of_other_inputs_are_not_put_beside_the_old_signal(tmp_path):
    pool, effort = again(), {"surprise": str(tmp_path / "surprise")}
    (tmp_path / "surprise").write_text("[7]")
    numbers = run_stage(f"{HERE}:numbers", {"count": 4, "effort": effort}, {}, pool)
    scores = run_stage(f"{HERE}:scored", {"effort": {}}, {"rollouts": numbers}, pool)
    retire(scores, (HIDDEN,))
    (numbers.path / "numbers.json").write_text("damaged")
    artifacts._verified.clear()
    (tmp_path / "surprise").write_text("[8]")
    run_stage(f"{HERE}:trained", {"effort": {}}, {"scores": scores}, pool)  # needs the hidden states, they the numbers
    made_from = artifacts.read_record(scores.path)["inputs"]["rollouts"]["digest"]
    assert made_from == artifacts.find("numbers", numbers.fingerprint).digest != numbers.digest


def test_a_leftover_of_a_killed_restoration_is_neither_read_nor_a_damage():
    scores, first = cell(again(), 1)
    (scores.path / HIDDEN).write_text("half")
    pool = again()
    assert cell(pool, 1, release=False) == (scores, first) and pool.made == 0
    cell(pool, 2, release=False)
    assert (scores.path / HIDDEN).read_text() == "of a batch of None"
    (scores.path / HIDDEN).write_text("half")
    retire(scores, (HIDDEN,))
    assert not (scores.path / HIDDEN).exists()


def test_kept_hidden_states_stay_whoever_retires_them():
    scores, _ = cell(again(), 1, release=False)
    artifacts.keep(scores)
    assert not retire(scores, (HIDDEN,)) and (scores.path / HIDDEN).exists() and not artifacts.is_retired(scores)
    assert artifacts.find(scores.kind, scores.fingerprint) == scores


def reading_run(tmp_path):
    """A run in a process of its own in the middle of reading scores; the file whose removal lets it go on."""
    reading = tmp_path / "reading"
    scores = run_stage(f"{HERE}:scored", {"effort": {}}, {}, again())
    inputs = json.dumps({"scores": scores.to_json()})
    spec = json.dumps({"cell": 1, "effort": {"reading": str(reading)}})
    run = subprocess.Popen([sys.executable, "-m", "tests.stages_for_tests", "inline", "trained", spec, inputs],
                           cwd=launchers.ROOT, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 600
    while not reading.exists() and run.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert reading.exists(), run.stderr.read()
    return scores, run, reading


def test_what_another_run_reads_is_not_retired_until_it_has_read(tmp_path):
    scores, run, reading = reading_run(tmp_path)
    assert not retire(scores, (HIDDEN,)) and (scores.path / HIDDEN).exists() and not artifacts.is_retired(scores)
    reading.unlink()
    assert run.wait(600) == 0, run.stderr.read()
    assert retire(scores, (HIDDEN,)) and not (scores.path / HIDDEN).exists()


def test_a_killed_reader_holds_no_lease(tmp_path):
    scores, run, _ = reading_run(tmp_path)
    run.kill()
    run.wait(600)
    assert retire(scores, (HIDDEN,)) and not (scores.path / HIDDEN).exists()


def test_what_is_retired_between_the_look_and_the_lease_is_made_again(monkeypatch):
    pool, taken = again(), []
    scores = run_stage(f"{HERE}:scored", {"effort": {}}, {}, pool)
    lease = artifacts.lease

    def late(kind, fingerprint, *, shared=True, **other):
        if shared and not taken:  # another run is quicker
            taken.append(retire(scores, (HIDDEN,)))
        return lease(kind, fingerprint, shared=shared, **other)
    monkeypatch.setattr(artifacts, "lease", late)
    made = run_stage(f"{HERE}:trained", {"cell": 1, "effort": {}}, {"scores": scores}, pool)
    assert taken == [True] and (made.path / "model" / "w").read_text() == "of a batch of None"


def test_a_file_that_the_record_lists_and_that_is_gone_is_missed_aloud():
    scores, _ = cell(again(), 1)
    with pytest.raises(CorruptArtifact, match=r"hidden.safetensors is not there, though artifact.json lists it "
                                              r"\(retired: True\).*Run the same command again"):
        artifacts.promised(scores.path, HIDDEN)
    assert artifacts.promised(scores.path, "other") is None


def changed(*overrides):
    return loading.load("opd_reverse_kl_full", ["rounds=2", *overrides])


@pytest.mark.parametrize("other, shared", [
    (loading.load("opd_jsd", ["rounds=2"]), True), (changed("train.learning_rate=1e-3"), True),
    (changed("engine.batch_tokens=64"), True), (loading.load("opd_reverse_kl", ["rounds=2"]), False),  # the token alone
    (changed("seed=1"), False), (changed("rollout.sampling.max_new_tokens=9"), False),
    (changed("loss.temperature=2"), False), (changed("pair.teacher.hidden=96", "pair.teacher.name=random"), False)])
def test_recipes_share_scores_when_what_is_scored_and_asked_is_the_same(other, shared):
    assert requirements.share_scores(RECIPE, other, "teacher") == shared == requirements.share_scores(
        other, RECIPE, "teacher")


def test_hidden_states_are_held_for_a_later_cell_and_go_after_the_last():
    pool, later = again(), changed("train.learning_rate=1e-3")
    scores, _ = cell(pool, 1, release=False)
    with held_for([("a", 0, RECIPE), ("b", 0, later)], pool):
        pool.later = [later]
        release_hidden(RECIPE, "teacher", scores, pool)
        assert (scores.path / HIDDEN).exists() and pool.held == [scores]
        pool.later = []
        release_hidden(later, "teacher", scores, pool)
        assert not (scores.path / HIDDEN).exists()
    pool = again()
    scores, _ = cell(pool, 2, release=False)
    with held_for([("a", 0, RECIPE), ("b", 0, later)], pool):
        release_hidden(RECIPE, "teacher", scores, pool)
        assert (scores.path / HIDDEN).exists()
    assert not (scores.path / HIDDEN).exists()  # the later cell failed before it read them


def test_what_follows_training_is_a_cells_own():
    pool = again()
    pool.later = [changed("train.learning_rate=1e-3")]
    checkpoint, rollouts, scores = (Artifact(kind=kind, fingerprint="x", digest="", counts={})
                                    for kind in ("checkpoint", "rollouts", "scores"))
    pool.derivations["scores", "x"] = "scores", {}, {"rollouts": rollouts}
    pool.derivations["rollouts", "x"] = "rollouts", {}, {}
    assert is_shared(RECIPE, "teacher", scores, pool)
    pool.derivations["rollouts", "x"] = "rollouts", {}, {"student": checkpoint}
    assert not is_shared(RECIPE, "teacher", scores, pool)
