"""Whose workers a flow uses: those of the flow around it, or its own; and who hears how far they are."""
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

from prefect.runtime import flow_run

from tasks import workers
from tasks.opd.recipe import Recipe
from tasks.progress import Page

shared_crew: ContextVar[dict[str, workers.Crew]] = ContextVar("shared_crew")  # by kind, of the flow around this one


@contextmanager
def crew_of(recipe: Recipe):
    """The crew of the flow around this one where it is of the kind wanted, else a crew of this run's own."""
    crew = shared_crew.get({}).get(recipe.workers)
    with nullcontext(crew) if crew else workers.for_run(recipe) as crew, shown(crew):
        yield crew


@contextmanager
def shown(crew: workers.Crew):
    """The crew's progress on the page of the flow run at work, if there is one."""
    if flow_run.id is None:
        yield
        return
    before, crew.listener = crew.listener, Page()
    try:
        crew.listener.thread.start()
        yield
    finally:
        page, crew.listener = crew.listener, before
        page.ended.set()
        page.thread.join(timeout=5)  # Prefect may be away
