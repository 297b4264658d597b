"""A term of the loss: its slots as functions, and what it takes from the columns before the first optimizer step.

Its mask, weights and advantages are prepared once, over the whole scored set, so that neither micro-batches nor
optimizer steps change them. Every part reports what it did, under the same names in every variant.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tasks.opd.core.records import ENVIRONMENT, STUDENT
from tasks.opd.objective.advantages import ADVANTAGES
from tasks.opd.objective.columns import Candidates, Columns
from tasks.opd.objective.divergences import DIVERGENCES
from tasks.opd.objective.estimators import ESTIMATORS, TAKES
from tasks.opd.objective.rows import ANY_AUTHOR, ROWS
from tasks.opd.objective.supports import SUPPORTS
from tasks.opd.objective.targets import SEES_STUDENT, TARGETS, UNNORMALISED
from tasks.opd.objective.weights import WEIGHTS


@dataclass(frozen=True, kw_only=True)
class Term:
    """A recipe's term with its slots bound to functions."""
    label: str                            # names its metrics
    coefficient: float
    domain: str                           # only these rollouts; empty: all
    rows: Callable
    any_author: bool
    models: dict[str, str]                # what the target calls a model -> under which name it scored; main one first
    target: Callable
    unnormalised: bool                    # the target lacks its normaliser
    sees_student: bool                    # the target depends on the student as it is now
    support: Callable
    owns_ids: bool                        # the support is the teacher's own top-k
    renormalise: str | None
    divergence: Callable | None
    advantage: Callable | None
    estimator: Callable
    takes: str                            # divergence, target, advantage or candidates
    clip: dict[str, Any]
    weights: dict[str, Callable]          # by name
    reduction: str
    denominator: str
    group: str                            # terms of one group are parts of one: they share their denominator
    share: float                          # of a token that this part adds to it, where parts look at the same tokens
    needs: frozenset[str]                 # columns that its rows, weights, advantage and estimator read
    compares: bool                        # its divergence looks at the target
    needs_teacher: bool


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a term took from the columns, once a round."""
    mask: Tensor                          # [N] bool
    weight: Tensor                        # [N]
    old_logprobs: Tensor                  # [N] nats, the student at the round's start; NaN where no slot asked
    advantage: Tensor | None              # [N], or [N, S] of the candidates
    candidates: Candidates | None
    position: Tensor                      # [N] long, of the tokens
    report: dict[str, float]              # what rows, weights and advantage did


def pick(table: dict, slot: dict) -> Callable:
    """The function of a slot {"name", "params"} with its parameters filled in."""
    return partial(table[slot["name"]], **slot.get("params", {}))


def bind_term(spec: dict, label: str) -> Term:
    """A term from its part of the recipe (`requirements.terms_of`)."""
    divergence, advantage, support = spec["divergence"], spec["advantage"], spec["support"]
    estimator, target, weights = spec["estimator"]["name"], spec["target"]["name"], {}
    if (TAKES[estimator] in ("advantage", "candidates")) != (advantage is not None):
        raise ValueError(f"{label}: estimator {estimator} takes a {TAKES[estimator]}, but the term has "
                         f"{'an advantage' if advantage else 'a divergence'}")
    for slot in spec["weights"]:
        weights[slot["name"] if slot["name"] not in weights else f"{slot['name']}_{len(weights)}"] = slot
    return Term(
        label=label, coefficient=spec["coefficient"], domain=spec["domain"],
        rows=pick(ROWS, spec["rows"]), any_author=spec["rows"]["name"] in ANY_AUTHOR,
        models=spec["models"],
        target=pick(TARGETS, spec["target"]), unnormalised=target in UNNORMALISED, sees_student=target in SEES_STUDENT,
        support=pick(SUPPORTS, support), owns_ids=support["name"] == "teacher_top_k",
        renormalise=None if support["name"] in ("sampled", "full") else support["params"].get("renormalise", "both"),
        divergence=pick(DIVERGENCES, divergence) if divergence else None,
        advantage=pick(ADVANTAGES, advantage) if advantage else None,
        estimator=pick(ESTIMATORS, spec["estimator"]), takes=TAKES[estimator], clip=spec["clip"],
        weights={name: pick(WEIGHTS, slot) for name, slot in weights.items()},
        reduction=spec["reduction"], denominator=spec["denominator"], group=spec["group"] or label,
        share=spec["share"], needs=frozenset(spec["needs"]), compares=spec["compares"],
        needs_teacher=spec["needs_teacher"])


def bind_terms(specs: list[dict]) -> list[Term]:
    """All terms of a recipe; a term's label is its divergence's or advantage's name, numbered when it recurs."""
    names = [(spec["divergence"] or spec["advantage"])["name"] for spec in specs]
    labels = [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]
    return [bind_term(spec, label) for spec, label in zip(specs, labels)]


def taking_part(term: Term, columns: Columns) -> Tensor:
    """The term's tokens: its rows and domain, written by those it learns from, where its models had a context. [N]."""
    rows = term.rows(columns)
    if term.needs_teacher:
        rows = rows & columns.has_signal
    if term.domain:
        rows = rows & torch.tensor([name == term.domain for name in columns.domain])
    authored = columns.author != ENVIRONMENT if term.any_author else columns.author == STUDENT
    return rows[columns.rollout] & authored


def prepare(term: Term, columns: Columns) -> Prepared:
    """The term's weights and advantages over the whole scored set; `columns` are the term's own (`prepass`)."""
    mask, weight, report = columns.mask, torch.ones(columns.num_tokens, dtype=torch.float64), {}
    report["row_share"] = float((columns.per_rollout(mask.double()) > 0).double().mean())
    for name, function in term.weights.items():
        own = torch.where(mask, function(columns).double(), 0.0)
        weight = weight * own
        if name != "uniform" and mask.any():
            report |= {f"{name}_mean": float(own[mask].mean()), f"{name}_largest": float(own[mask].max()),
                       f"{name}_zero_share": float((own[mask] == 0).double().mean())}
    advantage = term.advantage(columns) if term.advantage else None
    if advantage is not None and mask.any():
        worth = advantage[mask].double()
        report |= {"advantage_mean": float(worth.mean()), "advantage_size": float(worth.abs().mean()),
                   "advantage_negative_share": float((worth < 0).double().mean())}
    return Prepared(mask=mask, weight=torch.where(mask, weight, 0.0), old_logprobs=columns.old_logprobs,
                    advantage=advantage, candidates=columns.candidates, position=columns.position, report=report)
