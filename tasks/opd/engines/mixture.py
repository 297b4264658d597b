"""Two models write one completion: every token is drawn from a mixture of their distributions."""
import math

import torch
from torch import Tensor

from tasks.opd.core.batches import padded_batches
from tasks.opd.engines.api import Completion
from tasks.opd.engines.sampling import Batch, decode
from tasks.opd.engines.torch_engine import TorchEngine


class MixedBatch:
    """Rows that a student and a teacher continue together, each with a cache of its own."""

    def __init__(self, student: Batch, teacher: Batch, teacher_share: float):
        self.parts, self.device = (student, teacher), student.device
        self.log_shares = (math.log1p(-teacher_share), math.log(teacher_share))

    def next_logprobs(self) -> Tensor:
        """log((1 - a) q + a p), [B, V], of the student's q and the teacher's p as each is sampled from."""
        student, teacher = (part.next_logprobs() + share for part, share in zip(self.parts, self.log_shares))
        return torch.logaddexp(student, teacher)

    def append(self, tokens: Tensor) -> None:
        """Continue every row by its token [B], in both caches."""
        for part in self.parts:
            part.append(tokens)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        for part in self.parts:
            part.keep(rows)


def generate_mixed(student: TorchEngine, teacher: TorchEngine, prompts: list[list[int]], sampling: dict,
                   seeds: list[int], *, teacher_share: float, teacher_temperature: float = 1.0,
                   progress=None) -> list[Completion]:
    """Continue prompts by tokens of a p + (1 - a) q, a = `teacher_share` in (0, 1), until the student's EOS.

    `sampling` is the student's; the teacher has its own temperature. A completion's log-probabilities are the
    mixture's. Ids that only one of the vocabularies has are not drawn.
    """
    size = min(student.vocabulary, teacher.vocabulary)
    teachers = {**sampling, "temperature": teacher_temperature}
    lengths = [len(prompt) + sampling["max_new_tokens"] for prompt in prompts]
    done: dict[int, Completion] = {}
    with torch.inference_mode():
        for batch in padded_batches(lengths, min(student.batch_tokens, teacher.batch_tokens)):
            asked = [prompts[i] for i in batch]
            rows = MixedBatch(Batch(student.model, student.head, asked, sampling, size),
                              Batch(teacher.model, teacher.head, asked, teachers, size), teacher_share)
            written = decode(rows, sampling["max_new_tokens"], [seeds[i] for i in batch], student.eos_ids, progress)
            done |= zip(batch, written)
    return [done[i] for i in range(len(prompts))]
