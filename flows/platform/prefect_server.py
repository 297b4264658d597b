"""Prefect's server, for uvicorn: `--factory flows.platform.prefect_server:create_app`.

Prefect 3.7.7 is mended in three places, of which SQLite needs the first two:
- It begins transactions DEFERRED. One that has read cannot begin to write after another wrote: it fails at once with
  "database is locked", whatever the timeout, and a run triggered at that moment is answered 503 (1 of 20 in a minute,
  with a run at work). Begun IMMEDIATE, it waits for its turn. Prefect itself does so where it locks rows.
- After an automation was changed, its event loop waits for a coroutine that may need a lock which a task of that very
  loop holds, and the server never answers again. Here the coroutine is a task of the loop, and nobody waits.
- It holds the schemas of the form and of the work pool against the schema of schemas, four times a deployment that is
  registered and again for every run that is triggered: half of the server's time. Here one that passed is remembered.
"""
import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable, Coroutine

_tasks: set[asyncio.Task] = set()       # a loop itself holds its tasks weakly


def create_app():
    """The server's application, with its services and pages."""
    from jsonschema import Draft202012Validator
    from prefect.server.api import server
    from prefect.server.database.configurations import AioSqliteConfiguration
    from prefect.server.events.models import automations
    from prefect.utilities.schema_tools import validation
    AioSqliteConfiguration.begin_transaction = immediate(AioSqliteConfiguration.begin_transaction)
    automations.run_coro_as_sync = run_later
    for validator in (Draft202012Validator, validation._VALIDATOR):
        validator.check_schema = once(validator.check_schema)
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


def once(check: Callable) -> Callable:
    """A `check_schema(schema, ..)` that checks a schema until it has passed; one that is wrong raises every time."""
    passed: set[bytes] = set()          # SHA-256 of the schema as JSON

    def check_schema(schema: dict, *args, **options) -> None:
        digest = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).digest()
        if digest not in passed:
            check(schema, *args, **options)
            passed.add(digest)
    return check_schema
