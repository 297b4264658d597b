"""Which rollouts an optimizer step takes."""
import torch

from tasks.opd.core.seeds import derive_seed


def optimizer_batches(num_rollouts: int, size: int, *seed_parts: int | str) -> list[list[int]]:
    """Indices of the rollouts of each optimizer step of an epoch, shuffled; `size` 0 takes them all in one step."""
    order = torch.randperm(num_rollouts, generator=torch.Generator().manual_seed(derive_seed(*seed_parts))).tolist()
    size = size or num_rollouts
    return [sorted(order[i:i + size]) for i in range(0, num_rollouts, size)]
