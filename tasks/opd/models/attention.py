"""Attention of a few new tokens to a long cache, where several query heads share keys and values.

Transformers copies the keys and values once for every query head before it calls torch (whenever there is a mask), at
every layer and token: that, and one small product a head, is most of a decode step. Here the heads that share keys
stand in one product as if they were further query tokens.
"""
import torch
from torch import Tensor

GROUPED = "grouped"


def grouped(module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
            scaling: float | None = None, position_bias: Tensor | None = None, **kwargs) -> tuple[Tensor, None]:
    """softmax(query key^T * scaling + mask) value [B, W, H, D]; query [B, H, W, D], key and value [B, H / G, L, D].

    `attention_mask` is added, or says what is seen; it broadcasts to [B, 1, W, L]. Prompts (W = L), and whatever else
    is not new tokens of a cache, go the way of transformers' sdpa.
    """
    (batch, heads, width, size), (shared, length) = query.shape, key.shape[1:3]
    mask = attention_mask
    plain = mask is None and width > 1 or mask is not None and mask.shape[1] > 1
    if heads == shared or width == length or dropout or plain or position_bias is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling,
                                      position_bias=position_bias, **kwargs)
    group = heads // shared
    if mask is not None:  # the same for each head of a group
        mask = mask[:, :, None].expand(-1, -1, group, -1, -1).flatten(2, 3)
    out = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, shared, group * width, size), key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, width, -1).transpose(1, 2).contiguous(), None


def group_heads(model) -> None:
    """Let a model that attends by torch's sdpa decode with `grouped`; others (eager, flash) stay as they are."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(GROUPED, grouped)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    model.set_attn_implementation(GROUPED)
