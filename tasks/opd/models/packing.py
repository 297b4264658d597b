"""Prompts with completions through a model's body: end to end in one row, a prompt that several share only once.

A model that cannot do that (see `can_share`) takes one row a completion, padded on the right. Both ways give the same
hidden states and gradients up to rounding; the gradient through a shared prompt is the sum over its completions.
"""
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.opd.core.batches import padded_batches, shared_batches
from tasks.opd.models.attention import GROUPED, Group, group_heads
from tasks.opd.models.heads import hidden_states

PROBES = weakref.WeakKeyDictionary()  # model -> whether it can share prompts


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Tokens of a batch. Hidden state `places[i]` of the flattened [B * L] predicts the i-th of all completion tokens.

    A completion's last token is predicted but predicts nothing: it is not among the tokens.
    """
    token_ids: Tensor             # [B, L] long
    positions: Tensor             # [B, L] long, 0 at a prompt's first token
    mask: Tensor                  # [B, L] long, 1 on tokens, 0 on padding
    places: Tensor                # [N] long, into [B * L]
    groups: tuple[Group, ...]     # what stands in the one row; empty where every completion has a row


def batches_of(prompts: Sequence[list[int]], num_own: Sequence[int], limit: int, shared: bool,
               rows: Iterable[int] | None = None) -> list[list[int]]:
    """Indices of all rows, or of `rows`, in batches of at most `limit` tokens as `pack` lays them, padding included.

    `num_own` is a row's tokens behind its prompt. A row that is longer goes alone.
    """
    if shared:
        return shared_batches(prompts, num_own, limit, rows)
    return padded_batches([len(prompt) + n for prompt, n in zip(prompts, num_own)], limit, rows)


def pack(prompts: Sequence[list[int]], completions: Sequence[list[int]], shared: bool) -> Packed:
    """A batch of prompts and completions, one each: `shared`, equal prompts stand once, else one padded row each."""
    return end_to_end(prompts, completions) if shared else padded(prompts, completions)


def padded(prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Packed:
    """One row a completion, padded on the right."""
    rows = [prompt + completion[:-1] for prompt, completion in zip(prompts, completions)]
    width = max(map(len, rows))
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    places = [b * width + len(prompt) - 1 + t for b, (prompt, completion) in enumerate(zip(prompts, completions))
              for t in range(len(completion))]
    token_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return Packed(token_ids=token_ids, positions=(mask.cumsum(-1) - 1).clamp(min=0), mask=mask,
                  places=torch.tensor(places, dtype=torch.long), groups=())


def end_to_end(prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Packed:
    """One row: every prompt once, behind it its completions one after another."""
    members: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        members.setdefault(tuple(prompt), []).append(i)
    token_ids, positions, groups, places = [], [], [], [[]] * len(prompts)
    for prompt, rows in members.items():
        token_ids += prompt
        positions += range(len(prompt))
        last = len(token_ids) - 1
        for i in rows:
            own = completions[i][:-1]
            places[i] = [last, *range(len(token_ids), len(token_ids) + len(own))][:len(completions[i])]
            token_ids += own
            positions += range(len(prompt), len(prompt) + len(own))
        first, *others = (len(completions[i][:-1]) for i in rows)
        groups.append(Group(len(prompt), (first, *filter(None, others))))
    row = torch.tensor([token_ids])
    return Packed(token_ids=row, positions=torch.tensor([positions]), mask=torch.ones_like(row),
                  places=torch.tensor([p for some in places for p in some], dtype=torch.long), groups=tuple(groups))


def body_states(model, packed: Packed) -> Tensor:
    """Hidden states after the final norm [B * L, d] of a batch; with groups only of a model that `can_share`."""
    device = next(model.parameters()).device
    token_ids = packed.token_ids.to(device)
    if not packed.groups:
        return hidden_states(model, token_ids, packed.mask.to(device)).flatten(0, 1)
    assert model.config.get_text_config()._attn_implementation == GROUPED, "ask can_share first"
    unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)  # keeps transformers from making a mask
    return model.base_model(input_ids=token_ids, attention_mask=unused, position_ids=packed.positions.to(device),
                            use_cache=False, groups=packed.groups).last_hidden_state[0]


def can_share(model) -> bool:
    """Whether completions can share a prompt in this model; it then attends by `attention.grouped`.

    It must attend by torch's sdpa, to all that stands before a token in every layer, and hand our arguments down to
    its attention; and on a few short completions both ways must agree. Else sliding windows, states that run along the
    row, or masks of its own would be passed over in silence.
    """
    if model not in PROBES:
        group_heads(model)
        PROBES[model] = attends_to_all(model) and ways_agree(model)
    return PROBES[model]


def attends_to_all(model) -> bool:
    """Whether every layer is attention that goes through transformers' interface and sees all tokens before its own."""
    config = model.config.get_text_config()
    whole = not (getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None))
    whole = whole and set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
    return whole and model._supports_attention_backend and config._attn_implementation == GROUPED


@torch.no_grad()
def ways_agree(model) -> bool:
    """Whether hidden states of a few short rows are the same, end to end and padded, up to rounding."""
    top = model.get_input_embeddings().weight.shape[0] - 1
    prompts = [[min(t, top) for t in ids] for ids in ((1, 2, 3, 4, 5), (6, 7, 8), *2 * ((1, 2, 3, 4, 5),))]
    completions = [[min(t, top) for t in ids] for ids in  # longer than their prompt, and shorter
                   ((9, 10, 11, 12), (13, 14), (15, 16, 17, 18, 19, 20, 21, 22), (23, 24, 25))]
    one, other = (body_states(model, batch)[batch.places.to(next(model.parameters()).device)].double()
                  for batch in (pack(prompts, completions, shared) for shared in (True, False)))
    return bool((one - other).norm() <= torch.finfo(next(model.parameters()).dtype).eps ** 0.5 * other.norm())
