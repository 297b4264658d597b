"""Training and scoring with prompts computed once a group: the gradient of padded rows, from the distinct tokens."""
import dataclasses

import pytest
import torch

from tasks.opd.engines.api import Want
from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.models import lora
from tasks.opd.objective.columns import columns_of
from tasks.opd.training.forward import Forward, old_logprobs
from tests.small_llama import save_llama
from tests.tiny_models import random_rollouts, term, tiny_llama, train_spec
from tests.training.test_round import TERMS, gradient, scored_by

SIZES = {"alone": [1, 1, 1], "of three": [3, 3], "of four": [4, 4], "mixed": [1, 4, 3, 1]}
SOME = [term(divergence="reverse_kl", support="full", weights=[{"name": "skip_first", "tokens": 2}])]


def grouped_rollouts(sizes, seed=0):
    """Groups of completions of uneven lengths behind prompts of uneven lengths."""
    lengths = [(2 + 3 * g, 1 + (5 * k + 3 * g) % 9) for g, size in enumerate(sizes) for k in range(size)]
    group = [g for g, size in enumerate(sizes) for _ in range(size)]
    rollouts, firsts = random_rollouts(lengths, seed=seed), {}
    return [dataclasses.replace(r, group_id=f"g{g}", prompt_token_ids=firsts.setdefault(g, r.prompt_token_ids))
            for r, g in zip(rollouts, group)]


def relative(one, other):
    return float((one - other).norm() / other.norm())


def both_ways(student, rollouts, terms, **effort):
    """Relative distance of the gradients and of the losses, shared from padded."""
    scored = scored_by(tiny_llama(2, dtype=torch.float32), rollouts)
    (value, loss), (expected, by_rows) = (gradient(student, scored, terms, share_prompts=share, **effort)
                                          for share in (True, False))
    assert expected.norm() > 1e-6
    return relative(value, expected), abs(loss - by_rows) / max(abs(by_rows), 1e-3)


@pytest.fixture(scope="module")
def student():
    return tiny_llama(1, dtype=torch.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TERMS)
def test_the_gradient_is_that_of_padded_rows(student, name, size):
    assert max(both_ways(student, grouped_rollouts(SIZES[size]), TERMS[name])) < 1e-5


@pytest.mark.parametrize("tokens", [1, 12, 30])
def test_micro_batches_that_part_a_group_change_only_rounding(student, tokens):
    assert max(both_ways(student, grouped_rollouts([4, 3]), SOME, micro_batch_tokens=tokens, chunk_tokens=5)) < 1e-5


def test_with_an_adapter_and_with_recomputed_activations(student):
    rollouts = grouped_rollouts([4, 1])
    adapted = tiny_llama(1, dtype=torch.float32)
    lora.attach(adapted, {"rank": 2, "alpha": 4.0, "targets": []}, seed=0)
    for name, parameter in lora.learning(adapted).items():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    assert max(both_ways(adapted, rollouts, SOME)) < 1e-5
    recomputing = tiny_llama(1, dtype=torch.float32)
    recomputing.gradient_checkpointing_enable()
    recomputing.train()
    assert max(both_ways(recomputing, rollouts, SOME)) < 1e-5
    scored = scored_by(tiny_llama(2, dtype=torch.float32), rollouts)
    assert relative(gradient(recomputing, scored, SOME)[0], gradient(student, scored, SOME)[0]) < 1e-6


def test_the_gradient_repeats_to_the_bit(student):
    scored = scored_by(tiny_llama(2, dtype=torch.float32), grouped_rollouts([4, 3, 1]))
    first, second = (gradient(student, scored, TERMS["full"])[0] for _ in range(2))
    assert torch.equal(first, second)


def tokens_through(model, run):
    """How many tokens a body was given while `run` ran."""
    counts = []
    handle = model.get_input_embeddings().register_forward_pre_hook(lambda _, given: counts.append(given[0].numel()))
    run()
    handle.remove()
    return sum(counts)


def test_only_distinct_tokens_up_to_the_last_that_counts_go_through_the_body(student):
    rollouts = random_rollouts([(6, 4), (6, 9), (5, 3)])
    rollouts[1] = dataclasses.replace(rollouts[1], prompt_token_ids=rollouts[0].prompt_token_ids)
    columns = columns_of(rollouts)

    def tokens(share, wanted):
        spec = train_spec([])
        spec["effort"]["share_prompts"] = share
        forward = Forward(student, rollouts, columns, spec)
        return tokens_through(student, lambda: old_logprobs(forward, wanted))
    everything, start = torch.ones(16, dtype=torch.bool), torch.zeros(16, dtype=torch.bool)
    start[[1, 4, 5, 6]] = True  # two tokens of the first, three of the second, none of the third
    assert tokens(True, everything) == 6 + 3 + 8 + 5 + 2 and tokens(False, everything) == 3 * 14
    assert tokens(True, start) == 6 + 1 + 2 and tokens(False, start) == 2 * 8


@pytest.mark.parametrize("batch_tokens", [7, 40, 65536])
def test_scores_are_those_of_padded_rows_and_a_prompt_is_read_once(tmp_path, batch_tokens):
    engine = TorchEngine(save_llama(tmp_path), batch_tokens=batch_tokens)
    want = Want(top_k=3, entropy=True, hidden=True)
    prompts, completions = [[5, 6, 7, 8]] * 3 + [[9, 4]], [[5, 9, 11], [20], [7, 8, 9, 10, 11], []]
    shared = engine.score(prompts, completions, want)
    tokens = tokens_through(engine.model, lambda: engine.score(prompts, completions, want))
    engine.share_prompts = False
    for one, other in zip(shared, engine.score(prompts, completions, want)):
        assert torch.allclose(one.sampled, other.sampled, atol=1e-5) and torch.equal(one.ids, other.ids)
        assert torch.allclose(one.hidden, other.hidden, atol=1e-5) and torch.allclose(one.tail, other.tail, atol=1e-5)
    assert batch_tokens < 65536 or tokens == 4 + 2 + 0 + 4 + 2
