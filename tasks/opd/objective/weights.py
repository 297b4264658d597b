"""Which tokens count, and how much: columns -> [N] >= 0, a detached function of the whole scored set.

What is counted and averaged is so over the term's tokens, in float64, see `statistics`; weights of a rollout's end are
in `suffixes`. A weight may return beside [N] what it found on the way, as numbers by name, for the round's metrics.
"""
import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.opd.core.entries import Entry
from tasks.opd.objective.columns import Columns
from tasks.opd.objective.statistics import (
    Reported,
    keep_top,
    masked,
    min_max,
    of_largest,
    per_rollout,
    positions,
    quantile,
    scatter,
)
from tasks.opd.objective.suffixes import before_loop, prune_suffix

Share = Annotated[float, Field(ge=0, le=1)]
Scope = Literal["rollout", "batch"]


def uniform(columns: Columns) -> Tensor:
    """One for every token. [N]."""
    return torch.ones(columns.num_tokens)


def skip_first(columns: Columns, *, tokens: Annotated[int, Field(ge=0)] = 3) -> Tensor:
    """Zero on the first `tokens` tokens of every completion, one elsewhere. [N]. Source: SDFT, arXiv:2601.19897."""
    return (columns.position >= tokens).float()


def special_token_mask(columns: Columns) -> Tensor:
    """Zero where the token written is a special token (end of turn, template), one elsewhere. [N].

    For pairs that end their turns with different tokens: otherwise the student unlearns to stop.
    Source: Revisiting On-Policy Distillation, arXiv:2603.25562.
    """
    return (~columns.special).float()


def keep_soft_or(columns: Columns, *, share: Share = 0.5, scope: Scope = "rollout") -> Tensor:
    """One on the `share` of tokens where the student is unsure or far from the teacher, zero elsewhere. [N].

    h is the student's entropy, cut off at its 98th percentile and scaled to [0, 1] by minimum and maximum; d the term's
    divergence, scaled likewise; the score is h + d - h * d. See `keep_top` for the share.
    Source: TIP, arXiv:2604.14084.
    """
    unsure, apart = scaled_entropy(columns), min_max(masked(columns, "divergence"))
    return keep_top(columns, unsure + apart - unsure * apart, share, scope)


def keep_entropy(columns: Columns, *, share: Share = 0.5, scope: Scope = "rollout") -> Tensor:
    """One on the `share` of tokens of highest student entropy, zero elsewhere. [N]. See `keep_top`.

    Source: TIP, arXiv:2604.14084, the entropy-only rule.
    """
    return keep_top(columns, masked(columns, "entropy"), share, scope)


def keep_confidently_wrong(columns: Columns, *, share: Share = 0.5, scope: Scope = "rollout") -> Tensor:
    """One on the `share` of tokens where the student is sure and wrong, zero elsewhere. [N]. See `keep_top`.

    The score is forward_kl * (1 - h), with h the entropy scaled as in `keep_soft_or`.
    Source: TIP, arXiv:2604.14084, third quadrant.
    """
    return keep_top(columns, masked(columns, "forward_kl") * (1 - scaled_entropy(columns)), share, scope)


def teacher_entropy_above(columns: Columns, *, nats: float = 0.8) -> Tensor:
    """One where the teacher's entropy is above `nats`, zero elsewhere. [N]. Source: EOPD, arXiv:2603.07079."""
    return scatter(columns, masked(columns, "teacher_entropy") > nats)


def importance_prefix(columns: Columns, *, largest: Annotated[float, Field(ge=1)] = 1.5) -> Tensor:
    """From `largest` at a rollout's first token down to 1, as the gap to the teacher is used up. [N].

    1 + (largest - 1) * (1 - F); F is the share of the rollout's sum of |teacher - old| that lies before the token, and
    0 in a rollout without any gap.
    Source: IW-OPD, arXiv:2606.22600.
    """
    gap = (masked(columns, "teacher") - masked(columns, "old_logprobs")).abs()
    before = gap.cumsum(0) - gap
    index, first, _ = positions(columns)
    used = (before - before[index - first]) / per_rollout(columns, gap).clamp(min=1e-8)
    return scatter(columns, 1 + (largest - 1) * (1 - used.clamp(0, 1)))


def position(columns: Columns, *, lowest: Share = 0.25, centre: float = 0.30,
             width: Annotated[float, Field(gt=0)] = 0.10) -> Tensor:
    """From `lowest` early in a rollout to 1 late: lowest + (1 - lowest) * sigmoid((f - centre) / width). [N].

    f = (t + 0.5) / T for the t-th (from 0) of the rollout's T tokens in the term.
    Source: PW-OPSD, arXiv:2605.21606.
    """
    _, t, size = positions(columns)
    fraction = (t.double() + 0.5) / size
    return scatter(columns, lowest + (1 - lowest) * torch.sigmoid((fraction - centre) / width))


def teacher_certainty(columns: Columns, *, beta: Annotated[float, Field(ge=0)] = 1.0) -> Tensor:
    """exp(-beta * the teacher's entropy) over its mean over the term's tokens: sure teachers count. [N].

    Source: SRPO, arXiv:2604.02288 (beta 1).
    """
    entropy = masked(columns, "teacher_entropy")
    sure = (-beta * (entropy - entropy.min() if entropy.numel() else entropy)).exp()  # the smallest falls out
    return scatter(columns, sure / sure.mean())


def pass_rate(columns: Columns, *, right: Annotated[float, Field(ge=0)] = 1.0,
              wrong: Annotated[float, Field(ge=0)] = 1.0, threshold: float = 1.0) -> Reported:
    """p^right * (1 - p)^wrong, with p the share of the prompt's rollouts that succeeded. [N].

    Over the graded rollouts of the prompt; one succeeds with a reward of at least `threshold`. Reports the mean of p.
    Source: PACED, arXiv:2603.11178.
    Raises: ValueError when none of a prompt's rollouts has a reward.
    """
    graded = ~columns.reward.isnan()
    zeros = torch.zeros(int(columns.group.max()) + 1, dtype=torch.float64)
    count = zeros.index_add(0, columns.group, graded.double())
    p = (zeros.index_add(0, columns.group, (columns.reward >= threshold).double()) / count)[columns.group]
    chosen = p[columns.rollout[columns.mask]]
    if chosen.isnan().any():
        raise ValueError("pass_rate needs the rewards of a prompt's rollouts, but some have none; give prompts.grader")
    mean = float(p[columns.rollout[columns.mask].unique()].mean()) if columns.mask.any() else 0.0
    return scatter(columns, chosen ** right * (1 - chosen) ** wrong), {"pass_rate_mean": mean}


def probability_gap(columns: Columns, *, above: float = 0.0, keep: Literal["above", "rest"] = "above") -> Tensor:
    """One where the student's probability of the token written is more than `above` over the teacher's. [N].

    Zero elsewhere; `keep: rest` the other way round. Source: AOPD, arXiv:2605.06387 (above 0; with tools 0.2).
    """
    over = masked(columns, "old_logprobs").exp() - masked(columns, "teacher", infinite=True).exp() > above
    return scatter(columns, over == (keep == "above"))


def gap_size(columns: Columns, *, limit: Annotated[float, Field(ge=0)] = 2.0,
             keep: Literal["beyond", "within"] = "beyond") -> Tensor:
    """One where |teacher - old| of the token written is above `limit` nats, zero elsewhere. [N].

    `keep: within` the other way round. Source: TrOPD, arXiv:2606.01249; the measure and 2 nats are reconstructed.
    """
    gap = masked(columns, "teacher", infinite=True) - masked(columns, "old_logprobs")
    return scatter(columns, (gap.abs() > limit) == (keep == "beyond"))


def dash(columns: Columns, *, kappa: Annotated[float, Field(ge=0)] = 5.0) -> Tensor:
    """How often a token's divergence r counts when small ones hand on what follows them. [N].

    c_t = 1 + l_{t-1} * c_{t-1} and c_1 = 1, with l = sigmoid(-kappa * (r - the rollout's mean r)). The mean of
    c_t * r_t is that of A_t = r_t + l_t * A_{t+1}, DASH's return.
    Source: DASH, arXiv:2608.06243.
    """
    r = masked(columns, "divergence")
    _, t, size = positions(columns)
    handed_on = torch.sigmoid(-kappa * (r - per_rollout(columns, r) / size))
    total, factor, reach = torch.ones_like(r), torch.where(t > 0, handed_on.roll(1), 0.0), 1
    # `total` is the sum over the last `reach` tokens, and `factor` is by how much the one before them still counts
    while bool((factor > 0).any()):
        total = total + factor * total.roll(reach)
        factor = factor * factor.roll(reach)
        reach *= 2
    return scatter(columns, total)


def fire(columns: Columns, *, student: Annotated[float, Field(ge=0)] = 1.0,
         teacher: Annotated[float, Field(ge=0)] = 1.0) -> Tensor:
    """High where the teacher is sure and the student is not, with mean 1. [N].

    (1 + teacher * (1 - H_teacher / max)) * (1 + student * H_student / max), over its mean; each max is that entropy's
    largest among the term's tokens (not ln V).
    Source: FiRe-OPD, arXiv:2606.02684.
    """
    sure = 1 - of_largest(masked(columns, "teacher_entropy"))
    weight = (1 + teacher * sure) * (1 + student * of_largest(masked(columns, "entropy")))
    return scatter(columns, weight / weight.mean())


def gap_above_floor(columns: Columns, *, share: Annotated[float, Field(gt=0, lt=1)] = 0.1) -> Tensor:
    """One where teacher - old >= ln(share) / (1 - share), zero where the teacher finds the token hopeless. [N].

    Source: REOPOLD, arXiv:2603.11137, exploration phase.
    """
    gap = masked(columns, "teacher", infinite=True) - masked(columns, "old_logprobs")
    return scatter(columns, gap >= math.log(share) / (1 - share))


def high_entropy(columns: Columns, *, share: Share = 0.2) -> Reported:
    """One where the student's entropy is at least its (1 - share)-quantile, ties included; zero elsewhere. [N].

    Reports the quantile. Source: REOPOLD, arXiv:2603.11137, refinement phase.
    """
    entropy = masked(columns, "entropy")
    threshold = quantile(entropy, 1 - share)
    return scatter(columns, entropy >= threshold), {"threshold_nats": threshold}


def perplexity(columns: Columns, *, model: Literal["student", "teacher"] = "student", power: float = 1.0) -> Reported:
    """A rollout's perplexity^power over the sum of that over the term's rollouts of its prompt, at all its tokens. [N].

    The perplexity is exp(-mean log-probability) of the term's tokens under the student at the round's start, or under
    the teacher. Power 1 counts unlikely rollouts more, -1 likely ones, 0 all alike. Reports its mean over rollouts.
    Source: SCOPE, arXiv:2604.10688 (successes: student, 1; failures: teacher, -1; the power is 1 / temperature).
    """
    _, t, size = positions(columns)
    first, group = t == 0, columns.group[columns.rollout[columns.mask]]
    surprise = -per_rollout(columns, masked(columns, {"student": "old_logprobs", "teacher": "teacher"}[model])) / size
    largest = torch.full((columns.num_rollouts,), -math.inf, dtype=surprise.dtype)
    largest = largest.scatter_reduce(0, group, power * surprise, "amax")[group]
    value = (power * surprise - largest).exp()  # at most 1: no power overflows
    total = torch.zeros(columns.num_rollouts, dtype=value.dtype).index_add_(0, group[first], value[first])
    return scatter(columns, value / total[group]), {"of_rollouts": float(surprise[first].exp().mean())}


def reliable(columns: Columns, *, k: Annotated[int, Field(ge=2)] = 16, threshold: Annotated[float, Field(ge=0)] = 0.5,
             keep: Literal["reliable", "rest"] = "reliable") -> Reported:
    """One where the column `reliability` is at least `threshold`, zero elsewhere. [N].

    `keep: rest` the other way round; a threshold above 1 finds no token reliable. Reports the share of tokens kept and
    the mean reliability.
    Source: ours; see `reliability`.
    """
    trusted = masked(columns, f"reliability:{k}")
    kept = (trusted >= threshold) == (keep == "reliable")
    share, mean = (float(values.double().mean()) if kept.numel() else 0.0 for values in (kept, trusted))
    return scatter(columns, kept), {"kept_share": share, "reliability_mean": mean}


def sampler_ratio(columns: Columns, *, cap: Annotated[float, Field(gt=0)] = 2.0) -> Tensor:
    """min(exp(old - sampler), cap): corrects for the distribution sampled from; one where the writer gave none. [N].

    Source: truncated importance weights, as in SDPO, arXiv:2601.20802.
    """
    sampler = columns.sampler_logprobs[columns.mask].double()
    ratio = (masked(columns, "old_logprobs") - sampler).exp().clamp(max=cap)
    return scatter(columns, torch.where(sampler.isnan(), 1.0, ratio))


def scaled_entropy(columns: Columns) -> Tensor:
    """The student's entropy cut off at its 98th percentile, by `min_max`: [n]. Dividing by ln V would cancel."""
    entropy = masked(columns, "entropy")
    return min_max(entropy.clamp(max=quantile(entropy, 0.98)))


WEIGHTS = {
    "uniform": Entry(uniform, constant=True, ignores_token=True),
    "skip_first": Entry(skip_first, ignores_token=True),
    "special_token_mask": Entry(special_token_mask, masks_special=True),
    "keep_soft_or": Entry(keep_soft_or, needs=("entropy", "divergence")),
    "keep_entropy": Entry(keep_entropy, needs=("entropy",)),
    "keep_confidently_wrong": Entry(keep_confidently_wrong, needs=("entropy", "forward_kl")),
    "teacher_entropy_above": Entry(teacher_entropy_above, needs=("teacher_entropy",)),
    "importance_prefix": Entry(importance_prefix, needs=("old_logprobs", "teacher")),
    "position": Entry(position),
    "teacher_certainty": Entry(teacher_certainty, needs=("teacher_entropy",)),
    "pass_rate": Entry(pass_rate),
    "probability_gap": Entry(probability_gap, needs=("old_logprobs", "teacher")),
    "gap_size": Entry(gap_size, needs=("old_logprobs", "teacher")),
    "dash": Entry(dash, needs=("divergence",)),
    "fire": Entry(fire, needs=("entropy", "teacher_entropy")),
    "gap_above_floor": Entry(gap_above_floor, needs=("old_logprobs", "teacher")),
    "high_entropy": Entry(high_entropy, needs=("entropy",)),
    "perplexity": Entry(perplexity,
                        needs=lambda params: ("teacher",) if params["model"] == "teacher" else ("old_logprobs",)),
    "prune_suffix": Entry(prune_suffix, needs=lambda params: (f"overlap:{params['k']}",)),
    "reliable": Entry(reliable, needs=lambda params: (f"reliability:{params['k']}",)),
    "before_loop": Entry(before_loop, needs=("teacher",)),
    "sampler_ratio": Entry(sampler_ratio, needs=("old_logprobs",))}
