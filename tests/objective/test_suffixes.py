"""Weights that cut a rollout's end: loops by hand, and who is counted as cut off."""
import dataclasses
import math

import pytest
import torch

from tasks.opd.objective.suffixes import before_loop, prune_suffix
from tasks.opd.recipe import slots
from tasks.opd.recipe.schema import Slot
from tests.column_fixtures import columns

SURE, UNSURE = -0.01, -2.0


def kept(texts, teacher=None, **params):
    """How many tokens of each rollout are kept, a letter a token; those kept come first."""
    lengths = [len(text) for text in texts]
    teacher = [SURE] * sum(lengths) if teacher is None else teacher
    row = columns(lengths, token_ids=[ord(c) for text in texts for c in text], teacher=teacher)
    weight, found = before_loop(row, **params)
    parts = weight.split(lengths)
    assert all(part.tolist() == sorted(part.tolist(), reverse=True) for part in parts)
    return [int(part.sum()) for part in parts], found


def test_a_loop_is_kept_up_to_the_end_of_its_first_pass():
    assert kept(["abcdxyxyxy"])[0] == [6]                     # from x on, a period of 2, three passes
    assert kept(["abcdxyxyxyx"])[0] == [6]                    # and a part of a fourth
    assert kept(["aaaa", "baaa", "abcabcabc"])[0] == [1, 2, 3]
    assert kept(["zababab" + "q"])[0] == [8]                  # it does not end in it
    assert kept(["abcdxyxy", "abcd", "a"])[0] == [8, 4, 1]    # two passes are no loop; nothing repeats
    assert kept(["abcdxyxy"], repeats=2)[0] == [6]


def test_of_several_loops_the_earliest_counts_and_of_equal_ones_the_shorter():
    assert kept(["abababab"])[0] == [2]                       # period 2 and, with two passes, period 4, from the start
    assert kept(["abababab"], repeats=2)[0] == [2]
    assert kept(["xaabaabaab"])[0] == [4]                     # b aab aab.. begins at x's next: period 3 from 1 on
    assert kept(["xyxyxy"], period=1)[0] == [6]               # a period of 2 is not looked for


def test_the_teacher_confirms_what_follows_the_first_pass_on_average():
    first, rest = [UNSURE] * 6, [-0.05, -0.05, -0.05, -0.25]                                       # mean -.1
    assert kept(["abcdxyxyxy"], [*first, *rest])[0] == [6]
    assert kept(["abcdxyxyxy"], [*first, *rest[:3], -0.26])[0] == [10]
    assert kept(["abcdxyxyxy"], [*first, *rest[:3], -0.26], sure=-0.2)[0] == [6]
    assert kept(["abcdxyxyxy"], [*first, *rest[:3], -math.inf])[0] == [10]


def test_no_rollout_looks_into_another_and_the_quantile_is_of_the_rollouts():
    texts = ["aab"] + ["abcdxyxyxy"] * 8 + ["aaaaa"]
    lengths, found = kept(texts)
    assert lengths == [3] + [6] * 8 + [1]
    assert found == {"effective_length_p90_tokens": 6.0}
    assert kept(["aa", "aa", "aa"])[0] == [2, 2, 2]           # one after the other they would be a loop


def test_only_the_terms_tokens_are_looked_at():
    row = columns([9], token_ids=[ord(c) for c in "abQababab"], teacher=[SURE] * 2 + [math.nan] + [SURE] * 6,
                  mask=[True, True, False] + [True] * 6)
    assert before_loop(row)[0].tolist() == [1, 1] + [0] * 7


def test_a_rollout_that_ended_by_itself_did_not_reach_its_budget():
    overlap = {"overlap:4": [1.0] * 5 + [0.0] * 3}            # the last has lost its weight before it was cut
    row = columns([2, 3, 3], **overlap)
    ended = torch.tensor([False, True] + [False] * 6)
    counts = [prune_suffix(some, k=4, drop=0.5)[1]["reached_share"]
              for some in (row, dataclasses.replace(row, special=ended))]
    assert counts == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def test_defaults_of_before_loop_and_its_bounds():
    assert slots.bind(Slot(name="before_loop"), "weight") == {"period": 64, "repeats": 3, "sure": -0.1}
    assert slots.check(Slot(name="before_loop", params={"repeats": 1}), "weight")[1]
