"""Benchmark a checkpoint of a run, or any model folder."""
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows.pools import pool_for
from tasks.bootstrap import make_models
from tasks.evaluate import evaluate_student
from tasks.opd.core.errors import DataError
from tasks.opd.recipe.schema import Recipe, Slot
from tasks.opd.store.artifacts import Artifact, read_record
from tasks.opd.store.run_records import recorded, refer
from tasks.prompts import make_prompts


def artifact_at(folder: Path) -> Artifact | None:
    """The artifact whose folder, or whose model folder, this is; None for a model from elsewhere."""
    for place in (folder, folder.parent):
        record = read_record(place)
        if record and Artifact.from_json(record).path.resolve() == place.resolve():
            return Artifact.from_json(record)
    return None


def run_name() -> str:
    """Which model is asked: an artifact by kind and fingerprint, another by its folder's name."""
    place = Path(flow_run.parameters["folder"]).expanduser().absolute()
    artifact = artifact_at(place)
    return f"evaluate-{artifact.kind}-{artifact.fingerprint[:8]}" if artifact else f"evaluate-{place.name}"


@flow(flow_run_name=run_name, persist_result=False)
def evaluate(recipe: Recipe, folder: str) -> dict[str, Artifact]:
    """Reports of the model in `folder` on the recipe's benchmarks; of the recipe only these, context, engine count."""
    place = Path(folder).expanduser().absolute()
    if not place.is_dir():
        raise DataError(f"{folder} is not a folder; give a checkpoint's or a model's")
    with pool_for(recipe) as pool, recorded(run_name(), folder=str(place), recipe=recipe.model_dump(mode="json")):
        given = recipe.pair.model_copy(update={"student": Slot(name="folder", params={"path": str(place)})})
        student = artifact_at(place) or make_models(given, {"student"}, pool)["student"]
        refer(student.kind, student.fingerprint)
        ask = {"context_tokens": recipe.pair.context_tokens, "use": "test"}
        prompts = {benchmark.name: make_prompts(benchmark, student, pool, **ask) for benchmark in recipe.benchmarks}
        return evaluate_student(recipe, student, prompts, pool, when="final")[0]
