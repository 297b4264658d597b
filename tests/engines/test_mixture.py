"""Two models that write together: the mixture at every token, its two ends, and that neighbours do not matter."""
import math

import pytest
import torch

from tasks.opd.engines.mixture import generate_mixed
from tasks.opd.engines.sampling import sampling_logprobs
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.models.heads import hidden_states
from tests.small_llama import save_llama

PROMPTS = [[5, 9, 11], [7], [20, 21, 22, 23, 24, 25, 26, 27], [5, 9, 11], [3, 4, 5, 6]]
SEEDS = [11, 12, 13, 14, 15]
SAMPLING = {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return [TorchEngine(save_llama(tmp_path_factory.mktemp(name), seed=seed), "float64")
            for seed, name in enumerate(("student", "teacher"))]


def distributions(engine, prompt: list[int], tokens: list[int], temperature: float):
    """[T, V] log-probabilities that the engine's model alone would have drawn from, in one pass."""
    ids = torch.tensor([prompt + tokens])
    with torch.no_grad():
        logits = engine.head.logits(hidden_states(engine.model, ids, torch.ones_like(ids))[0, len(prompt) - 1:-1])
    return sampling_logprobs(logits, temperature, SAMPLING["top_p"], SAMPLING["top_k"])


def test_every_token_has_the_mixtures_probability(pair):
    written = generate_mixed(*pair, PROMPTS, SAMPLING, SEEDS, teacher_share=0.3, teacher_temperature=1.2)
    assert sum(len(c.token_ids) for c in written) > 20
    for prompt, completion in zip(PROMPTS, written):
        q, p = (distributions(engine, prompt, completion.token_ids, t) for engine, t in zip(pair, (0.8, 1.2)))
        drawn = torch.tensor(completion.token_ids)[:, None]
        expected = torch.logaddexp(math.log(0.7) + q, math.log(0.3) + p).gather(-1, drawn)[:, 0]
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-9)


def test_first_tokens_follow_the_mixture(pair):
    short, count = {**SAMPLING, "max_new_tokens": 1}, 4000
    written = generate_mixed(*pair, [[5, 9, 11]] * count, short, list(range(count)), teacher_share=0.5)
    seen = torch.bincount(torch.tensor([c.token_ids[0] for c in written]), minlength=pair[0].vocabulary) / count
    q, p = (distributions(engine, [5, 9, 11], [0], t)[0].exp() for engine, t in zip(pair, (0.8, 1.0)))
    assert (seen - (q + p) / 2).abs().max() < 0.03 < (q - p).abs().max()


def test_a_share_of_nearly_none_writes_the_students_tokens_and_of_nearly_all_the_teachers(pair):
    for share, engine in ((1e-12, pair[0]), (1 - 1e-12, pair[1])):
        written = generate_mixed(*pair, PROMPTS, SAMPLING, SEEDS, teacher_share=share, teacher_temperature=0.8)
        alone = engine.generate(PROMPTS, SAMPLING, SEEDS)
        assert [c.token_ids for c in written] == [c.token_ids for c in alone]
        assert all(a.logprobs == pytest.approx(b.logprobs, abs=1e-9) for a, b in zip(written, alone))


def test_a_completion_does_not_depend_on_its_neighbours(pair):
    together = generate_mixed(*pair, PROMPTS, SAMPLING, SEEDS, teacher_share=0.4)
    for prompt, seed, expected in zip(PROMPTS, SEEDS, together):
        assert generate_mixed(*pair, [prompt], SAMPLING, [seed], teacher_share=0.4)[0].token_ids == expected.token_ids
