"""How token losses become one number: an optimizer batch to what each token's weighted loss is divided by, [N] float64.

A term's loss is the sum over its tokens of weight * loss / divisor. Counts and rollouts are those of the whole
optimizer batch and of all parts of the term, or, where terms name the same denominator, of all of these. A divisor of 0
stands where no token counts.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.opd.core.entries import Entry


@dataclass(frozen=True, kw_only=True)
class Batch:
    """An optimizer batch as a term's reduction sees it, among the N tokens and R rollouts of the scored set."""
    mask: Tensor                  # [N] bool, the tokens that take part
    count: Tensor                 # [N] float64, what each token adds to the term's denominator
    rollout: Tensor               # [N] long, index of the token's rollout
    group: Tensor                 # [R] long, index of the rollout's prompt
    domain: Tensor                # [R] long, index of its domain
    completion_limit: int         # tokens a completion may have

    @property
    def rows(self) -> Tensor:
        """The rollouts that take part: bool [R]."""
        return torch.zeros(self.group.numel(), dtype=torch.float64).index_add_(0, self.rollout, self.mask.double()) > 0


def token(batch: Batch) -> Tensor:
    """The mean over tokens: the sum of counts over the batch. [N]."""
    return torch.full_like(batch.count, float(batch.count.sum()))


def sequence(batch: Batch) -> Tensor:
    """The mean over rollouts of their token means: rollouts times the rollout's count. [N]."""
    return mean_of_means(batch, torch.arange(batch.group.numel()))


def prompt(batch: Batch) -> Tensor:
    """The mean over prompts of the token means over all of their rollouts: prompts times the prompt's count. [N]."""
    return mean_of_means(batch, batch.group)


def domain(batch: Batch) -> Tensor:
    """The mean over domains of the token means over all of their rollouts: domains times the domain's count. [N].

    However few or short its rollouts, every domain has the same share of the gradient.
    Source: Open-MOPD, arXiv:2608.19098 (its weights 1 / (domains * the domain's share of the tokens)).
    """
    return mean_of_means(batch, batch.domain)


def total(batch: Batch) -> Tensor:
    """The sum: 1. [N]."""
    return torch.ones_like(batch.count)


def constant(batch: Batch) -> Tensor:
    """The sum over rollouts * completion limit: lengths do not matter. [N]. Source: Dr. GRPO, arXiv:2503.20783."""
    return torch.full_like(batch.count, float(batch.rows.sum()) * batch.completion_limit)


def rollout_sum(batch: Batch) -> Tensor:
    """The mean over prompts of what their rollouts' token losses sum to: prompts. [N].

    For weights that sum to 1 over a prompt's rollouts, such as `perplexity`; under others G rollouts of a prompt count
    G times, and long ones more than short ones.
    Source: SCOPE, arXiv:2604.10688.
    """
    return torch.full_like(batch.count, float(batch.group[batch.rows].unique().numel()))


def mean_of_means(batch: Batch, unit: Tensor) -> Tensor:
    """The count of the token's unit times the units that take part: [N]; `unit` [R] is each rollout's."""
    counts = torch.zeros(batch.group.numel(), dtype=torch.float64).index_add_(0, batch.rollout, batch.count)
    size = torch.zeros(int(unit.max()) + 1, dtype=torch.float64).index_add_(0, unit, counts)
    num_units = unit[batch.rows].unique().numel()
    return (size * num_units)[unit][batch.rollout]


REDUCTIONS = {"token": Entry(token), "sequence": Entry(sequence), "prompt": Entry(prompt), "domain": Entry(domain),
              "sum": Entry(total),
              "constant": Entry(constant), "rollout_sum": Entry(rollout_sum)}
