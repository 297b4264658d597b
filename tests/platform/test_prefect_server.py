"""What is mended in Prefect's server: transactions, what follows the change of an automation, checks of schemas."""
import asyncio

import pytest
import sqlalchemy as sa
from jsonschema import Draft202012Validator, SchemaError
from prefect.server.database.configurations import AioSqliteConfiguration

from flows.platform.prefect_server import immediate, once, run_later


def count_twice_at_once(file) -> int:
    """The rows after two transactions at once have each counted them, paused, and added one."""
    async def count_and_add(config, engine) -> None:
        session = await config.session(engine)
        async with session, config.begin_transaction(session):
            await session.execute(sa.text("SELECT count(*) FROM numbers"))
            await asyncio.sleep(0.2)
            await session.execute(sa.text("INSERT INTO numbers VALUES (1)"))

    async def work() -> int:
        config = AioSqliteConfiguration(connection_url=f"sqlite+aiosqlite:///{file}")
        engine = await config.engine()
        async with engine.begin() as connection:
            await connection.execute(sa.text("CREATE TABLE numbers (number INTEGER)"))
        await asyncio.gather(count_and_add(config, engine), count_and_add(config, engine))
        async with engine.connect() as connection:
            return (await connection.execute(sa.text("SELECT count(*) FROM numbers"))).scalar()
    return asyncio.run(work())


def test_two_transactions_that_read_and_then_write_both_succeed(tmp_path, monkeypatch):
    waiting = immediate(AioSqliteConfiguration.begin_transaction)
    monkeypatch.setattr(AioSqliteConfiguration, "begin_transaction", waiting)
    assert count_twice_at_once(tmp_path / "numbers.db") == 2


def test_prefects_own_transactions_still_need_that(tmp_path):
    with pytest.raises(sa.exc.OperationalError, match="database is locked"):
        count_twice_at_once(tmp_path / "numbers.db")


def test_what_needs_a_lock_of_the_loop_is_run_when_the_loop_has_let_go_of_it():
    async def work() -> list[str]:
        lock, order = asyncio.Lock(), []

        async def needing() -> None:
            async with lock:
                order.append("later")
        async with lock:
            run_later(needing())  # to wait for it here would be to wait for ever
            await asyncio.sleep(0)
            order.append("holder")
        await asyncio.sleep(0.01)
        return order
    assert asyncio.run(work()) == ["holder", "later"]


def test_a_schema_that_passed_is_not_checked_again_and_one_that_is_wrong_is():
    checked = []

    def check(schema: dict, *args, **options) -> None:
        checked.append(schema)
        Draft202012Validator.check_schema(schema, *args, **options)
    check_schema = once(check)
    form = {"type": "object", "properties": {"rounds": {"type": "integer"}}}
    for _ in range(3):
        check_schema(form, format_checker=None)
        check_schema({**form, "title": "another"})
    assert checked == [form, {**form, "title": "another"}]
    form["type"] = "no type at all"  # the same object, changed
    for _ in range(2):
        with pytest.raises(SchemaError, match="no type at all"):
            check_schema(form)
    assert len(checked) == 4
