"""Repetition by hand, and which completions are decoded for it."""
import random

import pytest

from tasks.opd.training.repetition import is_loop, repetition, trigram_repetition
from tests.tiny_models import rollout


def decode(rows):
    return ["".join(chr(97 + token % 26) for token in row) for row in rows]


def test_the_share_of_3_grams_that_were_there_before():
    # 1 2 1 2 1 2: (121) (212) (121) (212): 2 of 4 are new
    assert trigram_repetition([1, 2, 1, 2, 1, 2]) == 0.5
    assert trigram_repetition([1, 2, 3, 4]) == 0 and trigram_repetition([1, 2]) is None


def test_a_loop_compresses_more_than_tenfold_and_prose_does_not():
    words = random.Random(0)
    prose = "".join(words.choice("abcdefghij ") for _ in range(5000))
    assert is_loop("ab" * 5000) and not is_loop(prose)
    assert not is_loop("ab" * 400)                                  # 800 characters are too few to tell
    assert is_loop(prose + "wait, " * 2000)                         # the last 10,000 characters count


def test_shares_are_of_all_rollouts_and_only_long_ones_are_decoded():
    asked = []

    def watched(rows):
        asked.extend(rows)
        return decode(rows)
    rollouts = [rollout(0, [1], [1, 2] * 1000), rollout(1, [1], [1, 2, 3]), rollout(2, [1], [5]),
                rollout(3, [1], random.Random(1).choices(range(26), k=1200))]
    found = repetition(rollouts, watched)
    assert found["trust/zlib_share"] == 1 / 4 and [len(row) for row in asked] == [2000, 1200]
    several = [1 - 2 / 1998, 0, trigram_repetition(rollouts[3].token_ids)]
    assert found["trust/trigram_repetition"] == pytest.approx(sum(several) / 3)
    assert repetition([rollout(0, [1], [1, 2, 1])], None) == {"trust/zlib_share": 0, "trust/trigram_repetition": 0}
