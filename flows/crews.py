"""Whose workers a flow uses: those of the flow around it, or its own."""
from contextlib import nullcontext
from contextvars import ContextVar

from tasks import workers
from tasks.opd.recipe import Recipe

shared_crew: ContextVar[dict[str, workers.Crew]] = ContextVar("shared_crew")  # by kind, of the flow around this one


def crew_of(recipe: Recipe):
    """The crew of the flow around this one where it is of the kind wanted, else a crew of this run's own."""
    crew = shared_crew.get({}).get(recipe.workers)
    return nullcontext(crew) if crew else workers.for_run(recipe)
