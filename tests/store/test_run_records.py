"""Run records: what was asked for, in which order, of runs that ended, failed, were killed or are at work."""
import json

import pytest

from tasks.opd.core.errors import CorruptArtifact
from tasks.opd.store import run_records
from tasks.opd.store.run_records import is_at_work, read_all, recorded, refer


def run(*names, suite="", fails=False, **about):
    """A run that asks for rollouts of these names."""
    with recorded("gkd-seed0", suite=suite, recipe={"seed": 0}, **about):
        for name in names:
            refer("rollouts", name)
        if fails:
            raise KeyError("trouble")


def test_a_run_is_written_down_with_what_it_asked_for_in_order_and_once(opd_home):
    run("b", "a", "b", suite="demo")
    refer("rollouts", "outside")  # nobody's
    [record] = read_all()
    assert (record.name, record.suite, record.finished) == ("gkd-seed0", "demo", True)
    assert [*record.artifacts] == [("rollouts", "b"), ("rollouts", "a")] and not is_at_work(record)
    first = json.loads(record.path.read_text().splitlines()[0])
    assert first["recipe"] == {"seed": 0} and record.path.parent == opd_home / "runs"


def test_the_same_run_takes_the_place_of_what_it_left_and_another_stands_beside_it():
    run("old")
    run("new")
    run("other", suite="demo")
    assert sorted([*record.artifacts] for record in read_all()) == [[("rollouts", "new")], [("rollouts", "other")]]


def test_what_a_failed_run_asked_for_stays_until_the_run_is_taken_up_and_ends():
    run("old")
    with pytest.raises(KeyError):
        run("half", fails=True)
    assert {key for record in read_all() for key in record.artifacts} == {("rollouts", "old"), ("rollouts", "half")}
    assert sorted(record.finished for record in read_all()) == [False, True]
    run("whole")
    assert [[*record.artifacts] for record in read_all()] == [[("rollouts", "whole")]]


def test_a_run_at_work_is_known_as_such_and_the_same_one_beside_it_leaves_its_record_alone():
    with recorded("gkd-seed0", suite="", recipe={"seed": 0}):
        refer("rollouts", "a")
        [record] = read_all()
        assert is_at_work(record) and not record.finished and [*record.artifacts] == [("rollouts", "a")]
        refer("rollouts", "b")
        assert len(read_all()[0].artifacts) == 2  # read anew
        run("a")
        assert sorted(map(is_at_work, read_all())) == [False, True]
    assert [record.finished for record in read_all()] == [True]


def test_a_line_that_was_cut_off_does_not_count_and_a_damaged_one_is_named():
    run("a")
    [record] = read_all()
    whole = record.path.read_text()
    record.path.write_text(whole + '{"kind": "rollo')
    assert [*read_all()[0].artifacts] == [("rollouts", "a")]
    record.path.write_text(whole.replace('{"kind"', '{kind'))
    with pytest.raises(CorruptArtifact, match=r"jsonl:2 is not JSON.*Delete the file to give up"):
        read_all()


def test_a_record_that_changes_its_name_while_all_are_read_is_read_again(monkeypatch):
    run("a")
    [record], read = read_all(), run_records.read

    def late(path, version):
        monkeypatch.setattr(run_records, "read", read)
        path.rename(path.with_name("other.jsonl"))
        return read(path, version)
    run_records.read.cache_clear()
    monkeypatch.setattr(run_records, "read", late)
    assert [found.path.name for found in read_all()] == ["other.jsonl"] != [record.path.name]


def test_a_name_that_is_no_file_name_is_written_as_one():
    with recorded("evaluate-../x y"):
        refer("report", "a")
    assert read_all()[0].name == "evaluate-../x y" and read_all()[0].path.name.startswith("evaluate-_x_y-")


def test_a_note_stays_with_the_run_and_refers_to_nothing():
    with recorded("gkd-seed0", recipe={}):
        refer("rollouts", "a")
        run_records.note({"finding": {"rule": "loops"}})
    run_records.note({"finding": {}})  # nobody's
    [record] = read_all()
    assert [*record.artifacts] == [("rollouts", "a")] and record.finished
    assert {"finding": {"rule": "loops"}} in map(json.loads, record.path.read_text().splitlines())
