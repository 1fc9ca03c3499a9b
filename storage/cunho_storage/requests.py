"""How mutations begin and end, and the answers kept for request ids: a repeated call has one effect and one answer.

Most mutations are transactions: they claim the request id and lock a row (`begin`), read, and write (`end`). Those of
one write need no transaction: they look at everything at one moment (`look`), and write unless that has changed
(`end`).
Source: ALL-2.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from peewee import CTE, SQL, Select, Table, fn

from cunho_storage.database import Conflict, Connection
from cunho_storage.statements import Statement, arg, delete_from, first_row, locking, together
from cunho_storage.tables import RequestRow

_NEW = {
    RequestRow.account_id: arg("asking_account_id", "text"),
    RequestRow.method: arg("asked_method", "text"),
    RequestRow.request_id: arg("asked_request_id", "text"),
    RequestRow.fingerprint: arg("fingerprint", "bytea"),
    RequestRow.create_time: SQL("now()"),
}
_THIS = (
    (RequestRow.account_id == arg("asking_account_id", "text"))
    & (RequestRow.method == arg("asked_method", "text"))
    & (RequestRow.request_id == arg("asked_request_id", "text"))
)
_TIME = SQL("now()")
_BEFORE = RequestRow.select(RequestRow.fingerprint, RequestRow.answer).where(_THIS)
_GET = Statement(_BEFORE)
_ANSWERED = RequestRow.update({RequestRow.answer: arg("answer")}).where(_THIS)
_ANSWER = Statement(_ANSWERED)
_FORGET = Statement(delete_from(RequestRow).where(RequestRow.create_time < SQL("now() - interval '24 hours'")))


def _claimed(values: Mapping[Any, Any], *sources: Any) -> Any:
    """Claims the request, unless it was; once for each row of the sources."""
    return RequestRow.insert_from(Select(sources, [*values.values()]), fields=[*values]).on_conflict_ignore()


_ANSWERING = _NEW | {RequestRow.answer: arg("answer", "bytea")}
_CLAIM = Statement(_claimed(_ANSWERING))
_CLAIMS = CTE("claim", _claimed(_NEW).returning(SQL("1")))
_NUMBER = Select([_CLAIMS], [fn.COUNT(SQL("1"))])


class Request(NamedTuple):
    """A request with an id."""

    #: What the id is unique in.
    account_id: str
    method: str
    request_id: str
    #: Digest of its arguments.
    fingerprint: bytes = b""


class Answered(NamedTuple):
    """A request that was answered before."""

    fingerprint: bytes
    answer: bytes


class Begun(NamedTuple):
    """How a mutation has begun."""

    time: datetime
    #: How the request was answered before; None if it is new.
    answered: Answered | None


def _named(request: Request | None) -> dict[str, Any]:
    """The arguments that name the request."""
    account_id, method, request_id, _ = request or (None, None, None, b"")
    return {"asking_account_id": account_id, "asked_method": method, "asked_request_id": request_id}


# --- beginning with a lock, in a transaction


class Beginning:
    """How transactions begin: the request id is claimed and a row is locked, in one statement and in this order.

    Args:
        lock: finds the row and locks it. What it says is read in later statements.
    """

    def __init__(self, lock: Any = None) -> None:
        locks = [] if lock is None else [fn.ARRAY(lock)]
        # Named so that the lock comes after the claim: all that begin so take the two in this order.
        after_claim = [] if lock is None else [fn.ARRAY(lock.where(SQL("0") <= _NUMBER))]
        self.alone = Statement(Select([], [_TIME, *locks]))
        self.claiming = Statement(Select([], [_TIME, _NUMBER, *after_claim]).with_cte(_CLAIMS))


async def begin(connection: Connection, beginning: Beginning, request: Request | None, **arguments: Any) -> Begun:
    """Begins a transaction. Waits for others that hold the same request or the row, until they end.

    Raises Conflict if the request is forgotten meanwhile.

    Args:
        request: None for one without an id.
        arguments: those of the lock.
    """
    if request is None:
        row = await connection.row(beginning.alone, **arguments)
        assert row is not None
        return Begun(row[0], None)
    named = _named(request)
    row = await connection.row(beginning.claiming, **named, fingerprint=request.fingerprint, **arguments)
    assert row is not None
    if row[1]:
        return Begun(row[0], None)
    answered = await connection.row(_GET, **named)
    if answered is None:  # its 24 hours ended between the two statements
        raise Conflict("request")
    return Begun(row[0], Answered._make(answered))


# --- beginning with a look


class Basis:
    """The row that a mutation of one write relies on: nothing is written unless it is as it was looked at.

    This is optimistic locking. Every change of a row has another xmin, the transaction that wrote it. Whatever is to be
    relied on with the row, such as the shares of an image, is changed together with it.

    Args:
        row: finds it.
        strength: that of the lock which keeps it, as in `locking`.
    """

    def __init__(self, row: Any, strength: str) -> None:
        self.version = row.select(SQL("xmin"))
        self.unchanged = locking(row.select(SQL("1")).where(SQL("xmin") == arg("version", "xid")), strength)
        self.lock = Statement(locking(row, strength))


class Look:
    """What a mutation of one write reads, at one moment.

    Args:
        facts: what it is decided by, a column each.
    """

    def __init__(self, basis: Basis, *facts: Any) -> None:
        self.read = Statement(together(_TIME, first_row(_BEFORE), basis.version, *facts))
        self.lock = basis.lock


class Seen(NamedTuple):
    """What a mutation of one write has read."""

    begun: Begun
    #: That of its basis; None if there is no such row.
    version: int | None
    #: The columns of its look.
    facts: Sequence[Any]


async def look(
    connection: Connection, look: Look, request: Request | None, *, locked: bool = False, **arguments: Any
) -> Seen:
    """Begins a mutation of one write.

    Args:
        request: None for one without an id.
        locked: True to keep the basis as it is from now on, in a transaction.
        arguments: those of the basis and the facts.
    """
    if locked:
        await connection.rows(look.lock, **arguments)
    row = await connection.row(look.read, **_named(request), **arguments)
    assert row is not None
    time, answered, version, *facts = row
    return Seen(Begun(time, Answered._make(answered) if answered else None), version, facts)


# --- ending


#: Stands in the writes of an ending: whether they may happen.
MAY = fn.EXISTS(Select([Table("may")], [SQL("1")]))


class Ending:
    """How transactions end: with their last write and the answer to the request, in one statement.

    Args:
        write: an insert, an update or a delete; as the others, only where MAY.
        others: what is written besides.
    """

    def __init__(self, write: Any, *others: CTE) -> None:
        def ending(*before: CTE) -> Statement:
            return Statement(write.with_cte(*before, *others))

        self.alone = ending(CTE("may", Select([], [SQL("1")])))
        self.answering = ending(CTE("may", _ANSWERED.returning(SQL("1"))))


class OneWrite(Ending):
    """How mutations of one write end, or transactions.

    Args:
        basis: what the write relies on. Where that is as it was seen, it writes all its rows, or a constraint refuses
            and nothing is written: a condition of its own that fails would leave the request claimed and the others
            written.
        write: as in Ending.
        others: as in Ending.
    """

    def __init__(self, basis: Basis, write: Any, *others: CTE) -> None:
        super().__init__(write, *others)
        unchanged = CTE("unchanged", basis.unchanged)
        claimed = CTE("may", _claimed(_ANSWERING, unchanged).returning(SQL("1")))
        self.unchanged = Statement(write.with_cte(CTE("may", basis.unchanged), *others))
        self.claiming = Statement(write.with_cte(unchanged, claimed, *others))


class Write(NamedTuple):
    """The last write of a mutation."""

    ending: Ending
    arguments: Mapping[str, Any]
    #: How many rows it writes, unless others got in the way.
    rows: int = 1


async def end(
    connection: Connection, request: Request | None, answer: bytes, last: Write | None = None, seen: Seen | None = None
) -> None:
    """Ends a mutation. Raises Conflict if others got in the way.

    Args:
        request: what is answered; None for one without an id, whose answer is not kept.
        last: None if nothing is left to write.
        seen: what a mutation of one write has looked at; None for a transaction.
    """
    statement = _ending(request, last, seen)
    if statement is None:
        return
    arguments = {**last.arguments} if last else {}
    if request:
        arguments |= {**_named(request), "fingerprint": request.fingerprint, "answer": answer}
    if seen:
        arguments["version"] = seen.version
    if await connection.run(statement, **arguments) != (last.rows if last else 1):
        raise Conflict("last write")


def _ending(request: Request | None, last: Write | None, seen: Seen | None) -> Statement | None:
    if last is None:
        return None if request is None else _CLAIM if seen else _ANSWER
    if seen is None:
        return last.ending.answering if request else last.ending.alone
    assert isinstance(last.ending, OneWrite)
    return last.ending.claiming if request else last.ending.unchanged


async def forget(connection: Connection) -> None:
    """Forgets the answers that are older than 24 hours."""
    await connection.run(_FORGET)
