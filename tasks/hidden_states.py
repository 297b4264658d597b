"""When hidden states go: they fill the disk, and only a round's training reads them."""
from contextlib import contextmanager

from tasks.opd.recipe import requirements
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import HIDDEN, Artifact
from tasks.workers import WorkerPool


def release_hidden(recipe: Recipe, name: str, scores: Artifact, pool: WorkerPool, round_index: int) -> None:
    """Retire the hidden states of a model's scores, unless the recipe keeps them or a later cell will read them."""
    if recipe.keep_hidden:
        artifacts.keep(scores)
    elif is_shared(recipe, name, scores, pool, round_index):
        pool.held.append(scores)
    else:
        artifacts.retire(scores, (HIDDEN,))


@contextmanager
def held_for(cells: list[tuple[str, int, Recipe]], pool: WorkerPool):
    """While a suite's cells run, hidden states stay that several of them read."""
    pool.later = [recipe for _, _, recipe in cells]
    try:
        yield
    finally:
        while pool.held:
            artifacts.retire(pool.held.pop(), (HIDDEN,))


def is_shared(recipe: Recipe, name: str, scores: Artifact, pool: WorkerPool, round_index: int) -> bool:
    """Whether a later cell of the suite may ask for the same scores; those of a student that it trains are its own."""
    later = [other.at(round_index) for other in pool.later if round_index < other.rounds]
    return not follows_training(scores, pool) and any(requirements.share_scores(recipe, o, name) for o in later)


def follows_training(artifact: Artifact, pool: WorkerPool) -> bool:
    """Whether a checkpoint is among what an artifact was made from."""
    inputs = pool.derivations[artifact.kind, artifact.fingerprint][2].values()
    return any(source.kind == "checkpoint" or follows_training(source, pool) for source in inputs)
