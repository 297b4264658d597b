"""The student over a few rollouts that its body reads once; whatever is asked of it then costs the head alone."""
import copy

import torch

from tasks.opd.core.records import Rollout
from tasks.opd.objective.columns import columns_of
from tasks.opd.training.forward import Forward


class ReadStudent(Forward):
    """The student over rollouts that its body has read once: its hidden states are kept, only the head runs again."""

    def __init__(self, model, rollouts: list[Rollout], spec: dict):
        super().__init__(model, rollouts, columns_of(rollouts), spec)
        shape = self.columns.num_tokens, self.head().weight.shape[1]
        self.states = torch.zeros(shape, dtype=next(model.parameters()).dtype, device=self.device)  # [N, d]
        wanted = torch.ones(self.columns.num_tokens, dtype=torch.bool)
        with torch.no_grad():
            for hidden, flat in super().micro_batches(list(range(len(rollouts))), wanted):
                self.states[flat] = hidden.to(self.states.dtype)

    def micro_batches(self, batch: list[int], wanted: torch.Tensor):
        """All wanted tokens at once; `batch` is all rollouts."""
        flat = wanted.nonzero()[:, 0]
        if len(flat):
            yield self.states[flat.to(self.device)], flat

    def under(self, spec: dict) -> "ReadStudent":
        """The same with other settings."""
        other = copy.copy(self)
        other.spec = spec
        return other
