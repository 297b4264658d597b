"""How a divergence or an advantage becomes a gradient at a token.

Every estimator takes (signal, live, old) and gives a loss [n]. `live` and `old` are the student's log-probabilities of
the token written, [n], now and at the round's start, or of the candidates, [n, S]. What `signal` is, the entry's
`takes` says: the divergence of the distributions, the target's log-probability of the token written, its advantage, or
those of all candidates.

Source of the k estimators: Schulman 2020; of their gradients as losses: arXiv:2506.09477, proven again in the tests.
"""
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tasks.opd.core.entries import Entry

Below = Annotated[float, Field(gt=0, lt=1)]
Above = Annotated[float, Field(gt=0)]
LARGEST_LOG_RATIO = 20.0


def exact(divergence: Tensor, live: Tensor, old: Tensor, *, ratio_cap: Above | None = None) -> Tensor:
    """The divergence itself, differentiated through the student's distribution. [n] nats -> [n].

    With a cap it is weighted by min(exp(live - old), ratio_cap), held constant: rollouts of the round's start under a
    student that has moved on. Source of the cap: SDPO, arXiv:2601.20802 (2).
    """
    return divergence if ratio_cap is None else divergence * capped_ratio(live, old).clamp(max=ratio_cap)


def capped_ratio(live: Tensor, old: Tensor) -> Tensor:
    """exp(live - old), detached and finite. [n]."""
    return (live.detach() - old).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()


def k2(target: Tensor, live: Tensor, old: Tensor) -> Tensor:
    """(live - target)^2 / 2 on the token written: its gradient's mean is the reverse KL's gradient. [n] -> [n]."""
    return 0.5 * (live - target) ** 2


def k3(target: Tensor, live: Tensor, old: Tensor) -> Tensor:
    """exp(-d) - 1 + d with d = live - target: the reverse KL in the mean, the *forward* KL's gradient. [n] -> [n]."""
    gap = live - target
    return (-gap).exp() - 1 + gap


def policy_gradient(advantage: Tensor, live: Tensor, old: Tensor, *, clip_low: Below | None = None,
                    clip_high: Above | None = None) -> Tensor:
    """-ratio * advantage with ratio = exp(live - old), or PPO's pessimistic clip of it. [n] -> [n].

    With a clip: -min(ratio * A, clamp(ratio, 1 - clip_low, 1 + clip_high) * A); clip_high defaults to clip_low.
    With the advantage log teacher - log student its mean gradient is the reverse KL's at the visited prefixes.

    Source: PPO, arXiv:1707.06347, eq. 7; On-Policy Distillation, Thinking Machines 2025.
    """
    ratio = (live - old).exp()
    low, high = clip_range(clip_low, clip_high)
    if high is None:
        return -ratio * advantage
    return -(ratio * advantage).minimum(ratio.clamp(1 - low, 1 + high) * advantage)


def anchored_policy_gradient(advantage: Tensor, live: Tensor, old: Tensor, *,
                             share: Annotated[float, Field(ge=0, le=1)] = 0.5, clip_low: Below | None = None,
                             clip_high: Above | None = None) -> Tensor:
    """`policy_gradient` whose ratio is to old^share * target^(1 - share), which it is given as `old`. [n] -> [n].

    Where the target likes a token less than the student did, the ratio begins above 1, and PPO's clip bites at once.
    Source: RLAD (its ratio: TRRD), arXiv:2602.22495 (share 0.5): ratio^share * e^(-(1 - share) * gap) with the gap to
    the student as it is now.
    """
    return policy_gradient(advantage, live, old, clip_low=clip_low, clip_high=clip_high)


def shaped_policy_gradient(advantage: Tensor, live: Tensor, old: Tensor, *, gamma: Above = 0.1) -> Tensor:
    """-p / (p + gamma) * advantage with p = exp(live), for tokens that another wrote. [n] -> [n].

    In place of a ratio to a writer whose probabilities nobody knows; its gradient, gamma * p / (p + gamma)^2 times that
    of log p, is largest at p = gamma, so that unlikely tokens of the teacher are not lost.
    Source: LUFFY, arXiv:2504.14945 (gamma 0.1).
    """
    p = live.exp()
    return -p / (p + gamma) * advantage


def candidate_policy_gradient(advantages: Tensor, live: Tensor, old: Tensor, *, clip_low: Below | None = None,
                              clip_high: Above | None = None) -> Tensor:
    """`policy_gradient` of every candidate, summed over them: [n, S] each -> [n]; candidates of old -inf are none.

    With the student's probabilities in the advantage (candidate_gap) and all of the vocabulary as candidates this is
    the reverse KL's gradient without sampling noise.
    Source: Rethinking OPD, arXiv:2604.13016; the stop-gradient top-k of arXiv:2605.11182.
    """
    there = old > -torch.inf
    live, old = torch.where(there, live, 0.0), torch.where(there, old, 0.0)
    advantages = torch.where(there, advantages, 0.0)
    return policy_gradient(advantages, live, old, clip_low=clip_low, clip_high=clip_high).sum(-1)


def clip_range(clip_low: float | None, clip_high: float | None) -> tuple[float, float | None]:
    """How far below and above 1 a ratio may go; above is None without any clip."""
    low = clip_low if clip_low is not None else 1.0
    return low, clip_high if clip_high is not None else clip_low


def clipped(advantage: Tensor, live: Tensor, old: Tensor, clip_low: float | None, clip_high: float | None) -> Tensor:
    """Where PPO's clip takes the gradient away: bool [n]."""
    low, high = clip_range(clip_low, clip_high)
    ratio = (live.detach() - old).exp()
    return (advantage > 0) & (ratio > 1 + high) | (advantage < 0) & (ratio < 1 - low)


ESTIMATORS = {
    "exact": Entry(exact, takes="divergence",
                   needs=lambda params: ("old_logprobs",) if params["ratio_cap"] is not None else ()),
    "k2": Entry(k2, takes="target", estimates=("reverse_kl", "teacher")),
    "k3": Entry(k3, takes="target", estimates=("reverse_kl", "teacher")),
    "policy_gradient": Entry(policy_gradient, takes="advantage", needs=("old_logprobs",)),
    "anchored_policy_gradient": Entry(anchored_policy_gradient, takes="advantage", needs=("old_logprobs", "teacher"),
                                      old_share=lambda params: params["share"]),
    "shaped_policy_gradient": Entry(shaped_policy_gradient, takes="advantage"),
    "candidate_policy_gradient": Entry(candidate_policy_gradient, takes="candidates", needs=("old_logprobs",))}
