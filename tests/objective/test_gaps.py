"""Gaps to the teacher along a completion, and to a teacher within reach: by hand, and over all sequences."""
import itertools
import math

import pytest
import torch

from tasks.opd.objective.gaps import proximal_gap, return_to_go, teacher_gap
from tests.column_fixtures import columns

STUDENT = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
TEACHER = torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64)
TOY = {"old_logprobs": STUDENT.log(), "teacher": TEACHER.log()}
PLAIN = {"future": False, "standardise": False}


def gaps(lengths, values, **given):
    return columns(lengths, old_logprobs=[0.0] * len(values), teacher=values, **given)


def test_a_teacher_within_reach_is_the_toys_and_has_a_floor():
    row = columns([1, 1, 1, 1], old_logprobs=[*TOY["old_logprobs"], 0.0], teacher=[*TOY["teacher"], -math.inf])
    # log(.5 e^d + .5) for d = log .4, log 7/3, log .5; a token the teacher rules out: log .5
    expected = [-0.356675, 0.510826, -0.287682, -0.693147]
    assert proximal_gap(row, **PLAIN).tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(proximal_gap(row, share=1.0, **PLAIN), teacher_gap(row))


def test_its_mean_gradient_is_that_of_the_kl_to_the_mixture():
    def gradient(loss):
        logits = STUDENT.log().requires_grad_()
        loss(logits.log_softmax(-1)).backward()
        return logits.grad.tolist()
    near = 0.5 * TEACHER + 0.5 * STUDENT
    worth = proximal_gap(columns([1, 1, 1], **TOY), **PLAIN)
    sampled = gradient(lambda live: -(STUDENT * worth * live).sum())
    assert sampled == pytest.approx([0.1370, -0.1780, 0.0410], abs=5e-5)
    assert sampled == pytest.approx(gradient(lambda live: (live.exp() * (live - near.log())).sum()), abs=1e-12)


def test_the_future_is_the_mean_of_what_follows():
    row = gaps([3, 1], [1.0, -2.0, 0.5, 9.0])
    assert proximal_gap(row, share=1.0, standardise=False).tolist() == pytest.approx([0.25, -1.5, 0.5, 9])
    apart = gaps([4], [1.0, math.nan, -2.0, 0.5], mask=[True, False, True, True])
    assert proximal_gap(apart, share=1.0, standardise=False)[[0, 2, 3]].tolist() == pytest.approx([0.25, -1.5, 0.5])


def test_standard_scores_are_of_the_prompts_tokens_and_one_token_is_worth_nothing():
    # prompt 0: tokens 1, 2, 6, mean 3, deviation of the sample sqrt(7); prompt 1: one token
    row = gaps([2, 1, 1], [1.0, 2.0, 6.0, 5.0], group=[0, 0, 1])
    worth = proximal_gap(row, share=1.0, future=False).tolist()
    assert worth == pytest.approx([-2 / 7 ** 0.5, -1 / 7 ** 0.5, 3 / 7 ** 0.5, 0], abs=1e-4)
    assert proximal_gap(gaps([3], [0.0] * 3)).tolist() == [0, 0, 0]      # the teacher is the student: no deviation


def test_ahead_leaves_the_tokens_own_gap_out_and_mean_divides_by_how_many_are_summed():
    row = gaps([3, 1], [1.0, -2.0, 0.5, 9.0])
    assert return_to_go(row, ahead=True).tolist() == [-1.5, 0.5, 0, 0]
    assert return_to_go(row, ahead=True, mean=True).tolist() == [-0.75, 0.5, 0, 0]
    assert return_to_go(row, mean=True).tolist() == pytest.approx([-0.5 / 3, -0.75, 0.5, 9])
    assert return_to_go(row, ahead=True, discount=0.5).tolist() == [0.5 * -1.75, 0.25, 0, 0]
    apart = gaps([4], [1.0, math.nan, -2.0, 0.5], mask=[True, False, True, True])
    assert return_to_go(apart, ahead=True, mean=True)[[0, 2, 3]].tolist() == [-0.75, 0.5, 0]


def test_what_is_ahead_with_the_exact_kl_at_each_prefix_is_the_sequences_gradient():
    """MiniLLM's decomposition, over all sequences of two tokens of three: KL_1 + KL_2 + A_1 log q_1 = KL(q || p)."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
    student, teacher = (x.log_softmax(-1) for x in logits)               # row 0: the first token; 1 + y_1: the second
    live = logits[0].clone().requires_grad_()
    now = live.log_softmax(-1)
    whole, split, twice = 0.0, 0.0, 0.0
    for first, second in itertools.product(range(3), repeat=2):
        of = [(0, first), (1 + first, second)]
        share = sum(student[i] for i in of).exp()
        row = columns([2], old_logprobs=[student[i] for i in of], teacher=[teacher[i] for i in of])
        whole = whole + sum(now[i] for i in of).exp() * sum(now[i] - teacher[i] for i in of)
        kl = sum((now[row_].exp() * (now[row_] - teacher[row_])).sum() for row_ in (0, 1 + first))
        for ahead, name in ((True, "split"), (False, "twice")):
            worth = return_to_go(row, ahead=ahead)
            term = share * (kl - sum(worth[t] * now[i] for t, i in enumerate(of)))
            split, twice = (split + term, twice) if name == "split" else (split, twice + term)
    expected, ours, counted_twice = (torch.autograd.grad(x, live, retain_graph=True)[0] for x in (whole, split, twice))
    assert torch.allclose(ours, expected, atol=1e-12)
    assert (counted_twice - expected).abs().max() > 0.05                  # with the token's own gap in the return too
