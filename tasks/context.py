"""The task of the stage `context`: whether the models that score can be shown what the teacher's context adds."""
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.opd.recipe import requirements, slots
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact
from tasks.score import teacher_of
from tasks.stage import run_stage
from tasks.workers.pools import WorkerPool


@task(cache_policy=NO_CACHE, task_run_name="context")
def check_context(recipe: Recipe, models: dict[str, Artifact], pool: WorkerPool) -> list[Artifact]:
    """What was found, one for each context that adds a system message. Raises: DataError where a template drops it."""
    found = []
    for now in recipe.versions():
        if slots.entry_of(now.teacher.context, "context").system:
            inputs = {name: teacher_of(now, name, models, models["student"])[0] for name in requirements.needs(now)}
            spec = {"context": now.teacher.context.model_dump(mode="json")}
            found.append(run_stage("context", spec, inputs, pool))
    return found
