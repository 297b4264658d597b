"""Which rollouts a term learns from."""
import math

import pytest
import torch

from tasks.opd.core.records import ENVIRONMENT, STUDENT, TEACHER
from tasks.opd.objective.rows import ROWS
from tasks.opd.recipe import slots
from tasks.opd.recipe.schema import Slot
from tests.column_fixtures import columns

NAN = math.nan


def rows(name, lengths, params=None, **given):
    """The rows as the trainer asks for them, as a list."""
    out = ROWS[name](columns(lengths, **given), **(params or {}))
    assert out.dtype == torch.bool and out.shape == (len(lengths),)
    return out.tolist()


def chosen(name, lengths, params=None, **given):
    return [i for i, there in enumerate(rows(name, lengths, params, **given)) if there]


def test_only_the_students_rollouts_are_sampled():
    assert rows("sampled", [2, 1, 1], author=[TEACHER, STUDENT, TEACHER, STUDENT]) == [True, False, True]
    assert rows("all", [2, 1, 1], author=[TEACHER] * 4) == [True] * 3
    assert rows("golden", [2, 1, 1], author=[TEACHER, STUDENT, TEACHER, STUDENT]) == [False, True, False]


def test_ungraded_rollouts_neither_succeeded_nor_failed():
    reward = [1.0, 0.5, NAN]
    assert rows("succeeded", [1, 1, 1], reward=reward) == [True, False, False]
    assert rows("failed", [1, 1, 1], reward=reward) == [False, True, False]
    assert rows("succeeded", [1, 1, 1], {"threshold": 0.5}, reward=reward) == [True, True, False]


# DAPO

def test_groups_of_equal_rewards_teach_nothing():
    assert chosen("mixed_groups", [1] * 7, group=[0, 0, 1, 1, 2, 2, 3],
                  reward=[1, 0, 1, 1, 0, 0, 1]) == [0, 1]              # all right, all wrong, alone: gone
    assert chosen("mixed_groups", [1] * 4, group=[0, 1, 0, 1], reward=[0.3, -2.0, 0.3, -2.5]) == [1, 3]


def test_ungraded_rollouts_neither_mix_a_group_nor_stay_in_one():
    assert chosen("mixed_groups", [1] * 6, group=[0, 0, 0, 1, 1, 2], reward=[1, 0, NAN, 1, NAN, NAN]) == [0, 1]
    assert chosen("mixed_groups", [1, 1], group=[0, 0]) == []


def test_a_teachers_rollout_mixes_a_group_but_does_not_stay():
    assert chosen("mixed_groups", [1] * 3, group=[0, 0, 0], reward=[0, 0, 1],
                  author=[STUDENT, STUDENT, TEACHER]) == [0, 1]


# FiRe-OPD

def test_a_fifth_of_the_rollouts_goes_those_the_teacher_finds_least_likely():
    lengths = [1, 2, 1, 4, 1]       # means -1, -2, -5, -.5, -3
    teacher = [-1.0] + [-1.0, -3.0] + [-5.0] + [-0.5] * 4 + [-3.0]
    assert chosen("likely_to_teacher", lengths, teacher=teacher) == [0, 1, 3, 4]
    assert chosen("likely_to_teacher", lengths, {"share": 0.4}, teacher=teacher) == [0, 3]
    assert chosen("likely_to_teacher", lengths, {"share": 0.01}, teacher=teacher) == [3]
    assert chosen("likely_to_teacher", lengths, {"share": 1.0}, teacher=teacher) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("share, count, kept", [(0.8, 10, 8), (0.8, 100, 80), (0.8, 6, 5), (0.8, 2, 1), (0.8, 1, 1),
                                                (0.7, 11, 8), (0.5, 4, 2)])
def test_the_share_is_cut_at_a_quantile_and_not_by_rounding_errors(share, count, kept):
    # (1 - .7) * 10 is 3.0000000000000004: the fourth lowest stays
    teacher = [-float(i) for i in range(count)]
    assert chosen("likely_to_teacher", [1] * count, {"share": share}, teacher=teacher) == list(range(kept))


def test_rollouts_as_likely_as_the_last_that_stays_stay_too():
    assert chosen("likely_to_teacher", [1] * 5, teacher=[-2.0] * 5) == [0, 1, 2, 3, 4]
    assert chosen("likely_to_teacher", [1] * 5, {"share": 0.5}, teacher=[-2.0, -9.0, -2.0, -2.0, -9.0]) == [0, 2, 3]


def test_likelihood_is_of_the_students_tokens_where_the_teacher_has_a_signal():
    lengths, author = [2, 2, 1, 1], [STUDENT, ENVIRONMENT, TEACHER, STUDENT, TEACHER, STUDENT]
    teacher = [-1.0, -50.0, NAN, -2.0, NAN, NAN]       # means -1, -2; none written; no signal
    given = {"author": author, "teacher": teacher, "has_signal": [True, True, True, False]}
    assert chosen("likely_to_teacher", lengths, {"share": 1.0}, **given) == [0, 1]
    assert chosen("likely_to_teacher", lengths, {"share": 0.5}, **given) == [0]
    assert chosen("likely_to_teacher", lengths, author=author, has_signal=[False] * 4) == []


def test_a_token_the_teacher_rules_out_makes_its_rollout_the_least_likely():
    assert chosen("likely_to_teacher", [2, 1, 1], {"share": 0.6}, teacher=[-0.1, -math.inf, -7.0, -8.0]) == [1, 2]


def test_a_missing_log_probability_is_refused():
    with pytest.raises(ValueError, match="every token the student wrote"):
        rows("likely_to_teacher", [2, 1], teacher=[-1.0, NAN, -1.0])


def test_rows_say_what_they_read_and_parameters_are_bound():
    reading = {name: entry.needs for name, entry in ROWS.items() if entry.needs}
    assert reading == {"likely_to_teacher": ("teacher",)}
    assert slots.bind(Slot(name="likely_to_teacher"), "rows") == {"share": 0.8}
    assert slots.check(Slot(name="likely_to_teacher", params={"share": 0.0}), "rows")[1]
    assert slots.bind(Slot(name="mixed_groups"), "rows") == {}


def test_rows_do_not_read_the_mask():
    given = {"teacher": [-1.0, -2.0, -3.0], "reward": [1, 0, 1], "group": [0, 0, 0]}
    for name in ROWS:
        assert rows(name, [1, 1, 1], **given) == rows(name, [1, 1, 1], mask=[False] * 3, **given)
