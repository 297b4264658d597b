"""Engines that share a GPU: who sleeps holds none of its memory, and answers as before when it wakes."""
import pytest
import torch

from tasks.opd.engines.pool import Session
from tasks.opd.engines.torch_engine import TorchEngine
from tests.engines.test_torch_engine import PROMPTS, SEEDS, answers, answers_around_sleep
from tests.small_llama import save_llama

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]
SETTINGS = {"name": "torch", "dtype": "bfloat16", "batch_tokens": 4096}


def test_a_sleeping_engine_holds_nothing_on_the_gpu_and_answers_as_before(tmp_path):
    engine = TorchEngine(save_llama(tmp_path), "bfloat16")
    before, *after = answers_around_sleep(engine)
    assert after == [before, before]
    weights, awake = sum(p.nbytes for p in engine.model.parameters()), torch.cuda.memory_allocated()
    engine.sleep()
    assert awake - torch.cuda.memory_allocated() >= weights
    assert {p.device.type for p in engine._model.parameters()} == {"cpu"}
    assert engine.head.weight is engine.model.get_output_embeddings().weight and engine.head.weight.is_cuda


def test_one_engine_sleeps_while_another_works_and_those_on_one_base_wake_together(tmp_path):
    one, two = save_llama(tmp_path / "one"), save_llama(tmp_path / "two", seed=1)
    with Session() as session:
        student = session.engine("student", one, SETTINGS)
        expected = answers(student)
        twin = session.engine("teacher", one, SETTINGS)
        assert not student.asleep                                   # it shares the tensors that work
        other = session.engine("other", two, SETTINGS)
        assert student.asleep and twin.asleep and not other.asleep
        assert answers(twin) == expected and not student.asleep
        assert student.head.weight.data_ptr() == twin.head.weight.data_ptr()
        student.generate(PROMPTS, {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 2}, SEEDS)
        assert answers(student) == expected
