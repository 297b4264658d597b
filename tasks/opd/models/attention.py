"""Attention where keys and values are shared: by several query heads, and by completions of one prompt.

Transformers copies the keys and values once for every query head before it calls torch (whenever there is a mask), at
every layer and token: that, and one small product a head, is most of a decode step. Here the heads that share keys
stand in one product as if they were further query tokens.
"""
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

GROUPED = "grouped"


class Group(NamedTuple):
    """A prompt and its completions end to end: how many tokens the prompt has, and each completion behind it."""
    num_prompt: int
    num_own: tuple[int, ...]      # only the first may be 0


def grouped(module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
            scaling: float | None = None, position_bias: Tensor | None = None, groups: tuple[Group, ...] = (),
            **kwargs) -> tuple[Tensor, None]:
    """softmax(query key^T * scaling + mask) value [B, W, H, D]; query [B, H, W, D], key and value [B, H / G, L, D].

    `attention_mask` is added, or says what is seen; it broadcasts to [B, 1, W, L]. Prompts (W = L), and whatever else
    is not new tokens of a cache, go the way of transformers' sdpa. Of `groups` in one row see `attend_groups`, which
    needs no mask.
    """
    if groups:
        options = {"dropout": dropout, "scaling": scaling, "position_bias": position_bias, **kwargs}
        return attend_groups(module, query, key, value, groups, options), None
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


def attend_groups(module, query: Tensor, key: Tensor, value: Tensor, groups: tuple[Group, ...],
                  options: dict) -> Tensor:
    """Attention [1, L, H, D] of groups end to end in one row: a completion sees its prompt and itself, causally."""
    sizes = [n for num_prompt, (first, *others) in groups for n in (num_prompt + first, *others)]
    pieces = zip(*(states.split(sizes, dim=2) for states in (query, key, value)))
    out = []
    for num_prompt, num_own in groups:
        first = next(pieces)
        out.append(grouped(module, *first, None, **options)[0])
        prompt = [states[:, :, :num_prompt] for states in first]
        out += [attend_behind(module, prompt, own, options) for own in islice(pieces, len(num_own) - 1)]
    return torch.cat(out, dim=1)


def attend_behind(module, prompt: list[Tensor], own: tuple[Tensor, ...], options: dict) -> Tensor:
    """Attention [1, W, H, D] of a completion to its prompt and itself; both are query, key and value."""
    num_prompt, num_own = prompt[0].shape[2], own[0].shape[2]
    query, key, value = (torch.cat(states, dim=2) for states in zip(prompt, own))
    if num_own >= num_prompt:  # the prompt's queries once more cost less than a mask that torch cannot skip by
        return grouped(module, query, key, value, None, **options)[0][:, num_prompt:]
    seen = torch.ones(num_own, num_prompt + num_own, dtype=torch.bool, device=query.device).tril(num_prompt)
    return grouped(module, own[0], key, value, seen[None, None], **options)[0]


def group_heads(model) -> None:
    """Let a model that attends by torch's sdpa decode with `grouped`; others (eager, flash) stay as they are."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(GROUPED, grouped)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    model.set_attn_implementation(GROUPED)
