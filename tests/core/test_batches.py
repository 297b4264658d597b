"""Batches of padded rows."""
from tasks.opd.core.batches import padded_batches


def test_batches_are_longest_first_and_bounded():
    assert padded_batches([3, 10, 4, 4, 50], 19) == [[4], [1], [2, 3, 0]]


def test_only_the_rows_asked_for_are_in_them():
    assert padded_batches([3, 10, 4, 4, 50], 19, [3, 0, 2]) == [[2, 3, 0]] and padded_batches([3], 19, []) == []
