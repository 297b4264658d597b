"""Attention of new tokens to a cache, with heads that share keys in one product."""
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tasks.opd.engines.torch_engine import TorchEngine
from tasks.opd.models import attention
from tasks.opd.models.attention import group_heads, grouped


class Layer:
    """What transformers' attention reads of a layer."""
    is_causal = True

    def __init__(self, groups: int):
        self.num_key_value_groups = groups


def states(width: int, length: int, heads: int = 6, shared: int = 2) -> tuple[torch.Tensor, ...]:
    """Random query, key and value, and a mask that hides padding and what comes later."""
    torch.manual_seed(width)
    query = torch.randn(3, heads, width, 8, dtype=torch.float64)
    key, value = torch.randn(2, 3, shared, length, 8, dtype=torch.float64)
    seen = torch.arange(length) <= torch.arange(length - width, length)[:, None]
    seen = seen & (torch.arange(length) >= torch.tensor([0, 2, 5])[:, None, None])
    return query, key, value, seen[:, None]


@pytest.mark.parametrize("shared", [1, 2, 6])
@pytest.mark.parametrize("width", [1, 3, 11])
@pytest.mark.parametrize("kind", ["seen", "added", "one for all", "every head its own"])
def test_grouped_heads_are_transformers_attention(width, shared, kind):
    """The same numbers as sdpa after copying keys, whatever the mask and however many heads share them."""
    query, key, value, seen = states(width, 11, shared=shared)
    mask = seen[:1] if kind == "one for all" else seen
    if kind == "added":
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    mask = mask.expand(-1, 6, -1, -1) if kind == "every head its own" else mask
    expected, _ = sdpa_attention_forward(Layer(6 // shared), query, key, value, mask, scaling=0.3)
    out, _ = grouped(Layer(6 // shared), query, key, value, mask, scaling=0.3)
    assert out.shape == (3, width, 6, 8) and torch.allclose(out, expected, atol=1e-12, rtol=0)


def test_one_token_without_a_mask_sees_everything():
    """Without padding no mask is made for the next token."""
    query, key, value, _ = states(1, 11)
    expected, _ = sdpa_attention_forward(Layer(3), query, key, value, None)
    assert torch.allclose(grouped(Layer(3), query, key, value, None)[0], expected, atol=1e-12, rtol=0)


def test_an_engine_decodes_with_grouped_heads(tmp_path, monkeypatch):
    """No keys are copied while it writes, and it writes what the model says by itself."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=2, eos_token_id=2,
                         num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, pad_token_id=None)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    engine, widths = TorchEngine(tmp_path / "model", "float64"), []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **kwargs):
        widths.append((query.shape[1:3], key.shape[1]))
        return attend(query, key, value, **kwargs)
    monkeypatch.setattr(attention.torch.nn.functional, "scaled_dot_product_attention", watched)
    greedy = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 6}
    prompts = [[5, 6, 7, 8], [9, 10]]
    written = engine.generate(prompts, greedy, [0, 1])
    assert widths.count(((2, 2), 2)) == 2 * 5  # two heads a group, as two tokens; five steps after the prompt
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    for prompt, completion in zip(prompts, written):
        ids = prompt + completion.token_ids
        expected = plain(torch.tensor([ids])).logits[0].argmax(-1)[len(prompt) - 1:-1]
        assert expected.tolist() == completion.token_ids


def test_other_attention_stays(tmp_path):
    """A model that attends in plain torch is not touched."""
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=1, attn_implementation="eager")
    model = LlamaForCausalLM(config)
    group_heads(model)
    assert model.config._attn_implementation == "eager"
