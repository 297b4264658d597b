"""Whose workers a flow uses, those of the flow around it or its own; what keys they get; who hears how far they are."""
import os
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar

from prefect.blocks.system import Secret
from prefect.runtime import flow_run

from tasks.opd.recipe import slots
from tasks.opd.recipe.schema import Recipe
from tasks.progress import Page
from tasks.workers import pools

shared_pool: ContextVar[dict[str, pools.WorkerPool]] = ContextVar("shared_pool")  # by kind, of the outer flow


@contextmanager
def pool_for(recipe: Recipe):
    """The pool of the flow around this one where it is of the kind wanted, else a pool of this run's own."""
    lend_keys(recipe)
    pool = shared_pool.get({}).get(recipe.workers)
    with nullcontext(pool) if pool else pools.for_run(recipe) as pool, shown(pool):
        pool.patience = recipe.engine.patience_seconds
        yield pool


@contextmanager
def pool_shared(recipe: Recipe):
    """The same pool, for the flows inside too."""
    with pool_for(recipe) as pool:
        token = shared_pool.set({recipe.workers: pool})
        try:
            yield pool
        finally:
            shared_pool.reset(token)


def lend_keys(recipe: Recipe) -> None:
    """Keys of servers that the environment lacks come from Prefect's Secrets: OPD_TEACHER_KEY from opd-teacher-key.

    Workers inherit them. Where there is no such Secret the server's maker says what is missing. Only names that begin
    with OPD_ are read: a recipe from elsewhere must not send another Secret to a server of its own.
    """
    for maker in (recipe.pair.teacher, *recipe.pair.others.values()):
        name = maker.params.get("key") if slots.entry_of(maker, "maker").remote else None
        if name and name.startswith("OPD_") and name not in os.environ:
            with suppress(ValueError):  # no such block
                os.environ[name] = Secret.load(name.lower().replace("_", "-")).get()


@contextmanager
def shown(pool: pools.WorkerPool):
    """The pool's progress on the page of the flow run at work, if there is one."""
    if flow_run.id is None:
        yield
        return
    before, pool.listener = pool.listener, Page()
    try:
        pool.listener.thread.start()
        yield
    finally:
        page, pool.listener = pool.listener, before
        page.ended.set()
        page.thread.join(timeout=5)  # Prefect may be away
