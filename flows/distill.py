"""The main flow: distil a teacher into a student, round by round, and benchmark the student before and after."""
from prefect import flow

from flows import tables
from flows.pools import pool_for
from tasks.bootstrap import make_models, models_needed
from tasks.evaluate import evaluate_student
from tasks.findings import conclude, observe
from tasks.grade import grade_rollouts
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact
from tasks.pages import recorded_run
from tasks.preflight import preflight
from tasks.prompts import make_prompts, training_prompts
from tasks.publish import publish
from tasks.refine import refine_rollouts
from tasks.rollout import write_rollouts
from tasks.score import score_rollouts
from tasks.stage import prune, rounds
from tasks.tracking import runs
from tasks.train import train_student
from tasks.workers import pools


@flow(flow_run_name="{recipe.name}-seed{recipe.seed}", persist_result=False)
def distill(recipe: Recipe, suite: str = "") -> dict:
    """Distil the teacher into the student on the student's own rollouts; benchmark it before, after, and on the way."""
    with pool_for(recipe) as pool, runs.run_for(recipe, suite or None) as run, recorded_run(recipe, suite) as page:
        models = make_models(recipe.pair, models_needed(recipe), pool)
        student, teacher, ask = models["student"], models.get("teacher"), {"context_tokens": recipe.pair.context_tokens}
        prompts = training_prompts(recipe, student, pool)
        held_out = {b.name: make_prompts(b, student, pool, **ask, use="test", train=prompts) for b in recipe.benchmarks}
        preflight(recipe, models, prompts, pool)
        start, evaluation = evaluate_student(recipe, student, held_out, pool, when="start", teacher=teacher)
        checkpoints, history, findings = [], [], []
        for round_index in rounds(recipe, pool, history):
            rollouts, student = one_round(recipe.at(round_index, history), models, student, prompts, pool, history)
            observe(recipe, student, history, findings)
            if recipe.evaluate_every and len(history) % recipe.evaluate_every == 0:
                evaluation += evaluate_student(recipe, student, held_out, pool, step=len(history), teacher=teacher)[1]
            prune(checkpoints := [*checkpoints[-2:], student])
        run.sample(rollouts, models["student"])
        end, after = evaluate_student(recipe, student, held_out, pool, when="final", teacher=teacher, step=len(history))
        result = {"recipe": recipe.name, "seed": recipe.seed, "checkpoint": student, "start": start, "end": end,
                  "evaluation": [*evaluation, *after], "findings": conclude(recipe, history, findings, start, end)}
        run.show(numbers=tables.numbers_of_run(result, len(history)), step=len(history))
    publish(f"{recipe.name}-seed{recipe.seed}", {"results.md": tables.markdown_of_run(result)}, **run.links())
    return result | {"mlflow_page": run.url(), "mlflow_charts": run.charts(), "report": str(page)}


def one_round(now: Recipe, models: dict[str, Artifact], student: Artifact, prompts: Artifact, pool: pools.WorkerPool,
              history: list[dict]) -> tuple[Artifact, Artifact]:
    """The round's graded rollouts, and the student trained on them; schedule and controllers are resolved in `now`."""
    rollouts = write_rollouts(now, models, student, prompts, pool, round_index := len(history), history)
    rollouts = grade_rollouts(now, prompts, rollouts, pool, round_index)
    if now.refine:
        rollouts = refine_rollouts(now, models, student, prompts, rollouts, pool, round_index)
        rollouts = grade_rollouts(now, prompts, rollouts, pool, round_index)
    scores = score_rollouts(now, models, student, prompts, rollouts, pool, round_index)
    return rollouts, train_student(now, models, student, rollouts, scores, pool, round_index, history)
