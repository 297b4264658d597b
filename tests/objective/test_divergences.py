"""Divergences against the golden vectors, their identities, and at probability zero."""
import itertools
import math

import pytest
import torch
from torch.autograd.functional import jacobian

from tasks.opd.objective.divergences import forward_kl, jsd, mixture, nll, reverse_kl, skew_kl, skew_reverse_kl
from tasks.opd.objective.supports import renormalised

STUDENT_LOGITS = torch.tensor([1.0, 0.5, -0.5, -1.0], dtype=torch.float64)
TEACHER_LOGITS = torch.tensor([2.0, -1.0, 0.3, 0.5], dtype=torch.float64)
STUDENT, TEACHER = STUDENT_LOGITS.log_softmax(-1), TEACHER_LOGITS.log_softmax(-1)
TEACHER_TOP2, STUDENT_TOP2 = [0, 3], [0, 1]
COMPARING = [forward_kl, reverse_kl, jsd, skew_kl, skew_reverse_kl]  # teacher with student: all but nll


def test_golden_vectors_of_the_full_vocabulary():
    assert forward_kl(TEACHER, STUDENT).item() == pytest.approx(0.2661066847, abs=1e-9)
    assert reverse_kl(TEACHER, STUDENT).item() == pytest.approx(0.4598714447, abs=1e-9)
    for beta, value in ((0.1, 0.0245408059), (0.5, 0.0782199211), (0.9, 0.0366375666)):
        assert jsd(TEACHER, STUDENT, beta=beta).item() == pytest.approx(value, abs=1e-9)
    assert skew_kl(TEACHER, STUDENT, alpha=0.1).item() == pytest.approx(0.2266233688, abs=1e-9)
    assert skew_reverse_kl(TEACHER, STUDENT, alpha=0.1).item() == pytest.approx(0.2963776164, abs=1e-9)


def test_golden_vectors_in_float32():
    assert forward_kl(TEACHER.float(), STUDENT.float()).item() == pytest.approx(0.2661066847, abs=1e-5)
    assert reverse_kl(TEACHER.float(), STUDENT.float()).item() == pytest.approx(0.4598714447, abs=1e-5)


def test_jsd_tends_to_the_kls_at_its_ends():
    assert (jsd(TEACHER, STUDENT, beta=1e-6) / 1e-6).item() == pytest.approx(0.2661064792, abs=1e-8)
    assert (jsd(TEACHER, STUDENT, beta=1 - 1e-6) / 1e-6).item() == pytest.approx(0.4598702966, abs=1e-7)


def test_jsd_is_not_the_ones_with_swapped_weights_or_mixture():
    value = jsd(TEACHER, STUDENT, beta=0.1).item()
    assert abs(value - 0.2041697507) > 0.1 and abs(value - 0.2675176109) > 0.1


def test_skew_kls_tend_to_the_plain_ones_and_to_zero():
    for skewed, plain in ((skew_kl, forward_kl), (skew_reverse_kl, reverse_kl)):
        assert skewed(TEACHER, STUDENT, alpha=1e-9).item() == pytest.approx(plain(TEACHER, STUDENT).item(), abs=1e-8)
        assert skewed(TEACHER, STUDENT, alpha=1 - 1e-9).item() == pytest.approx(0, abs=1e-8)


def test_skew_kls_of_distributions_that_share_nothing_are_minus_log_alpha():
    teacher = torch.tensor([0.3, 0.7, 0.0, 0.0], dtype=torch.float64).log()
    student = torch.tensor([0.0, 0.0, 0.6, 0.4], dtype=torch.float64).log()
    for function in (skew_kl, skew_reverse_kl):
        assert function(teacher, student, alpha=0.2).item() == pytest.approx(-math.log(0.2), abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 1.0, 1])
def test_mixtures_refuse_their_ends_and_name_the_way_out(share):
    for function, name in ((jsd, "beta"), (skew_kl, "alpha"), (skew_reverse_kl, "alpha")):
        with pytest.raises(ValueError, match="use forward_kl or reverse_kl"):
            function(TEACHER, STUDENT, **{name: share})


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
    alpha = 0.3
    ratio = p / (alpha * p + (1 - alpha) * q)               # of teacher to mixture: at most 1 / alpha
    expected = (1 - alpha) * q * ((q * ratio).sum() - ratio)
    assert torch.allclose(gradient(lambda t, s: skew_kl(t, s, alpha=alpha)), expected, atol=1e-12)
    mix = (1 - alpha) * p + alpha * q
    slope = STUDENT - mix.log() - alpha * q / mix
    expected = q * (slope - (q * slope).sum())
    assert torch.allclose(gradient(lambda t, s: skew_reverse_kl(t, s, alpha=alpha)), expected, atol=1e-12)


def test_equal_distributions_give_zero_and_zero_gradient():
    for function in COMPARING:
        z = STUDENT_LOGITS.clone().requires_grad_()
        value = function(STUDENT, z.log_softmax(-1))
        value.backward()
        assert abs(value.item()) < 1e-15 and z.grad.abs().max() < 1e-15


def test_directions_differ_and_jsd_is_symmetric_under_exchange():
    assert abs(forward_kl(TEACHER, STUDENT) - reverse_kl(TEACHER, STUDENT)) > 0.1
    assert jsd(TEACHER, STUDENT, beta=0.3).item() == pytest.approx(jsd(STUDENT, TEACHER, beta=0.7).item(), abs=1e-12)


def kl_by_hand(left, right):
    return sum(0.0 if p == 0 else math.inf if q == 0 else p * math.log(p / q) for p, q in zip(left, right))


def by_hand(function, teacher, student, share):
    """The value by its definition, from probabilities."""
    mixed = lambda weight: [weight * p + (1 - weight) * q for p, q in zip(teacher, student)]
    if function is jsd:
        return share * kl_by_hand(teacher, mixed(share)) + (1 - share) * kl_by_hand(student, mixed(share))
    return {forward_kl: lambda: kl_by_hand(teacher, student), reverse_kl: lambda: kl_by_hand(student, teacher),
            skew_kl: lambda: kl_by_hand(teacher, mixed(share)),
            skew_reverse_kl: lambda: kl_by_hand(student, mixed(1 - share))}[function]()


def with_every_zero():
    """Teacher's and student's logits [225, 4]: every way to forbid some of four tokens to either."""
    kept = torch.tensor([keep for keep in itertools.product([True, False], repeat=4) if any(keep)])
    teacher, student = kept.repeat_interleave(len(kept), 0), kept.repeat(len(kept), 1)
    return (TEACHER_LOGITS.expand(225, 4).masked_fill(~teacher, -torch.inf),
            STUDENT_LOGITS.expand(225, 4).masked_fill(~student, -torch.inf))


@pytest.mark.parametrize("function", COMPARING, ids=lambda f: f.__name__)
def test_probability_zero_contributes_what_mathematics_says(function):
    share = {jsd: {"beta": 0.3}, skew_kl: {"alpha": 0.3}, skew_reverse_kl: {"alpha": 0.3}}.get(function, {})
    logits, start = with_every_zero()
    teacher = logits.log_softmax(-1)
    value_at = lambda z: function(teacher, z.log_softmax(-1), **share)
    z = start.clone().requires_grad_()
    value = value_at(z)
    value.sum().backward()
    expected = [by_hand(function, p, q, 0.3) for p, q in zip(teacher.exp().tolist(), start.softmax(-1).tolist())]
    assert value.tolist() == pytest.approx(expected, abs=1e-12)
    finite, step = torch.isfinite(value), 1e-5
    assert bool(finite.all()) == bool(share)                # a mixture is never zero where one of the two is not
    differences = torch.stack([(value_at(start + e) - value_at(start - e)) / (2 * step)
                               for e in step * torch.eye(4, dtype=torch.float64)], -1)
    assert torch.allclose(z.grad[finite], differences[finite], rtol=0, atol=1e-9)
    assert torch.isfinite(z.grad).all() and (z.grad[start == -torch.inf] == 0).all()


@pytest.mark.parametrize("function", COMPARING, ids=lambda f: f.__name__)
def test_an_empty_support_gives_zero_and_zero_gradient(function):
    student = torch.full((2, 3), -torch.inf, requires_grad=True)
    value = function(torch.full((2, 3), -torch.inf), student)
    value.sum().backward()
    assert value.tolist() == [0, 0] and not student.grad.any()


def test_a_mixture_is_minus_infinity_where_both_are():
    teacher = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    student = torch.tensor([0.25, 0.0, 0.75, 0.0], dtype=torch.float64)
    mixed = mixture(teacher.log(), student.log(), 0.4)      # .4 * .5 + .6 * .25 = .35, .4 * .5, .6 * .75, 0
    assert mixed.exp().tolist() == pytest.approx([0.35, 0.2, 0.45, 0]) and mixed[3] == -torch.inf


def test_an_infinite_entry_that_is_clipped_leaves_the_others_their_gradient():
    # student (.5, .25, .25), teacher (.75, .25, 0): entries .5 ln(.5 / .75) = -.202733, 0 and inf, which becomes 1
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log().requires_grad_()
    value = reverse_kl(torch.tensor([0.75, 0.25, 0.0], dtype=torch.float64).log(), logits.log_softmax(-1),
                       lambda entries: entries.clamp(max=1.0).sum(-1))
    value.backward()
    assert value.item() == pytest.approx(1 - 0.202733, abs=1e-6)
    # by log-probability: .5 (ln(.5 / .75) + 1) = .297267, .25 and 0; less the student's share of their sum, .547267
    assert logits.grad.tolist() == pytest.approx([0.023634, 0.113183, -0.136817], abs=1e-6)


def test_an_infinite_kl_is_infinite_where_the_probability_underflows():
    assert forward_kl(torch.tensor([0.0, -200.0]), torch.tensor([0.0, -torch.inf])).item() == torch.inf


@pytest.mark.parametrize("function", COMPARING, ids=lambda f: f.__name__)
def test_a_nan_is_not_hidden(function):
    broken = STUDENT.clone()
    broken[1] = torch.nan
    assert function(TEACHER, broken).isnan() and function(broken, STUDENT).isnan()


def test_tail_is_a_lower_bound_that_grows_to_the_full_divergence():
    order = TEACHER.argsort(descending=True)
    values = [forward_kl(renormalised(TEACHER[order[:k]][None], "tail"),
                         renormalised(STUDENT[order[:k]][None], "tail")).item()
              for k in (1, 2, 3, 4)]
    full = forward_kl(TEACHER, STUDENT).item()
    assert all(a <= b + 1e-12 for a, b in zip(values, values[1:])) and values[0] < full - 0.01
    assert values[-1] == pytest.approx(full, abs=1e-5)      # the tail is kept at 1e-7, not at 0


def test_renormalised_top_one_is_zero():
    for function in COMPARING:
        value = function(renormalised(TEACHER[[0]][None], "both"), renormalised(STUDENT[[0]][None], "both"))
        assert abs(value.item()) < 1e-16                    # not 0: a mixture of ones is one but for rounding


def test_nll_is_cross_entropy_with_gradient_student_minus_onehot():
    z = STUDENT_LOGITS.clone().requires_grad_()
    nll(None, z.log_softmax(-1)[[2]]).backward()
    assert torch.allclose(z.grad, STUDENT.exp() - torch.tensor([0.0, 0.0, 1.0, 0.0]))


def test_nll_of_a_forbidden_token_is_infinite_without_a_nan():
    z = torch.tensor([0.0, 1.0, -torch.inf], dtype=torch.float64, requires_grad=True)
    value = nll(None, z.log_softmax(-1)[[2]])
    value.backward()
    assert value.item() == torch.inf and torch.allclose(z.grad, z.detach().softmax(-1) - torch.tensor([0.0, 0.0, 1.0]))
