"""Divergences against the golden vectors, their identities, and at probability zero."""
import math

import pytest
import torch
from torch.autograd.functional import jacobian

from tasks.opd.divergences import forward_kl, jsd, nll, reverse_kl
from tasks.opd.supports import renormalised

STUDENT_LOGITS = torch.tensor([1.0, 0.5, -0.5, -1.0], dtype=torch.float64)
TEACHER_LOGITS = torch.tensor([2.0, -1.0, 0.3, 0.5], dtype=torch.float64)
STUDENT, TEACHER = STUDENT_LOGITS.log_softmax(-1), TEACHER_LOGITS.log_softmax(-1)
TEACHER_TOP2, STUDENT_TOP2 = [0, 3], [0, 1]


def test_golden_vectors_of_the_full_vocabulary():
    assert forward_kl(TEACHER, STUDENT).item() == pytest.approx(0.2661066847, abs=1e-9)
    assert reverse_kl(TEACHER, STUDENT).item() == pytest.approx(0.4598714447, abs=1e-9)
    for beta, value in ((0.1, 0.0245408059), (0.5, 0.0782199211), (0.9, 0.0366375666)):
        assert jsd(TEACHER, STUDENT, beta=beta).item() == pytest.approx(value, abs=1e-9)


def test_golden_vectors_in_float32():
    assert forward_kl(TEACHER.float(), STUDENT.float()).item() == pytest.approx(0.2661066847, abs=1e-5)
    assert reverse_kl(TEACHER.float(), STUDENT.float()).item() == pytest.approx(0.4598714447, abs=1e-5)


def test_jsd_tends_to_the_kls_at_its_ends():
    assert (jsd(TEACHER, STUDENT, beta=1e-6) / 1e-6).item() == pytest.approx(0.2661064792, abs=1e-8)
    assert (jsd(TEACHER, STUDENT, beta=1 - 1e-6) / 1e-6).item() == pytest.approx(0.4598702966, abs=1e-7)


def test_jsd_is_not_the_ones_with_swapped_weights_or_mixture():
    value = jsd(TEACHER, STUDENT, beta=0.1).item()
    assert abs(value - 0.2041697507) > 0.1 and abs(value - 0.2675176109) > 0.1


@pytest.mark.parametrize("beta", [0.0, 1.0, 1])
def test_jsd_refuses_its_ends_and_names_the_way_out(beta):
    with pytest.raises(ValueError, match="use forward_kl or reverse_kl"):
        jsd(TEACHER, STUDENT, beta=beta)


def test_temperature_two_on_both_sides_without_a_square():
    student, teacher = (STUDENT_LOGITS / 2).log_softmax(-1), (TEACHER_LOGITS / 2).log_softmax(-1)
    assert forward_kl(teacher, student).item() == pytest.approx(0.1141334838, abs=1e-9)
    assert reverse_kl(teacher, student).item() == pytest.approx(0.1445986745, abs=1e-9)
    assert jsd(teacher, student).item() == pytest.approx(0.0312272162, abs=1e-9)


def test_golden_vectors_on_truncated_supports():
    def on(ids, how):
        return renormalised(TEACHER[ids][None], how)[0], renormalised(STUDENT[ids][None], how)[0]
    assert forward_kl(*on(TEACHER_TOP2, "both")).item() == pytest.approx(0.0167274950, abs=1e-9)
    assert forward_kl(*on(TEACHER_TOP2, "tail")).item() == pytest.approx(0.1735283545, abs=1e-9)
    assert reverse_kl(*on(TEACHER_TOP2, "both")).item() == pytest.approx(0.0148838059, abs=1e-9)
    assert reverse_kl(*on(TEACHER_TOP2, "tail")).item() == pytest.approx(0.2026627818, abs=1e-9)
    assert reverse_kl(*on(STUDENT_TOP2, "both")).item() == pytest.approx(0.5183620394, abs=1e-9)
    assert reverse_kl(*on(STUDENT_TOP2, "tail")).item() == pytest.approx(0.4489654236, abs=1e-9)
    assert reverse_kl(*on([1], "tail")).item() == pytest.approx(0.4479120449, abs=1e-9)


def test_second_toy_of_three_tokens():
    student = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    teacher = torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64).log()
    assert reverse_kl(teacher, student).item() == pytest.approx(0.342585, abs=1e-6)
    assert forward_kl(teacher, student).item() == pytest.approx(0.340536, abs=1e-6)
    assert jsd(teacher, student).item() == pytest.approx(0.0828435, abs=1e-7)
    # entries 0.2 ln(.2/.5) = -0.183258, 0.7 ln(.7/.3) = 0.593109, 0.1 ln(.1/.2) = -0.069315; clipped at 0.05: -0.202573
    clipped = forward_kl(teacher, student, lambda entries: entries.clamp(max=0.05).sum(-1))
    assert clipped.item() == pytest.approx(-0.202573, abs=1e-6)


def test_entry_clip_pushes_the_clipped_entry_down():
    teacher = torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64).log()
    logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
    forward_kl(teacher, logits.log_softmax(-1), lambda entries: entries.clamp(max=0.05).sum(-1)).backward()
    assert logits.grad.tolist() == pytest.approx([-0.05, 0.09, -0.04], abs=1e-6)


def gradient(function):
    return jacobian(lambda z: function(TEACHER, z.log_softmax(-1)), STUDENT_LOGITS)


def test_logit_gradients_have_their_closed_forms():
    q, p = STUDENT.exp(), TEACHER.exp()
    gap = STUDENT - TEACHER
    assert torch.allclose(gradient(forward_kl), q - p, atol=1e-12)
    assert torch.allclose(gradient(reverse_kl), q * (gap - (q * gap).sum()), atol=1e-12)
    beta = 0.3
    g = STUDENT - (beta * p + (1 - beta) * q).log()
    expected = (1 - beta) * q * (g - (q * g).sum())
    assert torch.allclose(gradient(lambda t, s: jsd(t, s, beta=beta)), expected, atol=1e-12)


def test_equal_distributions_give_zero_and_zero_gradient():
    for function in (forward_kl, reverse_kl, jsd):
        z = STUDENT_LOGITS.clone().requires_grad_()
        value = function(STUDENT, z.log_softmax(-1))
        value.backward()
        assert abs(value.item()) < 1e-15 and z.grad.abs().max() < 1e-15


def test_directions_differ_and_jsd_is_symmetric_under_exchange():
    assert abs(forward_kl(TEACHER, STUDENT) - reverse_kl(TEACHER, STUDENT)) > 0.1
    assert jsd(TEACHER, STUDENT, beta=0.3).item() == pytest.approx(jsd(STUDENT, TEACHER, beta=0.7).item(), abs=1e-12)


def test_probability_zero_contributes_what_mathematics_says():
    inf = torch.inf
    teacher = torch.tensor([math.log(0.5), math.log(0.5), -inf], dtype=torch.float64)
    for mask in ([0, 0, -inf], [0, -inf, 0]):
        z = (STUDENT_LOGITS[:3] + torch.tensor(mask, dtype=torch.float64)).requires_grad_()
        for function in (forward_kl, reverse_kl, jsd):
            if function is forward_kl and mask[1] == -inf or function is reverse_kl and mask[2] == 0:
                continue                                    # infinite by definition, tested below
            z.grad = None
            value = function(teacher, z.log_softmax(-1))
            value.backward()
            assert torch.isfinite(value) and torch.isfinite(z.grad).all(), function.__name__
    assert forward_kl(teacher, torch.tensor([0.0, -inf, -inf], dtype=torch.float64)).item() == inf
    # KL((1, 0, 0) || (.5, .5, 0)) = ln 2 and JSD = ln 2 / 2 - ... by hand: mix (.75, .25, 0)
    point = torch.tensor([0.0, -inf, -inf], dtype=torch.float64)
    assert reverse_kl(teacher, point).item() == pytest.approx(math.log(2))
    by_hand = 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)) + 0.5 * math.log(1 / 0.75)
    assert jsd(teacher, point).item() == pytest.approx(by_hand)


def test_tail_is_a_lower_bound_that_grows_to_the_full_divergence():
    order = TEACHER.argsort(descending=True)
    values = [forward_kl(renormalised(TEACHER[order[:k]][None], "tail"),
                         renormalised(STUDENT[order[:k]][None], "tail")).item()
              for k in (1, 2, 3, 4)]
    full = forward_kl(TEACHER, STUDENT).item()
    assert all(a <= b + 1e-12 for a, b in zip(values, values[1:])) and values[0] < full - 0.01
    assert values[-1] == pytest.approx(full, abs=1e-5)      # the tail is kept at 1e-7, not at 0


def test_renormalised_top_one_is_zero():
    for function in (forward_kl, reverse_kl, jsd):
        assert function(renormalised(TEACHER[[0]][None], "both"), renormalised(STUDENT[[0]][None], "both")).item() == 0


def test_nll_is_cross_entropy_with_gradient_student_minus_onehot():
    z = STUDENT_LOGITS.clone().requires_grad_()
    nll(None, z.log_softmax(-1)[[2]]).backward()
    assert torch.allclose(z.grad, STUDENT.exp() - torch.tensor([0.0, 0.0, 1.0, 0.0]))
