"""Batches of padded rows."""
from tasks.opd.core.batches import padded_batches, shared_batches


def test_batches_are_longest_first_and_bounded():
    assert padded_batches([3, 10, 4, 4, 50], 19) == [[4], [1], [2, 3, 0]]


def test_only_the_rows_asked_for_are_in_them():
    assert padded_batches([3, 10, 4, 4, 50], 19, [3, 0, 2]) == [[2, 3, 0]] and padded_batches([3], 19, []) == []


def test_a_prompt_counts_once_a_batch_and_its_rows_stand_together():
    prompts, num_own = [[1, 2], [3] * 9, [1, 2], [4], [1, 2]], [3, 1, 5, 2, 4]
    # the longest with its prompt first: [3] * 9 with 10, [1, 2] with 7, [4] with 3; 2 + 5 + 4 + 3 = 14 tokens
    assert shared_batches(prompts, num_own, 14) == [[1], [2, 4, 0], [3]]
    assert shared_batches(prompts, num_own, 17) == [[1, 2], [4, 0, 3]]  # behind 10 and 7 the prompt stands again
    assert shared_batches(prompts, num_own, 1) == [[1], [2], [4], [0], [3]]
    assert shared_batches(prompts, num_own, 14, [3, 0]) == [[0, 3]] and shared_batches([], [], 14) == []
