"""How far a student is from its teacher on the student's own answers: exact, over the whole vocabulary.

The yardstick of distillation itself, beside the benchmark's accuracy: the mean reverse and forward KL a token at the
prefixes that the student visits, from both models' hidden states and heads. It is a stage of its own: answers that took
hours stay when it fails. Hidden states live for a slice of answers at a time, log-probabilities for a chunk of tokens.
"""
import json
from pathlib import Path

import torch
from torch import Tensor

from tasks.opd.core.batches import chunk_tokens
from tasks.opd.core.costs import READ, counted
from tasks.opd.core.errors import NonFinite
from tasks.opd.core.records import Prompt, Sample, read_rows
from tasks.opd.core.seeds import derive_seed
from tasks.opd.engines.api import Want
from tasks.opd.models.heads import Head, wide
from tasks.opd.objective.divergences import forward_kl, reverse_kl
from tasks.opd.rollouts.writers import teacher_role
from tasks.opd.store.artifacts import model_folder

SLICE_TOKENS = 32768      # whose hidden states live at once, of either model: 2-10 KB a token
NAMES = ("reverse_kl_mean_nats", "forward_kl_mean_nats", "student_entropy_mean_nats", "teacher_entropy_mean_nats")


def measure_divergence(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """Stage: divergence.json, the teacher's divergence on the answers of the input `report`; see `teacher_divergence`.

    The engine of the spec gives hidden states. At most `max_tokens` tokens of answers are looked at, 0: all of them;
    see `chosen_answers`. `divergence_tokens` counts those that were.
    """
    samples = read_rows(inputs["report"] / "samples.parquet", Sample)
    prompts = {p.prompt_id: p.token_ids for p in read_rows(inputs["prompts"] / "prompts.parquet", Prompt)}
    chosen = [samples[i] for i in chosen_answers(samples, spec["max_tokens"])]
    teacher = session.engine(teacher_role(inputs["teacher"]), model_folder(inputs["teacher"]), spec["engine"])
    student = session.engine("student", model_folder(inputs["student"], spec["folder"]), spec["engine"])
    with session.progress(2 * len(chosen), "divergence to the teacher", "answers") as bar:
        counts = teacher_divergence(student, teacher, [prompts[s.prompt_id] for s in chosen],
                                    [s.token_ids for s in chosen], progress=bar)
    counts |= counted("divergence", {READ: counts["divergence_tokens"]})
    answers = [[sample.prompt_id, sample.sample_index] for sample in chosen]
    (out / "divergence.json").write_text(json.dumps({"counts": counts, "answers": answers}, indent=1))
    return counts


def chosen_answers(samples: list[Sample], max_tokens: int) -> list[int]:
    """Indices, ascending, of the answers that fit into `max_tokens` tokens together; all of them for 0.

    Whole answers, every question's sample 0 before any sample 1, questions in the order of their hashed ids: the same
    for every student and seed, whatever the order of the file. The first answer that does not fit ends it: going on to
    shorter ones would favour these.
    """
    order = sorted(range(len(samples)), key=lambda i: (samples[i].sample_index, derive_seed(samples[i].prompt_id)))
    chosen, room = [], max_tokens
    for index in order:
        room -= len(samples[index].token_ids)
        if max_tokens and room < 0:
            break
        chosen.append(index)
    return sorted(chosen)


@torch.no_grad()
def teacher_divergence(student, teacher, prompts: list[list[int]], completions: list[list[int]], *,
                       progress=None) -> dict[str, float]:
    """reverse_kl, forward_kl, student_entropy and teacher_entropy, each `_mean_nats` over all completion tokens.

    `divergence_tokens` says how many these are; without any it stands alone. `student` and `teacher` are engines that
    give hidden states and share a vocabulary. Totals are float64.
    Raises: NonFinite when one of them is NaN or infinite.
    """
    totals, count = torch.zeros(len(NAMES), dtype=torch.float64), sum(map(len, completions))
    for part in slices(list(map(len, completions))):
        totals += slice_totals(student, teacher, prompts[part], completions[part], progress)
        if not torch.isfinite(totals).all():
            whose = "student" if totals[2].isnan() else "teacher"
            raise NonFinite(f"the {whose}'s log-probabilities of the student's answers are not finite; look at the "
                            f"{whose}'s weights, or use engine.dtype: float32")
    means = dict(zip(NAMES, (totals / count).tolist())) if count else {}
    return {**means, "divergence_tokens": count}


def slices(lengths: list[int]) -> list[slice]:
    """Consecutive completions of at most SLICE_TOKENS tokens together; a longer one goes alone."""
    found, start, tokens = [], 0, 0
    for index, length in enumerate(lengths):
        if index > start and tokens + length > SLICE_TOKENS:
            found.append(slice(start, index))
            start, tokens = index, 0
        tokens += length
    return [*found, slice(start, len(lengths))] if lengths else []


def slice_totals(student, teacher, prompts: list[list[int]], completions: list[list[int]], progress) -> Tensor:
    """The sums over all completion tokens of what NAMES names, float64 [4]."""
    want = Want(sampled=False, hidden=True)
    ours, theirs = (torch.cat([s.hidden for s in engine.score(prompts, completions, want, progress=progress)])
                    for engine in (student, teacher))
    heads, totals = [wide(engine.head) for engine in (student, teacher)], torch.zeros(len(NAMES), dtype=torch.float64)
    step = chunk_tokens(heads[0].num_valid)
    for q, p in zip(ours.split(step), theirs.split(step)):
        q, p = (logprobs_of(head, hidden) for head, hidden in zip(heads, (q, p)))
        parts = (reverse_kl(p, q), forward_kl(p, q), -(q.exp() * q).sum(-1), -(p.exp() * p).sum(-1))
        totals += torch.stack([part.double().sum().cpu() for part in parts])
    return totals


def logprobs_of(head: Head, hidden: Tensor) -> Tensor:
    """Log-probabilities [n, V] of hidden states [n, d], on the head's device."""
    return head.logprobs(hidden.to(head.weight))
