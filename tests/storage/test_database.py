"""Connections and transactions: what is kept, what is given up, and what the database's errors mean to callers."""

import asyncio
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from peewee import SQL, Select, fn
from tests.world import Postgres

from cunho_rules.refusals import Reason, Refusal
from cunho_storage import database as module
from cunho_storage import deadlines, migrations, secrets
from cunho_storage.database import SESSION, Conflict, Connection, Database
from cunho_storage.statements import Statement, arg, every_row, first_row, together
from cunho_storage.tables import SecretRow

PID = Statement(Select([], [fn.PG_BACKEND_PID()]))
SLEEP = Statement(Select([], [fn.PG_SLEEP(arg("seconds", "float8"))]))
NOW = Statement(Select([], [fn.NOW()]))
SHOWN = Statement(Select([], [fn.CURRENT_SETTING(arg("name", "text"))]))
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


def end_unheard(dsn: str, backends: Sequence[int]) -> None:
    """Ends connections from outside, while our own loop stands still and hears nothing of it."""

    async def end_all() -> None:
        for backend in backends:
            await end(dsn, backend)

    thread = threading.Thread(target=asyncio.run, args=(end_all(),))
    thread.start()
    thread.join(20)


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


async def pids(database: Database, number: int) -> list[int]:
    """Opens that many connections."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(database.connection()) for _ in range(number)]
        return [await connection.value(PID) for connection in opened]


async def test_connections_that_were_lost_while_idle_fail_no_call(database: Database, dsn: str) -> None:
    lost = await pids(database, 2)
    end_unheard(dsn, lost)
    async with database.connection() as connection:
        assert await connection.value(PID) not in lost
    async with database.transaction() as connection:
        assert await connection.value(PID) not in lost
    assert database.usage == (1, 0, 0)


#: The message by which PostgreSQL ends a connection.
LAST_WORDS = b"SFATAL\0C57P01\0Mterminating connection\0\0"


async def test_a_connection_whose_end_was_told_and_has_not_come_is_given_up(database: Database) -> None:
    ended = await pid(database)
    async with database.connection() as connection:
        protocol: Any = connection._raw._protocol  # type: ignore[attr-defined]
        protocol.data_received(b"E" + struct.pack("!i", 4 + len(LAST_WORDS)) + LAST_WORDS)
        with pytest.raises(Refusal) as refused:
            await connection.value(PID)
    assert refused.value.reason is Reason.DATABASE_UNAVAILABLE
    assert await pid(database) != ended
    assert database.usage == (1, 0, 0)


async def test_a_connection_that_is_lost_in_a_transaction_is_unavailability(database: Database, dsn: str) -> None:
    async def lose() -> None:
        async with database.transaction() as connection:
            await end(dsn, await connection.value(PID))
            await connection.value(PID)

    with pytest.raises(Refusal) as refused:
        await lose()
    assert refused.value.reason is Reason.DATABASE_UNAVAILABLE
    assert await pid(database) > 0


async def test_a_connection_that_postgresql_has_ended_and_not_yet_closed_is_unavailability(database: Database) -> None:
    last_word = b"SFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"

    async def lose() -> None:
        async with database.connection() as connection:
            raw: Any = connection._raw
            raw._protocol.data_received(b"E" + (len(last_word) + 4).to_bytes(4, "big") + last_word)
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


async def test_a_cancelled_call_leaves_its_slot_to_others(database: Database) -> None:
    async def sleep() -> None:
        async with database.transaction() as connection:
            await connection.value(SLEEP, seconds=30)

    for _ in range(3):  # more often than there are slots
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
        if sql.startswith(when):
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


# --- the time of a call


async def limits(connection: Connection) -> list[str]:
    """What PostgreSQL ends a statement after."""
    return [await connection.value(SHOWN, name=name) for name in ("statement_timeout", "lock_timeout")]


async def test_a_transaction_is_held_to_the_time_that_its_call_has_left(database: Database) -> None:
    loop = asyncio.get_running_loop()

    async def within(seconds: float) -> list[str]:
        deadlines.ends_at(loop.time() + seconds)
        async with database.transaction() as connection:
            return await limits(connection)

    statement, lock = await asyncio.create_task(within(1))
    assert 1900 <= int(statement.removesuffix("ms")) <= 2000, "its own time, and the margin"
    assert 900 <= int(lock.removesuffix("ms")) <= 1001
    assert await asyncio.create_task(within(60)) == ["10s", "2s"]
    async with database.transaction() as connection:
        assert await limits(connection) == ["10s", "2s"], "what is no call, and comes after one"


class Wire(NamedTuple):
    """What lies between us and PostgreSQL."""

    dsn: str
    #: Cleared, nothing that is sent arrives, and nobody is told.
    intact: asyncio.Event


@pytest.fixture
async def wire(dsn: str) -> AsyncIterator[Wire]:
    parts = urlsplit(dsn)
    folder = parse_qs(parts.query)["host"][0]
    intact = asyncio.Event()
    intact.set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await intact.wait()
                writer.write(data)
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await intact.wait()
        others = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{parse_qs(parts.query)['port'][0]}")
        with suppress(ConnectionError):
            await asyncio.gather(carry(reader, others[1]), carry(others[0], writer))

    async with await asyncio.start_server(connect, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield Wire(f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}?sslmode=disable", intact)
        intact.set()


async def refused_while_silent(database: Database, wire: Wire, seconds: float) -> Refusal:
    """How a read is refused whose database falls silent."""

    async def read() -> None:
        async with asyncio.timeout(seconds) as time:
            deadlines.ends_at(time.when() or 0)
            async with database.connection() as connection:
                wire.intact.clear()
                await connection.value(PID)

    with pytest.raises(Refusal) as refused:
        await asyncio.create_task(read())
    return refused.value


async def test_a_call_whose_database_falls_silent_ends_soon_after_its_time(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MARGIN_SECONDS", 0.1)
    database = Database(wire.dsn, connections=2)
    await pids(database, 2)
    refused = await refused_while_silent(database, wire, 0.2)
    assert refused.reason is Reason.DATABASE_UNAVAILABLE
    assert database.usage == (0, 0, 0), "neither the slot nor a connection of the silent server is kept"
    wire.intact.set()
    assert len({*await pids(database, 2)}) == 2
    await database.close()


async def read(database: Database, wire: Wire) -> None:
    async with database.connection() as connection:
        wire.intact.clear()
        await connection.value(PID)


async def begin(database: Database, wire: Wire) -> None:
    await pid(database)
    wire.intact.clear()
    async with database.transaction():
        raise AssertionError("it began")


async def commit(database: Database, wire: Wire) -> None:
    async with database.transaction():
        wire.intact.clear()


@pytest.mark.parametrize("use", [read, begin, commit])
async def test_what_is_no_call_does_not_wait_for_a_silent_database_for_ever(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, use: Callable[[Database, Wire], Awaitable[None]]
) -> None:
    monkeypatch.setattr(module, "_MARGIN_SECONDS", 0.1)
    monkeypatch.setitem(SESSION, "statement_timeout", "200")
    database = Database(wire.dsn, connections=1)
    with pytest.raises(Refusal) as refused:
        await use(database, wire)
    assert refused.value.reason is Reason.DATABASE_UNAVAILABLE
    assert database.usage == (0, 0, 0)
    wire.intact.set()
    assert await pid(database) > 0
    await database.close()


async def test_whether_the_database_answers_is_told_in_time(wire: Wire) -> None:
    database = Database(wire.dsn, connections=1)
    async with database.connection():
        assert await database.answers(5), "though every connection is in use"
        wire.intact.clear()
        assert not await database.answers(0.1)
        wire.intact.set()
    assert await database.answers(5)
    assert database.usage.in_use == 0
    await database.close()


async def test_who_waits_for_a_connection_is_counted(database: Database) -> None:
    async with database.connection(), database.connection():
        waiting = asyncio.create_task(pid(database))
        await asyncio.sleep(0)
        assert database.usage == (2, 2, 1)
    await waiting
    assert database.usage == (2, 0, 0)


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


@pytest.mark.parametrize("sqlstate", ["57014", "57P01", "57P03", "53300", "53100", "58030", "25P04", "08006"])
async def test_what_passes_by_itself_is_unavailability(database: Database, sqlstate: str) -> None:
    error = await raised(database, sqlstate)
    assert isinstance(error, Refusal)
    assert error.reason is Reason.DATABASE_UNAVAILABLE
