"""Weights that fade or cut the end of a rollout: columns -> [N] >= 0, see `weights`."""
from typing import Annotated

import torch
from pydantic import Field

from tasks.opd.objective.columns import Columns
from tasks.opd.objective.statistics import ROUNDING, Reported, masked, per_rollout, positions, quantile, scatter

Share = Annotated[float, Field(ge=0, le=1)]


def prune_suffix(columns: Columns, *, k: Annotated[int, Field(ge=1)] = 16, threshold: Share = 0.7,
                 drop: Annotated[float, Field(ge=0)] = 0.01, base: Annotated[float, Field(ge=0)] = 0.5) -> Reported:
    """base + max(0, 1 - drop * c), with c the rollout's tokens so far, this one included, of low overlap. [N].

    The overlap is that of the k likeliest tokens of student and teacher; it is low below `threshold`. Reports the share
    of such tokens, how many tokens of a rollout keep more than `base`, and the share of rollouts that were cut off (the
    last token is no special one) while they still did: those for which the budget was too small.
    Source: Prune-OPD, arXiv:2605.07804.
    """
    low = (masked(columns, f"overlap:{k}") < threshold).double()
    index, t, size = positions(columns)
    count = low.cumsum(0)
    count = count - (count - low)[index - t]
    kept = (1 - drop * count).clamp(min=0)
    effective = float((kept > ROUNDING).sum()) / max(1, int((t == 0).sum()))
    last = (t == size - 1) & (kept > ROUNDING) & ~columns.special[columns.mask]
    return scatter(columns, base + kept), {"low_share": float(low.mean()), "effective_length_mean_tokens": effective,
                                           "reached_share": float(last.sum()) / max(1, int((t == 0).sum()))}


def before_loop(columns: Columns, *, period: Annotated[int, Field(ge=1)] = 64,
                repeats: Annotated[int, Field(ge=2)] = 3, sure: float = -0.1) -> Reported:
    """One up to the end of the first pass through a loop in which the rollout ends, zero on what repeats it. [N].

    A loop is the earliest place from which on the rollout's tokens repeat with a period of at most `period`, for at
    least `repeats` passes, where the teacher gives what follows the first pass a mean log-probability of at least
    `sure`: a teacher after such a prefix is certain of more of it. Reports the 0.9-quantile of the rollouts' lengths up
    to there.
    Source: ShortOPD, arXiv:2607.13124; period, repeats and sure are reconstructed from its abstract.
    """
    tokens, owner = columns.token_ids[columns.mask], columns.rollout[columns.mask]
    _, t, _ = positions(columns)
    size = owner.bincount(minlength=columns.num_rollouts)
    start, span = size.clone(), torch.zeros_like(size)
    for p in range(1, period + 1):
        other = (t < p) | (tokens != tokens.roll(p))
        last = torch.full_like(size, -1).scatter_reduce(0, owner, torch.where(other, t, -1), "amax")
        found = (size - 1 - last >= (repeats - 1) * p) & (last + 1 - p < start)
        start, span = torch.where(found, last + 1 - p, start), torch.where(found, p, span)
    repeated = t >= (start + span)[owner]
    said = torch.where(repeated, masked(columns, "teacher", infinite=True), 0.0)
    total, count = (per_rollout(columns, values) for values in (said, repeated.double()))
    looping = repeated & (total / count.clamp(min=1) >= sure)
    kept = per_rollout(columns, (~looping).double())[t == 0]
    return scatter(columns, ~looping), {"effective_length_p90_tokens": quantile(kept, 0.9)}
