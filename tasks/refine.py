"""The task of the stage `refined`: trajectories repaired before anything is learnt from them."""
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.opd.recipe import requirements
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact
from tasks.score import teacher_of
from tasks.stage import log_line, run_stage
from tasks.tracking.runs import log_artifact
from tasks.workers.pools import WorkerPool


def refiners_ask_teacher(recipe: Recipe) -> bool:
    """Whether a refiner asks the teacher."""
    return any(refiner.asks_teacher for refiner in requirements.refiners_of(recipe))


@task(cache_policy=NO_CACHE, task_run_name="refined-{round_index:04d}")
def refine_rollouts(recipe: Recipe, models: dict[str, Artifact], student: Artifact, prompts: Artifact,
                    rollouts: Artifact, pool: WorkerPool, round_index: int) -> Artifact:
    """The rollouts that the recipe's refiners keep, repaired by them in their order."""
    spec = {"refiners": [slot.model_dump(mode="json") for slot in recipe.refine], "round": round_index,
            "seed": recipe.seed, "context_tokens": recipe.pair.context_tokens,
            "engine": recipe.engine_for("write"),
            "sampling": recipe.rollout.sampling.model_dump(mode="json"),
            "graders": recipe.graders()}
    inputs = {"prompts": prompts, "rollouts": rollouts, "student": student}
    if refiners_ask_teacher(recipe):
        inputs["teacher"], spec["folder"] = teacher_of(recipe, recipe.teacher.model, models, student)
    made = run_stage("refined", spec, inputs, pool)
    if any(name.endswith("accepted_share") and share == 1 for name, share in made.counts.items()):
        log_line(f"round {round_index}: every token that the student proposed was accepted (accepted_share 1.0), so "
                 "the teacher redrew none, and these rollouts are the student's own; a smaller k accepts fewer")
    return log_artifact(made, f"{round_index:04d}", step=round_index + 1)
