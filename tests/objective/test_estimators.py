"""Estimators: golden values at one token and their mean gradients, by enumeration of the vocabulary."""
import pytest
import torch

from tasks.opd.objective.estimators import candidate_policy_gradient, clipped, exact, k2, k3, policy_gradient

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


def test_candidates_of_the_whole_vocabulary_give_the_reverse_kls_gradient_without_sampling():
    z = STUDENT_LOGITS.clone().requires_grad_()
    worth = STUDENT.exp() * -GAP
    candidate_policy_gradient(worth[None], z.log_softmax(-1)[None], STUDENT[None]).sum().backward()
    assert torch.allclose(z.grad, REVERSE_KL_GRADIENT, atol=1e-14)


def test_a_candidate_that_is_not_there_counts_neither_in_value_nor_in_gradient():
    old = torch.tensor([[0.5, 0.25, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64).log()
    worth = torch.tensor([[2.0, -1.0, torch.nan, 7.0], [torch.nan, torch.inf, 1.0, 0.0]], dtype=torch.float64)
    live = torch.tensor([[0.6, 0.2, 0.1, 0.0], [0.1, 0.0, 0.0, 0.0]], dtype=torch.float64).log().requires_grad_()
    loss = candidate_policy_gradient(worth, live, old)
    loss.sum().backward()
    # ratios .6/.5 = 1.2 and .2/.25 = .8: -(1.2 * 2 - .8) = -1.6; d/dlive is -ratio * worth
    assert loss.tolist() == pytest.approx([-1.6, 0.0])
    assert live.grad[0].tolist() == pytest.approx([-2.4, 0.8, 0, 0]) and live.grad[1].tolist() == [0, 0, 0, 0]


def test_candidates_are_clipped_one_by_one():
    old = torch.tensor([[0.5, 0.25]], dtype=torch.float64).log()
    worth = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    live = torch.tensor([[0.75, 0.1]], dtype=torch.float64).log().requires_grad_()
    loss = candidate_policy_gradient(worth, live, old, clip_low=0.2)
    loss.sum().backward()
    # ratio 1.5, A 2: min(3, 1.2 * 2); ratio .4, A -1: min(-.4, -.8); both are held: no gradient
    assert loss.item() == pytest.approx(-(2.4 - 0.8)) and live.grad[0].tolist() == [0, 0]


def test_exact_is_the_divergence_and_its_cap_weighs_it_by_a_constant_ratio():
    live = torch.tensor([3.0, 1.0, 0.5, 100.0], dtype=torch.float64).log().requires_grad_()
    divergence, old = 2 * live, torch.zeros(4, dtype=torch.float64)
    assert exact(divergence, live, old) is divergence
    weighed = exact(divergence, live, old, ratio_cap=2.0)
    weighed.sum().backward()
    # min(ratio, 2): 2, 1, .5, 2; the ratio itself has no gradient
    assert weighed.tolist() == pytest.approx([2 * w * x for w, x in zip((2, 1, 0.5, 2), live.tolist())])
    assert live.grad.tolist() == pytest.approx([4, 2, 1, 4])
    far = exact(divergence.detach(), torch.full((4,), 1000.0), old, ratio_cap=1e30)
    assert torch.isfinite(far).all()                                  # exp(20) at most


def test_clipped_says_where_the_gradient_is_gone():
    old = torch.zeros(6, dtype=torch.float64)
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.1, 1.5], dtype=torch.float64)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 0.0], dtype=torch.float64)
    live = ratios.log().requires_grad_()
    assert clipped(advantage, live, old, 0.2, None).tolist() == [True, False, False, True, False, False]
    assert clipped(advantage, live, old, 0.6, 0.6).tolist() == [False] * 6
    assert clipped(advantage, live, old, None, 0.2).tolist() == [True, False, False, False, False, False]
    policy_gradient(advantage, live, old, clip_low=0.2).sum().backward()
    assert ((live.grad == 0) == (clipped(advantage, live, old, 0.2, None) | (advantage == 0))).all()
