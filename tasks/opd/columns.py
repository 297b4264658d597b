"""Per-token columns of a whole scored set: what rows, weights and advantages are functions of.

Tokens of all rollouts lie one after another in the order of the rollouts: N tokens, R rollouts. Columns are detached
and belong to the round's start, so that neither micro-batches nor optimizer steps change them.
"""
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.opd.records import Rollout


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Everything known of a token before the round's first optimizer step."""
    token_ids: Tensor             # [N] long
    rollout: Tensor               # [N] long, index of the token's rollout
    position: Tensor              # [N] long, 0 at the completion's first token
    author: Tensor                # [N] long, see records
    special: Tensor               # [N] bool, the token is special to the tokenizer
    lengths: Tensor               # [R] long, tokens of the completion
    group: Tensor                 # [R] long, 0 .. number of groups - 1
    reward: Tensor                # [R] NaN where ungraded
    sampler: Tensor               # [N] nats, of the law sampled from; NaN where the writer gave none
    old: Tensor                   # [N] nats, the student at the round's start; NaN until `with_old`
    teacher: Tensor               # [N] nats, the teacher; NaN where it gave no signal
    has_signal: Tensor            # [R] bool, the teacher had a context for this rollout

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.token_ids.numel()

    @property
    def num_rollouts(self) -> int:
        """R."""
        return self.lengths.numel()

    def by_rollout(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values [N] as (padded [R, Tmax] with zeros, there bool [R, Tmax]); `padded[there]` gives [N] back."""
        there = torch.arange(int(self.lengths.max())) < self.lengths[:, None]
        padded = values.new_zeros(there.shape)
        padded[there] = values
        return padded, there

    def per_rollout(self, values: Tensor) -> Tensor:
        """Sums of values [N] over each rollout: [R], in float64."""
        return torch.zeros(self.num_rollouts, dtype=torch.float64).index_add_(0, self.rollout, values.double())


def columns_of(rollouts: list[Rollout], *, teacher: list[Tensor | None] | None = None, old: Tensor | None = None,
               special_ids: frozenset[int] = frozenset()) -> Columns:
    """Columns of rollouts; `teacher` holds the teacher's log-probabilities [T] of each rollout, or None without any."""
    lengths = torch.tensor([len(r.token_ids) for r in rollouts])
    token_ids = torch.tensor([t for r in rollouts for t in r.token_ids])
    names = {name: i for i, name in enumerate(dict.fromkeys(r.group_id for r in rollouts))}
    signals = teacher or [None] * len(rollouts)
    blank = [torch.full((len(r.token_ids),), math.nan) for r in rollouts]
    return Columns(
        token_ids=token_ids,
        rollout=torch.repeat_interleave(torch.arange(len(rollouts)), lengths),
        position=torch.cat([torch.arange(n) for n in lengths.tolist()]),
        author=torch.tensor([a for r in rollouts for a in r.author]),
        special=torch.isin(token_ids, torch.tensor(sorted(special_ids), dtype=torch.long)),
        lengths=lengths,
        group=torch.tensor([names[r.group_id] for r in rollouts]),
        reward=torch.tensor([math.nan if r.reward is None else r.reward for r in rollouts]),
        sampler=torch.tensor([x for r in rollouts for x in r.logprobs]),
        old=torch.full((token_ids.numel(),), math.nan) if old is None else old,
        teacher=torch.cat([b if s is None else s.to(torch.float64 if s.dtype == torch.float64 else torch.float32)
                           for s, b in zip(signals, blank)]),
        has_signal=torch.tensor([s is not None for s in signals]))
