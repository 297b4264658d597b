"""A run's budget: whether it is spent, how much of it lies behind, and how much a round may still write.

`history` holds the records of finished rounds, see `recipe.schedule`. No torch.
"""
from collections.abc import Sequence
from typing import Any

from tasks.opd.core.costs import BY_AUTHOR, READ, WRITTEN
from tasks.opd.core.records import STUDENT, TEACHER
from tasks.opd.recipe import requirements
from tasks.opd.recipe.schedule import granted, share_behind
from tasks.opd.recipe.schema import Recipe

CUT = (WRITTEN[STUDENT], WRITTEN[TEACHER], READ)    # currencies whose last rollouts are cut to fit


def given(recipe: Recipe) -> tuple[str, float] | None:
    """The currency of a recipe's budget and its amount; None without one."""
    return granted(recipe.budget.model_dump())


def is_spent(recipe: Recipe, history: Sequence[dict]) -> bool:
    """Whether nothing more can be spent: the budget is used up, or the last round was cut to fit into it.

    A round after one that was cut would be a tiny one, which moves an adaptive optimizer as far as a whole one does.
    """
    if not given(recipe) or not history:
        return False
    most = most_written(recipe, history)
    return history[-1]["cut"] or behind(recipe, history) >= 1 or (most is not None and most["tokens"] < 1)


def behind(recipe: Recipe, history: Sequence[dict]) -> float:
    """How much of a run lies behind, as a share of its budget, else of its rounds."""
    return share_behind(len(history), recipe.rounds, recipe.budget.model_dump(), history)


def most_written(recipe: Recipe, history: Sequence[dict]) -> dict[str, Any] | None:
    """How many tokens the next round's rollouts may have, and which authors' count: {tokens, of: [names of costs]}.

    None where all that a round can write is within the budget. A token that n models read counts n times.
    """
    currency, amount = given(recipe) or ("", 0)
    counted = sorted({BY_AUTHOR[author] for writer in requirements.writers_of(recipe) for author in writer.authors
                      if currency in (READ, BY_AUTHOR[author])})
    if currency not in CUT or not counted:
        return None
    left = int(amount - (history[-1]["spent"][currency] if history else 0))
    tokens = left // max(num_readers(recipe), 1) if currency == READ else left
    return {"tokens": tokens, "of": counted} if tokens < longest_round(recipe) else None


def num_readers(recipe: Recipe) -> int:
    """How many models read a token: those that score, and a teacher that is mixed into what the student writes."""
    mixed = any(writer.asks_teacher and "teacher" not in writer.authors for writer in requirements.writers_of(recipe))
    return len(requirements.needs(recipe)) + mixed


def longest_round(recipe: Recipe) -> int:
    """The most tokens that a round's writers can write; a dataset's solutions are limited by the context alone."""
    copied = any("dataset" in writer.authors for writer in requirements.writers_of(recipe))
    limit = recipe.pair.context_tokens if copied else recipe.rollout.sampling.max_new_tokens
    return sum(recipe.prompts_per_round().values()) * sum(writer.n for writer in recipe.rollout.writers) * limit


def told(recipe: Recipe, history: Sequence[dict]) -> list[str]:
    """What a run that ended spent of its budget, where that is not all of it exactly."""
    currency, amount = given(recipe) or ("", 0)
    spent = history[-1]["spent"][currency] if currency and history else amount
    if spent == amount:
        return []
    way_out = "" if is_spent(recipe, history) else f"; all {recipe.rounds} rounds were made: raise rounds"
    return [f"spent {spent:,.10g} of {amount:,.10g} {currency.replace('_', ' ')} ({spent / amount - 1:+.1%}){way_out}"]
