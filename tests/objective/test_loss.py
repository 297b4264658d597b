"""The gradients training takes, against exact enumeration: tabular policies, every completion of three tokens of three.

Identities V1-V8: what the sampled forms estimate, what is biased, and by exactly what.
"""
import itertools

import pytest
import torch

from tasks.opd.objective.loss import Stats, chunk_loss, coefficients
from tasks.opd.objective.supports import StudentTokens, TeacherTokens
from tasks.opd.objective.terms import bind_terms
from tests.tiny_models import prepared, rollout, term, with_teacher

V, T = 3, 3
PREFIXES = [p for n in range(T) for p in itertools.product(range(V), repeat=n)]
SEQUENCES = list(itertools.product(range(V), repeat=T))
torch.manual_seed(0)
STUDENT_TABLE = torch.randn(len(PREFIXES), V, dtype=torch.float64)
TEACHER_TABLE = torch.randn(len(PREFIXES), V, dtype=torch.float64)
ROWS = torch.tensor([[PREFIXES.index(s[:t]) for t in range(T)] for s in SEQUENCES]).flatten()   # [27 * 3]
TOKENS = torch.tensor(SEQUENCES).flatten()


def sequence_logprobs(table):
    return table.log_softmax(-1)[ROWS, TOKENS].view(-1, T).sum(-1)


def sequence_kl(table):
    return (sequence_logprobs(table).exp() * (sequence_logprobs(table) - sequence_logprobs(TEACHER_TABLE))).sum()


def autograd(function):
    table = STUDENT_TABLE.clone().requires_grad_()
    function(table).backward()
    return table.grad


def trained_gradient(spec, table=STUDENT_TABLE):
    """E over completions of the gradient `chunk_loss` gives under a term with reduction sum: exact, weights by q(y)."""
    rollouts = [rollout(i, [0], list(s)) for i, s in enumerate(SEQUENCES)]
    columns = with_teacher(rollouts, teacher=list(TEACHER_TABLE.log_softmax(-1)[ROWS, TOKENS].view(-1, T)),
                         old_logprobs=table.log_softmax(-1)[ROWS, TOKENS])
    terms = bind_terms([term(reduction="sum", **spec)])
    took = [prepared(t, columns) for t in terms]
    coefficient = coefficients(terms, took, columns, list(range(len(rollouts))), T)
    probability = sequence_logprobs(table).exp().repeat_interleave(T)
    live = table.clone().requires_grad_()
    flat = torch.arange(len(TOKENS))
    student = StudentTokens(logits=live[ROWS], token_ids=TOKENS)
    teacher = FullTeacher(TEACHER_TABLE.log_softmax(-1)[ROWS], sampled=columns.teacher)
    chunk_loss(terms, took, coefficient * probability, flat, student, {"teacher": teacher}, Stats()).backward()
    return live.grad


class FullTeacher(TeacherTokens):
    """A teacher whose full distribution is at hand instead of hidden states."""

    def __init__(self, logprobs, sampled):
        super().__init__(sampled=sampled, num_tokens=len(logprobs))
        self.computed = logprobs


def per_prefix_kl(table):
    gap = table.log_softmax(-1) - TEACHER_TABLE.log_softmax(-1)
    return (table.softmax(-1) * gap).sum(-1)


SAMPLED = {"advantage": "teacher_gap", "estimator": "policy_gradient"}
FULL = {"divergence": "reverse_kl", "support": "full"}


def true_visits():
    counts = torch.zeros(len(PREFIXES), dtype=torch.float64)
    for s, p in zip(SEQUENCES, sequence_logprobs(STUDENT_TABLE).exp()):
        for t in range(T):
            counts[PREFIXES.index(s[:t])] += p
    return counts


def test_v1_sequence_kl_is_the_visited_sum_of_token_kls():
    visited = (true_visits() * per_prefix_kl(STUDENT_TABLE)).sum().item()
    assert sequence_kl(STUDENT_TABLE).item() == pytest.approx(visited, abs=1e-12)


def test_v2_return_to_go_with_discount_one_is_the_gradient_of_the_sequence_kl():
    spec = {"advantage": {"name": "return_to_go", "discount": 1.0}, "estimator": "policy_gradient"}
    assert torch.allclose(trained_gradient(spec), autograd(sequence_kl), atol=1e-12)


def test_v3_sampled_token_form_is_the_visited_sum_of_reverse_kl_gradients():
    q, gap = STUDENT_TABLE.softmax(-1), STUDENT_TABLE.log_softmax(-1) - TEACHER_TABLE.log_softmax(-1)
    closed = true_visits()[:, None] * q * (gap - per_prefix_kl(STUDENT_TABLE)[:, None])
    assert torch.allclose(trained_gradient(SAMPLED), closed, atol=1e-12)


def test_sampled_full_k2_and_discount_zero_have_the_same_mean_gradient():
    reference = trained_gradient(FULL)
    for spec in (SAMPLED, {"divergence": "reverse_kl", "estimator": "k2"},
                 {"advantage": {"name": "return_to_go", "discount": 0.0}, "estimator": "policy_gradient"}):
        assert torch.allclose(trained_gradient(spec), reference, atol=1e-12), spec


def test_k3_descends_the_forward_kl():
    forward = trained_gradient({"divergence": "forward_kl", "support": "full"})
    assert torch.allclose(trained_gradient({"divergence": "reverse_kl", "estimator": "k3"}), forward, atol=1e-12)


def test_v4_v5_the_token_form_misses_exactly_the_effect_on_later_disagreement():
    def future(table):
        live = table.log_softmax(-1)[ROWS, TOKENS].view(-1, T)
        later = per_prefix_kl(STUDENT_TABLE)[ROWS].view(-1, T)
        tail = later.flip(-1).cumsum(-1).flip(-1) - later                    # sum over u > t of KL at u
        return (sequence_logprobs(STUDENT_TABLE).exp()[:, None] * live * tail).sum()
    missing = autograd(sequence_kl) - trained_gradient(SAMPLED)
    assert missing.abs().max() > 0.05
    assert torch.allclose(missing, autograd(future), atol=1e-12)


def test_v8_variance_falls_from_sequence_to_return_to_go_to_token():
    q = sequence_logprobs(STUDENT_TABLE).exp()
    reward = (TEACHER_TABLE.log_softmax(-1) - STUDENT_TABLE.log_softmax(-1))[ROWS, TOKENS].view(-1, T)
    score = torch.nn.functional.one_hot(TOKENS, V) - STUDENT_TABLE.softmax(-1)[ROWS]
    def variance(worth):
        rows = torch.zeros(len(SEQUENCES), len(PREFIXES), V, dtype=torch.float64)
        for t in range(T):
            rows[torch.arange(len(SEQUENCES)), ROWS.view(-1, T)[:, t]] -= worth[:, t, None] * score.view(-1, T, V)[:, t]
        mean = (q[:, None, None] * rows).sum(0)
        return (q[:, None, None] * (rows - mean) ** 2).sum().item()
    whole = reward.sum(-1, keepdim=True).expand(-1, T)
    to_go = reward.flip(-1).cumsum(-1).flip(-1)
    assert variance(whole) > variance(to_go) > variance(reward)


def test_every_support_that_holds_the_whole_vocabulary_is_the_full_one():
    reference = trained_gradient(FULL)
    support = {"name": "student_top_k", "k": V}
    assert torch.allclose(trained_gradient({**FULL, "support": support}), reference, atol=1e-12)
    tail = trained_gradient({**FULL, "support": {**support, "renormalise": "tail"}})
    assert torch.allclose(tail, reference, atol=1e-5)                          # the tail is kept at 1e-7


def toy_columns():
    """Two groups: lengths 2, 1 and 3; advantages and reductions are worked by hand below."""
    rows = [rollout(0, [5], [7, 1], group="a", reward=1.0), rollout(1, [5], [1], group="a", reward=0.0),
            rollout(2, [6], [8, 9, 1], group="b", reward=1.0)]
    return with_teacher(rows, teacher=[torch.zeros(2), torch.zeros(1), torch.zeros(3)], old_logprobs=torch.zeros(6),
                      special_ids=frozenset({1}))


def coefficient_of(batch=(0, 1, 2), **spec):
    terms = bind_terms([term(**{"divergence": "forward_kl", "support": "full", **spec})])
    columns = toy_columns()
    return coefficients(terms, [prepared(t, columns) for t in terms], columns, list(batch), 10)[0].tolist()


def test_reductions_by_hand():
    assert coefficient_of(reduction="token") == pytest.approx([1 / 6] * 6)
    assert coefficient_of(reduction="sequence") == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 9, 1 / 9, 1 / 9])
    assert coefficient_of(reduction="prompt") == pytest.approx([1 / 6] * 3 + [1 / 6] * 3)  # two groups of 3 tokens
    assert coefficient_of(reduction="sum") == [1] * 6
    assert coefficient_of(reduction="constant") == pytest.approx([1 / 30] * 6)
    assert coefficient_of(batch=(0, 2), reduction="token") == pytest.approx([0.2, 0.2, 0, 0.2, 0.2, 0.2])


def test_denominators_valid_kept_weighted_and_shared_by_name():
    skip = {"weights": [{"name": "skip_first", "tokens": 1}]}                # keeps tokens 1, 4, 5
    assert coefficient_of(**skip) == pytest.approx([0, 1 / 6, 0, 0, 1 / 6, 1 / 6])
    assert coefficient_of(denominator="kept", **skip) == pytest.approx([0, 1 / 3, 0, 0, 1 / 3, 1 / 3])
    assert coefficient_of(denominator="weighted", **skip) == pytest.approx([0, 1 / 3, 0, 0, 1 / 3, 1 / 3])
    shared = [term(divergence="forward_kl", support="full", rows=rows, denominator="pool")
              for rows in ("succeeded", "failed")]
    columns, terms = toy_columns(), bind_terms(shared)
    out = coefficients(terms, [prepared(t, columns) for t in terms], columns, [0, 1, 2], 10)
    assert out[0].tolist() == pytest.approx([1 / 6, 1 / 6, 0, 1 / 6, 1 / 6, 1 / 6])      # 5 + 1 tokens in the pool
    assert out[1].tolist() == pytest.approx([0, 0, 1 / 6, 0, 0, 0])


def test_special_tokens_are_masked_and_rows_without_signal_leave_the_denominator():
    kept = coefficient_of(weights=["special_token_mask"], denominator="kept")
    assert kept == pytest.approx([1 / 3, 0, 0, 1 / 3, 1 / 3, 0])
    columns = with_teacher([rollout(0, [5], [7, 1]), rollout(1, [5], [1])], teacher=[torch.zeros(2), None],
                         old_logprobs=torch.zeros(3))
    terms = bind_terms([term(divergence="forward_kl", support="full")])
    out = coefficients(terms, [prepared(terms[0], columns)], columns, [0, 1], 10)[0]
    assert out.tolist() == pytest.approx([0.5, 0.5, 0])


def test_return_to_go_by_hand():
    columns = with_teacher([rollout(0, [5], [2, 3, 4]), rollout(1, [5], [2])],
                         old_logprobs=torch.zeros(4, dtype=torch.float64),
                         teacher=[torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64),
                                  torch.tensor([9.0], dtype=torch.float64)])
    from tasks.opd.objective.advantages import return_to_go
    assert return_to_go(columns, discount=0.0).tolist() == [1, -2, 0.5, 9]
    assert return_to_go(columns, discount=0.5).tolist() == [0.125, -1.75, 0.5, 9]
    assert return_to_go(columns, discount=1.0).tolist() == [-0.5, -1.5, 0.5, 9]


def test_the_shifted_control_rotates_the_teacher_within_each_completion():
    from tasks.opd.objective.advantages import shifted_gap
    columns = with_teacher([rollout(0, [5], [2, 3, 4]), rollout(1, [5], [2])], old_logprobs=torch.zeros(4),
                         teacher=[torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0])])
    assert shifted_gap(columns).tolist() == [3, 1, 2, 9]


def test_grpo_by_hand():
    from tasks.opd.objective.advantages import grpo
    rewards = [1, 0, 0, 1, 0, 0, 0, 0]                       # mean .25, standard deviation (ddof 1) .4629100499
    rows = [rollout(i, [5], [2], group="g", reward=float(r)) for i, r in enumerate(rewards)]
    rows += [rollout(8, [5], [2], group="alone", reward=3.0), rollout(9, [5], [2], group="same", reward=1.0),
             rollout(10, [5], [2], group="same", reward=1.0)]
    columns = with_teacher(rows, old_logprobs=torch.zeros(11, dtype=torch.float64))
    values = grpo(columns).tolist()
    assert values[0] == pytest.approx(1.61983525, abs=1e-7) and values[1] == pytest.approx(-0.53994508, abs=1e-7)
    assert values[8:] == [0, 0, 0]
    assert grpo(columns, scale=False).tolist()[0] == 0.75
    with pytest.raises(ValueError, match="grader"):
        grpo(with_teacher([rollout(0, [5], [2])]))


def test_a_term_never_sees_what_stands_at_masked_tokens():
    columns = with_teacher([rollout(0, [5], [7, 1]), rollout(1, [5], [1])], teacher=[torch.zeros(2), None],
                         old_logprobs=torch.zeros(3))
    terms = bind_terms([term(divergence="reverse_kl", support="full")])
    took = [prepared(terms[0], columns)]
    coefficient = coefficients(terms, took, columns, [0, 1], 10)
    full = torch.zeros(3, 10, dtype=torch.float64).log_softmax(-1)
    full[2] = torch.nan
    logits = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    teacher = FullTeacher(full, sampled=None)
    teacher.select = lambda index: FullTeacher(full[index], sampled=None)
    loss = chunk_loss(terms, took, coefficient, torch.arange(3), StudentTokens(
        logits=logits, token_ids=torch.tensor([7, 1, 1])), {"teacher": teacher}, Stats())
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all() and logits.grad[2].abs().max() == 0


def test_a_divergence_cannot_take_a_policy_gradient():
    with pytest.raises(ValueError, match="takes a advantage|takes a divergence"):
        bind_terms([term(divergence="forward_kl", support="full", estimator="policy_gradient")])
