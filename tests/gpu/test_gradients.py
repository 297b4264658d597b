"""The trainer on a GPU: columns stay on the CPU, the model and its chunks do not, and the gradient is the same."""
import pytest
import torch

from tasks.opd.models.heads import head_of
from tasks.opd.training.scored_set import make_scored
from tests.tiny_models import random_rollouts, tiny_llama
from tests.training.test_round import LENGTHS, TERMS, gradient, scored_by, signal_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]


@pytest.mark.parametrize("name", TERMS)
def test_the_gradient_on_a_gpu_is_the_cpus(name):
    student, teacher, rollouts = tiny_llama(1), tiny_llama(2), random_rollouts(LENGTHS)
    expected, loss = gradient(student, scored_by(teacher, rollouts), TERMS[name])
    head = head_of(teacher).to("cuda")
    there = make_scored(rollouts, {"teacher": signal_of(teacher, rollouts)}, {"teacher": head}, 1.0)
    found, other = gradient(student.cuda(), there, TERMS[name], micro_batch_tokens=20, chunk_tokens=3)
    assert torch.allclose(found.cpu(), expected, atol=1e-6) and other == pytest.approx(loss, abs=1e-6)
