"""Estimators: golden values at one token and their mean gradients, by enumeration of the vocabulary."""
import pytest
import torch

from tasks.opd.estimators import k2, k3, policy_gradient

STUDENT_LOGITS = torch.tensor([1.0, 0.5, -0.5, -1.0], dtype=torch.float64)
TEACHER = torch.tensor([2.0, -1.0, 0.3, 0.5], dtype=torch.float64).log_softmax(-1)
STUDENT = STUDENT_LOGITS.log_softmax(-1)
GAP = STUDENT - TEACHER
REVERSE_KL_GRADIENT = STUDENT.exp() * (GAP - (STUDENT.exp() * GAP).sum())


def mean_gradient(loss):
    """E over y ~ student of d loss(y) / d logits, the sample held fixed."""
    z = STUDENT_LOGITS.clone().requires_grad_()
    live = z.log_softmax(-1)
    (STUDENT.exp() * loss(live)).sum().backward()
    return z.grad


def test_golden_values_at_token_one():
    assert k2(TEACHER, STUDENT, STUDENT)[1].item() == pytest.approx(2.4198425741, abs=1e-9)
    assert k3(TEACHER, STUDENT, STUDENT)[1].item() == pytest.approx(1.3107395292, abs=1e-9)


def test_k3_is_the_reverse_kl_in_the_mean_and_k2_is_not():
    reverse_kl = (STUDENT.exp() * GAP).sum().item()
    assert (STUDENT.exp() * k3(TEACHER, STUDENT, STUDENT)).sum().item() == pytest.approx(reverse_kl, abs=1e-12)
    assert abs((STUDENT.exp() * k2(TEACHER, STUDENT, STUDENT)).sum().item() - reverse_kl) > 0.01


def test_mean_gradients_k1_nothing_k2_reverse_k3_forward_policy_gradient_reverse():
    assert mean_gradient(lambda live: live - TEACHER).abs().max() < 1e-15
    assert torch.allclose(mean_gradient(lambda live: k2(TEACHER, live, STUDENT)), REVERSE_KL_GRADIENT, atol=1e-14)
    assert torch.allclose(mean_gradient(lambda live: k3(TEACHER, live, STUDENT)), STUDENT.exp() - TEACHER.exp(),
                          atol=1e-14)
    assert torch.allclose(mean_gradient(lambda live: policy_gradient(-GAP, live, STUDENT)), REVERSE_KL_GRADIENT,
                          atol=1e-14)


def test_baselines_keep_the_mean_gradient():
    # V6: adding the state's reverse KL (a constant) or -1 to the reward changes no mean
    reverse_kl = (STUDENT.exp() * GAP).sum()
    for shift in (reverse_kl, -1.0):
        moved = mean_gradient(lambda live, shift=shift: policy_gradient(-GAP + shift, live, STUDENT))
        assert torch.allclose(moved, REVERSE_KL_GRADIENT, atol=1e-14)


def test_ppo_clip_is_the_pessimistic_one():
    old = torch.zeros(4, dtype=torch.float64)
    live = torch.tensor([1.5, 0.5, 1.5, 0.5], dtype=torch.float64).log()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    # ratio 1.5, A 1: min(1.5, 1.2); ratio .5, A 1: min(.5, .8);
    # ratio 1.5, A -1: min(-1.5, -1.2); ratio .5, A -1: min(-.5, -.8)
    assert policy_gradient(advantage, live, old, clip_low=0.2).tolist() == pytest.approx([-1.2, -0.5, 1.5, 0.8])
    assert policy_gradient(advantage, live, old, clip_low=0.2, clip_high=0.28)[0].item() == pytest.approx(-1.28)
    assert policy_gradient(advantage, live, old).tolist() == pytest.approx([-1.5, -0.5, 1.5, 0.5])
