"""The journal: ticks are finished or made anew, rows are seen when their tick ends, and waited for until learnt."""
import json

import pytest

from tasks.opd.core.errors import CorruptArtifact, OpdError
from tasks.opd.refresh import failpoints, journal
from tasks.opd.refresh.decision import SKIP, Decision
from tasks.opd.refresh.drift import REFRESH
from tasks.opd.refresh.journal import ABANDONED, CANDIDATE, PROMOTED, REFUSED, Tick
from tasks.opd.refresh.rows import Row

NAME = "nightly"
ROWS = [Row(text=f"How many figs has {i}?", answer=str(i), solution=None, entry={}, domain="default") for i in range(9)]
IDS = [row.row_id for row in ROWS]


def proposed(number, new, *, old=(), held_out=(), champion=None) -> Tick:
    """A tick with rows of ROWS by index."""
    tick = Tick(name=NAME, number=number, champion=champion, folder="", new=[IDS[i] for i in new],
                old=[IDS[i] for i in old], held_out=[IDS[i] for i in held_out], watermark="")
    return journal.propose(tick, [ROWS[i] for i in (*old, *new)], [ROWS[i] for i in held_out])


def decided(tick, action=REFRESH):
    return journal.decide(tick, Decision(action=action, reason="said"), [], teacher="t", score=None)


def ended(number, new, outcome, **changes):
    """A tick from proposal to end."""
    decided(tick := proposed(number, new, **changes))
    journal.end(tick, outcome, "said")
    return tick


def rows(ids):
    return sorted(IDS.index(row_id) for row_id in ids)


def test_a_tick_that_was_decided_is_taken_up_and_one_that_was_not_is_made_anew():
    proposed(1, [0, 1])
    assert journal.unfinished(NAME) is None and journal.last_number(journal.read(NAME)) == 0
    tick = proposed(1, [2])
    decided(tick)
    assert journal.unfinished(NAME) == tick and journal.last_number(journal.read(NAME)) == 1
    assert journal.decision_of(tick)["new"] == 1
    journal.end(tick, REFUSED, "worse")
    assert journal.unfinished(NAME) is None


def test_a_skipped_tick_leaves_no_rows_and_waits_for_no_end():
    tick = proposed(1, [0])
    decided(tick, SKIP)
    assert not tick.path.exists() and journal.unfinished(NAME) is None
    assert journal.taken(NAME, []).seen == set() and journal.last_number(journal.read(NAME)) == 1


def test_the_watermark_moves_with_the_end_of_a_tick_and_not_before():
    tick = proposed(1, [0, 1], held_out=[2])
    decided(tick)
    assert journal.taken(NAME, []).seen == set()
    journal.end(tick, REFUSED, "worse")
    assert rows(journal.taken(NAME, []).seen) == [0, 1, 2]


def test_rows_of_candidates_that_no_champion_comes_from_wait_and_held_out_ones_are_never_learnt():
    ended(1, [0, 1], PROMOTED, held_out=[8])
    ended(2, [2], REFUSED, old=[0])
    ended(3, [3], CANDIDATE, old=[2])
    taken = journal.taken(NAME, [1])
    assert rows(taken.learnt) == [0, 1] and rows(taken.waiting) == [2, 3] and rows(taken.seen) == [0, 1, 2, 3, 8]
    promoted = journal.taken(NAME, [3, 1])          # by hand: its rows, and those that waited in it, are learnt
    assert rows(promoted.learnt) == [0, 1, 2, 3] and promoted.waiting == set()
    rolled_back = journal.taken(NAME, [1])
    assert rolled_back == taken


def test_an_abandoned_ticks_rows_are_new_again():
    ended(1, [0, 1], ABANDONED)
    assert journal.taken(NAME, []).seen == set()


def test_rows_that_stand_in_a_benchmark_wait_for_nothing():
    tick = proposed(1, [0, 1])
    decided(tick)
    journal.replace(tick.path / journal.CONTAMINATED, json.dumps([IDS[1]]))
    journal.end(tick, REFUSED, "leaks")
    taken = journal.taken(NAME, [])
    assert rows(taken.waiting) == [0] and rows(taken.seen) == [0, 1]


def test_rows_come_back_in_whole_whatever_became_of_their_source():
    ended(1, [0, 1], PROMOTED)
    ended(2, [2], REFUSED)
    assert journal.taken(NAME, [1]).rows(NAME, [IDS[2], IDS[0]]) == [ROWS[2], ROWS[0]]


def test_at_most_one_of_a_name_holds_the_lock():
    with journal.only_one(NAME) as first, journal.only_one(NAME) as second, journal.only_one("other") as other:
        assert (first, second, other) == (True, False, True)
    with journal.only_one(NAME) as free:
        assert free


def test_ticks_that_did_not_run_are_counted_until_one_does_or_somebody_was_told():
    def count():
        return journal.overlaps_in_a_row(journal.read(NAME))
    journal.append(NAME, journal.OVERLAP, missed=1)
    journal.append(NAME, journal.OVERLAP, missed=2)
    assert count() == 3
    journal.append(NAME, journal.ALARM, reason="said")
    assert count() == 0
    journal.append(NAME, journal.OVERLAP, missed=1)
    decided(proposed(1, [0]))
    assert count() == 0


def test_a_journal_that_somebody_else_wrote_to_is_an_error(opd_home):
    journal.append(NAME, journal.ALARM, reason="said")
    file = opd_home / "refreshes" / NAME / "journal.jsonl"
    file.write_text(file.read_text() + "{")
    with pytest.raises(CorruptArtifact, match="mend it by hand"):
        journal.read(NAME)


def test_a_failpoint_that_does_not_exist_tests_nothing_and_is_refused(monkeypatch):
    failpoints.failpoint("planned")
    monkeypatch.setenv("OPD_FAILPOINT", "plannned")
    with pytest.raises(OpdError, match="is not one of planned"):
        failpoints.failpoint("planned")


def test_a_tick_is_read_as_it_was_written():
    tick = proposed(7, [3], old=[0], held_out=[5], champion="2")
    assert journal.read_tick(NAME, 7) == tick
