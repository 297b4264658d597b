"""From rollouts to padded tensors: optimizer batches, micro-batches, and which hidden state predicts which token."""
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.opd.core.records import Rollout
from tasks.opd.core.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A micro-batch, padded on the right. Hidden state `take[i]` of the flattened [B * L] predicts token `flat[i]`."""
    token_ids: Tensor             # [B, L] long
    mask: Tensor                  # [B, L] long, 1 on prompt and completion
    take: Tensor                  # [n] long, into [B * L]: position P + t - 1 predicts completion token t
    flat: Tensor                  # [n] long, into the columns' [N]


def optimizer_batches(num_rollouts: int, size: int, *seed_parts: int | str) -> list[list[int]]:
    """Indices of the rollouts of each optimizer step of an epoch, shuffled; `size` 0 takes them all in one step."""
    order = torch.randperm(num_rollouts, generator=torch.Generator().manual_seed(derive_seed(*seed_parts))).tolist()
    size = size or num_rollouts
    return [sorted(order[i:i + size]) for i in range(0, num_rollouts, size)]


def pack(rollouts: list[Rollout], indices: list[int], starts: Tensor, wanted: Tensor) -> Packed:
    """Pad the rollouts `indices`.

    `starts` [R] is each rollout's first token in the columns, `wanted` [N] bool the tokens used. The last token of a
    completion is predicted but predicts nothing: its hidden state is never taken.
    """
    rows = [rollouts[i].prompt_token_ids + rollouts[i].token_ids for i in indices]
    longest = max(map(len, rows))
    token_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    take, flat = [], []
    for b, (i, row) in enumerate(zip(indices, rows)):
        token_ids[b, :len(row)] = torch.tensor(row)
        mask[b, :len(row)] = 1
        num_prompt, num_completion = len(rollouts[i].prompt_token_ids), len(rollouts[i].token_ids)
        tokens = torch.arange(num_completion)
        tokens = tokens[wanted[starts[i] + tokens]]
        take.append(b * longest + num_prompt - 1 + tokens)
        flat.append(starts[i] + tokens)
    return Packed(token_ids=token_ids, mask=mask, take=torch.cat(take), flat=torch.cat(flat))
