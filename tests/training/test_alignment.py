"""The teacher's own tokens at their place and beside it, by hand and by either way of asking."""
import math

import pytest
import torch

from tasks.opd.engines.api import Want
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.training.alignment import Alignment, asked_singly, asked_whole, measure_alignment
from tests.tiny_models import tiny_llama, write_tokenizer


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    tiny_llama(1, dtype=torch.float32).save_pretrained(folder)
    write_tokenizer(folder)
    return TorchEngine(folder, device="cpu")


def test_both_ways_of_asking_say_what_the_model_says_of_the_neighbours(engine):
    prompts, completions = [[2, 5], [3, 5, 7]], [[8, 9, 3, 1], [4]]
    signals = engine.score(prompts, completions, Want(hidden=True))
    whole, singly = asked_whole(engine, completions, signals), asked_singly(engine, prompts, completions)
    with torch.no_grad():
        logprobs = engine.model(torch.tensor([[2, 5, 8, 9, 3, 1]])).logits[0].log_softmax(-1)
    # position 1 (the prompt's last) predicts 8, position 2 predicts 9, ...: one too early, one too late
    early = [math.nan, logprobs[1, 9], logprobs[2, 3], logprobs[3, 1]]
    late = [logprobs[2, 8], logprobs[3, 9], logprobs[4, 3], math.nan]
    for found in (whole, singly):
        for side, wanted in zip(found, (early, late)):
            assert side[0].tolist() == pytest.approx([float(x) for x in wanted], abs=1e-5, nan_ok=True)
            assert side[1].isnan().all() and len(side[1]) == 1


def test_margins_are_means_over_the_tokens_that_were_asked():
    nan = math.nan
    alignment = Alignment([torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-9.0])],
                          [torch.tensor([nan, -4.0, -4.0]), torch.tensor([nan])],
                          [torch.tensor([-2.0, -2.5, nan]), torch.tensor([nan])])
    # early: (-2 + 4 - 3 + 4) / 2 = 1.5; late: (-1 + 2 - 2 + 2.5) / 2 = 0.75
    assert alignment.margins() == pytest.approx((1.5, 0.75))


def test_a_teacher_is_measured_on_what_it_writes_itself(engine):
    found = measure_alignment(engine, [[2, 5], [3, 5, 7]], 12, [0, 1])
    written = engine.generate([[2, 5], [3, 5, 7]], {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 12},
                              [0, 1])
    for scored, completion in zip(found.aligned, written):
        assert scored.tolist() == pytest.approx(completion.logprobs, abs=1e-4)
