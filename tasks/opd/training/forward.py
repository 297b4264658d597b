"""The student over chosen tokens of a scored set: the body micro-batch by micro-batch, the head chunk by chunk."""
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from tasks.opd.core.batches import chunk_tokens
from tasks.opd.core.records import Rollout
from tasks.opd.models.heads import Head, head_of
from tasks.opd.models.packing import batches_of, body_states, can_share, pack
from tasks.opd.objective.columns import Columns
from tasks.opd.objective.supports import StudentTokens


class Forward:
    """The student over chosen tokens of the scored set, micro-batch by micro-batch, chunk by chunk."""

    def __init__(self, model, rollouts: list[Rollout], columns: Columns, spec: dict,
                 tick: Callable[[], None] = lambda: None):
        self.model, self.rollouts, self.spec, self.tick = model, rollouts, spec, tick
        self.starts = columns.lengths.cumsum(0) - columns.lengths
        self.device = next(model.parameters()).device
        self.columns = columns
        self.shared = spec["effort"]["share_prompts"] and can_share(model)

    def autocast(self):
        """bfloat16 compute over the master weights, where the recipe asks for it."""
        on = self.spec["train"]["autocast"] == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if on else nullcontext()

    def micro_batches(self, batch: list[int], wanted: Tensor):
        """(hidden states [n, d] with a graph, indices [n] into the columns) of wanted tokens, by micro-batches."""
        used, prompts = self.used(wanted), [r.prompt_token_ids for r in self.rollouts]
        limit = self.spec["effort"]["micro_batch_tokens"]
        for micro in batches_of(prompts, used, limit, self.shared, [i for i in batch if used[i]]):
            flat = torch.cat([self.starts[i] + torch.arange(used[i]) for i in micro])
            packed = pack([prompts[i] for i in micro], [self.rollouts[i].token_ids[:used[i]] for i in micro],
                          self.shared)
            with self.autocast():
                hidden = body_states(self.model, packed)
            kept = wanted[flat]
            yield hidden[packed.places[kept].to(self.device)], flat[kept]
            self.tick()  # a sign of life

    def used(self, wanted: Tensor) -> list[int]:
        """Tokens of each completion up to its last wanted one; what follows predicts nothing that is wanted."""
        place = torch.arange(1, self.columns.num_tokens + 1) - self.starts[self.columns.rollout]
        last = torch.zeros(self.columns.num_rollouts, dtype=torch.long)
        return last.scatter_reduce(0, self.columns.rollout[wanted], place[wanted], "amax").tolist()

    def head(self) -> Head:
        """The head, whose products are of the body's precision."""
        products = "bfloat16" if self.spec["train"]["autocast"] == "bfloat16" else "own"
        return replace(head_of(self.model, self.spec["vocabulary"]), products=products)

    def student(self, hidden: Tensor, flat: Tensor) -> StudentTokens:
        """The student's distribution at a chunk of tokens; a loss's graph ends at its logits."""
        with torch.no_grad():
            logits = self.head().logits(hidden, self.spec["loss"]["temperature"])
        logits.requires_grad_(torch.is_grad_enabled())
        return StudentTokens(logits=logits, token_ids=self.columns.token_ids[flat].to(self.device))

    def backward(self, hidden: Tensor, student: StudentTokens, loss: Tensor) -> Tensor:
        """The gradient [n, d] of hidden states whose `student` has this loss; the head's is added to its own."""
        slope, = torch.autograd.grad(loss, student.logits)
        return self.head().backward(hidden, student.logits.detach(), slope, self.spec["loss"]["temperature"])

    def chunks(self, count: int):
        """Slices of at most `chunk_tokens` tokens, and of no more than a chunk's logits allow.

        Of nearly equal sizes, for a product of one row rounds otherwise than one of several.
        """
        number = -(-count // min(self.spec["effort"]["chunk_tokens"], chunk_tokens(self.spec["vocabulary"])))
        return [slice(count * i // number, count * (i + 1) // number) for i in range(number)]


@torch.no_grad()
def old_logprobs(forward: Forward, wanted: Tensor) -> Tensor:
    """The student's log-probabilities [N] of the wanted tokens written, at the loss temperature; NaN elsewhere."""
    dtype = torch.float64 if next(forward.model.parameters()).dtype == torch.float64 else torch.float32
    old = torch.full((forward.columns.num_tokens,), math.nan, dtype=dtype)
    for hidden, flat in forward.micro_batches(list(range(forward.columns.num_rollouts)), wanted):
        for part in forward.chunks(len(flat)):
            old[flat[part]] = forward.student(hidden[part], flat[part]).sampled.cpu().to(dtype)
    return old
