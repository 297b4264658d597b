"""Completions in one row with a shared prompt once: the numbers of a padded row each, or not done at all."""
import copy
import json

import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tasks.opd.models import attention, packing
from tasks.opd.models.attention import Group
from tasks.opd.models.packing import body_states, can_share, pack

SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2, "max_position_embeddings": 128,
         "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARING = {"llama": LlamaConfig(**SIZES), "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
           "qwen2": Qwen2Config(**SIZES), "qwen3": Qwen3Config(**SIZES), "gemma": GemmaConfig(**SIZES),
           "mistral without a window": MistralConfig(**SIZES, sliding_window=None),
           "experts": Qwen3MoeConfig(**SIZES, **EXPERTS),
           "gpt2": GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1,
                              eos_token_id=1, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)}
PADDED = {"a sliding window": MistralConfig(**SIZES, sliding_window=8), "windows in turn": Gemma2Config(**SIZES),
          "states along the row": MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2),
          "attention in plain torch": LlamaConfig(**SIZES, attn_implementation="eager")}
LONG, SHORT = list(range(5, 19)), [7, 3, 4]  # a prompt longer than its completions, and a shorter one
GROUPS = {1: ([LONG, SHORT, [9]], [[1, 2, 3], [4, 5, 6, 7, 8], [1]]),
          3: ([SHORT, LONG, SHORT, SHORT, [9]], [[1, 2, 3, 4], [4, 3], [5], [6, 7, 8, 9, 10, 11], []]),
          4: ([LONG, LONG, SHORT, LONG, LONG], [[1], [2, 3, 4, 5], [4, 4], list(range(20, 39)), [8, 9]])}


def model_of(config, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config)).to(dtype).eval()


def run(model, prompts, completions, shared):
    """The hidden states taken, and the gradient of a sum of them with uneven weights, some of them zero."""
    packed = pack(prompts, completions, shared)
    model.zero_grad()
    hidden = body_states(model, packed)[packed.places]
    weights = torch.linspace(-2, 2, len(hidden), dtype=hidden.dtype).relu()[:, None] * torch.linspace(-1, 1, 32)
    (hidden * weights).sum().backward()
    return hidden.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def distance(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("size", GROUPS)
@pytest.mark.parametrize("name", SHARING)
def test_a_shared_prompt_gives_the_hidden_states_and_gradients_of_padded_rows(name, size):
    model = model_of(SHARING[name])
    assert can_share(model)
    (hidden, gradient), (expected, by_rows) = (run(model, *GROUPS[size], shared) for shared in (True, False))
    assert distance(hidden, expected) < 1e-5 and distance(gradient, by_rows) < 1e-5
    again, repeated = run(model, *GROUPS[size], True)
    assert torch.equal(again, hidden) and torch.equal(repeated, gradient)


@pytest.mark.parametrize("size", GROUPS)
def test_in_float64_throughout_they_agree_to_ten_digits(size):
    model = model_of(SHARING["gpt2"], torch.float64)  # a Llama's norms compute in float32
    assert can_share(model)
    (hidden, gradient), (expected, by_rows) = (run(model, *GROUPS[size], shared) for shared in (True, False))
    assert distance(hidden, expected) < 1e-12 and distance(gradient, by_rows) < 1e-10


def test_a_completion_does_not_see_its_siblings():
    model = model_of(SHARING["llama"])
    assert can_share(model)
    batches = [pack([SHORT, SHORT], [first, [4, 5, 6]], True) for first in ([1, 2, 3], [9, 8, 7])]
    one, other = (body_states(model, packed)[packed.places] for packed in batches)
    assert torch.equal(one[3:], other[3:]) and not torch.allclose(one[1:3], other[1:3])


def test_a_prompt_stands_once_and_last_tokens_not_at_all():
    packed = pack([SHORT, LONG, SHORT, SHORT, SHORT], [[1, 2, 8], [], [3], [], [4, 5]], True)
    assert packed.token_ids.tolist() == [SHORT + [1, 2] + [4] + LONG]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 3, *range(14)]]
    assert packed.places.tolist() == [2, 3, 4, 2, 2, 5]
    assert packed.groups == (Group(3, (2, 1)), Group(14, (0,)))
    rows = pack([SHORT, [9]], [[1, 2, 8], [3]], False)
    assert rows.token_ids.tolist() == [SHORT + [1, 2], [9, 0, 0, 0, 0]] and rows.places.tolist() == [2, 3, 4, 5]
    assert rows.mask.tolist() == [[1] * 5, [1, 0, 0, 0, 0]] and not rows.groups


@pytest.mark.parametrize("name", PADDED)
def test_a_model_that_does_more_than_look_at_all_before_a_token_is_padded(name):
    assert not can_share(model_of(PADDED[name]))


def test_where_our_arguments_do_not_reach_attention_the_ways_disagree(monkeypatch):
    model = model_of(SHARING["llama"])
    assert can_share(model) and packing.ways_agree(model)

    def unheard(*arguments, groups=(), **options):
        return attention.grouped(*arguments, **options)
    monkeypatch.setitem(AttentionInterface._global_mapping, attention.GROUPED, unheard)
    assert packing.attends_to_all(model) and not packing.ways_agree(model)


def test_a_models_files_do_not_tell_how_it_attended(tmp_path):
    model = model_of(SHARING["llama"])
    model.save_pretrained(tmp_path / "before")
    assert can_share(model)
    model.save_pretrained(tmp_path / "after")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "after"))
    assert before == after
