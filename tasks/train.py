"""The task of the stage `checkpoint`: one round of training, whatever the variant."""
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.hidden_states import release_hidden
from tasks.opd.evaluation.spending import training_budget
from tasks.opd.recipe import requirements, schedule, slots
from tasks.opd.recipe.derivations import training_settings
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact
from tasks.score import teacher_of
from tasks.stage import run_stage
from tasks.tracking.runs import log_artifact
from tasks.workers.pools import WorkerPool


@task(cache_policy=NO_CACHE, task_run_name="checkpoint-{round_index:04d}")
def train_student(recipe: Recipe, models: dict[str, Artifact], student: Artifact, rollouts: Artifact,
                  scores: dict[str, Artifact], pool: WorkerPool, round_index: int,
                  history: list[dict] | tuple = ()) -> Artifact:
    """The student after the round, which alone reads its hidden states; `history` are the rounds before it."""
    needs, teacher = requirements.needs(recipe), recipe.teacher
    ema = slots.bind(teacher.refresh, "refresh").get("decay") if teacher.model == "self" else None
    teaching = {name: teacher_of(recipe, name, models, student) for name in scores}
    spec = {"terms": requirements.terms_of(recipe), "loss": recipe.loss.model_dump(mode="json"), "ema_decay": ema,
            "scored": {name: folder for name, (_, folder) in teaching.items()}, **training_settings(recipe),
            "seed": recipe.seed, "round": round_index, "rounds": recipe.rounds,
            "vocabulary": models["student"].counts["vocabulary"],
            "completion_limit": recipe.rollout.sampling.max_new_tokens,
            "controlled": schedule.controlled(recipe.model_dump(mode="json")),
            **training_budget(recipe, history, [rollouts, *scores.values()])}
    inputs = {"rollouts": rollouts, "student": student, **{f"scores:{name}": made for name, made in scores.items()}}
    inputs |= {f"model:{name}": model for name, (model, _) in teaching.items() if needs[name]["hidden"]}
    made = log_artifact(run_stage("checkpoint", spec, inputs, pool), f"{round_index:04d}", step=round_index + 1)
    for name in (name for name in scores if needs[name]["hidden"]):
        release_hidden(recipe, name, scores[name], pool)
    return made
