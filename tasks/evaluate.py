"""The task of the stages `report` and `divergence`: a student's graded answers, their distance from the teacher."""
from dataclasses import replace

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.opd.recipe.checks.servers import served
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact
from tasks.stage import run_stage
from tasks.tracking.runs import log_artifact
from tasks.workers.pools import WorkerPool


@task(cache_policy=NO_CACHE, task_run_name="report-{when}-{step:04d}")
def evaluate_student(recipe: Recipe, student: Artifact, prompts: dict[str, Artifact], pool: WorkerPool, *,
                     when: str = "round", step: int = 0,
                     teacher: Artifact | None = None) -> tuple[dict[str, Artifact], list[Artifact]]:
    """A report a benchmark, and all artifacts that were made for them. Greedy answers do not depend on the seed.

    `step` rounds are finished. With a teacher that gives hidden states, so not one behind a server, the counts hold
    its divergence too.
    """
    reports, evaluation, measured = {}, [], teacher is not None and "teacher" not in served(recipe)
    for benchmark in recipe.benchmarks:
        inputs, logged = {"student": student, "prompts": prompts[benchmark.name]}, f"eval/{benchmark.name}"
        spec = {"benchmark": benchmark.model_dump(mode="json", exclude={"divergence_max_tokens", "max_contaminated"}),
                "engine": recipe.engine_for("write"), "seed": recipe.seed if benchmark.sampling.temperature > 0 else 0,
                "folder": "model", "context_tokens": recipe.pair.context_tokens}
        reports[benchmark.name] = report = log_artifact(
            run_stage("report", spec, inputs, pool), f"{when}-{step:04d}-{benchmark.name}", step=step, prefix=logged)
        if measured:
            spec = {"max_tokens": benchmark.divergence_max_tokens, "folder": "model",
                    "engine": recipe.engine_for("write") | {"name": "torch"}}  # whole distributions, whoever wrote
            made = log_artifact(run_stage("divergence", spec, inputs | {"report": report, "teacher": teacher}, pool),
                                f"{when}-{step:04d}-{benchmark.name}", step=step, prefix=logged)
            reports[benchmark.name] = replace(report, counts=report.counts | made.counts)
            evaluation.append(made)
        evaluation.append(report)
    return reports, evaluation
