"""Answers kept for request ids, so that a repeated call has one effect and one answer. Source: ALL-2."""

from typing import NamedTuple

from peewee import SQL

from cunho_storage.database import Connection
from cunho_storage.statements import Statement, arg, delete_from
from cunho_storage.tables import RequestRow

_KEY = (
    (RequestRow.account_id == arg("account_id"))
    & (RequestRow.method == arg("method"))
    & (RequestRow.request_id == arg("request_id"))
)
_CLAIM = Statement(
    RequestRow.insert(
        {
            RequestRow.account_id: arg("account_id"),
            RequestRow.method: arg("method"),
            RequestRow.request_id: arg("request_id"),
            RequestRow.fingerprint: arg("fingerprint"),
            RequestRow.create_time: SQL("now()"),
        }
    ).on_conflict_ignore()
)
_GET = Statement(RequestRow.select(RequestRow.fingerprint, RequestRow.answer).where(_KEY))
_ANSWER = Statement(RequestRow.update({RequestRow.answer: arg("answer")}).where(_KEY))
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


async def claim(connection: Connection, key: Key, fingerprint: bytes) -> Answered | None:
    """None if the request is new, and then it is this transaction's; else how it was answered.

    Waits for another transaction that holds the same request, until that one ends.
    """
    if await connection.run(_CLAIM, **key._asdict(), fingerprint=fingerprint):
        return None
    row = await connection.row(_GET, **key._asdict())
    assert row is not None, "rows stay for 24 hours"
    return Answered._make(row)


async def answer(connection: Connection, key: Key, answer: bytes) -> None:
    """Keeps the answer to the request that this transaction claimed."""
    await connection.run(_ANSWER, **key._asdict(), answer=answer)


async def forget(connection: Connection) -> None:
    """Forgets the answers that are older than 24 hours."""
    await connection.run(_FORGET)
