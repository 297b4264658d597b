"""The task of the stage `grades`: rewards and feedback, then the recipe's filters."""
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact
from tasks.stage import run_stage
from tasks.tracking.runs import log_artifact
from tasks.workers.pools import WorkerPool


@task(cache_policy=NO_CACHE, task_run_name="grades-{round_index:04d}")
def grade_rollouts(recipe: Recipe, prompts: Artifact, rollouts: Artifact, pool: WorkerPool,
                   round_index: int) -> Artifact:
    """The rollouts with rewards; unfit ones are dropped, but not before they were refined."""
    refined = rollouts.kind == "refined"
    filters = recipe.rollout.filters if refined or not recipe.refine else []
    spec = {"graders": recipe.graders(),
            "filters": [slot.model_dump(mode="json") for slot in filters]}
    graded = run_stage("grades", spec, {"prompts": prompts, "rollouts": rollouts}, pool)
    return log_artifact(graded, f"{round_index:04d}{'-refined' if refined else ''}", step=round_index + 1,
                        prefix="grades/unrefined" if recipe.refine and not refined else "grades")
