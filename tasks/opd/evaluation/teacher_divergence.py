"""How far a student is from its teacher on the student's own completions: exact, over the whole vocabulary.

The yardstick of distillation itself, beside the benchmark's accuracy: the mean reverse and forward KL a token at the
prefixes that the student visits, from both models' hidden states and heads, chunk by chunk.
"""
import torch

from tasks.opd.core.errors import NonFinite
from tasks.opd.engines.api import Want
from tasks.opd.models.heads import wide
from tasks.opd.objective.divergences import forward_kl, reverse_kl

CHUNK_TOKENS = 1024


@torch.no_grad()
def teacher_divergence(student, teacher, prompts: list[list[int]], completions: list[list[int]], *,
               progress=None) -> dict[str, float]:
    """reverse_kl, forward_kl, student_entropy and teacher_entropy, each `_mean_nats` over all completion tokens.

    `student` and `teacher` are engines that give hidden states and share a vocabulary; empty without tokens.
    Raises: NonFinite when one of them is NaN or infinite.
    """
    want = Want(sampled=False, hidden=True)
    ours = student.score(prompts, completions, want, progress=progress)
    theirs = teacher.score(prompts, completions, want, progress=progress)
    if not sum(map(len, completions)):
        return {}
    heads = [wide(engine.head) for engine in (student, teacher)]
    totals, count = torch.zeros(4, dtype=torch.float64), 0
    for q, p in zip(torch.cat([s.hidden for s in ours]).split(CHUNK_TOKENS),
                    torch.cat([s.hidden for s in theirs]).split(CHUNK_TOKENS)):
        q, p = (head.logprobs(hidden.to(head.weight)) for head, hidden in zip(heads, (q, p)))
        parts = (reverse_kl(p, q), forward_kl(p, q), -(q.exp() * q).sum(-1), -(p.exp() * p).sum(-1))
        totals += torch.stack([part.double().sum().cpu() for part in parts])
        count += len(q)
    if not torch.isfinite(totals).all():
        whose = "student" if totals[2].isnan() else "teacher"
        raise NonFinite(f"the {whose}'s log-probabilities of the student's answers are not finite; look at the "
                        f"{whose}'s weights, or use engine.dtype: float32")
    names = ("reverse_kl_mean_nats", "forward_kl_mean_nats", "student_entropy_mean_nats", "teacher_entropy_mean_nats")
    return dict(zip(names, (totals / count).tolist()))


