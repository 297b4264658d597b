"""When hidden states go: they fill the disk, and only a round's training reads them."""
from contextlib import contextmanager

from tasks.opd.recipe import requirements
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import HIDDEN, Artifact, keep, retire
from tasks.workers.pools import WorkerPool


def release_hidden(recipe: Recipe, name: str, scores: Artifact, pool: WorkerPool) -> None:
    """Retire the hidden states of a model's scores, unless the recipe keeps them or a later cell will read them."""
    if recipe.keep_hidden:
        keep(scores)
    elif is_shared(recipe, name, scores, pool):
        pool.held.append(scores)
    else:
        retire(scores, (HIDDEN,))


@contextmanager
def held_for(cells: list[tuple[str, int, Recipe]], pool: WorkerPool):
    """While a suite's cells run, hidden states stay that several of them read."""
    pool.later = [recipe for _, _, recipe in cells]
    try:
        yield
    finally:
        while pool.held:
            retire(pool.held.pop(), (HIDDEN,))


def is_shared(recipe: Recipe, name: str, scores: Artifact, pool: WorkerPool) -> bool:
    """Whether a later cell of the suite may ask for the same scores; those that follow training are a cell's own."""
    return not follows_training(scores, pool) and any(
        requirements.share_scores(recipe, version, name) for other in pool.later for version in other.versions())


def follows_training(artifact: Artifact, pool: WorkerPool) -> bool:
    """Whether a checkpoint is among what an artifact was made from."""
    return any(source.kind == "checkpoint" or follows_training(source, pool)
               for source in pool.derivations[artifact.kind, artifact.fingerprint][2].values())
