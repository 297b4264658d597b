"""Weights that route tokens and prompts: by the teacher's certainty, the prompt's pass rate, the gap."""
import math

import pytest
import torch

from tasks.opd.objective.weights import WEIGHTS
from tasks.opd.recipe import slots
from tasks.opd.recipe.schema import Slot
from tests.column_fixtures import columns

STUDENT, TEACHER = [0.5, 0.3, 0.2], [0.2, 0.7, 0.1]     # probabilities of three tokens written
TOY = {"old_logprobs": [math.log(p) for p in STUDENT], "teacher": [math.log(p) for p in TEACHER]}


def weigh(name, lengths, params=None, **given):
    found = WEIGHTS[name](columns(lengths, **given), **(params or {}))
    return (found[0] if isinstance(found, tuple) else found).tolist()


def test_srpo_weighs_by_the_teachers_certainty_with_mean_one():
    expected = pytest.approx([1.995723, 0.734185, 0.270092], abs=1e-6)
    assert weigh("teacher_certainty", [2, 1], teacher_entropy=[0.0, 1.0, 2.0]) == expected
    assert weigh("teacher_certainty", [2, 1], teacher_entropy=[900.0, 901.0, 902.0]) == expected  # nothing vanishes
    masked = weigh("teacher_certainty", [4], teacher_entropy=[0.0, 1.0, math.nan, 2.0], mask=[True, True, False, True])
    assert masked == pytest.approx([1.995723, 0.734185, 0, 0.270092], abs=1e-6)
    assert weigh("teacher_certainty", [2], {"beta": 0.0}, teacher_entropy=[0.3, 4.0]) == [1, 1]


def test_paced_weighs_a_prompt_by_how_far_it_is_from_hopeless_and_from_done():
    given = {"group": [0, 0, 0, 0, 1, 1, 2], "reward": [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]}     # p 1/4, 1, 0
    assert weigh("pass_rate", [2, 1, 1, 1, 1, 1, 1], **given) == pytest.approx([3 / 16] * 5 + [0] * 3)
    assert weigh("pass_rate", [1] * 7, {"right": 2.0, "wrong": 1.0}, **given)[0] == pytest.approx(3 / 64)
    assert weigh("pass_rate", [1] * 7, {"right": 0.0, "wrong": 0.0}, **given) == [1] * 7
    assert weigh("pass_rate", [1] * 7, {"threshold": 0.0}, **given) == [0] * 7                  # all succeed
    weight, found = WEIGHTS["pass_rate"](columns([2, 1, 1, 1, 1, 1, 1], **given))
    assert found == {"pass_rate_mean": pytest.approx((4 * 0.25 + 2 + 0) / 7)}


def test_a_pass_rate_is_over_graded_rollouts_and_none_is_an_error():
    given = {"group": [0, 0, 0], "reward": [1.0, 0.0, math.nan]}
    assert weigh("pass_rate", [1, 1, 1], **given) == [0.25] * 3
    with pytest.raises(ValueError, match="grader"):
        weigh("pass_rate", [1, 1], reward=[1.0, math.nan])
    assert weigh("pass_rate", [1, 1], reward=[1.0, math.nan], mask=[True, False]) == [0, 0]


def test_aopd_gates_by_probabilities_not_by_their_logarithms():
    # student - teacher: .3, -.4, .1
    assert weigh("probability_gap", [3], **TOY) == [1, 0, 1]
    assert weigh("probability_gap", [3], {"above": 0.2}, **TOY) == [1, 0, 0]
    assert weigh("probability_gap", [3], {"above": 0.2, "keep": "rest"}, **TOY) == [0, 1, 1]
    assert weigh("probability_gap", [2], old_logprobs=[-1.0, -1.0], teacher=[-math.inf, -1.0]) == [1, 0]


def test_tropd_gates_by_the_gaps_size_on_both_sides():
    # gaps -.916291, .847298, -.693147
    assert weigh("gap_size", [3], {"limit": 0.8}, **TOY) == [1, 1, 0]
    assert weigh("gap_size", [3], {"limit": 0.8, "keep": "within"}, **TOY) == [0, 0, 1]
    assert weigh("gap_size", [2], old_logprobs=[-1.0, -1.0], teacher=[-math.inf, -3.0]) == [1, 0]


def gradient(weights_of_gap, weights_of_kl):
    """E over the token written of the gradient of w (-d log q) + v KL(teacher || student), by the student's logits."""
    logits = torch.tensor(STUDENT, dtype=torch.float64).log().requires_grad_()
    live, teacher = logits.log_softmax(-1), torch.tensor(TEACHER, dtype=torch.float64)
    share, gap = torch.tensor(STUDENT, dtype=torch.float64), teacher.log() - live.detach()
    forward = (teacher * (teacher.log() - live)).sum()
    (-(share * torch.tensor(weights_of_gap) * gap * live).sum()
     + (share * torch.tensor(weights_of_kl)).sum() * forward).backward()
    return logits.grad.tolist()


def test_aopds_and_tropds_mean_gradients_are_the_specifications():
    aopd = [weigh("probability_gap", [3], {"keep": keep}, **TOY) for keep in ("rest", "above")]
    assert gradient(*aopd) == pytest.approx([0.3371, -0.4579, 0.1208], abs=5e-5)
    tropd = [weigh("gap_size", [3], {"limit": 0.8, "keep": keep}, **TOY) for keep in ("within", "beyond")]
    assert gradient(*tropd) == pytest.approx([0.1707, -0.3616, 0.1909], abs=5e-5)
    assert gradient(tropd[0], [0.0] * 3)[0] == pytest.approx(-0.0693, abs=5e-5)  # alone, the gap's sign is turned


@pytest.mark.parametrize("name, params, bad", [
    ("teacher_certainty", {"beta": 1.0}, {"beta": -1.0}),
    ("pass_rate", {"right": 1.0, "wrong": 1.0, "threshold": 1.0}, {"right": -1.0}),
    ("probability_gap", {"above": 0.0, "keep": "above"}, {"keep": "below"}),
    ("gap_size", {"limit": 2.0, "keep": "beyond"}, {"limit": -1.0})])
def test_defaults_of_routing_weights_and_their_bounds(name, params, bad):
    assert slots.bind(Slot(name=name), "weight") == params
    assert slots.check(Slot(name=name, params=bad), "weight")[1]
