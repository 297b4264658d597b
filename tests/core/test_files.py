"""Locks: who holds them beside whom, and what becomes of them when their files go."""
import subprocess
import sys

import pytest

from tasks.opd.core.errors import DiskFull
from tasks.opd.core.files import files_in, flock, hash_file, hash_tree, is_locked, make_private


def obtained(path, **how) -> bool:
    """Whether a lock can be had at once."""
    with flock(path, wait=False, **how) as mine:
        return mine


def test_shared_locks_stand_beside_each_other_and_nothing_else_beside_them(tmp_path):
    path = tmp_path / "locks" / "a.lease"
    assert not is_locked(path) and not path.exists()  # to look writes nothing
    with flock(path, shared=True):
        assert obtained(path, shared=True) and not obtained(path) and is_locked(path)
    assert obtained(path) and not is_locked(path)
    with flock(path):
        assert not obtained(path, shared=True)


def test_a_lock_whose_file_was_removed_is_taken_on_the_new_file(tmp_path):
    path, order = tmp_path / "a.lock", []
    script = ("import sys; from pathlib import Path; from tasks.opd.core.files import flock\n"
              "with flock(Path(sys.argv[1])):\n    print('mine', flush=True); sys.stdin.read()")
    with flock(path):
        waiting = subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert "waiting for it" in waiting.stderr.readline()
        path.unlink()
    assert waiting.stdout.readline() == "mine\n"
    order.append(obtained(path))  # one who comes now meets the one who waited
    waiting.communicate("", timeout=600)
    assert order == [False] and obtained(path)


def test_where_nothing_may_be_written_a_shared_lock_is_one_in_name(tmp_path, monkeypatch):
    path = tmp_path / "a.lease"

    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr("builtins.open", refuse)
    with flock(path, shared=True) as mine:
        assert mine
    with pytest.raises(DiskFull), flock(path):
        pass


def test_a_folders_hash_is_that_of_the_files_that_match_by_name_and_content(tmp_path):
    (tmp_path / "a.jsonl").write_text("1")
    (tmp_path / "notes.txt").write_text("x")
    before = hash_tree(tmp_path, "*.jsonl")
    (tmp_path / "notes.txt").write_text("y")
    assert hash_tree(tmp_path, "*.jsonl") == before
    (tmp_path / "a.jsonl").write_text("2")
    edited = hash_tree(tmp_path, "*.jsonl")
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    assert len({before, edited, hash_tree(tmp_path, "*.jsonl")}) == 3
    assert hash_tree(tmp_path / "b.jsonl", "*.jsonl") == hash_file(tmp_path / "b.jsonl")
    assert hash_tree(tmp_path / "missing", "*.jsonl") is None


def test_hidden_files_are_nobodys_content(tmp_path):
    (tmp_path / "a.jsonl").write_text("1")
    before = hash_tree(tmp_path, "**/*")
    for name in (".DS_Store", "._a.jsonl", ".git/b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("2")
    assert hash_tree(tmp_path, "**/*") == before and files_in(tmp_path, "*.jsonl") == [tmp_path / "a.jsonl"]


@pytest.mark.parametrize("before, after", [
    (None, 0o700), (0o755, 0o700), (0o2755, 0o2700), (0o2770, 0o2770), (0o2775, 0o2770), (0o700, 0o700)])
def test_a_private_folder_is_its_owners_unless_it_was_shared_with_a_group_on_purpose(tmp_path, before, after):
    folder = tmp_path / "prefect"
    if before is not None:
        folder.mkdir()
        folder.chmod(before)
    make_private(folder)
    assert folder.stat().st_mode & 0o7777 == after
