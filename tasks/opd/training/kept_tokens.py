"""What the terms took at single tokens, for those who read a round's rollouts: see `core.token_columns`."""
import math

import torch
from torch import Tensor

from tasks.opd.core.records import Rollout
from tasks.opd.core.token_columns import COUNT, TOKENS, TokenColumns, evenly
from tasks.opd.objective.columns import Columns
from tasks.opd.objective.terms import Prepared, Term


def kept_tokens(terms: list[Term], prepared: list[Prepared], columns: Columns, rollouts: list[Rollout]
                ) -> list[TokenColumns]:
    """Weights and advantages of every term in COUNT rollouts at most; none of those in which it learns nowhere."""
    ends, found = columns.lengths.cumsum(0).tolist(), []
    for row in evenly(list(range(columns.num_rollouts)), COUNT):
        first = ends[row] - int(columns.lengths[row])
        part = slice(first, min(ends[row], first + TOKENS))
        for term, took in zip(terms, prepared):
            if took.mask[first:ends[row]].any():
                worth = advantage_written(took, columns, part)
                found.append(TokenColumns(rollout_id=rollouts[row].rollout_id, term=term.label,
                                          weight=took.weight[part].tolist(),
                                          advantage=None if worth is None else worth.tolist()))
    return found


def advantage_written(took: Prepared, columns: Columns, part: slice) -> Tensor | None:
    """The advantage of the tokens written, [n]; NaN where the term does not learn, or the token is no candidate."""
    if took.advantage is None:
        return None
    values = took.advantage[part].double()
    if values.ndim == 2:
        written = took.candidates.ids[part] == columns.token_ids[part, None]
        values = torch.where(written.any(-1), torch.where(written, values, 0.0).sum(-1), math.nan)
    return torch.where(took.mask[part], values, math.nan)
