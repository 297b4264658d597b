"""The loss is a sum of terms; here a term's slots become functions and its tokens become coefficients.

What a term needs of the whole scored set (its mask, weights and advantages) is prepared once, before the first
optimizer step. Reductions and denominators belong to the whole optimizer batch and become one coefficient a token, so
that the loss of any chunk of tokens is a plain weighted sum, and splitting a batch never changes its gradient.
"""
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tasks.opd.advantages import ADVANTAGES
from tasks.opd.advantages import WITHOUT_TEACHER as ADVANTAGES_WITHOUT_TEACHER
from tasks.opd.columns import Columns
from tasks.opd.divergences import DIVERGENCES
from tasks.opd.divergences import WITHOUT_TEACHER as DIVERGENCES_WITHOUT_TEACHER
from tasks.opd.estimators import ESTIMATORS, TAKES
from tasks.opd.records import ENVIRONMENT, STUDENT
from tasks.opd.rows import ANY_AUTHOR, ROWS
from tasks.opd.supports import SUPPORTS, StudentTokens, TeacherTokens, renormalised
from tasks.opd.targets import TARGETS
from tasks.opd.weights import WEIGHTS


@dataclass(frozen=True, kw_only=True)
class Term:
    """A recipe's term with its slots bound to functions."""
    label: str                            # names its metrics
    coefficient: float
    rows: Callable
    any_author: bool
    target: Callable
    support: Callable
    owns_ids: bool                        # the support is the teacher's own top-k
    renormalise: str | None
    divergence: Callable | None
    advantage: Callable | None
    estimator: Callable
    takes: str                            # divergence, target or advantage
    clip: dict[str, Any]
    weights: list[Callable]
    reduction: str
    denominator: str
    needs_teacher: bool


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a term took from the columns, once a round."""
    mask: Tensor                          # [N] bool
    weight: Tensor                        # [N]
    advantage: Tensor | None              # [N]


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


def pick(table: dict, slot: dict) -> Callable:
    """The function of a slot {"name", "params"} with its parameters filled in."""
    return partial(table[slot["name"]], **slot.get("params", {}))


def bind_term(spec: dict, label: str) -> Term:
    """A term from its slice of the recipe."""
    divergence, advantage, support = spec["divergence"], spec["advantage"], spec["support"]
    estimator = spec["estimator"]["name"]
    if (TAKES[estimator] == "advantage") != (advantage is not None):
        raise ValueError(f"{label}: estimator {estimator} takes a {TAKES[estimator]}, but the term has "
                         f"{'an advantage' if advantage else 'a divergence'}")
    return Term(
        label=label, coefficient=spec["coefficient"],
        rows=pick(ROWS, spec["rows"]), any_author=spec["rows"]["name"] in ANY_AUTHOR,
        target=pick(TARGETS, spec["target"]), support=pick(SUPPORTS, support),
        owns_ids=support["name"] == "teacher_top_k",
        renormalise=support["params"].get("renormalise", "both") if "top_k" in support["name"] else None,
        divergence=pick(DIVERGENCES, divergence) if divergence else None,
        advantage=pick(ADVANTAGES, advantage) if advantage else None,
        estimator=pick(ESTIMATORS, spec["estimator"]), takes=TAKES[estimator], clip=spec["clip"],
        weights=[pick(WEIGHTS, w) for w in spec["weights"]],
        reduction=spec["reduction"], denominator=spec["denominator"],
        needs_teacher=(advantage["name"] not in ADVANTAGES_WITHOUT_TEACHER if advantage
                       else divergence["name"] not in DIVERGENCES_WITHOUT_TEACHER))


def bind_terms(specs: list[dict]) -> list[Term]:
    """All terms of a recipe; a term's label is its divergence's or advantage's name, numbered when it recurs."""
    names = [(spec["divergence"] or spec["advantage"])["name"] for spec in specs]
    labels = [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]
    return [bind_term(spec, label) for spec, label in zip(specs, labels)]


def prepare(term: Term, columns: Columns) -> Prepared:
    """The term's tokens, weights and advantages over the whole scored set.

    A rollout without a teacher signal leaves a term that needs one, and its denominator.
    """
    rows = term.rows(columns)
    if term.needs_teacher:
        rows = rows & columns.has_signal
    authored = columns.author != ENVIRONMENT if term.any_author else columns.author == STUDENT
    mask = rows[columns.rollout] & authored
    weight = torch.ones(columns.num_tokens, dtype=torch.float64)
    for function in term.weights:
        weight = weight * function(columns).double()
    advantage = term.advantage(columns) if term.advantage else None
    return Prepared(mask=mask, weight=weight * mask, advantage=advantage)


def counted(term: Term, prepared: Prepared, here: Tensor) -> Tensor:
    """What each token adds to its term's denominator, [N]; `here` [N] bool is the optimizer batch."""
    if term.denominator == "kept":
        return (here & (prepared.weight > 0)).double()
    if term.denominator == "weighted":
        return here * prepared.weight
    return (here & prepared.mask).double()


def coefficients(terms: list[Term], prepared: list[Prepared], columns: Columns, batch: list[int],
                 completion_limit: int) -> Tensor:
    """What multiplies each token's loss in the optimizer batch: [terms, N], zero outside the batch. float64.

    token: 1 / sum of counts over the batch, or over all terms that name the same denominator. sequence, prompt: the
    mean over rollouts, or groups, of their token means. sum: 1. constant: 1 / (rollouts * completion_limit),
    arXiv:2503.20783.
    """
    inside = torch.zeros(columns.num_rollouts, dtype=torch.bool)
    inside[batch] = True
    here = inside[columns.rollout]
    counts = [counted(t, p, here) for t, p in zip(terms, prepared)]
    shared = defaultdict(float)
    for term, count in zip(terms, counts):
        shared[term.denominator] += float(count.sum())
    out = []
    for term, p, count in zip(terms, prepared, counts):
        own = term.denominator in ("valid", "kept", "weighted")
        divisor = divisors(term, columns, here & p.mask, count, completion_limit,
                           float(count.sum()) if own else shared[term.denominator])
        weight = torch.where(here, p.weight, 0.0) * term.coefficient
        out.append(torch.where(divisor > 0, weight / divisor.clamp(min=1e-300), 0.0))
    return torch.stack(out)


def divisors(term: Term, columns: Columns, mask: Tensor, count: Tensor, completion_limit: int, whole: float) -> Tensor:
    """What each token's weighted loss is divided by under the term's reduction, [N]."""
    if term.reduction == "token":
        return torch.full_like(count, whole)
    if term.reduction == "sum":
        return torch.ones_like(count)
    rows = columns.per_rollout(mask.double()) > 0                   # [R] rollouts that take part
    if term.reduction == "constant":
        return torch.full_like(count, float(rows.sum()) * completion_limit)
    unit = torch.arange(columns.num_rollouts) if term.reduction == "sequence" else columns.group
    size = torch.zeros(int(unit.max()) + 1, dtype=torch.float64).index_add_(0, unit, columns.per_rollout(count))
    num_units = unit[rows].unique().numel()
    return (size * num_units)[unit][columns.rollout]


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


def signal_of(term: Term, prepared: Prepared, flat: Tensor, student: StudentTokens, teacher: TeacherTokens | None,
              stats: Stats) -> Tensor:
    """What the term's estimator takes, [n]: an advantage, the target's log-probability, or a divergence."""
    if term.takes == "advantage":
        return prepared.advantage[flat].to(student.logits.device)
    if term.takes == "target":
        return term.target({"teacher": teacher.sampled[:, None]}, "teacher")[:, 0]
    ids = term.support(student, teacher)
    live, aimed = student.at(ids), None
    if term.needs_teacher:
        aimed = term.target({"teacher": teacher.at(ids, term.owns_ids)}, "teacher").to(live.dtype)
        if term.renormalise:
            live, aimed = renormalised(live, term.renormalise), renormalised(aimed, term.renormalise)
    return term.divergence(aimed, live, clipping_fold(term.clip, stats, term.label))


def chunk_loss(terms: list[Term], prepared: list[Prepared], coefficient: Tensor, flat: Tensor, old: Tensor,
               student: StudentTokens, teacher: TeacherTokens | None, stats: Stats) -> Tensor:
    """The loss of n tokens `flat` (indices into the columns), a scalar with a graph; `coefficient` is [terms, n].

    A term looks only at tokens whose coefficient is not zero: what stands elsewhere, NaN included, cannot reach it.
    """
    loss = student.logits.sum() * 0
    for term, p, c in zip(terms, prepared, coefficient):
        index = c.nonzero()[:, 0]
        if index.numel() == 0:
            continue
        own_student, own_teacher = student.select(index), teacher.select(index) if teacher is not None else None
        signal = signal_of(term, p, flat[index], own_student, own_teacher, stats)
        values = term.estimator(signal, own_student.sampled, old[index])
        loss = loss + (c[index].to(values) * values).sum()
        stats.add(f"{term.label}/loss_mean", values)
    return loss
