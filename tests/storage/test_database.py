"""Connections and transactions: what is kept, what is given up, and what the database's errors mean to callers."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from peewee import SQL, Select, fn
from tests.world import Postgres

from cunho_rules.refusals import Reason, Refusal
from cunho_storage import migrations, secrets
from cunho_storage.database import SESSION, Conflict, Connection, Database
from cunho_storage.statements import Statement, arg, every_row, first_row, together
from cunho_storage.tables import SecretRow

PID = Statement(Select([], [fn.PG_BACKEND_PID()]))
SLEEP = Statement(Select([], [fn.PG_SLEEP(arg("seconds", "float8"))]))
NOW = Statement(Select([], [fn.NOW()]))
FAIL = Statement(Select([], [SQL("1 / 0")]))


@pytest.fixture(scope="module")
def dsn(postgres: Postgres) -> str:
    return postgres.database()


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    opened = Database(dsn, connections=2, role=migrations.APP_ROLE, wait_seconds=0.2)
    yield opened
    await opened.close()


async def pid(database: Database) -> int:
    async with database.connection() as connection:
        number: int = await connection.value(PID)
        return number


async def end(dsn: str, backend: int) -> None:
    """Ends a connection from outside, and waits until it is gone."""
    other = await asyncpg.connect(dsn)
    await other.execute("SELECT pg_terminate_backend($1, 5000)", backend)
    await other.close()


async def test_the_connection_used_last_is_used_first(database: Database) -> None:
    async with database.connection() as outer, database.connection() as inner:
        first, last = await outer.value(PID), await inner.value(PID)
    assert first != last
    # The inner one is given back first, the outer one last.
    assert [await pid(database), await pid(database)] == [first, first]


async def test_every_connection_has_the_settings_that_the_locks_rely_on(database: Database) -> None:
    async with database.connection() as connection:
        for name, value in SESSION.items():
            shown = await connection.value(Statement(Select([], [fn.CURRENT_SETTING(arg("name", "text"))])), name=name)
            assert shown in {value, {"10000": "10s", "2000": "2s", "5000": "5s"}.get(value)}
        assert await connection.value(Statement(Select([], [SQL("current_user")]))) == migrations.APP_ROLE


async def test_a_connection_that_was_lost_while_idle_is_replaced(database: Database, dsn: str) -> None:
    lost = await pid(database)
    await end(dsn, lost)
    await asyncio.sleep(0)  # the driver hears of it
    for _ in range(20):
        try:
            assert await pid(database) != lost
            return
        except Refusal:  # it was not yet known to be lost: this use of it told
            continue
    pytest.fail("the lost connection is never replaced")


async def test_a_connection_that_is_lost_in_a_transaction_is_unavailability(database: Database, dsn: str) -> None:
    async def lose() -> None:
        async with database.transaction() as connection:
            await end(dsn, await connection.value(PID))
            await connection.value(PID)

    with pytest.raises(Refusal) as refused:
        await lose()
    assert refused.value.reason is Reason.DATABASE_UNAVAILABLE
    assert await pid(database) > 0


async def test_who_finds_no_free_connection_in_time_is_told_to_come_again(database: Database) -> None:
    async with database.connection(), database.connection():
        with pytest.raises(Refusal) as refused:
            await pid(database)
    assert refused.value.reason is Reason.DATABASE_UNAVAILABLE
    assert await pid(database) > 0


async def test_a_cancelled_call_leaves_its_place_to_others(database: Database) -> None:
    async def sleep() -> None:
        async with database.transaction() as connection:
            await connection.value(SLEEP, seconds=30)

    for _ in range(3):  # more often than there are places
        task = asyncio.create_task(sleep())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await pid(database) > 0


async def test_a_cancelled_query_leaves_a_connection_that_works(database: Database) -> None:
    async def sleep() -> None:
        async with database.connection() as connection:
            await connection.value(SLEEP, seconds=30)

    used = await pid(database)
    task = asyncio.create_task(sleep())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await pid(database) == used


@pytest.mark.parametrize("when", ["BEGIN", "COMMIT"])
async def test_a_call_cancelled_at_an_end_of_its_transaction_leaves_none_open(
    database: Database, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    executed, script = asyncio.Event(), Connection.script

    async def never_answered(self: Connection, sql: str) -> None:
        await script(self, sql)
        if sql == when:
            executed.set()
            await asyncio.sleep(30)

    async def begin_and_commit() -> None:
        async with database.transaction() as connection:
            await connection.value(PID)

    used = await pid(database)
    monkeypatch.setattr(Connection, "script", never_answered)
    task = asyncio.create_task(begin_and_commit())
    await executed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.connection() as connection:
        assert await connection.value(PID) == used
        assert await connection.value(NOW) < await connection.value(NOW), "now() stands still in a transaction"


async def test_a_connection_whose_transaction_cannot_be_rolled_back_is_not_used_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Connection.script

    async def failing(self: Connection, sql: str) -> None:
        if sql == "ROLLBACK":
            raise Refusal(Reason.DATABASE_UNAVAILABLE)
        await script(self, sql)

    used = await pid(database)
    monkeypatch.setattr(Connection, "script", failing)
    with pytest.raises(Refusal):
        async with database.transaction():
            raise KeyError
    assert await pid(database) != used


async def test_json_comes_back_as_it_went_also_within_rows(database: Database) -> None:
    value = {"name": "Schloß", "versions": ["3.11", 2, None, {"deep": [True]}]}
    sent = Select([], [arg("value", "jsonb").alias("value")])
    statement = Statement(together(sent, first_row(sent), every_row(sent)))
    async with database.connection() as connection:
        row = await connection.row(statement, value=value)
    assert row is not None
    assert [*row] == [value, (value,), [(value,)]]


async def test_a_database_that_is_not_there_is_unavailability(tmp_path: object) -> None:
    nowhere = Database(f"postgresql://cunho@/cunho?host={tmp_path}")
    with pytest.raises(Refusal) as refused:
        await pid(nowhere)
    assert refused.value.reason is Reason.DATABASE_UNAVAILABLE


async def count(connection: Connection) -> int:
    number: int = await connection.value(Statement(SecretRow.select(fn.COUNT(SQL("1")))))
    return number


async def test_a_transaction_is_kept_on_return_and_gone_after_an_exception_or_a_rehearsal(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as connection:
            await secrets.shared(connection, "gone after an exception")
            raise KeyError

    async with database.connection() as connection:
        before = await count(connection)
    async with database.transaction() as connection:
        await secrets.shared(connection, "kept")
    with pytest.raises(KeyError):
        await fail()
    async with database.transaction(rehearsal=True) as connection:
        await secrets.shared(connection, "gone after a rehearsal")
    async with database.connection() as connection:
        assert await count(connection) == before + 1


async def test_a_bug_in_a_statement_is_no_refusal(database: Database) -> None:
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with database.transaction() as connection:
            await connection.value(FAIL)
    assert await pid(database) > 0


async def raised(database: Database, sqlstate: str, **fields: str) -> Exception:
    """What an error that the database raises becomes."""
    using = "".join(f", {name} = '{value}'" for name, value in fields.items())
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is what the caller asserts
        async with database.transaction() as connection:
            await connection.script(f"DO $$ BEGIN RAISE 'x' USING ERRCODE = '{sqlstate}'{using}; END $$")
    return caught.value


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03"])
async def test_who_was_in_the_way_of_another_runs_again(database: Database, sqlstate: str) -> None:
    assert isinstance(await raised(database, sqlstate), Conflict)


@pytest.mark.parametrize("sqlstate", ["23505", "23503", "23514"])
async def test_a_violated_guard_runs_the_transaction_again(database: Database, sqlstate: str) -> None:
    assert isinstance(await raised(database, sqlstate, CONSTRAINT="image_name_public"), Conflict)


async def test_a_violated_constraint_that_guards_no_rule_is_a_bug(database: Database) -> None:
    error = await raised(database, "23514", CONSTRAINT="image_delete_time")
    assert isinstance(error, asyncpg.CheckViolationError)


@pytest.mark.parametrize("sqlstate", ["57014", "57P01", "57P03", "53300", "53100", "08006"])
async def test_what_passes_by_itself_is_unavailability(database: Database, sqlstate: str) -> None:
    error = await raised(database, sqlstate)
    assert isinstance(error, Refusal)
    assert error.reason is Reason.DATABASE_UNAVAILABLE
