"""What a token is worth: columns -> [N] or [N, S], a detached function of the whole scored set (groups included).

Statistics are over the term's tokens (`columns.mask`): what stands elsewhere may be NaN and reaches none of them. An
advantage [N, S] values every candidate of the term's support and goes into candidate_policy_gradient.
"""
import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.opd.core.entries import Entry
from tasks.opd.objective.columns import Columns
from tasks.opd.objective.gaps import (
    centred_gap,
    floored_gap,
    proximal_gap,
    return_to_go,
    shifted_gap,
    shuffled_gap,
    teacher_gap,
)


def fixed(columns: Columns, *, value: float = -1.0) -> Tensor:
    """A placebo: the same for every token. [N]. Its gradient's mean is 0 at the round's start, its noise is not."""
    return torch.full_like(columns.old_logprobs, value)


def less_where_unsure(columns: Columns, *, scale: Annotated[float, Field(gt=0)] = 1.0,
                      power: Annotated[float, Field(ge=0)] = 1.0) -> Tensor:
    """-scale * (entropy / its mean over the term's tokens)^power: no teacher, no reward, no token. [N].

    For tokens drawn from the student's own distribution its mean gradient is 0, as that of `fixed`, which is power 0;
    where sampling is truncated it flattens the distribution. Entropies that are all 0 count as their mean.
    Source: On-Policy Self-Adaptation, arXiv:2608.31046; scale and power are reconstructed from its abstract.
    """
    mean = columns.entropy[columns.mask].double().mean()
    share = columns.entropy / mean if mean != 0 else torch.ones_like(columns.entropy)
    return -scale * share ** power


def grpo(columns: Columns, *, scale: bool = True, epsilon: Annotated[float, Field(gt=0)] = 1e-4) -> Tensor:
    """(reward - group mean) / (group standard deviation + epsilon), the same for every token of a rollout. [N].

    The group is all its graded rollouts, whichever of them the term learns from. The deviation is the sample's
    (ddof 1); a group of one, and a group of equal rewards, give 0. `scale: false` leaves the deviation out (Dr. GRPO,
    arXiv:2503.20783).
    Source: DeepSeekMath, arXiv:2402.03300.
    Raises: ValueError when a rollout that the term learns from has no reward.
    """
    graded = ~torch.isnan(columns.reward)
    if not graded[columns.rollout][columns.mask].all():
        raise ValueError("grpo needs a reward on every rollout, but some are ungraded; give prompts.grader")
    members = torch.zeros(int(columns.group.max()) + 1, dtype=torch.float64)
    reward = torch.where(graded, columns.reward, 0.0).double()
    count = members.index_add(0, columns.group, graded.double())
    mean = members.index_add(0, columns.group, reward) / count.clamp(min=1)
    centred = torch.where(graded, reward - mean[columns.group], 0.0)
    variance = members.index_add(0, columns.group, centred ** 2) / (count - 1).clamp(min=1)
    advantage = centred / (variance.sqrt()[columns.group] + epsilon) if scale else centred
    return advantage[columns.rollout].to(columns.old_logprobs.dtype)


def mixed(columns: Columns, *, beta: Annotated[float, Field(ge=0)] = 1.0, reward: Annotated[float, Field(ge=0)] = 1.0,
          reward_on: Literal["all", "succeeded"] = "all", gap_on: Literal["all", "failed", "failed_groups"] = "all",
          threshold: float = 1.0) -> Tensor:
    """reward * `grpo` + beta * `teacher_gap`, each on the rollouts that it is said to be for. [N].

    A rollout succeeded with a reward of at least `threshold`; a group failed when none of its graded rollouts did. Both
    in one advantage share one ratio and one clip, which terms of their own would not.
    Source: arXiv:2609.04108, which writes so KDRL (2506.02208), its masked form (gap_on failed), SRPO (reward_on
    succeeded, gap_on failed) and HDPO (gap_on failed_groups); MiMo-V2, arXiv:2601.02780 (reward on top of the gap).
    Raises: ValueError like `grpo`.
    """
    worth = grpo(columns)
    succeeded = columns.reward >= threshold                           # ungraded rollouts have no place here: see grpo
    best = torch.zeros(int(columns.group.max()) + 1).index_add(0, columns.group, succeeded.float())
    taught = {"all": torch.ones_like(succeeded), "failed": ~succeeded, "failed_groups": best[columns.group] == 0}
    rewarded = {"all": torch.ones_like(succeeded), "succeeded": succeeded}[reward_on][columns.rollout]
    gap = torch.where(taught[gap_on][columns.rollout], beta * teacher_gap(columns), 0.0)
    return torch.where(rewarded, reward * worth, 0.0) + gap


def modulated(columns: Columns, *, share: Annotated[float, Field(ge=0, le=1)] = 1.0,
              limit: Annotated[float, Field(gt=0, lt=1)] = 0.2) -> Tensor:
    """`grpo` * (1 - share + share * e^(sign(grpo) * gap) cut to 1 +- limit): the teacher moves its size only. [N].

    The gap is `teacher_gap`. Tokens that the teacher likes more count more in a success, and less in a failure.
    Source: RLSD, arXiv:2604.03128, as in arXiv:2609.04108 (share 1, limit 0.2).
    Raises: ValueError like `grpo`.
    """
    worth = grpo(columns)
    factor = (worth.sign() * teacher_gap(columns)).exp().clamp(1 - limit, 1 + limit)
    return worth * (1 - share + share * factor)


def direction(columns: Columns, *, beta: Annotated[float, Field(ge=0)] = 0.1,
              share: Annotated[float, Field(gt=0, lt=1)] = 0.2, largest: Annotated[float, Field(gt=0)] = 5.0,
              side: Literal["top", "bottom"] = "top") -> Tensor:
    """`grpo` plus beta * pull * gate * g: towards the teacher where the student is sure, away from it elsewhere. [N].

    pull = tanh((threshold - entropy) / spread), gate = sigmoid(|g| - 1), g = gap / (mean |gap| + 1e-8) cut at
    +-largest, gap as in `teacher_gap`; mean, spread (mean absolute deviation of the entropy) and threshold are the
    completion's. The threshold leaves `share` of the tokens above it (side top: these are pushed away) or below it
    (side bottom: only these are pulled). Equal entropies give pull 0.
    Source: DASD, arXiv:2605.22263; beta, the side and what g is divided by are reconstructed.
    Raises: ValueError like `grpo`.
    """
    gap, there = within(columns, teacher_gap(columns))
    entropy, _ = within(columns, columns.entropy)
    g = (gap / (gap.abs().nanmean(1, keepdim=True) + 1e-8)).clamp(-largest, largest)
    threshold = entropy.nanquantile(1 - share if side == "top" else share, dim=1, keepdim=True)
    spread = (entropy - entropy.nanmean(1, keepdim=True)).abs().nanmean(1, keepdim=True)
    pull = torch.where(spread == 0, 0.0, torch.tanh((threshold - entropy) / spread))
    extra = (beta * pull * torch.sigmoid(g.abs() - 1) * g)[there]
    return grpo(columns) + torch.where(columns.mask, extra, 0.0).to(columns.old_logprobs.dtype)


def within(columns: Columns, values: Tensor) -> tuple[Tensor, Tensor]:
    """Values [N] as (padded [R, Tmax] in float64, NaN at all but the term's tokens; there bool [R, Tmax])."""
    padded, there = columns.by_rollout(torch.where(columns.mask, values.double(), math.nan))
    return padded.masked_fill(~there, math.nan), there


def candidate_gap(columns: Columns, *, weigh_by: Literal["student", "teacher", "none"] = "student",
                  normalise: bool = True) -> Tensor:
    """(log target - log student) * weight of every candidate, the student at the round's start. [N, S] nats.

    The weight is the candidate's probability under student or teacher, or 1, divided (`normalise`) by its sum over the
    position's candidates; where there is no candidate the advantage is 0. Student's weights over the whole vocabulary
    give the reverse KL's gradient without sampling noise.
    Source: Rethinking OPD, arXiv:2604.13016 (normalised); not normalised: arXiv:2605.11182.
    """
    candidates = columns.candidates
    if candidates is None:  # no token takes part, so that nobody looked for any
        assert not columns.mask.any()
        return torch.zeros(columns.num_tokens, 0)
    weigher = {"student": candidates.student, "teacher": candidates.target,
               "none": torch.zeros_like(candidates.student)}[weigh_by]
    logs = torch.where(candidates.there, weigher, -math.inf)
    weight = logs.softmax(-1) if normalise else logs.exp()
    return torch.where(candidates.there, (candidates.target - candidates.student) * weight, 0.0)


ADVANTAGES = {
    "teacher_gap": Entry(teacher_gap, needs=("old_logprobs", "teacher")),
    "centred_gap": Entry(centred_gap, needs=("old_logprobs", "teacher", "reverse_kl")),
    "floored_gap": Entry(floored_gap, needs=("old_logprobs", "teacher")),
    "shifted_gap": Entry(shifted_gap, needs=("old_logprobs", "teacher")),
    "shuffled_gap": Entry(shuffled_gap, needs=("old_logprobs", "teacher")),
    "fixed": Entry(fixed, ignores_token=True),
    "return_to_go": Entry(return_to_go, needs=("old_logprobs", "teacher")),
    "proximal_gap": Entry(proximal_gap, needs=("old_logprobs", "teacher")),
    "less_where_unsure": Entry(less_where_unsure, needs=("entropy",), ignores_token=True),
    "grpo": Entry(grpo, grouped=True),
    "mixed": Entry(mixed, needs=("old_logprobs", "teacher"), grouped=True),
    "modulated": Entry(modulated, needs=("old_logprobs", "teacher"), grouped=True),
    "direction": Entry(direction, needs=("old_logprobs", "teacher", "entropy"), grouped=True),
    "candidate_gap": Entry(candidate_gap, needs=("candidates",))}
