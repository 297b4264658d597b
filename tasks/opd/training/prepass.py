"""What a round's first look at the scored set finds: every term's columns, before the first optimizer step.

One pass of the round's starting student without gradients, and only over the tokens and for the columns that some term
needs; what the teachers alone say is read off their signal. One more column is a field of `Columns` with default None
(one at a k, such as `overlap:16`, needs none: see `at_k`), and a function with its entry in `COLUMNS`:
`column(term, student, models) -> [n]`, at n of the term's tokens.
"""
import math
from collections import defaultdict
from collections.abc import Iterator, Set
from dataclasses import replace

import torch
from torch import Tensor

from tasks.opd.objective.columns import Candidates, Columns
from tasks.opd.objective.divergences import forward_kl, reverse_kl
from tasks.opd.objective.loss import Stats, divergence_values, target_logprobs, target_of_written
from tasks.opd.objective.reliability import reliability
from tasks.opd.objective.supports import StudentTokens, TeacherTokens, overlap
from tasks.opd.objective.terms import Term, taking_part
from tasks.opd.training.forward import Forward
from tasks.opd.training.scored_set import ScoredSet


def collect(forward: Forward, terms: list[Term], scored: ScoredSet) -> list[Columns]:
    """The columns of every term; those that nothing needs stay NaN."""
    own = [teacher_columns(term, forward.columns, scored) for term in terms]
    asked = [{name for name in term.needs
              if base_of(name) in COLUMNS and (name != "teacher" or term.target.sees_student)} for term in terms]
    wanted = torch.stack([columns.mask if ask else torch.zeros_like(columns.mask) for columns, ask in zip(own, asked)])
    found: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in terms]
    for index, student, models in iter_chunks(forward, wanted.any(0), scored):
        for term, ask, values, here in zip(terms, asked, found, wanted[:, index]):
            collect_columns(term, ask, values, index, here.nonzero()[:, 0], student, models)
    return [with_found(columns, {name: torch.cat(parts) for name, parts in values.items()}) if values else columns
            for columns, values in zip(own, found)]


def collect_columns(term: Term, ask: Set[str], values: dict[str, list[Tensor]], index: Tensor, some: Tensor,
         student: StudentTokens, models: dict[str, TeacherTokens]) -> None:
    """Add what is asked of a chunk to a term's values, at its `some` tokens; elsewhere models may have said nothing."""
    if some.numel() == 0:
        return
    values["flat"].append(index[some])
    chosen = {name: tokens.select(some) for name, tokens in models.items()}
    for name, value in statistics(term, ask, student.select(some), chosen):
        values[name].append(value.cpu())


def teacher_columns(term: Term, columns: Columns, scored: ScoredSet) -> Columns:
    """A term's columns with what its models alone say, and its mask."""
    names = list(term.models.values())
    if not term.needs_teacher:
        return replace(columns, mask=taking_part(term, columns))
    sampled = {name: scored.column(name, "sampled") for name in names}
    columns = replace(
        columns, has_signal=torch.stack([scored.has_signal(name) for name in names]).all(0),
        teacher=sampled[names[0]] if term.target.sees_student else target_of_written(term, sampled, None),
        teacher_entropy=scored.column(names[0], "entropy"))
    return replace(columns, mask=taking_part(term, columns))


@torch.no_grad()
def iter_chunks(forward: Forward, wanted: Tensor, scored: ScoredSet
          ) -> Iterator[tuple[Tensor, StudentTokens, dict[str, TeacherTokens]]]:
    """The student and the models at the wanted tokens, chunk by chunk, with the chunk's indices into the columns."""
    if wanted.any():
        for hidden, flat in forward.micro_batches(list(range(forward.columns.num_rollouts)), wanted):
            for part in forward.chunks(len(flat)):
                index = flat[part]
                yield index, forward.student(hidden[part], index), scored.tokens(index, forward.device)


def written(term: Term, student: StudentTokens, models: dict[str, TeacherTokens]) -> Tensor:
    """The student's log-probabilities of the tokens written. [n] nats."""
    return student.sampled


def target_with_student(term: Term, student: StudentTokens, models: dict[str, TeacherTokens]) -> Tensor:
    """The target's log-probabilities of the tokens written, where it depends on the student. [n] nats."""
    return target_of_written(term, {name: tokens.sampled for name, tokens in models.items()}, student.sampled)


def entropy(term: Term, student: StudentTokens, models: dict[str, TeacherTokens]) -> Tensor:
    """The entropy of the student's distribution. [n] nats."""
    return student.entropy


def own_divergence(term: Term, student: StudentTokens, models: dict[str, TeacherTokens]) -> Tensor:
    """The term's divergence with its clip. [n] nats."""
    return divergence_values(term, student, models, Stats())


def forward_kl_to_target(term: Term, student: StudentTokens, models: dict[str, TeacherTokens]) -> Tensor:
    """KL(target || student) over the whole vocabulary. [n] nats."""
    return forward_kl(target_logprobs(term, None, student, models).to(student.full.dtype), student.full)


def reverse_kl_to_target(term: Term, student: StudentTokens, models: dict[str, TeacherTokens]) -> Tensor:
    """KL(student || target) over the whole vocabulary. [n] nats."""
    return reverse_kl(target_logprobs(term, None, student, models).to(student.full.dtype), student.full)


def candidates(term: Term, student: StudentTokens, models: dict[str, TeacherTokens]) -> Candidates:
    """The term's support, with the student's and the target's log-probabilities there. [n, S]."""
    ids = term.support(student, models[next(iter(term.models.values()))])
    return Candidates(ids=ids, student=student.at(ids), target=target_logprobs(term, ids, student, models))


def overlap_of_top_k(term: Term, student: StudentTokens, models: dict[str, TeacherTokens], k: int) -> Tensor:
    """The share of the student's k likeliest tokens that are among the main model's. [n]."""
    return overlap(student, models[next(iter(term.models.values()))], k)


def reliability_of_main(term: Term, student: StudentTokens, models: dict[str, TeacherTokens], k: int) -> Tensor:
    """How far the main model's advice can be followed, over the student's k likeliest tokens. [n]."""
    return reliability(student, models[next(iter(term.models.values()))], k)


COLUMNS = {"old_logprobs": written, "teacher": target_with_student, "entropy": entropy, "divergence": own_divergence,
           "forward_kl": forward_kl_to_target, "reverse_kl": reverse_kl_to_target, "candidates": candidates,
           "overlap": overlap_of_top_k, "reliability": reliability_of_main}


def base_of(column: str) -> str:
    """The column's name without the k that an entry asks for: `overlap` of `overlap:16`."""
    return column.partition(":")[0]


@torch.no_grad()
def statistics(term: Term, ask: Set[str], student: StudentTokens, models: dict[str, TeacherTokens]
               ) -> Iterator[tuple[str, Tensor]]:
    """What is asked of one chunk: column name, values [n] or [n, S]; candidates are three columns."""
    for name in sorted(ask):
        base, _, k = name.partition(":")  # `overlap:16` is the column overlap at k = 16
        value = COLUMNS[base](term, student, models, *([int(k)] if k else []))
        if isinstance(value, Candidates):
            yield from (("ids", value.ids), ("student", value.student), ("target", value.target))
        else:
            yield name, value


def with_found(columns: Columns, found: dict[str, Tensor]) -> Columns:
    """The columns with values found at tokens `found["flat"]`; NaN, and no candidate, elsewhere."""
    flat = found.pop("flat")

    def spread(values: Tensor, blank: float) -> Tensor:
        return values.new_full((columns.num_tokens, *values.shape[1:]), blank).index_copy(0, flat, values)

    if "ids" in found:
        candidates = Candidates(ids=spread(found.pop("ids"), -1), student=spread(found.pop("student"), -torch.inf),
                                target=spread(found.pop("target"), -torch.inf))
        columns = replace(columns, candidates=candidates)
    spreads = {name: spread(values, math.nan) for name, values in found.items()}
    at_k = {name: spreads.pop(name) for name in list(spreads) if ":" in name}
    return replace(columns, at_k=at_k, **spreads)
