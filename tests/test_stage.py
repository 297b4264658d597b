"""run_stage: what is reused, what is remade, and how often; with a full disk and with two runs at once."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.opd.core.errors import CorruptArtifact, DataError, DiskFull, NonFinite
from tasks.opd.store import artifacts, garbage
from tasks.stage import prune, run_stage
from tasks.workers import launchers, pools
from tests.stages_for_tests import HERE, chain, run_with


@pytest.fixture
def journal(tmp_path):
    """Effort for stages that write down when they are made; `journal.lines()` empties and returns it."""
    file = tmp_path / "journal"

    def lines():
        text = file.read_text() if file.exists() else ""
        file.unlink(missing_ok=True)
        return text.split()
    return SimpleNamespace(effort={"journal": str(file)}, lines=lines)


@pytest.fixture
def again():
    """A new run: a pool without memory, in a process that has verified nothing."""
    def start():
        artifacts._verified.clear()
        return pools.InlinePool()
    return start


def flip(artifact, name):
    """Flip one bit of a file."""
    file = artifact.path / name
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    artifacts._verified.clear()


def test_a_second_run_reuses_everything(journal, again, capfd):
    first = chain(again(), effort=journal.effort)
    assert journal.lines() == ["numbers", "doubled", "total"]
    assert first[2].counts == {"total": 0 + 2 + 4 + 6}
    pool = again()
    assert chain(pool, effort=journal.effort) == first
    assert journal.lines() == [] and (pool.made, pool.reused) == (0, 3)
    assert "made total" in capfd.readouterr().err


def test_only_what_a_setting_can_change_is_made_again(journal, again):
    first = chain(again(), effort=journal.effort)
    journal.lines()
    other = chain(again(), cap=3, effort=journal.effort)
    assert journal.lines() == ["doubled", "total"]
    assert other[0] == first[0] and other[2].counts == {"total": 0 + 2 + 3 + 3}
    assert chain(again(), effort={**journal.effort, "batch_tokens": 1}) == first and journal.lines() == []


def test_the_record_says_what_made_it(again):
    numbers, doubled, _ = chain(again(), effort={"batch_tokens": 7})
    record = artifacts.read_record(doubled.path)
    assert record["stage"] == f"{HERE}:doubled" and record["kind"] == "doubled"
    assert record["spec"] == {"cap": 100, "effort": {"batch_tokens": 7}}
    assert record["inputs"] == {
        "numbers": {"kind": "numbers", "fingerprint": numbers.fingerprint, "digest": numbers.digest}}
    assert {"torch", "transformers", "numpy", "tokenizers", "python"} <= set(record["versions"])
    assert record["environment"]["device"] in ("cpu", "cuda")
    assert record["retired"] is False and record["seconds"] >= 0 and record["created"].endswith("+00:00")


@pytest.mark.parametrize("at, file, remade", [(0, "numbers.json", "numbers"), (1, "doubled.json", "doubled"),
                                              (2, "total.json", "total"), (0, "metrics.jsonl", "numbers")])
def test_a_flipped_byte_is_named_and_only_its_artifact_is_remade(journal, again, capfd, at, file, remade):
    first = chain(again(), effort=journal.effort)
    journal.lines()
    flip(first[at], file)
    actual = artifacts.hash_file(first[at].path / file)
    expected = artifacts.read_record(first[at].path)["files"][file]["sha256"]
    assert chain(again(), effort=journal.effort) == first  # made again, to the same bytes
    assert journal.lines() == [remade]
    told = capfd.readouterr().err
    assert f"{first[at].path / file}: sha256 is {actual}, expected {expected}" in told
    aside = list(first[at].path.parent.glob(f".corrupt-{first[at].fingerprint}-*"))
    assert len(aside) == 1 and str(aside[0]) in told


def test_a_changed_record_is_as_damaged_as_a_file(journal, again, capfd):
    first = chain(again(), effort=journal.effort)
    journal.lines()
    record = first[1].path / "artifact.json"
    record.write_text(record.read_text().replace('"cap": 100', '"cap": 101'))
    assert chain(again(), effort=journal.effort) == first and journal.lines() == ["doubled"]
    assert "artifact.json: sha256 of its contents" in capfd.readouterr().err


def into_folder(path):
    """Put an empty directory in a file's place."""
    path.unlink()
    path.mkdir()


def into_loop(path):
    """Put a link that leads to itself in a file's place."""
    path.unlink()
    path.symlink_to(path)


def into_file(path, to):
    """Put a file in a folder's place."""
    path.rename(to)
    path.write_text("a file")


def into_link_to_nothing(path, to):
    shutil.rmtree(path)
    path.symlink_to(to)


def into_link_to_damage(path, to):
    """Move a folder away, leave a link in its place, and damage what was moved."""
    path.rename(to)
    path.symlink_to(to)
    (to / "doubled.json").write_text("[]")


def into_another(path, to):
    """Put the artifact of another stage in a folder's place."""
    path.rename(to)
    shutil.copytree(next(path.parents[1].glob("numbers/*")), path)


def written(text: bytes):
    return lambda path, to: (path / "artifact.json").write_bytes(text)


@pytest.mark.parametrize("said, damage", [
    ("doubled.json is no file that can be read: Is a dir", lambda path, to: into_folder(path / "doubled.json")),
    ("doubled.json is no file that can be read: Too many", lambda path, to: into_loop(path / "doubled.json")),
    ("artifact.json is no file that can be read: Is a dir", lambda path, to: into_folder(path / "artifact.json")),
    ("artifact.json is no file that can be read: Not a directory", into_file),
    ("artifact.json is not JSON", written(b'{"cap": NaN}')),
    ("artifact.json is not JSON", written(b"[" * 10**5 + b"]" * 10**5)),
    ("artifact.json is not JSON", written(b"\xff\xfe")),
    ("artifact.json: sha256 of its contents", written(b"[1]")),
    ("doubled.json: sha256 is", into_link_to_damage),
    ("", into_link_to_nothing),         # which is no artifact, so that there is nothing to keep
    ("artifact.json is that of numbers", into_another),
])
def test_whatever_became_of_an_artifact_it_is_moved_aside_and_made_again(journal, again, tmp_path, capfd, said, damage):
    first = chain(again(), effort=journal.effort)
    journal.lines()
    damage(first[1].path, tmp_path / "away")
    assert chain(again(), effort=journal.effort) == first and journal.lines() == ["doubled"]
    assert said in capfd.readouterr().err and first[1].path.is_dir() and not first[1].path.is_symlink()
    assert len(list(first[1].path.parent.glob(".corrupt-*"))) == bool(said)
    assert chain(again(), effort=journal.effort) == first and journal.lines() == []
    found = garbage.left_behind()
    assert len(found) == bool(said) and all(garbage.remove(item) and not os.path.lexists(item.path) for item in found)


def test_an_artifact_that_was_moved_and_linked_is_used_and_not_removed_through_the_link(journal, again, tmp_path):
    made = [run_stage(f"{HERE}:weights", {"start": 1, "effort": journal.effort}, {}, again())]
    journal.lines()
    away = tmp_path / "another disk"
    made[0].path.rename(away)
    made[0].path.symlink_to(away)
    assert run_stage(f"{HERE}:weights", {"start": 1, "effort": journal.effort}, {}, again()) == made[0]
    assert journal.lines() == [] and made[0].path.is_symlink()
    assert not artifacts.retire(made[0]) and (away / "model" / "w").exists() and not artifacts.is_retired(made[0])
    garbage.collect(garbage.survey())
    assert not os.path.lexists(made[0].path) and (away / "model" / "w").exists()


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/a.jinja", "tokenizer.model.v3"])
def test_a_file_that_was_added_and_would_be_read_stops_the_run_until_it_is_gone_and_nothing_is_made_again(
        journal, again, name):
    first = chain(again(), effort=journal.effort)
    journal.lines()
    added = first[1].path / name
    added.parent.mkdir(exist_ok=True)
    added.write_text("added")
    with pytest.raises(DataError, match=f"{name} is not among the files that were written.* move it away, and run"):
        chain(again(), effort=journal.effort)
    added.unlink()
    assert chain(again(), effort=journal.effort) == first and journal.lines() == []


@pytest.mark.parametrize("name", ["x~", ".DS_Store", "._numbers.json", "x.gguf", "nohup.out", ".git/config.json"])
def test_a_stray_file_that_nothing_reads_costs_a_word_unless_it_is_hidden(journal, again, capfd, name):
    first = chain(again(), effort=journal.effort)
    journal.lines()
    (first[1].path / name).parent.mkdir(exist_ok=True)
    (first[1].path / name).write_text("stray")
    assert chain(again(), effort=journal.effort) == first and journal.lines() == []
    said = f"{first[1].path / name} is not among the files that were written; nothing reads it"
    assert (said in capfd.readouterr().err) is not name.startswith(".")
    assert (first[1].path / name).exists() and not list(first[1].path.parent.glob(".corrupt-*"))


def test_other_bytes_take_the_descendants_with_them(tmp_path, journal, again, capfd):
    first = chain(again(), effort=journal.effort)
    flip(first[0], "numbers.json")
    journal.lines()
    (tmp_path / "surprise").write_text("[5, 6, 7, 8]")
    effort = {**journal.effort, "surprise": str(tmp_path / "surprise")}
    second = chain(again(), effort=effort)
    assert journal.lines() == ["numbers", "doubled", "total"]
    assert second[2].counts == {"total": 10 + 12 + 14 + 16}
    assert [a.fingerprint for a in first] == [a.fingerprint for a in second]
    assert all(old.digest != new.digest for old, new in zip(first, second, strict=True))
    assert "doubled" in capfd.readouterr().err
    assert chain(again(), effort=journal.effort) == second and journal.lines() == []


def test_descendants_of_the_same_bytes_stay(tmp_path, journal, again):
    def two(effort):
        pool = again()
        numbers = run_stage(f"{HERE}:numbers", {"count": 4, "effort": effort}, {}, pool)
        doubled = run_stage(f"{HERE}:doubled", {"cap": 0, "effort": effort}, {"numbers": numbers}, pool)
        return numbers, doubled, run_stage(f"{HERE}:total", {"effort": effort}, {"doubled": doubled}, pool)
    first = two(journal.effort)
    flip(first[0], "numbers.json")
    journal.lines()
    (tmp_path / "surprise").write_text("[5, 6, 7, 8]")  # other numbers, but capped at 0 they double to the same
    second = two({**journal.effort, "surprise": str(tmp_path / "surprise")})
    assert journal.lines() == ["numbers", "doubled"]
    assert second[0].digest != first[0].digest and second[1:] == first[1:]


def test_an_input_damaged_during_the_run_is_remade_before_it_is_read(journal, again):
    pool = again()
    first = chain(pool, effort=journal.effort)
    journal.lines()
    flip(first[0], "numbers.json")
    other = run_stage(f"{HERE}:doubled", {"cap": 5, "effort": journal.effort}, {"numbers": first[0]}, pool)
    assert journal.lines() == ["numbers", "doubled"]
    assert json.loads((other.path / "doubled.json").read_text()) == [0, 2, 4, 5]


def rounds(pool, effort, count=4):
    """A run of `count` checkpoints, pruned to the last two as it goes."""
    checkpoints = []
    for index in range(count):
        spec, inputs = ({"start": 10}, {}) if not checkpoints else ({"round": index}, {"student": checkpoints[-1]})
        checkpoints.append(run_stage(f"{HERE}:weights", {**spec, "effort": effort}, inputs, pool))
        prune(checkpoints, keep=2)
    return checkpoints


def test_the_last_two_checkpoints_are_kept_and_retired_ones_are_passed_through(journal, again):
    first = rounds(again(), journal.effort)
    assert [(a.path / "model" / "w").exists() for a in first] == [False, False, True, True]
    assert len(journal.lines()) == 4
    assert rounds(again(), journal.effort) == first and journal.lines() == []
    assert rounds(again(), journal.effort, count=5)[-1].counts == {"weight": 15} and len(journal.lines()) == 1


def test_weights_that_a_death_left_in_a_retired_checkpoint_go_when_the_run_goes_on(journal, again, monkeypatch):
    unlink = Path.unlink

    def killed(path, *_, **__):
        if path.name == "w":                                # after the record, before the file
            raise KeyboardInterrupt
        unlink(path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        rounds(again(), journal.effort)
    left = list(artifacts.home().glob("artifacts/weights/*/model/w"))
    assert [artifacts.read_record(file.parent.parent)["retired"] for file in left].count(True) == 1
    ended = rounds(again(), journal.effort)
    assert [(a.path / "model" / "w").exists() for a in ended] == [False, False, True, True]


def test_a_retired_input_is_remade_from_its_own_record_when_it_is_read(journal, again, capfd):
    first = rounds(again(), journal.effort)
    journal.lines()
    probe = run_stage(f"{HERE}:weights", {"other": 1, "effort": journal.effort}, {"student": first[1]}, again())
    assert probe.counts == {"weight": 13}
    assert len(journal.lines()) == 3  # rounds 0 and 1, then the probe
    assert (first[1].path / "model" / "w").read_text() == "12" and not artifacts.is_retired(first[1])
    assert f"weights {first[1].fingerprint[:8]} is retired and needed" in capfd.readouterr().err


def test_only_the_last_checkpoint_keeps_its_optimizers_state_and_one_without_is_remade_only_to_be_trained_on(
        journal, again, capfd):
    made, effort = [], {"effort": journal.effort}
    for index in range(4):
        made.append(run_stage(f"{HERE}:checkpoint", {"round": index, **effort},
                              {"student": made[-1]} if made else {}, again()))
        prune(made)
    assert [(a.path / "model" / "w").exists() for a in made] == [False, False, True, True]
    assert [(a.path / artifacts.STATE).exists() for a in made] == [False, False, False, True]
    journal.lines()
    run_stage(f"{HERE}:read", effort, {"student": made[2]}, again())
    assert journal.lines() == ["read"]                      # its weights are there, and verified
    capfd.readouterr()
    other = run_stage(f"{HERE}:checkpoint", {"round": 9, **effort}, {"student": made[2]}, again())
    assert journal.lines() == 4 * ["checkpoint"] and other.counts == {"weight": 4}  # rounds 0 to 2, then this one
    assert f"checkpoint {made[2].fingerprint[:8]} is retired and needed" in capfd.readouterr().err
    assert (made[2].path / artifacts.STATE).read_text() == "3" and not artifacts.is_retired(made[2], with_state=True)
    artifacts.retire(made[2], (artifacts.STATE,))
    artifacts._verified.clear()
    artifacts.verify(made[2])
    (made[2].path / "model" / "w").unlink()                 # without its state it is not excused other files
    artifacts._verified.clear()
    with pytest.raises(CorruptArtifact, match="model/w: sha256 is that of no file"):
        artifacts.verify(made[2])


def test_an_input_that_is_gone_without_a_record_is_refused(again):
    first = chain(again())
    shutil.rmtree(first[0].path)
    with pytest.raises(CorruptArtifact, match="nothing says how it was made"):
        run_stage(f"{HERE}:doubled", {"cap": 1}, {"numbers": first[0]}, again())


def test_a_failed_stage_leaves_nothing_and_the_next_run_continues(journal, again):
    with pytest.raises(NonFinite, match="step 3"):
        chain(again(), effort={**journal.effort, "trouble": "doubled:nan"})
    assert not list(artifacts.home().glob("artifacts/*/.tmp-*"))
    journal.lines()
    assert chain(again(), effort=journal.effort)[2].counts == {"total": 12}
    assert journal.lines() == ["doubled", "total"]


def test_runs_at_the_same_time_make_each_artifact_once(journal):
    environment = {**os.environ, "CHAIN_EFFORT": json.dumps({**journal.effort, "trouble": "numbers:slow"})}
    command = [sys.executable, "-m", "tests.stages_for_tests", "inline"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, cwd=launchers.ROOT, env=environment, **pipes) for _ in range(3)]
    results = [json.loads(run.communicate(timeout=600)[0].splitlines()[-1]) for run in runs]
    assert journal.lines() == ["numbers", "doubled", "total"]
    assert sum(result["made"] for result in results) == 3
    assert len({result["digest"] for result in results}) == 1


@pytest.fixture
def tmpfs(tmp_path, monkeypatch):
    """OPD_HOME on a file system of 4 MB of its own; `tmpfs(options)` remounts it."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    monkeypatch.setenv("OPD_HOME", str(folder / "opd"))
    yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("kind, by", [("process", "python"), ("inline", "python"), ("inline", "torch"),
                                      ("inline", "safetensors"), ("inline", "parquet")])
def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_space(tmpfs, kind, by):
    with pools.for_run(run_with(kind)) as pool:
        numbers = run_stage(f"{HERE}:numbers", {"count": 2}, {}, pool)
        with pytest.raises(DiskFull, match=r"artifacts/fill/.*bytes are free there.*Free space") as caught:
            run_stage(f"{HERE}:fill", {"megabytes": 6, "by": by}, {"numbers": numbers}, pool)
        assert caught.value.exit_code == 14
        assert not list(artifacts.home().glob("artifacts/fill/*")) + list(artifacts.home().glob("artifacts/fill/.tmp*"))
        tmpfs("size=16m")
        run_stage(f"{HERE}:fill", {"megabytes": 6, "by": by}, {"numbers": numbers}, pool)
        assert run_stage(f"{HERE}:numbers", {"count": 2}, {}, pool) == numbers and pool.made == 2


def test_a_directory_that_became_read_only_is_refused_before_the_stage_starts(tmpfs, again, journal):
    numbers = run_stage(f"{HERE}:numbers", {"count": 2, "effort": journal.effort}, {}, again())
    tmpfs("ro")
    with pytest.raises(DiskFull, match="Read-only file system"):
        run_stage(f"{HERE}:doubled", {"cap": 2, "effort": journal.effort}, {"numbers": numbers}, again())
    assert journal.lines() == ["numbers"]
    tmpfs("rw")
