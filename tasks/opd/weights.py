"""Which tokens count, and how much: columns -> [N] >= 0, a detached function of the whole scored set."""
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tasks.opd.columns import Columns


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


WEIGHTS = {"uniform": uniform, "skip_first": skip_first, "special_token_mask": special_token_mask}
