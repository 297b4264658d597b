"""Prefect's server, for uvicorn: `--factory flows.platform.prefect_server:create_app`.

Mended for SQLite, for which Prefect 3.7.7 is wrong in two places:
- It begins transactions DEFERRED. One that has read cannot begin to write after another wrote: it fails at once with
  "database is locked", whatever the timeout, and a run triggered at that moment is answered 503 (1 of 20 in a minute,
  with a run at work). Begun IMMEDIATE, it waits for its turn. Prefect itself does so where it locks rows.
- After an automation was changed, its event loop waits for a coroutine that may need a lock which a task of that very
  loop holds, and the server never answers again. Here the coroutine is a task of the loop, and nobody waits.
"""
import asyncio
import contextlib
from collections.abc import Coroutine

_tasks: set[asyncio.Task] = set()       # a loop itself holds its tasks weakly


def create_app():
    """The server's application, with its services and pages."""
    from prefect.server.api import server
    from prefect.server.database.configurations import AioSqliteConfiguration
    from prefect.server.events.models import automations
    AioSqliteConfiguration.begin_transaction = immediate(AioSqliteConfiguration.begin_transaction)
    automations.run_coro_as_sync = run_later
    return server.create_app()


def immediate(begin):
    """A `begin_transaction` that waits for its turn to write, whatever it is asked for."""
    @contextlib.asynccontextmanager
    async def begin_transaction(self, session, with_for_update: bool = False):
        async with begin(self, session, with_for_update=True) as transaction:
            yield transaction
    return begin_transaction


def run_later(coroutine: Coroutine) -> None:
    """Run a coroutine as a task of the loop that is running."""
    task = asyncio.get_running_loop().create_task(coroutine)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
