"""Drift, on numbers worked by hand: stability index, divergence of words, z-scores, what they lead to."""
import math
from collections import Counter

import pytest

from tasks.opd.recipe.refreshes import Drift
from tasks.opd.refresh.drift import (
    ALARM,
    REFRESH,
    champion_measures,
    jensen_shannon,
    judged,
    population_stability_index,
    prompt_measures,
    words,
    z_score,
)
from tasks.opd.refresh.rows import Row

LIMITS = Drift()


def row(text: str) -> Row:
    return Row(text=text, answer="1", solution=None, entry={}, domain="default")


def test_the_stability_index_is_the_sum_over_bins():
    # quartiles of 1..8 (inclusive): 2.75, 4.5, 6.25, so 2 of 8 in each bin; actual: 4, 2, 1, 1 of 8
    actual = [1, 1, 2, 2, 3, 4, 5, 7]
    # (.5 - .25) ln 2 + 0 + 2 (.125 - .25) ln .5 = .25 ln 2 + .25 ln 2
    assert population_stability_index(range(1, 9), actual, bins=4) == pytest.approx(0.5 * math.log(2))


def test_equal_lengths_have_no_stability_index_and_an_empty_bin_counts_as_half_a_value():
    assert population_stability_index([3, 3, 3], [3, 3]) == 0
    # e is all in (-inf, 3] and half of 3 values in (3, inf): (1, 1/6); a likewise (1/4, 1):
    # (1/4 - 1) ln 1/4 + (1 - 1/6) ln 6
    assert population_stability_index([3, 3, 3], [9, 9]) == pytest.approx(0.75 * math.log(4) + 5 / 6 * math.log(6))


def test_jensen_shannon_is_nought_for_equal_shares_and_ln_2_for_disjoint_ones():
    assert jensen_shannon(Counter("aab"), Counter("aabaab")) == pytest.approx(0)
    assert jensen_shannon(Counter("a"), Counter("b")) == pytest.approx(math.log(2))
    # p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4): 1/2 ln 4/3 + 1/2 (1/2 ln 2/3 + 1/2 ln 2)
    by_hand = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)
    assert jensen_shannon(Counter("a"), Counter("ab")) == pytest.approx(by_hand)


def test_numbers_are_one_word():
    assert words([row("Ada has 12 figs"), row("ada has 9 figs")]) == {"ada": 2, "has": 2, "0": 2, "figs": 2}


def test_a_z_score_needs_three_values_that_differ():
    assert z_score(9.0, [1.0, 3.0]) is None
    assert z_score(9.0, [2.0, 2.0, 2.0]) is None
    assert z_score(9.0, [1.0, 2.0, 3.0]) == pytest.approx(7.0)      # mean 2, ddof 1: standard deviation 1


def test_a_value_drifts_above_its_limit_or_far_above_its_own_past_when_it_is_not_small():
    past = [{"words_js": value} for value in (0.01, 0.02, 0.03)]    # mean .02, standard deviation .01
    def drifted(value, history=past):
        return judged("words_js", value, 0.2, history, LIMITS, ALARM).drifted
    assert not drifted(0.05) and judged("words_js", 0.05, 0.2, past, LIMITS, ALARM).z == pytest.approx(3)
    assert not drifted(0.09)                                        # z 7, but below half of the limit
    assert drifted(0.11)                                            # z 9
    assert not drifted(0.11, past[:2]) and drifted(0.21, [])        # without a past only the limit holds
    assert not drifted(None)


def test_only_the_last_refreshes_count():
    past = [{"words_js": 5.0}] * 3 + [{"words_js": value} for value in (0.01, 0.02, 0.03)]
    limits = Drift(over=3)
    assert judged("words_js", 0.11, 0.2, past, limits, ALARM).z == pytest.approx(9)


def test_other_words_and_lengths_alarm_and_a_first_tick_has_nothing_to_compare_with():
    old = [row(f"Ada has {i} figs and buys {i} more") for i in range(100, 200)]
    same = prompt_measures(old, [row(f"Ada has {i} figs and buys {i} more") for i in range(200, 300)], [], LIMITS)
    other = prompt_measures(old, [row("bonjour le monde " * 9)] * 100, [], LIMITS)
    assert [m.drifted for m in same] == [False, False]
    assert [(m.name, m.drifted, m.leads_to) for m in other] == [("length_psi", True, ALARM), ("words_js", True, ALARM)]
    assert [m.value for m in prompt_measures([], old, [], LIMITS)] == [None, None]


def test_of_few_prompts_drift_is_not_said():
    few = [row("x" * length) for length in range(99)]
    assert [m.value for m in prompt_measures(few, few * 2, [], LIMITS)] == [None, None]


def test_another_teacher_an_old_champion_and_a_lower_score_are_reasons_to_refresh():
    def found(**changes):
        given = {"teacher_changed": False, "age_days": 1.0, "score": 0.8, "history": [{"score": 0.82}, {"score": None}],
                 "limits": Drift(age_days=30, score_drop=0.1), **changes}
        return {m.name: m for m in champion_measures(**given)}
    assert not any(m.drifted for m in found().values()) and all(m.leads_to == REFRESH for m in found().values())
    assert found(teacher_changed=True)["teacher_changed"].drifted
    assert found(age_days=31.0)["age_days"].drifted
    assert not found(age_days=999.0, limits=Drift())["age_days"].drifted       # 0: never
    assert found(score=0.7)["score_drop"].drifted and found(score=0.7)["score_drop"].value == pytest.approx(0.12)
    assert found(score=None)["score_drop"].value is None
