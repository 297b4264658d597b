"""Costs by name: what a stage counts, and sums that know what they do not know."""
import pytest

from tasks.opd.core.costs import METERED, NAMES, counted, summed
from tasks.opd.runtime.stages import STAGES


def test_a_stage_says_all_that_it_meters_zeros_included():
    assert counted("refined", {"teacher_written_tokens": 3}) == {
        "student_written_tokens": 0, "teacher_written_tokens": 3, "teacher_read_tokens": 0}
    with pytest.raises(AssertionError, match="scores does not meter .*trained_tokens"):
        counted("scores", {"trained_tokens": 1})
    assert METERED.keys() < STAGES.keys() and {name for names in METERED.values() for name in names} == set(NAMES)


def test_sums_are_over_stages_and_what_nobody_spent_is_zero():
    written = counted("rollouts", {"student_written_tokens": 5, "dataset_written_tokens": 7})
    stages = [("rollouts", written), ("refined", counted("refined", {"student_written_tokens": 2})),
              ("grades", {"kept": 9}), ("checkpoint", {"trained_tokens": 6, "steps": 1})] * 2
    assert summed(stages) == {"student_written_tokens": 14, "teacher_written_tokens": 0, "dataset_written_tokens": 14,
                              "teacher_read_tokens": 0, "trained_tokens": 12}


def test_what_one_stage_did_not_count_is_not_known_of_the_sum():
    some = [("checkpoint", {"trained_tokens": 6}), ("scores", {"teacher_read_tokens": 3}), ("scores", {"scored": 2})]
    assert summed(some) == {"student_written_tokens": 0, "teacher_written_tokens": 0, "dataset_written_tokens": 0,
                            "trained_tokens": 6}
