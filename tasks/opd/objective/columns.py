"""Per-token columns of a whole scored set: what rows, weights and advantages are functions of.

Tokens of all rollouts lie one after another in the order of the rollouts: N tokens, R rollouts. Columns are detached
and belong to the round's start, so that neither micro-batches nor optimizer steps change them.
"""
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tasks.opd.core.records import Rollout


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """A term's support at each token, the student at the round's start; S tokens, not all of which need be there."""
    ids: Tensor                   # [N, S] long, -1 where there is none
    student: Tensor               # [N, S] nats over the full softmax, -inf where there is none
    target: Tensor                # [N, S] nats, -inf where there is none

    @property
    def there(self) -> Tensor:
        """Which of the S are tokens: bool [N, S]."""
        return self.ids >= 0


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Everything known of a token before the round's first optimizer step.

    The last block belongs to one term: what its models say (NaN where they gave no signal), and of the student only
    what the `needs` of its slots' entries name (NaN otherwise, and at tokens outside `mask`).
    """
    token_ids: Tensor             # [N] long
    rollout: Tensor               # [N] long, index of the token's rollout
    position: Tensor              # [N] long, 0 at the completion's first token
    author: Tensor                # [N] long, see records
    special: Tensor               # [N] bool, the token is special to the tokenizer
    lengths: Tensor               # [R] long, tokens of the completion
    group: Tensor                 # [R] long, 0 .. number of groups - 1
    reward: Tensor                # [R] NaN where ungraded
    sampler_logprobs: Tensor      # [N] nats, of the distribution sampled from; NaN where the writer gave none
    old_logprobs: Tensor          # [N] nats, the student at the round's start; NaN until the prepass
    domain: list[str]             # R names
    has_signal: Tensor            # [R] bool, the term's models had a context for this rollout
    mask: Tensor                  # [N] bool, the term's tokens: statistics of weights and advantages are over these
    teacher: Tensor               # [N] nats, the term's target at the token written
    entropy: Tensor               # [N] nats, of the student's distribution
    teacher_entropy: Tensor       # [N] nats, of the teacher's
    divergence: Tensor            # [N] nats, the term's own divergence, clip and all
    forward_kl: Tensor            # [N] nats, to the term's target over the whole vocabulary
    reverse_kl: Tensor            # [N] nats, likewise
    candidates: Candidates | None # the term's support; None unless its estimator takes candidates
    at_k: dict[str, Tensor] = field(default_factory=dict)   # [N] by name, for every k that a slot needs: `overlap:16`,
    # share of the student's k likeliest that are among the main model's; `reliability:16`, see `reliability`

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.token_ids.numel()

    @property
    def num_rollouts(self) -> int:
        """R."""
        return self.lengths.numel()

    @property
    def domain_index(self) -> Tensor:
        """Each rollout's domain as a number: [R] long."""
        names = {name: i for i, name in enumerate(dict.fromkeys(self.domain))}
        return torch.tensor([names[name] for name in self.domain], dtype=torch.long)

    def named(self, name: str) -> Tensor:
        """The column [N] under the name by which entries need it: `entropy`, `overlap:16`; NaN where nobody asked."""
        column = self.at_k.get(name) if ":" in name else getattr(self, name)
        return torch.full((self.num_tokens,), math.nan) if column is None else column

    def by_rollout(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values [N] as (padded [R, Tmax] with zeros, there bool [R, Tmax]); `padded[there]` gives [N] back."""
        there = torch.arange(int(self.lengths.max())) < self.lengths[:, None]
        padded = values.new_zeros(there.shape)
        padded[there] = values
        return padded, there

    def per_rollout(self, values: Tensor) -> Tensor:
        """Sums of values [N] over each rollout: [R], in float64."""
        return torch.zeros(self.num_rollouts, dtype=torch.float64).index_add_(0, self.rollout, values.double())


def columns_of(rollouts: list[Rollout], *, special_ids: frozenset[int] = frozenset()) -> Columns:
    """Columns of rollouts, with what no model is needed for."""
    lengths = torch.tensor([len(r.token_ids) for r in rollouts])
    token_ids = torch.tensor([t for r in rollouts for t in r.token_ids])
    names = {name: i for i, name in enumerate(dict.fromkeys(r.group_id for r in rollouts))}
    blank = torch.full((token_ids.numel(),), math.nan)
    return Columns(
        token_ids=token_ids,
        rollout=torch.repeat_interleave(torch.arange(len(rollouts)), lengths),
        position=torch.cat([torch.arange(n) for n in lengths.tolist()]),
        author=torch.tensor([a for r in rollouts for a in r.author]),
        special=torch.isin(token_ids, torch.tensor(sorted(special_ids), dtype=torch.long)),
        lengths=lengths,
        group=torch.tensor([names[r.group_id] for r in rollouts]),
        reward=torch.tensor([math.nan if r.reward is None else r.reward for r in rollouts]),
        sampler_logprobs=torch.tensor([x for r in rollouts for x in r.logprobs]),
        domain=[r.domain for r in rollouts],
        has_signal=torch.ones(len(rollouts), dtype=torch.bool), mask=torch.ones_like(token_ids, dtype=torch.bool),
        old_logprobs=blank, teacher=blank, entropy=blank, teacher_entropy=blank, divergence=blank, forward_kl=blank,
        reverse_kl=blank, candidates=None)
