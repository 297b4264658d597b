"""Supports: what is compared at a token and what becomes of the rest, on a vocabulary of three and by hand."""
from dataclasses import replace

import pytest
import torch

from tasks.opd.core.entries import Entry
from tasks.opd.objective.advantages import candidate_gap
from tasks.opd.objective.columns import Candidates
from tasks.opd.objective.divergences import forward_kl, reverse_kl
from tasks.opd.objective.estimators import candidate_policy_gradient
from tasks.opd.objective.loss import Stats, divergence_values, target_logprobs
from tasks.opd.objective.supports import (
    StudentTokens,
    TeacherTokens,
    gathered,
    intersection,
    on_support,
    renormalised,
    student_top_k,
    union,
)
from tasks.opd.objective.targets import TARGETS
from tasks.opd.objective.terms import bind_term
from tests.column_fixtures import columns
from tests.tiny_models import term

STUDENT = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()     # the specification's toy
TEACHER = torch.tensor([[0.2, 0.7, 0.1]], dtype=torch.float64).log()


def teacher_of(logprobs: torch.Tensor, k: int = 3) -> TeacherTokens:
    """A teacher with these log-probabilities [n, V] over the vocabulary, and the k likeliest of them."""
    top = logprobs.topk(min(k, logprobs.shape[1]), -1)
    tokens = TeacherTokens(ids=top.indices, logprobs=top.values, num_tokens=len(logprobs))
    tokens.computed = logprobs
    return tokens


def loss_and_gradient(support, divergence="reverse_kl", student=STUDENT, teacher=TEACHER):
    """The term's divergence at each token [n], and its gradient to the student's logits [n, V]."""
    logits = student.clone().requires_grad_()
    value = divergence_values(bind_term(term(divergence=divergence, support=support), "t"),
                     StudentTokens(logits=logits, token_ids=torch.zeros(len(student), dtype=torch.long)),
                     {"teacher": teacher_of(teacher, support.get("k", 1) if isinstance(support, dict) else 1)}, Stats())
    value.sum().backward()
    return value.detach(), logits.grad


def random_pair(num_tokens=20, vocabulary=12):
    generator = torch.Generator().manual_seed(0)
    return [(2 * torch.randn(num_tokens, vocabulary, dtype=torch.float64, generator=generator)).log_softmax(-1)
            for _ in "st"]


@pytest.mark.parametrize("support, value", [
    ("full", 0.342585),
    ({"name": "student_top_k", "k": 2, "renormalise": "both"}, 0.372728),
    ({"name": "teacher_top_k", "k": 2, "renormalise": "both"}, 0.372728),  # its top 2 are {1, 0}: the same tokens
    ({"name": "student_top_k", "k": 1, "renormalise": "tail"}, 0.223144),
    ({"name": "student_top_k", "k": 2, "renormalise": "tail"}, 0.342585),  # the tail is the third token
    ({"name": "teacher_top_k", "k": 1, "renormalise": "both"}, 0.0),       # one token renormalised says nothing
])
def test_toy_values_of_the_reverse_kl(support, value):
    assert loss_and_gradient(support)[0].item() == pytest.approx(value, abs=1e-6)


def test_only_the_teacher_renormalised_punishes_the_students_mass_elsewhere():
    # teacher on {1, 0}: 7/9, 2/9; 7/9 ln(.7778/.3) + 2/9 ln(.2222/.5) = .560750
    value, gradient = loss_and_gradient({"name": "teacher_top_k", "k": 2, "renormalise": "teacher"}, "forward_kl")
    assert value.item() == pytest.approx(0.560750, abs=1e-6)
    # student - renormalised teacher: .5 - 2/9, .3 - 7/9, .2; with both renormalised token 2 is left alone
    assert gradient[0].tolist() == pytest.approx([0.5 - 2 / 9, 0.3 - 7 / 9, 0.2])
    both = loss_and_gradient({"name": "teacher_top_k", "k": 2, "renormalise": "both"}, "forward_kl")[1]
    assert both[0, 2].item() == pytest.approx(0, abs=1e-12) and gradient.sum().item() == pytest.approx(0, abs=1e-12)


def test_renormalised_top_two_moves_only_its_two_tokens():
    gradient = loss_and_gradient({"name": "student_top_k", "k": 2, "renormalise": "both"})[1]
    assert gradient[0].tolist() == pytest.approx([0.413341, -0.413341, 0], abs=1e-6)


def test_a_raw_top_two_raises_a_token_that_the_teacher_wants_lower_and_candidates_do_less_of_it():
    raw, gradient = loss_and_gradient({"name": "student_top_k", "k": 2, "renormalise": "none"})
    assert raw.item() == pytest.approx(0.203956, abs=1e-6)
    assert gradient[0].tolist() == pytest.approx([0.456167, -0.255376, -0.200791], abs=1e-6)
    logits = STUDENT.clone().requires_grad_()
    student = StudentTokens(logits=logits, token_ids=torch.tensor([0]))
    ids = student_top_k(student, teacher_of(TEACHER), k=2)
    there = Candidates(ids=ids, student=gathered(STUDENT, ids), target=gathered(TEACHER, ids))
    worth = candidate_gap(columns([1], candidates=there), weigh_by="student", normalise=False)
    candidate_policy_gradient(worth, student.at(ids), there.student).sum().backward()
    assert logits.grad[0].tolist() == pytest.approx([0.356167, -0.315376, -0.040791], abs=1e-6)


def test_union_and_intersection_by_hand_with_minus_one_where_there_is_none():
    def tokens(*probabilities):
        return torch.tensor(probabilities, dtype=torch.float64).log()
    # likeliest two of the student: {0, 1}, {3, 2}, {0, 1}; of the teacher: {1, 2}, {3, 2}, {3, 2}
    student = StudentTokens(token_ids=torch.zeros(3, dtype=torch.long), logits=tokens(
        [0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5], [0.5, 0.3, 0.15, 0.05]))
    teacher = teacher_of(tokens([0.1, 0.6, 0.25, 0.05], [0.05, 0.1, 0.25, 0.6], [0.05, 0.1, 0.25, 0.6]), 2)
    assert union(student, teacher, k=2).tolist() == [[0, 1, -1, 2], [3, 2, -1, -1], [0, 1, 3, 2]]
    assert intersection(student, teacher, k=2).tolist() == [[-1, 1], [3, 2], [-1, -1]]


@pytest.mark.parametrize("how", ["both", "teacher", "tail", "none"])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd", "skew_kl", "skew_reverse_kl"])
def test_an_empty_intersection_is_nothing_and_spoils_no_gradient(how, divergence):
    # top 1: {0} and {1}; at the second token {0} and {0}
    student, teacher = STUDENT.repeat(2, 1), torch.cat([TEACHER, STUDENT])
    value, gradient = loss_and_gradient({"name": "intersection", "k": 1, "renormalise": how}, divergence, student,
                                        teacher)
    assert value[0].item() == pytest.approx(0, abs=1e-15) and gradient[0].tolist() == [0, 0, 0]
    assert torch.isfinite(value).all() and torch.isfinite(gradient).all()


def test_places_without_a_token_change_neither_value_nor_gradient():
    student, teacher = random_pair()
    for how in ("both", "tail"):
        # where student and teacher have the same top k, the union is that support, padded
        same = (student.topk(3, -1).indices.sort(-1).values == teacher.topk(3, -1).indices.sort(-1).values).all(-1)
        mixed = torch.where(same[:, None], teacher, student)               # a teacher with the student's top k
        plain = loss_and_gradient({"name": "student_top_k", "k": 3, "renormalise": how}, "forward_kl", student, mixed)
        padded = loss_and_gradient({"name": "union", "k": 3, "renormalise": how}, "forward_kl", student, mixed)
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(plain, padded))


@pytest.mark.parametrize("kl", [forward_kl, reverse_kl])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_with_a_tail_the_divergence_grows_with_k_up_to_the_full_one(kl, whose):
    student, teacher = random_pair()
    full, below = kl(teacher, student), torch.zeros(len(student))
    order = (student if whose == "student" else teacher).argsort(-1, descending=True)
    for k in range(1, 13):
        ids = order[:, :k]
        value = kl(*on_support(gathered(teacher, ids), gathered(student, ids), "tail"))
        assert (value >= below - 1e-6).all() and (value <= full + 1e-6).all()     # the tail is kept at 1e-7
        below = value
    assert torch.allclose(below, full, atol=1e-5) and (full > 0.1).any()


@pytest.mark.parametrize("name", ["student_top_k", "teacher_top_k", "union", "intersection"])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_a_k_beyond_the_vocabulary_is_the_whole_vocabulary(name, divergence):
    whole = loss_and_gradient("full", divergence)
    for how, tolerance in (("both", 1e-12), ("tail", 1e-5)):
        value, gradient = loss_and_gradient({"name": name, "k": 7, "renormalise": how}, divergence)
        assert torch.allclose(value, whole[0], atol=tolerance) and torch.allclose(gradient, whole[1], atol=tolerance)


def test_what_is_renormalised_sums_to_one_and_the_tail_is_the_mass_off_the_support():
    logprobs = torch.tensor([[0.5, 0.3]], dtype=torch.float64).log()
    assert renormalised(logprobs, "both").exp()[0].tolist() == pytest.approx([0.625, 0.375])
    assert renormalised(logprobs, "tail").exp()[0].tolist() == pytest.approx([0.5, 0.3, 0.2])
    none = torch.full((1, 2), -torch.inf)
    assert renormalised(none, "tail").exp()[0].tolist() == [0, 0, 1]


def test_the_entropy_of_the_toy_and_of_a_distribution_with_a_zero():
    zero = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    student = StudentTokens(logits=torch.cat([STUDENT, zero]), token_ids=torch.tensor([0, 0]))
    assert student.entropy.tolist() == pytest.approx([1.029653, 0.693147], abs=1e-6)    # the second: ln 2


def test_a_target_of_two_models_is_refused_on_the_top_k_of_each():
    bound = bind_term(term(divergence="forward_kl", support={"name": "teacher_top_k", "k": 2}), "forward_kl")
    both = replace(bound, models={"teacher": "large", "reference": "start"},
                   target=Entry(lambda models: models["teacher"] - models["reference"]))
    logprobs = torch.tensor([[0.6, 0.3]]).log()
    models = {name: TeacherTokens(ids=torch.tensor([ids]), logprobs=logprobs, num_tokens=1)
              for name, ids in (("large", [3, 4]), ("start", [7, 4]))}  # token 3 would be compared with token 7
    student = StudentTokens(logits=torch.zeros(1, 8), token_ids=torch.tensor([3]))
    with pytest.raises(ValueError, match="teacher_top_k each of the models large, start has its own tokens"):
        divergence_values(both, student, models, Stats())
    alone = replace(bound, models={"teacher": "large"})
    assert torch.equal(target_logprobs(alone, models["large"].ids, student, models), logprobs)


def test_no_recipe_has_such_a_target():
    scale = {"extrapolated": {"scale": 1.25}}
    several = 0
    for name in TARGETS:
        given = term(divergence="forward_kl", support={"name": "teacher_top_k", "k": 2},
                     target={"name": name, **scale.get(name, {})})
        bound = bind_term(given, name)
        several += len(bound.models) > 1
        assert len(bound.models) == 1 or bound.target.unnormalised, name
    assert several
