"""A term of the loss: its slots as functions, and what it takes from the columns before the first optimizer step.

Its mask, weights and advantages are prepared once, over the whole scored set, so that neither micro-batches nor
optimizer steps change them. Every part reports what it did, under the same names in every variant.
"""
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tasks.opd.core.entries import Entry
from tasks.opd.core.records import ENVIRONMENT, STUDENT
from tasks.opd.objective.advantages import ADVANTAGES
from tasks.opd.objective.columns import Candidates, Columns
from tasks.opd.objective.divergences import DIVERGENCES
from tasks.opd.objective.estimators import ESTIMATORS
from tasks.opd.objective.reductions import REDUCTIONS
from tasks.opd.objective.rows import ROWS
from tasks.opd.objective.supports import SUPPORTS
from tasks.opd.objective.targets import TARGETS
from tasks.opd.objective.weights import WEIGHTS


@dataclass(frozen=True, kw_only=True)
class Term:
    """A recipe's term with its slots as entries, whose functions have their parameters filled in."""
    label: str                            # names its metrics
    coefficient: float
    domains: frozenset[str]               # only rollouts of these; empty: all
    domain: str                           # of them only those of this one, whose expert its teacher is; empty: all
    rows: Entry
    models: dict[str, str]                # what the target calls a model -> under which name it scored; main one first
    target: Entry
    support: Entry
    renormalise: str | None               # None where the support is not a part of the vocabulary
    divergence: Entry | None
    advantage: Entry | None
    estimator: Entry
    clip: dict[str, Any]
    weights: dict[str, Entry]             # by name
    reduction: Entry
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
    old_logprobs: Tensor                  # [N] nats, what ratios are to: the student at the round's start, or near it
    advantage: Tensor | None              # [N], or [N, S] of the candidates
    candidates: Candidates | None
    report: dict[str, float]              # what rows, weights and advantage did


def pick(table: dict[str, Entry], slot: dict) -> Entry:
    """The entry of a slot {"name", "params"} under its parameters, which are filled in."""
    entry, params = table[slot["name"]], slot.get("params", {})
    defaults = entry.function.__kwdefaults__ or {}
    return replace(entry.at(defaults | params), function=partial(entry.function, **params))


def bind_term(spec: dict, label: str) -> Term:
    """A term from its part of the recipe (`requirements.terms_of`)."""
    divergence, advantage, weights = spec["divergence"], spec["advantage"], {}
    estimator, support = pick(ESTIMATORS, spec["estimator"]), pick(SUPPORTS, spec["support"])
    if (estimator.takes in ("advantage", "candidates")) != (advantage is not None):
        raise ValueError(f"{label}: estimator {spec['estimator']['name']} takes a {estimator.takes}, but the term has "
                         f"{'an advantage' if advantage else 'a divergence'}")
    for slot in spec["weights"]:
        weights[slot["name"] if slot["name"] not in weights else f"{slot['name']}_{len(weights)}"] = slot
    return Term(
        label=label, coefficient=spec["coefficient"], domains=frozenset(spec["domains"]), domain=spec["domain"],
        rows=pick(ROWS, spec["rows"]), models=spec["models"], target=pick(TARGETS, spec["target"]), support=support,
        renormalise=spec["support"]["params"].get("renormalise", "both") if support.covers == "part" else None,
        divergence=pick(DIVERGENCES, divergence) if divergence else None,
        advantage=pick(ADVANTAGES, advantage) if advantage else None,
        estimator=estimator, clip=spec["clip"], weights={name: pick(WEIGHTS, slot) for name, slot in weights.items()},
        reduction=pick(REDUCTIONS, spec["reduction"]), denominator=spec["denominator"], group=spec["group"] or label,
        share=spec["share"], needs=frozenset(spec["needs"]), compares=spec["compares"],
        needs_teacher=spec["needs_teacher"])


def bind_terms(specs: list[dict]) -> list[Term]:
    """All terms of a recipe; a term's label is its divergence's or advantage's name, numbered when it recurs."""
    names = [(spec["divergence"] or spec["advantage"])["name"] for spec in specs]
    labels = [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]
    return [bind_term(spec, label) for spec, label in zip(specs, labels)]


def taking_part(term: Term, columns: Columns) -> Tensor:
    """The term's tokens: its rows and domains, written by those it learns from, where its models had a context. [N]."""
    rows = term.rows(columns)
    if term.needs_teacher:
        rows = rows & columns.has_signal
    if wanted := ({term.domain} if term.domain else term.domains):
        rows = rows & torch.tensor([name in wanted for name in columns.domain])
    authored = columns.author != ENVIRONMENT if term.rows.any_author else columns.author == STUDENT
    return rows[columns.rollout] & authored


def prepare(term: Term, columns: Columns) -> Prepared:
    """The term's weights and advantages over the whole scored set; `columns` are the term's own (`prepass`)."""
    mask, weight, report = columns.mask, torch.ones(columns.num_tokens, dtype=torch.float64), {}
    report["row_share"] = float((columns.per_rollout(mask.double()) > 0).double().mean())
    for name, function in term.weights.items():
        outcome = function(columns)
        values, found = outcome if isinstance(outcome, tuple) else (outcome, {})
        own = torch.where(mask, values.double(), 0.0)
        weight = weight * own
        if not function.constant and mask.any():
            report |= {f"{name}_{key}": value for key, value in found.items()}
            report |= {f"{name}_mean": float(own[mask].mean()), f"{name}_largest": float(own[mask].max()),
                       f"{name}_zero_share": float((own[mask] == 0).double().mean())}
    advantage = term.advantage(columns) if term.advantage else None
    if advantage is not None and mask.any():
        worth = advantage[mask].double()
        report |= {"advantage_mean": float(worth.mean()), "advantage_size": float(worth.abs().mean()),
                   "advantage_negative_share": float((worth < 0).double().mean()),
                   "advantage_top1_share": largest_share(worth)}
    old, share = columns.old_logprobs, term.estimator.old_share
    old = old if share == 1 else share * old + (1 - share) * columns.teacher
    return Prepared(mask=mask, weight=torch.where(mask, weight, 0.0), old_logprobs=old,
                    advantage=advantage, candidates=columns.candidates, report=report)


def largest_share(values: Tensor, share: float = 0.01) -> float:
    """The part of sum |value| that the largest 1 % of the values hold, one at least; 0 where all are 0.

    Near 1 a few tokens decide the gradient. Source: Revisiting OPD, arXiv:2603.25562.
    """
    sizes = values.flatten().double().abs()
    largest = sizes.topk(max(1, math.ceil(share * sizes.numel()))).values.sum()
    return float(largest / sizes.sum().clamp(min=1e-300))
