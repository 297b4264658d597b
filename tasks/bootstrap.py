"""The task of the stage `model`: the models a run starts from."""
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.opd.makers.gguf import hash_parts
from tasks.opd.recipe import requirements
from tasks.opd.recipe.schema import Pair, Recipe
from tasks.opd.store.artifacts import Artifact
from tasks.refine import refiners_ask_teacher
from tasks.rollout import writers_with
from tasks.stage import log_line, run_stage
from tasks.tracking.runs import log_artifact
from tasks.workers.pools import WorkerPool


def models_needed(recipe: Recipe) -> set[str]:
    """The names of the pair's models that some round reads."""
    rounds = recipe.versions()
    writing = {"teacher" for now in rounds if writers_with(now, "asks_teacher")}
    refining = {now.teacher.model for now in rounds if refiners_ask_teacher(now)}
    return ({"student"} | writing | refining).union(*map(requirements.needs, rounds)) - requirements.OF_STUDENT


@task(cache_policy=NO_CACHE, task_run_name="models")
def make_models(pair: Pair, names: set[str], pool: WorkerPool) -> dict[str, Artifact]:
    """Models of the pair by name, each after the one its maker names as `of`. A run's seed has no part in them."""
    makers, made = {"student": pair.student, "teacher": pair.teacher, **pair.others}, {}

    def make(name: str) -> Artifact:
        if name not in made:
            spec, source = {"maker": makers[name].model_dump(mode="json"), "seed": 0}, makers[name].params.get("of")
            if sha256 := hash_parts(makers[name].params.get("path", "")):
                spec["sha256"] = sha256  # a file that was replaced is another model
            inputs = {"of": make(source)} if source else {}
            made[name] = log_artifact(run_stage("model", spec, inputs, pool), name, prefix=f"model/{name}")
            for note in made[name].counts.get("notes", ()):
                log_line(f"{name}: {note}")
        return made[name]
    return {name: make(name) for name in sorted(names)}
