"""The task of the stages `report` and `divergence`: a student's graded answers, their distance from the teacher."""
from dataclasses import replace
from functools import partial

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.exposure import exposure_of
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
    """A report a benchmark, and all artifacts made for them, after `step` rounds. Greedy answers do not depend on the
    seed. Counts hold the exposure and, with a teacher that gives hidden states (none behind a server), the divergence.
    """
    reports, evaluation, seen = {}, [], exposure_of(recipe, student, pool, when=when, step=step)
    for benchmark in recipe.benchmarks:
        name, inputs = benchmark.name, {"student": student, "prompts": prompts[benchmark.name]}
        log = partial(log_artifact, name=f"{when}-{step:04d}-{name}", step=step, prefix=f"eval/{name}")
        spec = {"benchmark": benchmark.model_dump(mode="json", exclude={"divergence_max_tokens", "max_contaminated"}),
                "engine": recipe.engine_for("write"), "seed": recipe.seed if benchmark.sampling.temperature > 0 else 0,
                "folder": "model", "context_tokens": recipe.pair.context_tokens}
        evaluation.append(report := log(run_stage("report", spec, inputs, pool)))
        counts = report.counts | seen.get(name, {})
        if teacher is not None and "teacher" not in served(recipe):
            spec = {"max_tokens": benchmark.divergence_max_tokens, "folder": "model",
                    "engine": recipe.engine_for("write") | {"name": "torch"}}  # whole distributions, whoever wrote
            made = log(run_stage("divergence", spec, inputs | {"report": report, "teacher": teacher}, pool))
            counts |= made.counts
            evaluation.append(made)
        reports[name] = replace(report, counts=counts)
    return reports, evaluation
