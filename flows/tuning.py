"""Equal tuning before a suite's cells: every variant's trials, judged on questions of their own."""
from prefect import tags

from flows.distill import distill
from tasks.bootstrap import make_models
from tasks.opd.evaluation import cell_costs
from tasks.opd.evaluation.reports import rewards
from tasks.opd.evaluation.tuned import Tried, Tuned, tuned_by
from tasks.opd.recipe.suite import Suite
from tasks.opd.recipe.tuning import Trial
from tasks.opd.store.run_records import recorded
from tasks.prompts import make_prompts
from tasks.workers.pools import WorkerPool


def tune(plan: Suite, trials: list[Trial], pool: WorkerPool) -> dict[str, Tuned]:
    """What each variant's trials said; a trial that failed is shown and never chosen."""
    with recorded(f"{plan.name}-validation", suite=plan.name):
        for trial in {trial.variant: trial for trial in trials}.values():
            keep_apart(trial, pool)
    found: dict[str, list[Tried]] = {}
    for trial in trials:
        found.setdefault(trial.variant, []).append(tried(trial, plan.name))
    return {variant: tuned_by(several) for variant, several in found.items()}


def keep_apart(trial: Trial, pool: WorkerPool) -> None:
    """Raise DataError when the variant is graded on a validation question; `distill` looks at those trained on."""
    student, ask = make_models(trial.recipe.pair, {"student"}, pool)["student"], trial.recipe.pair.context_tokens
    test = make_prompts(trial.test, student, pool, context_tokens=ask, use="test")
    make_prompts(trial.recipe.benchmarks[0], student, pool, context_tokens=ask, use="validation", train=test)


def tried(trial: Trial, suite: str) -> Tried:
    """One trial run to its end: its mean on the validation questions and what it cost, or its error."""
    try:
        with tags(f"suite:{suite}", f"variant:{trial.variant}", "tuning"):
            result = distill(trial.recipe, suite)
    except Exception as error:  # the other trials do not depend on it
        return Tried(settings=trial.settings, mean=None, costs=None, error=f"{type(error).__name__}: {error}"[:300])
    means = rewards(result["end"][trial.recipe.benchmarks[0].name])
    return Tried(settings=trial.settings, mean=sum(means.values()) / len(means), error="",
                 costs=cell_costs.costs_of(result["checkpoint"], result["evaluation"]))
