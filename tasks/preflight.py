"""The task of the stage `preflight`: the silent mistakes, looked for on four prompts before anything is trained."""
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.context import check_context
from tasks.opd.recipe import requirements
from tasks.opd.recipe.schema import Recipe, Train
from tasks.opd.recipe.settings import effort_of
from tasks.opd.store.artifacts import Artifact
from tasks.score import teacher_of
from tasks.stage import run_stage
from tasks.tracking.runs import log_artifact
from tasks.workers.pools import WorkerPool

NUM_PROMPTS = 4


@task(cache_policy=NO_CACHE, task_run_name="preflight")
def preflight(recipe: Recipe, models: dict[str, Artifact], prompts: Artifact, pool: WorkerPool) -> Artifact:
    """The findings; a red one raises OpdError (TokenizerMismatch, EngineError)."""
    check_context.fn(recipe, models, pool)
    now = recipe.at(0)
    needs = requirements.needs(now)
    spec = {"terms": requirements.terms_of(now), "loss": now.loss.model_dump(mode="json"),
            "sampling": now.rollout.sampling.model_dump(mode="json"),
            "filters": [slot.model_dump(mode="json") for slot in now.rollout.filters],
            "engine": now.engine_for("write"), "scoring_engine": now.engine_for("score"),
            "num_prompts": NUM_PROMPTS, "seed": now.seed,
            "accepts": sorted(name for name, why in now.accepts.items() if why),
            "top_k": max([0, *(want["top_k"] for want in needs.values())]),
            "completion_limit": now.rollout.sampling.max_new_tokens,
            "vocabulary": models["student"].counts["vocabulary"],
            "effort": now.train.model_dump(include=effort_of(Train))}
    inputs = {"student": models["student"], "prompts": prompts}
    for name in (names := sorted(needs, key=lambda name: name != now.teacher.model)):
        inputs["teacher" if name == names[0] else f"model:{name}"] = teacher_of(now, name, models, models["student"])[0]
    return log_artifact(run_stage("preflight", spec, inputs, pool), "start")
