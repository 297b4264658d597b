"""The task of the stage `scores`: what each teacher that the recipe's terms ask for says of a round's rollouts."""
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.opd.recipe import requirements, slots
from tasks.opd.recipe.schema import Recipe
from tasks.opd.scoring.self_teachers import REFRESHES
from tasks.opd.store.artifacts import Artifact
from tasks.stage import run_stage
from tasks.tracking.runs import log_artifact
from tasks.workers.pools import WorkerPool


def teacher_of(recipe: Recipe, name: str, models: dict[str, Artifact], student: Artifact) -> tuple[Artifact, str]:
    """The artifact, and the folder in it, that score under a name: `start`, `live`, `self` by its refresh, a model."""
    if name not in requirements.OF_STUDENT:
        return models[name], "model"
    version, folder = ("round" if name == "live" else "start"), "model"
    if name == "self":
        version, folder = REFRESHES[recipe.teacher.refresh.name](**slots.bind(recipe.teacher.refresh, "refresh"))
    chosen = models["student"] if version == "start" else student
    return chosen, folder if chosen.kind == "checkpoint" else "model"  # before the first round there is no average


@task(cache_policy=NO_CACHE, task_run_name="scores-{round_index:04d}")
def score_rollouts(recipe: Recipe, models: dict[str, Artifact], student: Artifact, prompts: Artifact,
                   rollouts: Artifact, pool: WorkerPool, round_index: int) -> dict[str, Artifact]:
    """A signal by model name; none when no term reads a teacher's."""
    scores = {}
    for name, want in requirements.needs(recipe).items():
        model, folder = teacher_of(recipe, name, models, student)
        spec = {"context": recipe.teacher.context.model_dump(mode="json"), "want": want, "folder": folder,
                "domains": requirements.domains_of(recipe, name),
                "temperature": recipe.loss.temperature, "engine": recipe.engine_for("score"),
                "context_tokens": recipe.pair.context_tokens, "vocabulary": models["student"].counts["vocabulary"]}
        made = run_stage("scores", spec, {"prompts": prompts, "rollouts": rollouts, "model": model}, pool)
        scores[name] = log_artifact(made, f"{name}-{round_index:04d}", step=round_index + 1, prefix=f"scores/{name}")
    return scores
