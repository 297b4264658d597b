"""Targets: the specification's numbers on a vocabulary of three, and where a zero may not spread."""
import pytest
import torch

from tasks.opd.objective.loss import target_logprobs
from tasks.opd.objective.supports import StudentTokens
from tasks.opd.objective.targets import extrapolated, geometric, reference, teacher, trust_region, veto
from tasks.opd.objective.terms import bind_term
from tests.objective.test_supports import teacher_of
from tests.tiny_models import term


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


STUDENT, TEACHER, START = logs(0.5, 0.3, 0.2), logs(0.2, 0.7, 0.1), logs(0.4, 0.4, 0.2)
MODELS = {"teacher": TEACHER, "start": START}


@pytest.mark.parametrize("scale, probabilities", [
    (0, [0.4, 0.4, 0.2]), (0.5, [0.296663, 0.555006, 0.148331]), (1, [0.2, 0.7, 0.1]),
    (1.25, [0.159052, 0.761421, 0.079526])])
def test_extrapolated_runs_from_the_reference_through_the_teacher_and_beyond(scale, probabilities):
    assert extrapolated(MODELS, scale=scale).softmax(-1)[0].tolist() == pytest.approx(probabilities, abs=1e-6)


def test_the_extrapolated_advantage_of_the_token_written():
    # ln .7 - ln .3 + .25 (ln .7 - ln .4) = .987202
    advantage = extrapolated(MODELS, scale=1.25)[0, 1] - STUDENT[0, 1]
    assert advantage.item() == pytest.approx(0.987202, abs=1e-6)


def test_extrapolation_by_one_is_the_teacher_and_by_zero_the_reference_to_the_bit():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        models = {name: torch.randn(50, 9, dtype=dtype).log_softmax(-1) for name in ("teacher", "start")}
        models["start"][3] = torch.nan                          # not even looked at
        assert torch.equal(extrapolated(models, scale=1.0), models["teacher"])
        models["teacher"][5] = torch.nan
        assert torch.equal(extrapolated(models, scale=0.0)[4:], models["start"][4:])


def test_a_reference_is_taken_by_its_name():
    models = MODELS | {"teacher_start": logs(0.1, 0.1, 0.8)}
    assert torch.equal(reference(models, model="teacher_start"), models["teacher_start"])
    assert torch.equal(reference(models), START) and torch.equal(teacher(models), TEACHER)
    # .2^2 / .1 : .7^2 / .1 : .1^2 / .8 = .4 : 4.9 : .0125
    far = extrapolated(models, scale=2.0, reference="teacher_start").softmax(-1)[0]
    assert far.tolist() == pytest.approx([0.4 / 5.3125, 4.9 / 5.3125, 0.0125 / 5.3125])


def test_the_trust_region_is_the_toys_and_that_of_mixed_logits():
    models = {"start": logs(0.5, 0.4, 0.1), "live": logs(0.2, 0.7, 0.1)}
    mixed = trust_region(models, share=0.05).softmax(-1)[0]
    assert mixed.tolist() == pytest.approx([0.482941, 0.415942, 0.101116], abs=1e-6)
    torch.manual_seed(0)
    start, live = torch.randn(2, 40, 11, dtype=torch.float64)
    for share in (0.0, 0.05, 0.6, 1.0):
        by_logits = (start + share * (live - start)).softmax(-1)
        models = {"start": start.log_softmax(-1), "live": live.log_softmax(-1)}
        assert torch.allclose(trust_region(models, share=share).softmax(-1), by_logits, atol=1e-14)


def test_vetos_fixed_point_is_the_teacher_to_the_power_of_one_over_one_less_beta():
    # .2^2 : .7^2 : .1^2 = .04 : .49 : .01, over .54
    student = STUDENT
    for _ in range(60):
        student = veto({"teacher": TEACHER, "student": student}, beta=0.5).log_softmax(-1)
    assert student.exp()[0].tolist() == pytest.approx([0.074074, 0.907407, 0.018519], abs=1e-6)
    assert torch.equal(veto({"teacher": TEACHER, "student": STUDENT}, beta=0.0), TEACHER)


@pytest.mark.parametrize("target, models", [
    ({"name": "extrapolated", "scale": 1.25}, ("teacher", "start")), ({"name": "veto", "beta": 0.5}, ("teacher",)),
    ({"name": "trust_region", "share": 0.05}, ("start", "live")),
    ({"name": "extrapolated", "scale": 0.5}, ("teacher", "start"))])
def test_a_token_impossible_to_all_stays_impossible_and_never_becomes_nan(target, models):
    zero = torch.tensor([[0.0, 0.6, 0.4]], dtype=torch.float64).log()
    bound = bind_term(term(target=target, divergence="reverse_kl", support="full") |
                      {"models": {name: name for name in models}}, "t")
    found = target_logprobs(bound, None, StudentTokens(logits=zero, token_ids=torch.tensor([1])),
                     {name: teacher_of(zero) for name in models})
    # .6^a : .4^a with the exponents' sum a: 1, but 1.5 under veto
    a = 1.5 if target["name"] == "veto" else 1.0
    assert found.exp()[0].tolist() == pytest.approx([0, 0.6 ** a / (0.6 ** a + 0.4 ** a),
                                                     0.4 ** a / (0.6 ** a + 0.4 ** a)])
    assert geometric([(zero, 1.25), (zero, -0.25)])[0, 0].item() == -torch.inf


def test_an_unnormalised_target_is_normalised_over_the_whole_vocabulary_before_its_support_is_taken():
    bound = bind_term(term(target={"name": "extrapolated", "scale": 1.25}, divergence="reverse_kl",
                           support={"name": "student_top_k", "k": 2}) |
                      {"models": {"teacher": "teacher", "start": "start"}}, "t")
    student = StudentTokens(logits=STUDENT, token_ids=torch.tensor([0]))
    found = target_logprobs(bound, torch.tensor([[0, 1, -1]]), student,
                     {"teacher": teacher_of(TEACHER), "start": teacher_of(START)})
    assert found.exp()[0].tolist() == pytest.approx([0.159052, 0.761421, 0], abs=1e-6)
