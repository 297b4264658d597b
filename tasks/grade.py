"""Door to the stage `grades`: rewards and feedback, then the recipe's filters."""
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
    filters = recipe.rollout.filters if rollouts.kind == "refined" or not recipe.refine else []
    spec = {"graders": recipe.graders(),
            "filters": [slot.model_dump(mode="json") for slot in filters]}
    graded = run_stage("grades", spec, {"prompts": prompts, "rollouts": rollouts}, pool)
    name = f"{round_index:04d}{'-refined' if rollouts.kind == 'refined' else ''}"
    return log_artifact(graded, name, step=round_index)
