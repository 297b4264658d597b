"""The task of the stage `prompts`: slices of sources, rendered for the student."""
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.opd.data.row_files import content_hash
from tasks.opd.recipe.schema import Recipe, Source
from tasks.opd.store.artifacts import Artifact
from tasks.stage import run_stage
from tasks.tracking.runs import log_artifact
from tasks.workers.pools import WorkerPool

SLICE = set(Source.model_fields)  # the grader, too: a truth that it cannot grade is quarantined


def training_prompts(recipe: Recipe, student: Artifact, pool: WorkerPool) -> Artifact:
    """The prompts that a recipe trains on; those of several sources as one artifact."""
    parts = {source.name: make_prompts(source, student, pool, context_tokens=recipe.pair.context_tokens, use="train")
             for source in recipe.training_sources().values()}
    return join_prompts(parts, pool) if len(parts) > 1 else parts[recipe.prompts.name]


@task(cache_policy=NO_CACHE, task_run_name="prompts-train")
def join_prompts(parts: dict[str, Artifact], pool: WorkerPool) -> Artifact:
    """The prompts of several sources as one artifact."""
    return log_artifact(run_stage("joined_prompts", {"sources": list(parts)}, parts, pool), "train", prefix="prompts")


@task(cache_policy=NO_CACHE, task_run_name="prompts-{use}-{source.name}")
def make_prompts(source: Source, student: Artifact, pool: WorkerPool, *, context_tokens: int, use: str,
                 train: Artifact | None = None) -> Artifact:
    """A source's questions; of a benchmark, too few of their words may stand in the prompts trained on to be known."""
    spec = source.model_dump(mode="json", include=SLICE) | {"context_tokens": context_tokens}
    if sha256 := content_hash(source.source.params):  # a file that was edited is another source
        spec["sha256"] = sha256
    if train:
        spec["max_contaminated"] = source.max_contaminated
    inputs = {"student": student} | ({"train": train} if train else {})
    name = f"{use}-{source.name}"
    return log_artifact(run_stage("prompts", spec, inputs, pool), name, prefix=f"prompts/{name}")
