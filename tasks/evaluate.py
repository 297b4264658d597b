"""Door to the stage `report`: a student's answers to benchmarks, graded."""
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact
from tasks.stage import run_stage
from tasks.tracking.runs import log_artifact
from tasks.workers import WorkerPool


@task(cache_policy=NO_CACHE, task_run_name="report-{when}")
def evaluate_student(recipe: Recipe, student: Artifact, prompts: dict[str, Artifact], pool: WorkerPool, *, when: str,
                     step: int = 0, teacher: Artifact | None = None) -> dict[str, Artifact]:
    """A report a benchmark; with a teacher, also the distance to it. Greedy answers do not depend on the seed."""
    reports = {}
    for benchmark in recipe.benchmarks:
        spec = {"benchmark": benchmark.model_dump(mode="json"), "engine": recipe.engine_for("write"),
                "seed": recipe.seed if benchmark.sampling.temperature > 0 else 0, "folder": "model",
                "context_tokens": recipe.pair.context_tokens}
        inputs = {"student": student, "prompts": prompts[benchmark.name]} | ({"teacher": teacher} if teacher else {})
        made = run_stage("report", spec, inputs, pool)
        reports[benchmark.name] = log_artifact(made, f"{when}-{benchmark.name}", step=step,
                                               prefix=f"{when}/{benchmark.name}")
    return reports
