"""Advantages that put a reward and a teacher together, or come from neither: the papers' numbers and their limits."""
import math

import pytest
import torch

from tasks.opd.objective.advantages import grpo, less_where_unsure, mixed, modulated, teacher_gap
from tasks.opd.objective.estimators import anchored_policy_gradient, policy_gradient, shaped_policy_gradient
from tests.column_fixtures import columns

GAPS = [0.5, -0.5, 0.1, -2.0, 0.3, 0.0]


def groups(**values):
    """A prompt with one success of four rollouts, and one on which both fail; a token each, worth GAPS."""
    return columns([1] * 6, **{"group": [0, 0, 0, 0, 1, 1], "reward": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                               "old_logprobs": [0.0] * 6, "teacher": GAPS, **values})


def test_kdrl_adds_the_teacher_to_the_samples_standard_scores():
    # rewards (1, 0, 0, 0): mean .25, deviation .5 of the sample: 1.5 and -.5 three times; equal rewards are worth 0
    worth = mixed(groups(), beta=0.2).tolist()
    expected = [1.5 + 0.1, -0.5 - 0.1, -0.5 + 0.02, -0.5 - 0.4, 0.06, 0.0]
    assert worth == pytest.approx(expected, abs=4e-4)                     # grpo's epsilon is 1e-4 of .5


@pytest.mark.parametrize("gap_on, taught", [("all", [1, 1, 1, 1, 1, 1]), ("failed", [0, 1, 1, 1, 1, 1]),
                                            ("failed_groups", [0, 0, 0, 0, 1, 1])])
def test_the_teacher_speaks_on_all_on_failures_or_where_every_rollout_failed(gap_on, taught):
    row = groups()
    added = mixed(row, beta=2.0, gap_on=gap_on) - grpo(row)
    assert added.tolist() == pytest.approx([2 * gap * there for gap, there in zip(GAPS, taught)])


def test_a_lower_threshold_makes_successes_of_all_and_srpos_routes_part():
    row = groups()
    routed = mixed(row, beta=1.0, reward_on="succeeded", gap_on="failed")
    assert routed.tolist() == pytest.approx([grpo(row)[0].item(), *GAPS[1:]])
    assert torch.equal(mixed(row, reward_on="succeeded", gap_on="failed", threshold=0.0), grpo(row))
    assert torch.equal(mixed(row, reward=0.0), teacher_gap(row))


def test_an_ungraded_rollout_is_no_success_of_its_prompt_and_learns_nothing():
    row = groups(reward=[1.0, 0.0, 0.0, 0.0, 0.0, math.nan], mask=[True] * 5 + [False])
    assert mixed(row, beta=1.0, gap_on="failed_groups")[4].item() == pytest.approx(0.3)
    with pytest.raises(ValueError, match="grader"):
        mixed(groups(reward=[1.0, 0.0, 0.0, 0.0, 0.0, math.nan]))


def test_rlsd_sizes_the_reward_and_never_turns_it():
    # |A| = 1 but for grpo's epsilon: A 1 with d .5, -.5, .1 gives 1.2, .8, 1.105171; A -1 with d .5, -.5: -.8, -1.2
    given = {"group": [0, 0], "reward": [1.0, 0.0], "old_logprobs": [0.0] * 6, "teacher": [0.5, -0.5, 0.1] * 2}
    row = columns([3, 3], **given)
    factor = (modulated(row) / grpo(row)).tolist()
    assert factor == pytest.approx([1.2, 0.8, 1.105171, 0.8, 1.2, math.exp(-0.1)], abs=1e-6)
    half = (modulated(row, share=0.5) / grpo(row)).tolist()
    assert half == pytest.approx([(1 + x) / 2 for x in factor])
    assert torch.equal(modulated(row, share=0.0), grpo(row))
    ruled_out = modulated(columns([1, 1], group=[0, 0], reward=[1.0, 0.0], old_logprobs=[0.0] * 2,
                                  teacher=[-math.inf, -math.inf]))
    assert torch.isfinite(ruled_out).all()


def test_opsa_pushes_down_what_is_written_where_the_student_is_unsure():
    row = columns([2, 2], entropy=[0.1, 0.5, 0.9, 7.0], mask=[True] * 3 + [False])
    assert less_where_unsure(row)[:3].tolist() == pytest.approx([-0.2, -1, -1.8])      # the mean is .5
    assert less_where_unsure(row, power=0.0, scale=2.0).tolist() == [-2] * 4
    assert less_where_unsure(columns([2], entropy=[0.0, 0.0])).tolist() == [-1, -1]


def test_opsa_has_no_gradient_in_the_mean_and_flattens_a_truncated_distribution():
    def mean_gradient(drawn):
        logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
        (-(torch.tensor(drawn, dtype=torch.float64) * -1.0 * logits.log_softmax(-1)).sum()).backward()
        return logits.grad.tolist()
    assert mean_gradient([0.5, 0.3, 0.2]) == pytest.approx([0, 0, 0], abs=1e-15)
    assert mean_gradient([0.625, 0.375, 0.0]) == pytest.approx([0.125, 0.075, -0.2])   # the tail that was cut grows


def test_the_anchored_ratio_is_rlads():
    # ratio^.5 e^(-.5 d) with ratio 1 and d .4: .818731; live = old = 0, teacher .4
    old, teacher, share = torch.zeros(1, dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64), 0.5
    live = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = anchored_policy_gradient(torch.ones(1), live, share * old + (1 - share) * teacher, share=share)
    loss.backward()
    assert loss.item() == pytest.approx(-0.818731, abs=1e-6) and live.grad.item() == pytest.approx(-0.818731, abs=1e-6)
    # the paper's form at a student that moved by .3, whose gap is then .1, has the same value and the same gradient
    live = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    form = -((live - old).exp() ** share * (-(1 - share) * (teacher - live)).exp()).sum()
    ours = anchored_policy_gradient(torch.ones(1), live, share * old + (1 - share) * teacher, share=share).sum()
    assert ours.item() == pytest.approx(form.item())
    assert torch.autograd.grad(ours, live)[0].item() == pytest.approx(torch.autograd.grad(form, live)[0].item())


def test_luffys_shape_has_its_largest_gradient_at_gamma():
    p = torch.tensor([0.01, 0.1, 0.9], dtype=torch.float64)
    live = p.log().requires_grad_()
    loss = shaped_policy_gradient(torch.full((3,), 2.0, dtype=torch.float64), live, live, gamma=0.1)
    loss.sum().backward()
    # -2 p / (p + .1) and -2 * .1 p / (p + .1)^2: at p = .01, .1, .9
    assert loss.tolist() == pytest.approx([-0.181818, -1.0, -1.8], abs=1e-6)
    assert live.grad.tolist() == pytest.approx([-0.165289, -0.5, -0.18], abs=1e-6)
    unshaped = policy_gradient(torch.full((3,), 2.0), p.log(), torch.zeros(3))
    assert unshaped.tolist() == pytest.approx([-0.02, -0.2, -1.8])
