"""The task of the stage `rollouts`: a round's completions, by the recipe's writers."""
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.opd.recipe import budgets, requirements
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact
from tasks.stage import run_stage
from tasks.tracking.runs import log_artifact
from tasks.workers.pools import WorkerPool


def writers_with(recipe: Recipe, fact: str) -> bool:
    """Whether a fact (`on_policy`, `asks_teacher`) holds for some writer."""
    return any(getattr(writer, fact) for writer in requirements.writers_of(recipe))


@task(cache_policy=NO_CACHE, task_run_name="rollouts-{round_index:04d}")
def write_rollouts(recipe: Recipe, models: dict[str, Artifact], student: Artifact, prompts: Artifact, pool: WorkerPool,
                   round_index: int, history: list[dict] | tuple = ()) -> Artifact:
    """The round's rollouts, within what is left of the budget after the rounds of `history`.

    Where the student does not write, the student it started from stands for its tokenizer.
    """
    spec = {"writers": [writer.model_dump(mode="json") for writer in recipe.rollout.writers], "round": round_index,
            "sampling": recipe.rollout.sampling.model_dump(mode="json"), "seed": recipe.seed,
            "prompts_per_round": recipe.prompts_per_round(), "context_tokens": recipe.pair.context_tokens,
            "engine": recipe.engine_for("write")}
    spec |= {"most": most} if (most := budgets.most_written(recipe, history)) else {}
    on_policy = writers_with(recipe, "on_policy")
    inputs = {"prompts": prompts, "student": student if on_policy else models["student"]}
    if writers_with(recipe, "asks_teacher"):
        inputs["teacher"] = models["teacher"]
    return log_artifact(run_stage("rollouts", spec, inputs, pool), f"{round_index:04d}", step=round_index + 1)
