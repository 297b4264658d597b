"""What a token is worth: columns -> [N], a detached function of the whole scored set (groups included)."""
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tasks.opd.columns import Columns


def teacher_gap(columns: Columns) -> Tensor:
    """log teacher - log student of the token written, the student at the round's start. [N] nats.

    With the policy gradient its mean is the reverse KL's gradient at the visited prefixes, the prefixes held fixed.
    Source: On-Policy Distillation, Thinking Machines 2025.
    """
    return columns.teacher - columns.old


def shifted_gap(columns: Columns) -> Tensor:
    """A control: `teacher_gap` with the teacher moved by one token in each completion, like an off-by-one. [N] nats."""
    teacher, there = columns.by_rollout(columns.teacher)
    last = columns.lengths - 1
    moved = teacher.roll(1, 1)
    moved[:, 0] = teacher[torch.arange(columns.num_rollouts), last]
    return moved[there] - columns.old


def return_to_go(columns: Columns, *, discount: Annotated[float, Field(ge=0, le=1)] = 1.0) -> Tensor:
    """G_t = gap_t + discount * G_{t+1} within each completion, gap as in `teacher_gap`. [N] nats.

    Discount 0 is `teacher_gap`; discount 1 is the unbiased gradient of the sequence's reverse KL.
    Source: arXiv:2603.25562; MiniLLM, arXiv:2306.08543.
    """
    gap = teacher_gap(columns)
    padded, there = columns.by_rollout(gap)
    returns = torch.zeros_like(padded)
    running = torch.zeros(columns.num_rollouts, dtype=gap.dtype)
    for t in range(padded.shape[1] - 1, -1, -1):
        running = padded[:, t] + discount * running
        returns[:, t] = running
    return returns[there]


def grpo(columns: Columns, *, scale: bool = True, epsilon: Annotated[float, Field(gt=0)] = 1e-4) -> Tensor:
    """(reward - group mean) / (group standard deviation + epsilon), the same for every token of a rollout. [N].

    The deviation is the sample's (ddof 1); a group of one, and a group of equal rewards, give 0. `scale: false` leaves
    the deviation out (Dr. GRPO, arXiv:2503.20783).
    Source: DeepSeekMath, arXiv:2402.03300.
    Raises: ValueError when a rollout has no reward.
    """
    if torch.isnan(columns.reward).any():
        raise ValueError("grpo needs a reward on every rollout, but some are ungraded; give prompts.grader")
    members = torch.zeros(int(columns.group.max()) + 1, dtype=torch.float64)
    ones = torch.ones_like(columns.reward, dtype=torch.float64)
    reward = columns.reward.double()
    count = members.index_add(0, columns.group, ones)
    mean = members.index_add(0, columns.group, reward) / count
    centred = reward - mean[columns.group]
    variance = members.index_add(0, columns.group, centred ** 2) / (count - 1).clamp(min=1)
    advantage = centred / (variance.sqrt()[columns.group] + epsilon) if scale else centred
    return advantage[columns.rollout].to(columns.old.dtype)


ADVANTAGES = {"teacher_gap": teacher_gap, "shifted_gap": shifted_gap, "return_to_go": return_to_go, "grpo": grpo}
WITHOUT_TEACHER = frozenset({"grpo"})
