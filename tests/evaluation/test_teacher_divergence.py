"""The exact divergences of two models on given completions."""
import pytest
import torch

from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.evaluation.teacher_divergence import teacher_divergence
from tests.tiny_models import random_rollouts, tiny_llama, write_tokenizer


@pytest.fixture
def engines(tmp_path):
    out = []
    for seed in (1, 2):
        tiny_llama(seed, dtype=torch.float32).save_pretrained(tmp_path / str(seed))
        write_tokenizer(tmp_path / str(seed))
        out.append(TorchEngine(tmp_path / str(seed), dtype="float64", device="cpu"))
    return out


def test_means_are_those_of_the_models_own_logits(engines):
    student, teacher = engines
    rows = random_rollouts([(3, 5), (2, 2)])
    values = teacher_divergence(student, teacher, [r.prompt_token_ids for r in rows], [r.token_ids for r in rows])
    kls, tokens = 0.0, 0
    for r in rows:                                                     # by transformers' own logits, one row at a time
        ids, start = torch.tensor([r.prompt_token_ids + r.token_ids]), len(r.prompt_token_ids)
        with torch.no_grad():
            q, p = (e.model(ids).logits[0, start - 1:-1].log_softmax(-1) for e in (student, teacher))
        kls, tokens = kls + (q.exp() * (q - p)).sum().item(), tokens + len(r.token_ids)
    assert values["reverse_kl_mean_nats"] == pytest.approx(kls / tokens, abs=1e-9)
    assert values["reverse_kl_mean_nats"] != pytest.approx(values["forward_kl_mean_nats"], abs=1e-3)


def test_a_model_is_at_distance_zero_from_itself(engines):
    rows = random_rollouts([(3, 5)])
    values = teacher_divergence(engines[0], engines[0], [rows[0].prompt_token_ids], [rows[0].token_ids])
    assert abs(values["reverse_kl_mean_nats"]) < 1e-12 and values["student_entropy_mean_nats"] > 0
