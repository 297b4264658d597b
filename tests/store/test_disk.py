"""What is said of the disk: bytes kept, and a warning in time."""
from types import SimpleNamespace

import pytest

from tasks.opd.recipe import loading
from tasks.opd.store import disk
from tasks.opd.store.artifacts import begin, seal
from tasks.stage import rounds
from tasks.workers import pools


def keep(num_bytes: int) -> None:
    """An artifact of so many bytes, its record apart."""
    folder = begin("model", "a" * 32)
    (folder / "w").write_bytes(bytes(num_bytes))
    seal(folder, {"kind": "model", "fingerprint": "a" * 32, "counts": {}, "inputs": {}})


def test_bytes_kept_are_those_of_the_artifacts(opd_home):
    assert disk.kept_bytes() == 0 and disk.warning() == ""
    keep(2_000_000)
    (opd_home / "mlflow.db").write_bytes(bytes(10**6))
    assert 2_000_000 < disk.kept_bytes() < 2_010_000
    assert disk.described(disk.kept_bytes()).startswith(f"2.0 MB in {opd_home}, ")


def test_where_artifacts_are_a_link_the_disk_is_the_one_it_leads_to(tmp_path, monkeypatch, opd_home):
    (tmp_path / "other disk").mkdir()
    opd_home.mkdir()
    (opd_home / "artifacts").symlink_to(tmp_path / "other disk")
    keep(2_000_000)
    assert 2_000_000 < disk.kept_bytes() < 2_010_000
    monkeypatch.setattr(disk, "free_bytes", lambda path: 3_000_000 if path == tmp_path / "other disk" else 10**12)
    assert f"2.0 MB in {tmp_path / 'other disk'}, 3.0 MB free there. opd gc lists" in disk.warning()


@pytest.mark.parametrize("free, warns", [(6_000_000, False), (3_000_000, True)])
def test_who_takes_more_than_a_third_is_warned_before_the_disk_is_half_full(monkeypatch, opd_home, free, warns):
    keep(2_000_000)  # of 8 MB a quarter; of 5 MB two fifths
    monkeypatch.setattr(disk, "free_bytes", lambda path: free)
    assert bool(disk.warning()) is warns
    if warns:
        assert f"2.0 MB in {opd_home}, 3.0 MB free there. opd gc lists" in disk.warning()


def test_a_run_says_once_that_the_disk_fills_as_its_rounds_go_and_at_its_start(monkeypatch, pool, capfd):
    recipe = loading.load("opd_reverse_kl", ["rounds=4"])
    for index in rounds(recipe, pool, []):
        if index == 1:
            keep(2_000_000)
            pool.made += 1
            monkeypatch.setattr(disk, "free_bytes", lambda path: 3_000_000)
    assert capfd.readouterr().err.count("opd: artifacts fill the disk: 2.0 MB in") == 1
    with pools.for_run(SimpleNamespace(workers="inline")) as again:
        for _ in rounds(recipe, again, []):
            pass
    assert capfd.readouterr().err.count("opd: artifacts fill the disk: 2.0 MB in") == 1


def test_rounds_measure_the_store_at_their_start_and_after_those_that_made_something(monkeypatch, pool):
    measured, kept_bytes = [], disk.kept_bytes
    monkeypatch.setattr(disk, "kept_bytes", lambda: measured.append(pool.made) or kept_bytes())
    for index in rounds(loading.load("opd_reverse_kl", ["rounds=6"]), pool, []):
        pool.made += index in (2, 4)
    assert measured == [0, 1, 2]
