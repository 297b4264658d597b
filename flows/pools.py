"""Whose workers a flow uses, those of the flow around it or its own, on which device; who hears how far they are."""
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

from prefect.runtime import deployment, flow_run

from tasks import devices
from tasks.keys import lend_keys
from tasks.opd.recipe.schema import Recipe
from tasks.progress import Page
from tasks.stage import log_line
from tasks.workers import pools

shared_pool: ContextVar[dict[str, pools.WorkerPool]] = ContextVar("shared_pool")  # by kind, of the outer flow


@contextmanager
def pool_for(recipe: Recipe):
    """The pool of the flow around this one where it is of the kind wanted, else a pool of this run's own."""
    lend_keys(recipe)
    pool = shared_pool.get({}).get(recipe.workers)
    with nullcontext(pool) if pool else own_pool(recipe) as pool, shown(pool):
        pool.patience = recipe.engine.patience_seconds
        yield pool


@contextmanager
def own_pool(recipe: Recipe):
    """A pool on a device that no other run uses meanwhile, for this flow and those inside it."""
    with devices.held(str(flow_run.name), log_line, share_cpu=deployment.id is None), pools.for_run(recipe) as pool:
        token = shared_pool.set({recipe.workers: pool})
        try:
            yield pool
        finally:
            shared_pool.reset(token)


@contextmanager
def shown(pool: pools.WorkerPool):
    """The pool's progress on the page of the flow run at work, if there is one."""
    if flow_run.id is None:
        yield
        return
    before, pool.listener, patience_seconds = pool.listener, Page(), 1  # who stops a run wants it gone
    try:
        pool.listener.thread.start()
        yield
        patience_seconds = 5  # Prefect may be away
    finally:
        page, pool.listener = pool.listener, before
        page.ended.set()
        page.thread.join(patience_seconds)
