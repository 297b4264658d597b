"""Weights that fade or cut the end of a rollout: columns -> [N] >= 0, see `weights`."""
from typing import Annotated

from pydantic import Field

from tasks.opd.objective.columns import Columns
from tasks.opd.objective.statistics import ROUNDING, Reported, masked, positions, scatter

Share = Annotated[float, Field(ge=0, le=1)]


def prune_suffix(columns: Columns, *, k: Annotated[int, Field(ge=1)] = 16, threshold: Share = 0.7,
                 drop: Annotated[float, Field(ge=0)] = 0.01, base: Annotated[float, Field(ge=0)] = 0.5) -> Reported:
    """base + max(0, 1 - drop * c), with c the rollout's tokens so far, this one included, of low overlap. [N].

    The overlap is that of the k likeliest tokens of student and teacher; it is low below `threshold`. Reports the share
    of such tokens, and how many tokens of a rollout keep more than `base`.
    Source: Prune-OPD, arXiv:2605.07804.
    """
    low = (masked(columns, f"overlap:{k}") < threshold).double()
    index, t, _ = positions(columns)
    count = low.cumsum(0)
    count = count - (count - low)[index - t]
    kept = (1 - drop * count).clamp(min=0)
    effective = float((kept > ROUNDING).sum()) / max(1, int((t == 0).sum()))
    return scatter(columns, base + kept), {"low_share": float(low.mean()), "effective_length_mean_tokens": effective}
