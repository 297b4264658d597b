"""How a divergence or an advantage becomes a gradient at a token.

Every estimator takes (signal [n], live [n], old [n]) and gives a loss [n], with `live` and `old` the student's
log-probabilities of the token written, now and at the round's start. What `signal` is stands in `TAKES`: the divergence
of the distributions, the target's log-probability of the token written, or its advantage.

Source of the k estimators: Schulman 2020; of their gradients as losses: arXiv:2506.09477, proven again in the tests.
"""
from typing import Annotated

from pydantic import Field
from torch import Tensor


def exact(divergence: Tensor, live: Tensor, old: Tensor) -> Tensor:
    """The divergence itself, differentiated through the student's distribution. [n] nats -> [n]."""
    return divergence


def k2(target: Tensor, live: Tensor, old: Tensor) -> Tensor:
    """(live - target)^2 / 2 on the token written: its gradient's mean is the reverse KL's gradient. [n] -> [n]."""
    return 0.5 * (live - target) ** 2


def k3(target: Tensor, live: Tensor, old: Tensor) -> Tensor:
    """exp(-d) - 1 + d with d = live - target: the reverse KL in the mean, the *forward* KL's gradient. [n] -> [n]."""
    gap = live - target
    return (-gap).exp() - 1 + gap


def policy_gradient(advantage: Tensor, live: Tensor, old: Tensor, *,
                    clip_low: Annotated[float, Field(gt=0, lt=1)] | None = None,
                    clip_high: Annotated[float, Field(gt=0)] | None = None) -> Tensor:
    """-ratio * advantage with ratio = exp(live - old), or PPO's pessimistic clip of it. [n] -> [n].

    With a clip: -min(ratio * A, clamp(ratio, 1 - clip_low, 1 + clip_high) * A); clip_high defaults to clip_low.
    With the advantage log teacher - log student its mean gradient is the reverse KL's at the visited prefixes.

    Source: PPO, arXiv:1707.06347, eq. 7; On-Policy Distillation, Thinking Machines 2025.
    """
    ratio = (live - old).exp()
    if clip_low is None and clip_high is None:
        return -ratio * advantage
    low = clip_low if clip_low is not None else 1.0
    clipped = ratio.clamp(1 - low, 1 + (clip_high if clip_high is not None else low))
    return -(ratio * advantage).minimum(clipped * advantage)


ESTIMATORS = {"exact": exact, "k2": k2, "k3": k3, "policy_gradient": policy_gradient}
TAKES = {"exact": "divergence", "k2": "target", "k3": "target", "policy_gradient": "advantage"}
