"""Answers kept for request ids, so that a repeated call has one effect and one answer. Source: ALL-2."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from peewee import CTE, SQL, Select, fn

from cunho_storage.database import Conflict, Connection
from cunho_storage.statements import Statement, arg, delete_from
from cunho_storage.tables import RequestRow

_KEY = (
    (RequestRow.account_id == arg("account_id"))
    & (RequestRow.method == arg("method"))
    & (RequestRow.request_id == arg("request_id"))
)
_CLAIMED = RequestRow.insert(
    {
        RequestRow.account_id: arg("account_id"),
        RequestRow.method: arg("method"),
        RequestRow.request_id: arg("request_id"),
        RequestRow.fingerprint: arg("fingerprint"),
        RequestRow.create_time: SQL("now()"),
    }
).on_conflict_ignore()
_CLAIMS = CTE("claim", _CLAIMED.returning(RequestRow.request_id))
_NUMBER = Select([_CLAIMS], [fn.COUNT(SQL("1"))])
_TIME = SQL("now()")
_GET = Statement(RequestRow.select(RequestRow.fingerprint, RequestRow.answer).where(_KEY))
_ANSWERED = RequestRow.update({RequestRow.answer: arg("answer")}).where(
    (RequestRow.account_id == arg("asking_account_id"))
    & (RequestRow.method == arg("asked_method"))
    & (RequestRow.request_id == arg("asked_request_id"))
)
_ANSWER = Statement(_ANSWERED)
_FORGET = Statement(delete_from(RequestRow).where(RequestRow.create_time < SQL("now() - interval '24 hours'")))


class Key(NamedTuple):
    """What a request id is unique in."""

    account_id: str
    method: str
    request_id: str


class Answered(NamedTuple):
    """A request that was answered before."""

    #: Digest of its arguments.
    fingerprint: bytes
    answer: bytes


class Begun(NamedTuple):
    """How a mutation has begun."""

    #: The time of its transaction.
    time: datetime
    #: How the request was answered before; None if it is new, and then it is this transaction's.
    answered: Answered | None


class Beginning:
    """How mutations begin: the request id is claimed and a row is locked, in one statement and in this order.

    Args:
        lock: finds the row and locks it. What it says is read in later statements.
    """

    def __init__(self, lock: Any = None) -> None:
        locks = [] if lock is None else [fn.ARRAY(lock)]
        # Named so that the lock comes after the claim: everybody takes the two in this order.
        after_claim = [] if lock is None else [fn.ARRAY(lock.where(SQL("0") <= _NUMBER))]
        self.alone = Statement(Select([], [_TIME, *locks]))
        self.claiming = Statement(Select([], [_TIME, _NUMBER, *after_claim]).with_cte(_CLAIMS))


async def begin(
    connection: Connection, beginning: Beginning, key: Key | None, fingerprint: bytes = b"", **arguments: Any
) -> Begun:
    """Begins a mutation. Waits for others that hold the same request or the row, until they end.

    Args:
        key: None for a request without an id.
        arguments: those of the lock.
    """
    if key is None:
        row = await connection.row(beginning.alone, **arguments)
        assert row is not None
        return Begun(row[0], None)
    row = await connection.row(beginning.claiming, **key._asdict(), fingerprint=fingerprint, **arguments)
    assert row is not None
    if row[1]:
        return Begun(row[0], None)
    answered = await connection.row(_GET, **key._asdict())
    assert answered is not None, "rows stay for 24 hours"
    return Begun(row[0], Answered._make(answered))


class Ending:
    """How mutations end: with their last write and the answer to the request, in one statement.

    Args:
        write: an insert, an update or a delete.
        others: what is written besides.
    """

    def __init__(self, write: Any, *others: CTE) -> None:
        self.alone = Statement(write.with_cte(*others))
        self.answering = Statement(write.with_cte(*others, CTE("answer", _ANSWERED.returning(SQL("1")))))


class Write(NamedTuple):
    """The last write of a mutation."""

    ending: Ending
    arguments: Mapping[str, Any]
    #: How many rows it writes, unless others got in the way.
    rows: int = 1


async def end(connection: Connection, key: Key | None, answer: bytes, last: Write | None = None) -> None:
    """Ends a mutation. Raises Conflict if others got in the way of its last write.

    Args:
        key: the request that this transaction claimed; None for one without an id, whose answer is not kept.
        last: None if nothing is left to write.
    """
    kept = _answering(key, answer) if key else {}
    if last is None:
        if key:
            await connection.run(_ANSWER, **kept)
        return
    statement = last.ending.answering if key else last.ending.alone
    if await connection.run(statement, **last.arguments, **kept) != last.rows:
        raise Conflict("last write")


def _answering(key: Key, answer: bytes) -> dict[str, Any]:
    return {
        "answer": answer,
        "asking_account_id": key.account_id,
        "asked_method": key.method,
        "asked_request_id": key.request_id,
    }


async def forget(connection: Connection) -> None:
    """Forgets the answers that are older than 24 hours."""
    await connection.run(_FORGET)
