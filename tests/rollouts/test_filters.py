"""Which rollouts go, why, and what is kept of them."""
import dataclasses

import pytest

from tasks.opd.core.records import Quarantined, Rollout
from tasks.opd.rollouts.filters import apply_filters, duplicate, graded, malformed, too_long

ROLLOUT = Rollout(rollout_id="0:a:student:0", prompt_id="a", group_id="0:a", domain="d", prompt_token_ids=[1],
                  token_ids=[5, 6, 2], logprobs=[-1.0, -1.0, -1.0], author=[0, 0, 0], teacher_prompt_ids=None,
                  origin="student", parent=None, policy=["f"] * 3, finish_reason="stop", reward=None, feedback=None)


def rollout(**other):
    return dataclasses.replace(ROLLOUT, **other)


def test_malformed_drops_a_completion_of_only_an_eos_and_ids_without_a_name():
    assert malformed(rollout(token_ids=[2]), []) == "the completion is empty"
    assert malformed(rollout(token_ids=[], finish_reason="length"), []) == "the completion is empty"
    assert malformed(rollout(token_ids=[5], finish_reason="length"), []) is None
    assert malformed(rollout(token_ids=[5, 600]), [], vocabulary=600) == "id 600 is not in the vocabulary"
    assert malformed(rollout(token_ids=[5, 599]), [], vocabulary=600) is None


def test_too_long_counts_the_eos():
    assert too_long(ROLLOUT, [], tokens=3) is None
    assert too_long(ROLLOUT, [], tokens=2) == "3 tokens are more than 2"


def test_duplicate_names_the_one_that_stays():
    assert duplicate(rollout(rollout_id="b"), [ROLLOUT]) == "the same tokens as 0:a:student:0"
    assert duplicate(rollout(token_ids=[5, 2]), [ROLLOUT]) is None


@pytest.mark.parametrize("reward, params, goes", [
    (None, {}, True), (0.5, {"minimum": 0.5}, False), (0.4, {"minimum": 0.5}, True), (0.6, {"maximum": 0.5}, True),
    (1.0, {"keep": "succeeded"}, False), (0.9, {"keep": "succeeded"}, True), (1.0, {"keep": "failed"}, True),
    (0.0, {"keep": "failed"}, False), (-3.0, {}, False)])
def test_graded_keeps_bounds_inclusive_and_success_means_one(reward, params, goes):
    assert (graded(rollout(reward=reward), [], **params) is not None) == goes


def test_apply_filters_compares_within_the_group_and_with_what_was_kept():
    rollouts = [rollout(rollout_id="0", token_ids=[5] * 9), rollout(rollout_id="1", token_ids=[5] * 9),
                rollout(rollout_id="2"), rollout(rollout_id="3"), rollout(rollout_id="4", group_id="0:b")]
    slots = [{"name": "too_long", "params": {"tokens": 4}}, {"name": "duplicate", "params": {}}]
    kept, dropped = apply_filters(rollouts, slots)
    assert [r.rollout_id for r in kept] == ["2", "4"]
    assert dropped == [Quarantined(item_id="0", reason="too_long", text="9 tokens are more than 4"),
                       Quarantined(item_id="1", reason="too_long", text="9 tokens are more than 4"),
                       Quarantined(item_id="3", reason="duplicate", text="the same tokens as 2")]


def test_without_filters_everything_stays():
    assert apply_filters([ROLLOUT, ROLLOUT], []) == ([ROLLOUT, ROLLOUT], [])
