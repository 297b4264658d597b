"""Prefect's server, for uvicorn: `--factory flows.platform.prefect_server:create_app`.

On SQLite, Prefect begins transactions DEFERRED. One that has read cannot begin to write after another wrote: it fails
at once with "database is locked", whatever the timeout, and a run triggered at that moment is answered 503 (1 of 20 in
a minute, with a run at work). Begun IMMEDIATE, it waits for its turn. Prefect itself does so where it locks rows.
"""
import contextlib


def create_app():
    """The server's application, with its services and pages."""
    from prefect.server.api import server
    from prefect.server.database.configurations import AioSqliteConfiguration
    AioSqliteConfiguration.begin_transaction = immediate(AioSqliteConfiguration.begin_transaction)
    return server.create_app()


def immediate(begin):
    """A `begin_transaction` that waits for its turn to write, whatever it is asked for."""
    @contextlib.asynccontextmanager
    async def begin_transaction(self, session, with_for_update: bool = False):
        async with begin(self, session, with_for_update=True) as transaction:
            yield transaction
    return begin_transaction
