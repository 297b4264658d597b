"""Reductions worked by hand, as gradients, and where they coincide."""
import pytest
import torch

from tasks.opd.core.errors import RecipeError
from tasks.opd.objective.loss import Stats, chunk_loss, coefficients
from tasks.opd.objective.reductions import REDUCTIONS, Batch
from tasks.opd.objective.supports import StudentTokens
from tasks.opd.objective.terms import bind_terms
from tasks.opd.recipe import loading
from tests.tiny_models import prepared, rollout, term, with_teacher

LIMIT = 10


def batch(lengths, group, mask=None, domain=None):
    """An optimizer batch of rollouts of these lengths; every token of the mask counts once."""
    of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = torch.ones(of.numel(), dtype=torch.bool) if mask is None else torch.tensor(mask)
    return Batch(mask=mask, count=mask.double(), rollout=of, group=torch.tensor(group), completion_limit=LIMIT,
                 domain=torch.tensor(domain or [0] * len(lengths)))


def nll_of(rollouts, chosen=None, **spec):
    """A likelihood term: its loss, the gradient to the logits [N, 4], the log-probabilities [N], the logits [N, 4]."""
    columns = with_teacher(rollouts)
    terms = bind_terms([term(divergence="nll", **spec)])
    took = [prepared(terms[0], columns)]
    coefficient = coefficients(terms, took, columns, chosen or list(range(len(rollouts))), LIMIT)
    logits = torch.linspace(-1, 1, columns.num_tokens * 4, dtype=torch.float64).view(-1, 4).sin().requires_grad_()
    student = StudentTokens(logits=logits, token_ids=columns.token_ids)
    loss = chunk_loss(terms, took, coefficient, torch.arange(columns.num_tokens), student, {}, Stats())
    return loss, torch.autograd.grad(loss, logits)[0], student.sampled.detach(), logits


def test_every_domain_has_the_same_share_whatever_its_tokens():
    # one domain of 10 tokens, another of 2: a token's weight is 1/20 or 1/4, that is .6 / 12 and 3 / 12
    uneven = batch([6, 2, 4], [0, 1, 2], domain=[0, 1, 0])
    assert REDUCTIONS["domain"](uneven).tolist() == [20] * 6 + [4] * 2 + [20] * 4
    assert REDUCTIONS["domain"](batch([6, 2], [0, 1])).tolist() == [8] * 8           # one domain: the mean over tokens


def test_rollout_sum_divides_by_the_prompts_that_take_part():
    # prompts a: rollouts of 2 and 1 tokens, b: of 3, c: of 1 token, which is masked: the sum of six losses over 2
    six = batch([2, 1, 3, 1], [0, 0, 1, 2], [True] * 6 + [False])
    assert REDUCTIONS["rollout_sum"](six).tolist() == [2] * 7
    assert REDUCTIONS["rollout_sum"](batch([2, 1], [0, 1], [False] * 3)).tolist() == [0] * 3


def test_rollout_sum_is_the_mean_over_prompts_of_summed_losses_and_so_is_its_gradient():
    rollouts = [rollout(0, [0], [1, 2], group="a"), rollout(1, [0], [3], group="a"),
                rollout(2, [0], [1, 1, 2], group="b")]
    loss, gradient, logprobs, logits = nll_of(rollouts, reduction="rollout_sum")
    by_hand = ((-logprobs[:2].sum() - logprobs[2]) + (-logprobs[3:].sum())) / 2
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-12)
    onehot = torch.nn.functional.one_hot(torch.tensor([1, 2, 3, 1, 1, 2]), 4)
    assert torch.allclose(gradient, (logits.softmax(-1) - onehot).detach() / 2, atol=1e-12)
    loss, gradient, logprobs, _ = nll_of(rollouts, [0, 1], reduction="rollout_sum")  # one prompt in the batch
    assert loss.item() == pytest.approx(-logprobs[:3].sum().item(), abs=1e-12) and gradient[3:].abs().max() == 0


def test_rollout_sum_with_perplexity_is_the_loss_of_scope():
    # perplexities e and e^2 in prompt a: weights 1 / (1 + e) and e / (1 + e); 1 in prompt b
    rollouts = [rollout(0, [0], [1, 2], group="a"), rollout(1, [0], [3], group="a"), rollout(2, [0], [1], group="b")]
    columns = with_teacher(rollouts, old_logprobs=torch.tensor([-0.5, -1.5, -2.0, -0.1], dtype=torch.float64))
    terms = bind_terms([term(divergence="nll", weights=["perplexity"], reduction="rollout_sum")])
    found = coefficients(terms, [prepared(terms[0], columns)], columns, [0, 1, 2], LIMIT)[0]
    assert found.tolist() == pytest.approx([0.268941 / 2, 0.268941 / 2, 0.731059 / 2, 1 / 2], abs=1e-6)


def test_reductions_coincide_up_to_a_number_where_lengths_and_groups_are_equal():
    even = batch([3] * 4, [0, 0, 1, 1])                    # 12 tokens, 4 rollouts of 2 prompts
    divisors = {name: REDUCTIONS[name](even) for name in REDUCTIONS}
    assert all(found.tolist() == [found[0].item()] * 12 for found in divisors.values())
    assert {name: found[0].item() for name, found in divisors.items()} == {
        "token": 12, "sequence": 12, "prompt": 12, "domain": 12, "sum": 1, "constant": 4 * LIMIT, "rollout_sum": 2}
    single = batch([1] * 3, [0, 1, 2])                     # one token a prompt: all means are one
    for name in ("sequence", "prompt", "rollout_sum"):
        assert torch.equal(REDUCTIONS[name](single), REDUCTIONS["token"](single))


def test_a_reduction_is_a_name_in_yaml_and_checked_like_any_slot():
    assert loading.load("gkd").terms[0].reduction.name == "sequence"
    assert loading.load("gkd", ["terms.0.reduction=rollout_sum"]).terms[0].reduction.name == "rollout_sum"
    with pytest.raises(RecipeError, match=r'terms.0.reduction = "sequense": unknown reduction; did you mean sequence'):
        loading.load("gkd", ["terms.0.reduction=sequense"])
    with pytest.raises(RecipeError, match=r"terms.0.reduction.tokens = 4: unknown parameter of sum; there are none"):
        loading.load("gkd", ["terms.0.reduction={name: sum, tokens: 4}"])
