"""Reads and writes of operations, and the leases by which workers carry them out.

A lease is by the database's clock and numbered by the operation's epoch: whoever writes names its epoch, and a worker
whose lease another has taken over writes nothing. An operation's end and its effect are one transaction.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from peewee import CTE, SQL, Select, fn

from cunho_rules import filters
from cunho_rules.model import Operation, OperationState
from cunho_rules.orders import Key
from cunho_storage import pages, requests
from cunho_storage.conditions import some_element
from cunho_storage.database import Connection
from cunho_storage.statements import Statement, any_of, arg, delete_from, locking
from cunho_storage.tables import OperationRow

_THIS = OperationRow.operation_id == arg("operation_id")
_RUNNING = OperationRow.end_time.is_null()
_MINE = _THIS & _RUNNING & (OperationRow.epoch == arg("epoch"))
_LEASE = fn.CLOCK_TIMESTAMP() + fn.MAKE_INTERVAL(0, 0, 0, 0, 0, 0, arg("lease_seconds", "float8"))

_GET = Statement(OperationRow.select().where(_THIS))
_FIELDS = OperationRow._meta.sorted_fields
_ADDED = OperationRow.insert_from(
    Select([], [arg(field.name) for field in _FIELDS]).where(requests.MAY), fields=_FIELDS
)
_CANCEL = Statement(OperationRow.update({OperationRow.cancel_requested: SQL("true")}).where(_THIS & _RUNNING))
_DELETE = Statement(delete_from(OperationRow).where(_THIS & ~_RUNNING))
_ENDED = Statement(OperationRow.select().where((OperationRow.operation_id == any_of("operation_ids")) & ~_RUNNING))

_NOBODYS = OperationRow.lease_until.is_null() | (OperationRow.lease_until < SQL("clock_timestamp()"))
# By now() alone, as of the statement: only what is constant finds the few rows by their index.
_BUSY_ACCOUNT_IDS = OperationRow.select(OperationRow.account_id).where(OperationRow.lease_until >= SQL("now()"))


def _oldest(claimable: Any) -> Any:
    """The id of the oldest operation that can be claimed, if nobody else is claiming it."""
    oldest = OperationRow.select(OperationRow.operation_id).where(claimable).order_by(OperationRow.create_time)
    return locking(oldest.limit(SQL("1")), "UPDATE", skip_locked=True)


_CLAIM = Statement(
    OperationRow.update(
        {
            OperationRow.state: SQL("'RUNNING'"),
            OperationRow.epoch: OperationRow.epoch + SQL("1"),
            OperationRow.attempts: OperationRow.attempts + SQL("1"),
            OperationRow.lease_until: _LEASE,
            OperationRow.start_time: fn.COALESCE(OperationRow.start_time, SQL("now()")),
        }
    )
    .where(
        OperationRow.operation_id
        == fn.COALESCE(
            _oldest(_RUNNING & _NOBODYS & OperationRow.account_id.not_in(_BUSY_ACCOUNT_IDS)),
            _oldest(_RUNNING & _NOBODYS),
        )
    )
    .returning(*OperationRow._meta.sorted_fields)
)
_EXTEND = Statement(
    OperationRow.update({OperationRow.lease_until: _LEASE}).where(_MINE).returning(OperationRow.cancel_requested)
)
_GIVE_BACK = Statement(
    OperationRow.update(
        {
            OperationRow.lease_until: _LEASE,
            OperationRow.attempts: OperationRow.attempts - SQL("1"),
            OperationRow.steps: arg("steps"),
        }
    ).where(_MINE)
)
_SAVE = Statement(OperationRow.update({OperationRow.steps: arg("steps")}).where(_MINE))
_END = Statement(
    OperationRow.update(
        {
            OperationRow.state: arg("state"),
            OperationRow.steps: arg("steps"),
            OperationRow.response: arg("response"),
            OperationRow.error: arg("error"),
            OperationRow.end_time: SQL("now()"),
            OperationRow.lease_until: SQL("NULL"),
        }
    ).where(_MINE)
)

_UNFINISHED = Statement(
    OperationRow.select(
        OperationRow.state,
        fn.COUNT(SQL("1")),
        fn.EXTRACT(SQL("epoch FROM clock_timestamp() - min(create_time)")).cast("float8"),
    )
    .where(_RUNNING)
    .group_by(OperationRow.state)
)


_ADDING = requests.Ending(_ADDED)


def beginning_with(basis: requests.Basis, write: Any) -> requests.OneWrite:
    """How mutations end that add an operation and write what it begins with.

    Args:
        write: its arguments are named as the fields of an operation only if they are the same.
    """
    return requests.OneWrite(basis, write, CTE("added", _ADDED.returning(SQL("1"))))


def adding(operation: Operation, first: requests.Write | None = None) -> requests.Write:
    """The write that adds the operation.

    Args:
        first: what the operation begins with, if anything, of an ending that `beginning_with` made.
    """
    if first is None:
        return requests.Write(_ADDING, operation._asdict())
    return first._replace(arguments={**operation._asdict(), **first.arguments})


class Unfinished(NamedTuple):
    """The operations that have not ended."""

    #: How many, by state.
    numbers: Mapping[str, int]
    #: Age of the oldest; 0 if there is none.
    oldest_seconds: float


async def get(connection: Connection, operation_id: str) -> Operation | None:
    """The operation, or None."""
    row = await connection.row(_GET, operation_id=operation_id)
    return Operation._make(row) if row else None


async def cancel(connection: Connection, operation_id: str) -> None:
    """Asks whoever carries out the operation to undo it; nothing if it has ended."""
    await connection.run(_CANCEL, operation_id=operation_id)


async def delete(connection: Connection, operation_id: str) -> bool:
    """Forgets an operation that has ended; False if it has not."""
    return await connection.run(_DELETE, operation_id=operation_id) == 1


async def ended(connection: Connection, operation_ids: Iterable[str]) -> list[Operation]:
    """Those of the operations that have ended."""
    rows = await connection.rows(_ENDED, operation_ids=[*operation_ids])
    return [Operation._make(row) for row in rows]


async def claim(connection: Connection, lease_seconds: float) -> Operation | None:
    """The oldest operation that nobody carries out, now leased to the caller; None if there is none.

    Those of accounts of which one is being carried out come after all others: an account with many holds up nobody.
    """
    row = await connection.row(_CLAIM, lease_seconds=lease_seconds)
    return Operation._make(row) if row else None


async def extend(connection: Connection, operation: Operation, lease_seconds: float) -> bool | None:
    """Extends the lease: whether the operation is to be cancelled, or None if the lease is lost."""
    cancel: bool | None = await connection.value(
        _EXTEND, operation_id=operation.operation_id, epoch=operation.epoch, lease_seconds=lease_seconds
    )
    return cancel


async def give_back(
    connection: Connection, operation: Operation, steps: Sequence[Mapping[str, Any]], *, seconds: float = 0
) -> bool:
    """Leaves the operation to be claimed after some seconds, and forgets this attempt, which did not fail by itself.

    False if the lease is lost: then nothing is stored.
    """
    written = await connection.run(
        _GIVE_BACK,
        operation_id=operation.operation_id,
        epoch=operation.epoch,
        lease_seconds=seconds,
        steps=steps,
    )
    return written == 1


async def save(connection: Connection, operation: Operation, steps: Sequence[Mapping[str, Any]]) -> bool:
    """Stores the steps; False if the lease is lost."""
    return await connection.run(_SAVE, operation_id=operation.operation_id, epoch=operation.epoch, steps=steps) == 1


async def end(
    connection: Connection,
    operation: Operation,
    *,
    state: str,
    steps: Sequence[Mapping[str, Any]],
    response: bytes | None = None,
    error: bytes | None = None,
) -> bool:
    """Ends the operation; False if the lease is lost, and then the transaction must not be committed."""
    return (
        await connection.run(
            _END,
            operation_id=operation.operation_id,
            epoch=operation.epoch,
            state=state,
            steps=steps,
            response=response,
            error=error,
        )
        == 1
    )


async def unfinished(connection: Connection) -> Unfinished:
    """How many operations have not ended, and since when."""
    rows = await connection.rows(_UNFINISHED)
    numbers: dict[str, int] = {OperationState.PENDING: 0, OperationState.RUNNING: 0}
    numbers.update((state, number) for state, number, _ in rows)
    return Unfinished(numbers, max((age for _, _, age in rows), default=0.0))


# --- pages

_COLUMNS: dict[str, Any] = {
    "done": lambda comparison: OperationRow.end_time.is_null(not comparison.value),  # which an index serves
    "method": OperationRow.method,
    "target_id": some_element(OperationRow.target_ids),
    "create_time": OperationRow.create_time,
    "operation_id": OperationRow.operation_id,
}


async def page(
    connection: Connection,
    *,
    account_id: str | None,
    expression: filters.Expression | None,
    keys: Sequence[Key],
    cursor: Sequence[Any] | None,
    limit: int,
) -> list[Operation]:
    """The first `limit` operations of the account, in the order of `keys`, that match. None: of every account."""
    statement = _page(account_id is not None, expression, tuple(keys), cursor is not None)
    arguments = {f"cursor_{index}": value for index, value in enumerate(cursor or ())}
    rows = await connection.rows(statement, account_id=account_id, limit=limit, **arguments)
    return [Operation._make(row) for row in rows]


@lru_cache(maxsize=256)
def _page(
    one_account: bool, expression: filters.Expression | None, keys: tuple[Key, ...], continued: bool
) -> Statement:
    query = OperationRow.select()
    if one_account:
        query = query.where(OperationRow.account_id == arg("account_id"))
    return Statement(pages.first_rows(query, _COLUMNS, expression, keys, continued=continued))
