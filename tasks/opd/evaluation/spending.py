"""What finished rounds spent, by currency, and what of a budget a round's training is told. No torch."""
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tasks.opd.core.costs import SECONDS, TRAINED
from tasks.opd.evaluation.cell_costs import ROUND, records_behind, tokens_of
from tasks.opd.recipe import budgets
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact, read_record

BEFORE_TRAINING = ROUND[:-1]            # the stages of a round whose costs are known as its training begins


def spending_of(checkpoint: Artifact, before: Sequence[dict]) -> dict[str, Any]:
    """What a run spent up to the end of a checkpoint's round, by currency, given the records of the rounds `before`.

    {spent, cut}: `cut` is whether the round's rollouts have all the tokens that the budget left them.
    """
    record = read_record(checkpoint.path)
    round_records = [record, *records_behind(map(Artifact.from_json, record["inputs"].values()), BEFORE_TRAINING)]
    spent = Counter(before[-1]["spent"] if before else {})
    spent.update(spent_on(round_records))
    return {"spent": dict(spent), "cut": any(map(is_cut, round_records))}


def spent_on(records: list[dict]) -> dict[str, float]:
    """Tokens by name, and seconds, of stages by their records."""
    return {**tokens_of(records), SECONDS: sum(record["seconds"] for record in records)}


def is_cut(record: dict) -> bool:
    """Whether a stage wrote all the tokens that the budget left it."""
    most = record["spec"].get("most")
    return bool(most) and sum(record["counts"][name] for name in most["of"]) >= most["tokens"]


def training_budget(recipe: Recipe, history: Sequence[dict], made: Iterable[Artifact]) -> dict[str, Any]:
    """What a checkpoint's spec says of the budget, given the round's last rollouts and scores; nothing without one.

    `trained_tokens`, which the trainer counts itself; else `behind`, the shares of the budget at which training begins
    and ends, where the learning rate depends on them. What training itself spends counts from the next round on.
    """
    currency, amount = budgets.given(recipe) or ("", 0)
    if currency == TRAINED:
        return {TRAINED: amount}
    if not currency or recipe.train.schedule == "constant":
        return {}
    begin = budgets.behind(recipe, history)
    end = begin + spent_on(records_behind(made, BEFORE_TRAINING))[currency] / amount
    return {"behind": [min(begin, 1.0), min(end, 1.0)]}
