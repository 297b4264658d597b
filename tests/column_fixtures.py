"""Columns of made-up rollouts, with only what a test cares for."""
import math

import torch

from tasks.opd.core.records import STUDENT
from tasks.opd.objective.columns import Columns


def columns(lengths: list[int], *, group: list[int] | None = None, reward: list[float] | None = None,
            mask: list[bool] | None = None, domain: list[str] | None = None, candidates=None,
            author: list[int] | None = None, has_signal: list[bool] | None = None, **values) -> Columns:
    """Columns of rollouts of these lengths; `values` are lists or tensors [N] by column name, NaN when not given."""
    count, num_rollouts = sum(lengths), len(lengths)
    blank = torch.full((count,), math.nan, dtype=torch.float64)
    own = {name: torch.as_tensor(values.pop(name), dtype=torch.float64) if name in values else blank for name in
           ("sampler_logprobs", "old_logprobs", "teacher", "entropy", "teacher_entropy", "divergence", "forward_kl",
            "reverse_kl")}
    at_k = {name: torch.as_tensor(values.pop(name), dtype=torch.float64) for name in list(values) if ":" in name}
    per_token = torch.tensor(lengths)
    return Columns(
        token_ids=torch.as_tensor(values.pop("token_ids", [0] * count)),
        rollout=torch.repeat_interleave(torch.arange(num_rollouts), per_token),
        position=torch.cat([torch.arange(n) for n in lengths]), lengths=per_token,
        author=torch.tensor(author or [STUDENT] * count), special=torch.zeros(count, dtype=torch.bool),
        group=torch.tensor(group or list(range(num_rollouts))),
        reward=torch.tensor(reward or [math.nan] * num_rollouts, dtype=torch.float64),
        domain=domain or [""] * num_rollouts, candidates=candidates,
        has_signal=torch.tensor(has_signal or [True] * num_rollouts),
        mask=torch.tensor(mask or [True] * count), at_k=at_k, **own, **values)
