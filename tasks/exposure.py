"""What benchmarks share with all that a checkpoint was trained on, refused above the limits of the recipe's own."""
import json

from tasks.opd.data.contamination import FILE
from tasks.opd.data.row_files import content_hash
from tasks.opd.recipe.registered import exposure_spec, registered
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact
from tasks.opd.store.trained import trained_on
from tasks.stage import log_line, run_stage
from tasks.tracking.runs import log_artifact
from tasks.workers.pools import WorkerPool

SHARES = ("overlapping_share", "contaminated_share")


def exposure_of(recipe: Recipe, student: Artifact, pool: WorkerPool, *, when: str, step: int
                ) -> dict[str, dict[str, float]]:
    """By benchmark of the recipe the counts `trained_<share>`: what it shares with the student's training.

    Empty for a model that no round has trained, and after each `round`, for it reads the rollouts of all before. What
    others share, or why they were not looked at, is told.
    Raises: DataError for a benchmark of the recipe of which training knows more than its `max_contaminated`.
    """
    inputs = trained_on(student) if when != "round" else {}
    if not inputs:
        return {}
    spec = exposure_spec(recipe)
    spec["sha256"] = [content_hash(one["source"]["params"]) for one in spec["benchmarks"].values()]  # of files, if any
    made = log_artifact(run_stage("exposure", spec, inputs, pool), f"{when}-{step:04d}", step=step)
    read, limits = json.loads((made.path / FILE).read_text(encoding="utf-8")), registered()
    found, own = read["benchmarks"], {benchmark.name for benchmark in recipe.benchmarks}
    for name in found.keys() - own:
        if (share := found[name]["contaminated_share"]) > limits[name].max_contaminated:
            log_line(f"{share:.0%} of the questions of benchmark {name}, which is not among this recipe's, stand in "
                     "what the student was trained on, but for a few words: do not compare it there")
    if missing := read["not_checked"]:
        log_line(f"not checked against what was trained on, for they are not at hand: {', '.join(missing)}",
                 to_person=False)
    return {name: {f"trained_{share}": found[name][share] for share in SHARES} for name in own}
