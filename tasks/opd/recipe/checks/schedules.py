"""What can be said of a schedule and of controllers without models: when patches begin, what may move, and how far."""
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from tasks.opd.core.costs import BY_AUTHOR, READ, WRITTEN
from tasks.opd.recipe import budgets, schedule, slots
from tasks.opd.recipe.checks.terms import Found
from tasks.opd.recipe.requirements import refiners_of, writers_of
from tasks.opd.recipe.schema import Controller, Recipe, Teacher
from tasks.opd.recipe.slots import Problem


def start_problems(recipe: Recipe) -> Found:
    """Patches begin one after the other, in rounds that come; with a budget nobody knows when a round comes."""
    budget, before = schedule.granted(recipe.budget.model_dump()), None
    kinds = {"round" if patch.at is None else "at" for patch in recipe.schedule}
    if budget and len(kinds) == 2:
        yield Problem("schedule", "some patches begin in a round and some at a share of the budget: their "
                      "order is not known; give all of them `at`")
        return
    for index, patch in enumerate(recipe.schedule):
        if patch.round is not None and patch.round >= recipe.rounds:
            yield Problem(f"schedule.{index}.round", f"never comes: the run has rounds 0 to {recipe.rounds - 1}; use "
                          "one of these, or `at`, a share of the run", patch.round)
        start = patch.at if budget and patch.at is not None else \
            patch.round if patch.at is None else patch.at * recipe.rounds
        if before is not None and start <= before:
            yield Problem(f"schedule.{index}", f"begins at {schedule.start_of(patch.model_dump())}, not after "
                          f"schedule.{index - 1}; put them in order, and settings that change together into one `set`")
        before = start


def controller_problems(recipe: Recipe, version: dict) -> Found:
    """Every controller moves a number of its own, which stands within its bounds; no patch sets it.

    `version` is the recipe as plain data, after some of its patches.
    """
    taken = {key: f"schedule.{i}" for i, patch in enumerate(recipe.schedule) for key in patch.set}
    for index, controller in enumerate(recipe.controllers):
        key, (low, high) = f"controllers.{index}", (controller.low, controller.high)
        if low >= high:
            yield Problem(f"{key}.low", f"must be below high, {high:g}", low)
            continue
        for other in (other for other in taken if overlap(other, controller.moves)):
            yield Problem(f"{key}.moves", f"{taken[other]} sets {other}, too; a setting is moved by one controller, or "
                          "by patches", controller.moves)
        taken[controller.moves] = key
        try:
            value = schedule.value_at(version, controller.moves)
        except (KeyError, IndexError, ValueError, TypeError):
            yield Problem(f"{key}.moves", "no such key", controller.moves)
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield Problem(f"{key}.moves", "is no number; a controller moves numbers only", controller.moves)
        elif not low <= value <= high:
            side, bound = ("low", low) if value < low else ("high", high)
            yield Problem(f"{key}.{side}", f"{controller.moves} begins at {value:g}, outside [{low:g}, {high:g}]",
                          bound)
        elif isinstance(value, int) and not (low.is_integer() and high.is_integer()):
            yield Problem(f"{key}.low", f"{controller.moves} is a whole number; so must its bounds be", low)


def overlap(one: str, other: str) -> bool:
    """Whether one dotted key is the other, or lies below it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def corners(controllers: list[Controller], version: dict) -> Iterator[dict[str, Any]]:
    """What controllers may set at most: every combination of their bounds, as dotted settings."""
    whole = [isinstance(schedule.value_at(version, c.moves), int) for c in controllers]
    sides = [[int(bound) if w else bound for bound in (c.low, c.high)] for c, w in zip(controllers, whole)]
    for chosen in itertools.product(*sides) if controllers else ():
        yield {c.moves: value for c, value in zip(controllers, chosen)}


def average_is_kept(versions: list[tuple[int, Recipe]]) -> Found:
    """A moving average of the student is kept from the first round on, or never.

    `versions` are what the patches make of the recipe, one after the other, each with its last patch's index.
    """
    for (_, before), (index, version) in itertools.pairwise(versions):
        if is_average(version.teacher) != is_average(before.teacher):
            yield Problem(f"schedule.{index}.set", "a moving average (teacher.model: self, refresh: ema) can neither "
                          "begin nor end in a later round; keep it throughout, or use refresh: frozen or live")


def is_average(teacher: Teacher) -> bool:
    """Whether a teacher is the student's moving average."""
    return teacher.model == "self" and slots.entry_of(teacher.refresh, "refresh").averages


def budget_problems(recipe: Recipe) -> Found:
    """A budget is in a currency that the recipe spends."""
    currency, amount = budgets.given(recipe) or ("", 0)
    written = {BY_AUTHOR[author] for entry in (*writers_of(recipe), *refiners_of(recipe))
               for author in entry.authors if author in BY_AUTHOR}
    reads = budgets.num_readers(recipe) or any(entry.asks_teacher for entry in refiners_of(recipe))
    if currency in WRITTEN.values() and currency not in written or currency == READ and not reads:
        yield Problem(f"budget.{currency}", "is never spent by this recipe, so that it would make all its rounds; give "
                      "the budget in another currency, trained_tokens for example", amount)


def never_held(recipe: Recipe, num_rounds: int, before: Sequence[dict] | None = None) -> list[str]:
    """Patches that never hold in a run of so many rounds, as a note.

    `before` are the records of all but the last of them; None: not known, and only rounds are looked at where there is
    a budget.
    """
    budget = recipe.budget.model_dump()
    behind = schedule.share_behind(num_rounds - 1, recipe.rounds, budget, before or [])
    reached = 1.0 if schedule.granted(budget) and before is None else behind
    late = [schedule.start_of(patch.model_dump()) for patch in recipe.schedule
            if (patch.round >= num_rounds if patch.at is None else patch.at > reached)]
    return [f"with {num_rounds} rounds, what the schedule says from {', '.join(late)} on never happens; begin earlier, "
            "or make the run longer"] if late else []


def changes(recipe: Recipe) -> list[str]:
    """What changes as the run goes, a line each: by the schedule from when on, by a controller within which bounds."""
    patches = [f"from {schedule.start_of(patch.model_dump())} on: {', '.join(patch.set)}" for patch in recipe.schedule]
    return patches + [f"{c.moves} is moved after every round by controller {c.name}, within [{c.low:g}, {c.high:g}]"
                      for c in recipe.controllers]
