"""Leases of operations: by the database's clock, one holder at a time, and nothing written by whoever lost one."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from peewee import SQL, fn
from tests.world import Postgres

from cunho_rules.model import Operation
from cunho_server import ids
from cunho_storage import migrations, operations, requests
from cunho_storage.database import Connection, Database
from cunho_storage.statements import Statement, arg
from cunho_storage.tables import OperationRow

STEPS = [{"name": "import", "region_id": "ap-guangzhou", "target_id": "img-1", "state": "PENDING", "error": None}]
DONE = [{**STEPS[0], "state": "SUCCEEDED"}]
#: The fence in the text of statements, and what stands there without it.
EPOCH, NO_EPOCH = r'\("operation"\."epoch" = (\$\d+)\)', r"(\1::bigint > 0)"
_NOW = Statement(OperationRow.select(fn.CLOCK_TIMESTAMP()).limit(SQL("1")))
_LEASED_UNTIL = Statement(
    OperationRow.update({OperationRow.lease_until: fn.CLOCK_TIMESTAMP() + arg("later", "interval")}).where(
        OperationRow.operation_id == arg("operation_id")
    )
)


@pytest.fixture(scope="module")
def dsn(postgres: Postgres) -> str:
    """A database for this file."""
    return postgres.database()


@pytest_asyncio.fixture
async def owner(dsn: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to that database as the owner of the tables; there are no operations yet."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("DELETE FROM operation")
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def database(dsn: str, owner: object) -> AsyncIterator[Database]:
    """The connections of a server to that database."""
    opened = Database(dsn, role=migrations.APP_ROLE)
    yield opened
    await opened.close()


async def add(database: Database, **values: Any) -> Operation:
    """A new operation, as stored."""
    stock: dict[str, Any] = dict.fromkeys(Operation._fields)
    stock |= {
        "operation_id": ids.new("op"),
        "account_id": "acme",
        "created_by": "service:shop",
        "method": "ImportImage",
        "request_id": "",
        "region_id": "ap-guangzhou",
        "target_ids": ["img-1"],
        "input": {},
        "steps": STEPS,
        "warnings": [],
        "quotes": [],
        "state": "PENDING",
        "cancel_requested": False,
        "epoch": 0,
        "attempts": 0,
        "create_time": datetime.now(UTC),
    }
    operation = Operation(**stock | values)
    async with database.connection() as connection:
        await requests.end(connection, None, b"", operations.adding(operation))
    return await get(database, operation)


async def get(database: Database, operation: Operation) -> Operation:
    """The operation as stored."""
    async with database.connection() as connection:
        stored = await operations.get(connection, operation.operation_id)
    assert stored is not None
    return stored


async def claim(database: Database, lease_seconds: float = 60) -> Operation | None:
    """The operation that a worker would carry out next."""
    async with database.connection() as connection:
        return await operations.claim(connection, lease_seconds)


async def claimed(database: Database, lease_seconds: float = 60) -> Operation:
    """The operation that a worker would carry out next, which there is."""
    operation = await claim(database, lease_seconds)
    assert operation is not None
    return operation


async def run_out(database: Database, operation: Operation) -> None:
    """Makes the operation's lease one that has just run out."""
    async with database.connection() as connection:
        await connection.run(_LEASED_UNTIL, operation_id=operation.operation_id, later=timedelta(milliseconds=-1))


async def now(connection: Connection) -> datetime:
    """The time by the database's clock."""
    time = await connection.value(_NOW)
    assert isinstance(time, datetime)
    return time


# --- an operation's row


async def test_a_new_operation_is_stored_as_given_and_pending(database: Database) -> None:
    given: Mapping[str, Any] = {
        "request_id": "6b5c1f0e-5a1e-4f0e-9a4e-3a5f7f5f0d11",
        "target_ids": ["img-1", "img-2"],
        "input": {"instance_id": "ins-1"},
        "steps": [*STEPS, {**STEPS[0], "state": "FAILED", "error": {"reason": "IMAGE_NAME_TAKEN"}}],
        "warnings": [{"reason": "IMAGE_DEPRECATED", "message": "“old”", "metadata": {}}],
        "quotes": [{"nanos": 1}],
    }
    added = await add(database, **given)
    assert await get(database, added) == added
    assert {name: getattr(added, name) for name in given} == given
    assert (added.state, added.epoch, added.attempts, added.cancel_requested) == ("PENDING", 0, 0, False)
    assert (added.lease_until, added.start_time, added.end_time, added.response, added.error) == (None,) * 5


async def test_an_operation_that_never_was_is_not_found(database: Database) -> None:
    async with database.connection() as connection:
        assert await operations.get(connection, "op-00000000") is None


# --- claims


async def test_the_oldest_operation_is_claimed_first_and_each_by_one_worker(database: Database) -> None:
    added = [(await add(database)).operation_id for _ in range(3)]
    assert [(await claimed(database)).operation_id for _ in added] == added
    assert await claim(database) is None


async def test_a_claim_begins_the_operation_and_numbers_the_lease(database: Database) -> None:
    added = await add(database)
    first = await claimed(database)
    assert first == await get(database, added)
    assert (first.state, first.epoch, first.attempts) == ("RUNNING", 1, 1)
    assert first.start_time is not None
    await run_out(database, added)
    second = await claimed(database)
    assert (second.state, second.epoch, second.attempts) == ("RUNNING", 2, 2)
    assert second.start_time == first.start_time


async def test_a_lease_lasts_by_the_clock_of_the_database(database: Database) -> None:
    await add(database)
    async with database.transaction() as connection:
        await connection.script("SELECT pg_sleep(0.1)")  # the time of the transaction is 0.1 s ago from here on
        before = await now(connection)
        operation = await operations.claim(connection, 60)
        assert operation is not None
        assert operation.lease_until is not None
        assert timedelta(seconds=60) <= operation.lease_until - before < timedelta(seconds=61)
        before = await now(connection)
        assert await operations.extend(connection, operation, 90) is False
        after = await now(connection)
    extended = (await get(database, operation)).lease_until
    assert extended is not None
    assert before + timedelta(seconds=90) <= extended <= after + timedelta(seconds=90)


@pytest.mark.parametrize(("later", "free"), [(-0.001, True), (0.5, False)])
async def test_an_operation_is_free_once_its_lease_has_run_out(database: Database, later: float, free: bool) -> None:
    operation = await add(database)
    await claimed(database)
    async with database.connection() as connection:
        await connection.run(_LEASED_UNTIL, operation_id=operation.operation_id, later=timedelta(seconds=later))
    assert (await claim(database) is not None) is free


async def test_an_operation_that_has_ended_is_never_claimed(database: Database) -> None:
    await add(database)
    operation = await claimed(database, 0)
    async with database.connection() as connection:
        assert await operations.end(connection, operation, state="SUCCEEDED", steps=DONE, response=b"")
    assert await claim(database) is None


async def test_operations_of_accounts_that_wait_for_their_first_come_before_those_of_others(database: Database) -> None:
    added = {name: await add(database, account_id=name[0]) for name in ("a1", "a2", "a3", "b1", "b2", "c1")}
    names = {operation.operation_id: name for name, operation in added.items()}
    claims = [names[(await claimed(database)).operation_id] for _ in added]
    assert claims == ["a1", "b1", "c1", "a2", "a3", "b2"]
    await run_out(database, added["b1"])
    await run_out(database, added["b2"])
    assert names[(await claimed(database)).operation_id] == "b1"


async def test_who_claims_does_not_wait_for_another_who_does(database: Database) -> None:
    older, younger = await add(database), await add(database)
    async with database.transaction() as connection:
        first = await operations.claim(connection, 60)
        async with asyncio.timeout(20):
            second = await claimed(database)
        assert await claim(database) is None
    assert first is not None
    assert (first.operation_id, second.operation_id) == (older.operation_id, younger.operation_id)


async def test_without_skipping_locked_rows_a_claim_waits_for_another(database: Database) -> None:
    await add(database)
    await add(database)
    with rewritten(" SKIP LOCKED", "", operations._CLAIM):
        async with database.transaction() as connection:
            assert await operations.claim(connection, 60)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await claim(database)


async def test_without_the_lock_two_workers_claim_the_same(
    database: Database, owner: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    operation, _ = await add(database), await add(database)
    with rewritten(" FOR UPDATE SKIP LOCKED", "", operations._CLAIM):
        async with database.transaction() as connection:
            first = await operations.claim(connection, 60)
            claiming = asyncio.ensure_future(claim(database))
            await somebody_waits_for_a_lock(owner)
        second = await claiming
    assert first is not None
    assert second is not None
    assert first.operation_id == second.operation_id == operation.operation_id


async def test_many_claims_at_once_share_the_operations_out(database: Database) -> None:
    added = {(await add(database)).operation_id for _ in range(40)}
    found = await asyncio.gather(*(claim(database) for _ in range(60)))
    operation_ids = [operation.operation_id for operation in found if operation]
    assert sorted(operation_ids) == sorted(added)


# --- what only the holder of the lease can do

HOLDERS_OWN: dict[str, Callable[[Connection, Operation], Coroutine[Any, Any, Any]]] = {
    "extend": lambda connection, operation: operations.extend(connection, operation, 60),
    "give_back": lambda connection, operation: operations.give_back(connection, operation, DONE),
    "save": lambda connection, operation: operations.save(connection, operation, DONE),
    "end": lambda connection, operation: operations.end(
        connection, operation, state="SUCCEEDED", steps=DONE, response=b"made"
    ),
}


@pytest.mark.parametrize("write", HOLDERS_OWN.values(), ids=HOLDERS_OWN)
async def test_whoever_lost_the_lease_writes_nothing(
    database: Database, write: Callable[[Connection, Operation], Coroutine[Any, Any, Any]]
) -> None:
    operation = await add(database)
    lost = await claimed(database, 0)
    await claimed(database)
    before = await get(database, operation)
    async with database.connection() as connection:
        assert not await write(connection, lost)
    assert await get(database, operation) == before


@pytest.mark.parametrize("write", HOLDERS_OWN.values(), ids=HOLDERS_OWN)
async def test_without_the_fence_whoever_lost_the_lease_would_write(
    database: Database, write: Callable[[Connection, Operation], Coroutine[Any, Any, Any]]
) -> None:
    operation = await add(database)
    lost = await claimed(database, 0)
    await claimed(database)
    before = await get(database, operation)
    with rewritten(EPOCH, NO_EPOCH, operations._EXTEND, operations._GIVE_BACK, operations._SAVE, operations._END):
        async with database.connection() as connection:
            await write(connection, lost)
    assert await get(database, operation) != before


@pytest.mark.parametrize("write", HOLDERS_OWN.values(), ids=HOLDERS_OWN)
async def test_an_operation_that_has_ended_stays_as_it_is(
    database: Database, write: Callable[[Connection, Operation], Coroutine[Any, Any, Any]]
) -> None:
    await add(database)
    operation = await claimed(database)
    async with database.connection() as connection:
        assert await operations.end(connection, operation, state="CANCELLED", steps=STEPS, error=b"why")
        ended = await get(database, operation)
        assert not await write(connection, operation)
        await operations.cancel(connection, operation.operation_id)
    assert await get(database, operation) == ended


async def test_extending_a_lease_tells_whether_the_operation_is_to_be_cancelled(database: Database) -> None:
    await add(database)
    operation = await claimed(database)
    async with database.connection() as connection:
        assert await operations.extend(connection, operation, 60) is False
        await operations.cancel(connection, operation.operation_id)
        assert await operations.extend(connection, operation, 60) is True


async def test_a_worker_that_stops_leaves_the_operation_as_if_it_had_not_tried(database: Database) -> None:
    await add(database)
    operation = await claimed(database)
    async with database.connection() as connection:
        assert await operations.give_back(connection, operation, DONE)
    again = await claimed(database)
    assert (again.attempts, again.epoch, again.steps) == (1, 2, DONE)


async def test_an_end_stores_its_answer_and_frees_the_lease(database: Database) -> None:
    await add(database)
    operation = await claimed(database)
    async with database.connection() as connection:
        assert await operations.end(connection, operation, state="SUCCEEDED", steps=DONE, response=b"\0made")
    ended = await get(database, operation)
    assert (ended.state, ended.steps, ended.response, ended.error) == ("SUCCEEDED", DONE, b"\0made", None)
    assert ended.lease_until is None
    assert ended.end_time is not None


@pytest.mark.parametrize(
    ("state", "answer", "constraint"),
    [
        ("SUCCEEDED", {}, "operation_response"),
        ("SUCCEEDED", {"response": b"", "error": b""}, "operation_error"),
        ("FAILED", {}, "operation_error"),
        ("CANCELLED", {"response": b"", "error": b""}, "operation_response"),
        ("RUNNING", {}, "operation_end_time"),
        ("DONE", {}, "operation_state"),
    ],
)
async def test_an_end_has_the_one_answer_that_fits_it(
    database: Database, state: str, answer: dict[str, bytes], constraint: str
) -> None:
    await add(database)
    operation = await claimed(database)
    async with database.connection() as connection:
        with pytest.raises(Exception, match=constraint):
            await operations.end(connection, operation, state=state, steps=DONE, **answer)
    assert await get(database, operation) == operation


# --- ended ones


async def test_of_those_asked_for_only_the_ended_ones_are_told(database: Database) -> None:
    added = [await add(database) for _ in range(3)]
    operation = await claimed(database)
    async with database.connection() as connection:
        await operations.end(connection, operation, state="SUCCEEDED", steps=DONE, response=b"")
        asked = [each.operation_id for each in added]
        (ended,) = await operations.ended(connection, asked)
        assert ended == await get(database, operation)
        assert await operations.ended(connection, asked[1:]) == []
        assert await operations.ended(connection, []) == []


async def test_only_an_operation_that_has_ended_is_forgotten(database: Database) -> None:
    await add(database)
    operation = await claimed(database)
    async with database.connection() as connection:
        assert not await operations.delete(connection, operation.operation_id)
        await operations.end(connection, operation, state="SUCCEEDED", steps=DONE, response=b"")
        assert await operations.delete(connection, operation.operation_id)
        assert await operations.get(connection, operation.operation_id) is None
        assert not await operations.delete(connection, operation.operation_id)


# --- steps


@contextmanager
def rewritten(old: str, new: str, *statements: Statement) -> Iterator[None]:
    """Those statements with another text.

    Args:
        old: a regular expression, found in each.
    """
    texts = [statement.text for statement in statements]
    for statement in statements:
        statement.text, found = re.subn(old, new, statement.text)
        assert found
    try:
        yield
    finally:
        for statement, text in zip(statements, texts, strict=True):
            statement.text = text


async def somebody_waits_for_a_lock(owner: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Returns when that is so."""
    query = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(5):
        while not await owner.fetch(query):
            await asyncio.sleep(0.005)
