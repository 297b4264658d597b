"""Whose workers a flow uses, those of the flow around it or its own; what keys they get; who hears how far they are."""
import os
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar

from prefect.blocks.system import Secret
from prefect.runtime import flow_run

from tasks import workers
from tasks.opd.recipe.schema import Recipe
from tasks.progress import Page

shared_crew: ContextVar[dict[str, workers.Crew]] = ContextVar("shared_crew")  # by kind, of the flow around this one


@contextmanager
def crew_of(recipe: Recipe):
    """The crew of the flow around this one where it is of the kind wanted, else a crew of this run's own."""
    lend_keys(recipe)
    crew = shared_crew.get({}).get(recipe.workers)
    with nullcontext(crew) if crew else workers.for_run(recipe) as crew, shown(crew):
        crew.patience = recipe.engine.patience_seconds
        yield crew


def lend_keys(recipe: Recipe) -> None:
    """Keys of servers that the environment lacks come from Prefect's Secrets: OPD_TEACHER_KEY from opd-teacher-key.

    Workers inherit them. Where there is no such Secret the server's maker says what is missing. Only names that begin
    with OPD_ are read: a recipe from elsewhere must not send another Secret to a server of its own.
    """
    for maker in (recipe.pair.teacher, *recipe.pair.others.values()):
        name = maker.params.get("key") if maker.name == "server" else None
        if name and name.startswith("OPD_") and name not in os.environ:
            with suppress(ValueError):  # no such block
                os.environ[name] = Secret.load(name.lower().replace("_", "-")).get()


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
