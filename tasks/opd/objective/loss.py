"""The loss is a sum of terms; here a term's tokens become coefficients, and a chunk of tokens its part of the loss.

Reductions and denominators belong to the whole optimizer batch and become one coefficient a token, so that the loss of
any chunk of tokens is a plain weighted sum, and splitting a batch never changes its gradient.
"""
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from tasks.opd.objective.columns import Columns
from tasks.opd.objective.estimators import capped_ratio, clipped
from tasks.opd.objective.reductions import Batch
from tasks.opd.objective.supports import StudentTokens, TeacherTokens, gathered, on_support
from tasks.opd.objective.terms import Prepared, Term
from tasks.opd.objective.vocabulary import by_rows

Look = Callable[[Term, Prepared, Tensor, StudentTokens, dict[str, TeacherTokens]], None]  # as `term_values` is called


class Stats:
    """Weighted means of quantities, gathered over chunks and micro-batches."""

    def __init__(self):
        self.sums, self.counts = defaultdict(float), defaultdict(float)

    def add(self, key: str, values: Tensor) -> None:
        """Add the finite ones of some values to the mean of `key`."""
        values = values.detach()
        values = values[torch.isfinite(values)]
        self.sums[key] += float(values.double().sum())
        self.counts[key] += values.numel()

    def means(self) -> dict[str, float]:
        """The mean of every key that has a value."""
        return {key: self.sums[key] / count for key, count in self.counts.items() if count}


def counted(term: Term, prepared: Prepared, here: Tensor) -> Tensor:
    """What each token adds to its term's denominator, [N]; `here` [N] bool is the optimizer batch."""
    if term.denominator == "kept":
        return (here & (prepared.weight > 0)).double() * term.share
    if term.denominator == "weighted":
        return here * prepared.weight * term.share
    return (here & prepared.mask).double() * term.share


def coefficients(terms: list[Term], prepared: list[Prepared], columns: Columns, batch: list[int],
                 completion_limit: int) -> Tensor:
    """What multiplies each token's loss in the optimizer batch: [terms, N], zero outside the batch. float64.

    coefficient * weight / what the term's reduction says. Counts and rollouts are those of all parts of the term, or,
    where terms name the same denominator, of all of these.
    """
    inside = torch.zeros(columns.num_rollouts, dtype=torch.bool)
    inside[batch] = True
    here = inside[columns.rollout]
    counts, masks = defaultdict(float), defaultdict(lambda: torch.zeros_like(here))
    for term, p in zip(terms, prepared):
        counts[shares(term)] = counts[shares(term)] + counted(term, p, here)
        masks[shares(term)] = masks[shares(term)] | (here & p.mask)
    out = []
    for term, p in zip(terms, prepared):
        divisor = term.reduction(Batch(mask=masks[shares(term)], count=counts[shares(term)], rollout=columns.rollout,
                                       group=columns.group, domain=columns.domain_index,
                                       completion_limit=completion_limit))
        weight = torch.where(here, p.weight, 0.0) * term.coefficient
        out.append(torch.where(divisor > 0, weight / divisor.clamp(min=1e-300), 0.0))
    return torch.stack(out)


def shares(term: Term) -> str:
    """Terms for which this is equal have one denominator."""
    own = term.denominator in ("valid", "kept", "weighted")
    return f"{term.group}:{term.denominator}" if own else term.denominator


def clipping_fold(clip: dict, stats: Stats, label: str) -> Callable[[Tensor], Tensor]:
    """The sum over the support with the term's clip: entries before it, or the position's value after it."""
    def fold(entries: Tensor) -> Tensor:
        if clip["at"] == "entry":
            stats.add(f"{label}/clipped_entries_per_token", (entries > clip["limit"]).sum(-1).float())
            stats.add(f"{label}/clipped_token_share", (entries > clip["limit"]).any(-1).float())
            return entries.clamp(max=clip["limit"]).sum(-1)
        value = entries.sum(-1)
        if clip["at"] == "position":
            stats.add(f"{label}/clipped_token_share", (value > clip["limit"]).float())
            return value.clamp(max=clip["limit"])
        return value
    return fold


def target_logprobs(term: Term, ids: Tensor | None, student: StudentTokens, models: dict[str, TeacherTokens]) -> Tensor:
    """The target's log-probabilities [n, S] at ids [n, S], or [n, V] at all of them (None); of the full softmax.

    Raises: ValueError for several models' top-k, each of which has ids of its own.
    """
    if not term.target.unnormalised:
        if term.support.owns_ids and len(term.models) > 1:
            raise ValueError(f"term {term.label}: on support teacher_top_k each of the models "
                             f"{', '.join(term.models.values())} has its own tokens, whose log-probabilities cannot be "
                             "combined; use support: full or student_top_k, or say in the target's entry that it is "
                             "unnormalised, and computed from whole distributions")
        return term.target({alias: models[name].at(ids, term.support.owns_ids) for alias, name in term.models.items()})
    full = {alias: models[name].full for alias, name in term.models.items()}
    own = {"student": student.full.detach()} if term.target.sees_student else {}
    mixed = term.target(full | own).log_softmax(-1)
    return mixed if ids is None else gathered(mixed, ids)


def target_of_written(term: Term, models: dict[str, Tensor], student: Tensor | None) -> Tensor:
    """The target's log-probabilities [n] of the tokens written, by those of models and student [n]; see targets."""
    sampled = {alias: models[name][:, None] for alias, name in term.models.items()}
    return term.target(sampled if student is None else {**sampled, "student": student.detach()[:, None]})[:, 0]


def divergence_values(term: Term, student: StudentTokens, models: dict[str, TeacherTokens], stats: Stats) -> Tensor:
    """The term's divergence with its clip, [n] nats, with a graph to the student."""
    ids = term.support(student, models.get(next(iter(term.models.values()), "")))
    if ids is None:
        return full_divergence(term, student, models, stats)
    live, aimed = student.at(ids), None
    if term.compares:
        aimed = target_logprobs(term, ids, student, models).to(live.dtype)
        if term.renormalise:
            aimed, live = on_support(aimed, live, term.renormalise)
    return term.divergence(aimed, live, clipping_fold(term.clip, stats, term.label))


def full_divergence(term: Term, student: StudentTokens, models: dict[str, TeacherTokens], stats: Stats) -> Tensor:
    """`divergence_values` over the whole vocabulary, some rows at a time."""
    fold = clipping_fold(term.clip, stats, term.label)

    def values_of(live: Tensor, rows: slice) -> Tensor:
        aimed = None
        if term.compares:
            part = StudentTokens(logits=live.detach(), token_ids=student.token_ids[rows])
            part.full = live.detach()  # logits that are log-probabilities are normalised
            aimed = target_logprobs(term, None, part, {name: models[name].block(rows) for name in term.models.values()})
        return term.divergence(None if aimed is None else aimed.to(live.dtype), live, fold)
    return by_rows(student.logits, student.normaliser, values_of)


def term_values(term: Term, prepared: Prepared, flat: Tensor, student: StudentTokens,
                models: dict[str, TeacherTokens], stats: Stats) -> Tensor:
    """The term's loss at n tokens, [n], with a graph to the student."""
    device, there = student.logits.device, prepared.candidates
    if term.estimator.takes == "candidates":
        live, old = student.at(there.ids[flat].to(device)), there.student[flat].to(device)
        signal = prepared.advantage[flat].to(device)
    else:
        live, old = student.sampled, prepared.old_logprobs[flat].to(device)
        if term.estimator.takes == "advantage":
            signal = prepared.advantage[flat].to(device)
        elif term.estimator.takes == "target":
            signal = target_of_written(term, {name: tokens.sampled for name, tokens in models.items()}, live)
        else:
            signal = divergence_values(term, student, models, stats)
    note_ratio(term, signal, live, old, stats)
    return term.estimator(signal, live, old)


def note_ratio(term: Term, signal: Tensor, live: Tensor, old: Tensor, stats: Stats) -> None:
    """How far the student has moved from the round's start, and what clip or cap made of it."""
    chosen = term.estimator.function.keywords
    if term.estimator.takes in ("advantage", "candidates"):
        stats.add(f"{term.label}/ratio_mean", (live.detach() - old).exp())
        if chosen.get("clip_low") is not None or chosen.get("clip_high") is not None:
            cut = clipped(signal, live, old, chosen.get("clip_low"), chosen.get("clip_high"))
            stats.add(f"{term.label}/ratio_clipped_share", cut[old > -torch.inf].double())
    elif chosen.get("ratio_cap") is not None:
        ratio = capped_ratio(live, old)
        stats.add(f"{term.label}/ratio_mean", ratio)
        stats.add(f"{term.label}/ratio_clipped_share", (ratio > chosen["ratio_cap"]).double())


def note_gap(term: Term, student: StudentTokens, models: dict[str, TeacherTokens], stats: Stats) -> None:
    """How much likelier the tokens written are to the term's main model than to the student."""
    main = models[next(iter(term.models.values()))].sampled
    if main is not None:
        gap = main - student.sampled.detach()
        stats.add(f"{term.label}/teacher_gap_mean_nats", gap)
        stats.add(f"{term.label}/teacher_gap_size_nats", gap.abs())


def chunk_loss(terms: list[Term], prepared: list[Prepared], coefficient: Tensor, flat: Tensor,
               student: StudentTokens, models: dict[str, TeacherTokens], stats: Stats, look: Look | None = None
               ) -> Tensor:
    """The loss of n tokens `flat` (indices into the columns), a scalar with a graph; `coefficient` is [terms, n].

    `models` holds what each model that scored says of these tokens. A term looks only at tokens whose coefficient is
    not zero: what stands elsewhere, NaN included, cannot reach it. `look` is shown what each term looks at.
    """
    loss = student.logits.new_zeros(())
    for term, p, c in zip(terms, prepared, coefficient):
        index = c.nonzero()[:, 0]
        if index.numel() == 0:
            continue
        here = flat[index.cpu()]                # the columns lie on the CPU
        own, chosen = student.select(index), {name: tokens.select(index) for name, tokens in models.items()}
        values = term_values(term, p, here, own, chosen, stats)
        loss = loss + (c[index].to(values) * values).sum()
        stats.add(f"{term.label}/loss_mean", values)
        if term.models and term.needs_teacher:
            note_gap(term, own, chosen, stats)
        if look:
            look(term, p, here, own, chosen)
    return loss
