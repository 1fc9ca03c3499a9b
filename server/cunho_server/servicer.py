"""What the servicers share: who calls, how a mutation begins and ends with its request id, and pages. No rule here."""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from google.longrunning import operations_pb2
from google.protobuf.message import Message

from cunho_rules import filters, orders
from cunho_rules.limits import PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX
from cunho_rules.model import Caller, Operation, OperationState, Role
from cunho_rules.pricing import Quote
from cunho_rules.refusals import Reason, Refusal, Violation, malformed
from cunho_rules.shapes import Language
from cunho_rules.shapes import request_id as request_id_problem
from cunho_rules.warnings import Warning
from cunho_server import ids, messages
from cunho_server.admission import Admission
from cunho_server.answering import Replayed
from cunho_server.call import Call
from cunho_server.identity import Identity
from cunho_server.page_tokens import PageTokens
from cunho_server.settings import Settings
from cunho_server.shown import Entry
from cunho_server.work import Work
from cunho_storage import operations, requests
from cunho_storage.database import Connection, Database

Answer = TypeVar("Answer", bound=Message)
Row = TypeVar("Row")

#: A page ends early rather than be larger than this: clients accept 4 MiB unless told otherwise.
PAGE_SIZE_BYTES = 3 << 20

_WITHOUT_LOCK = requests.Beginning()

#: Metadata key that names a request id where the request itself does not.
IDEMPOTENCY_KEY = "idempotency-key"


@dataclass(frozen=True, slots=True)
class Service:
    """What every servicer works with."""

    database: Database
    identity: Identity
    page_tokens: PageTokens
    work: Work
    admission: Admission
    settings: Settings


@dataclass(slots=True)
class Mutation:
    """One mutation under way: its caller, and what becomes of its answer."""

    caller: Caller
    connection: Connection
    #: None if it has no id.
    request: requests.Request | None
    #: True with validate_only: nothing of it stays.
    rehearsal: bool
    #: As it was sent.
    request_id: str
    #: When it began.
    time: datetime
    #: What a mutation of one write has looked at; None for a transaction.
    seen: requests.Seen | None = None
    new_ids: set[str] = field(default_factory=set)

    def new_id(self, prefix: str) -> str:
        """A new id; an answer of a rehearsal does not show it, since it will name nothing."""
        new = ids.new(prefix)
        self.new_ids.add(new)
        return new

    async def begin(
        self,
        operation_id: str,
        *,
        method: str,
        region_id: str,
        target_ids: Sequence[str],
        steps: Sequence[Mapping[str, Any]],
        input: Mapping[str, Any] | None = None,
        warnings: Sequence[Warning] = (),
        quotes: Sequence[Quote] = (),
        first: requests.Write | None = None,
    ) -> operations_pb2.Operation:
        """The new operation, which a worker takes up once the transaction is committed: the answer of the mutation.

        Args:
            target_ids: the images or instances that it makes or changes.
            steps: as `work.step` makes them.
            input: what the work needs to know beyond its targets.
            first: what it begins with.
        """
        operation = Operation(
            operation_id=operation_id,
            account_id=self.caller.account_id,
            created_by=self.caller.actor,
            method=method,
            request_id=self.request_id,
            region_id=region_id,
            target_ids=target_ids,
            input=input or {},
            steps=steps,
            warnings=[warning._asdict() for warning in warnings],
            quotes=[quote._asdict() for quote in quotes],
            state=OperationState.PENDING,
            response=None,
            error=None,
            cancel_requested=False,
            epoch=0,
            attempts=0,
            lease_until=None,
            create_time=self.time,
            start_time=None,
            end_time=None,
        )
        message = messages.operation(self._as_rehearsed(operation) if self.rehearsal else operation)
        return await self.answer(message, operations.adding(operation, first))

    def _as_rehearsed(self, operation: Operation) -> Operation:
        """The operation without the ids that it would make."""
        steps = [{**each, "target_id": ""} if each["target_id"] in self.new_ids else each for each in operation.steps]
        kept = [target_id for target_id in operation.target_ids if target_id not in self.new_ids]
        return operation._replace(operation_id="", target_ids=kept, steps=steps)

    async def answer(self, message: Answer, last: requests.Write | None = None) -> Answer:
        """The message, kept for whoever repeats the request.

        Args:
            last: what is still to be written.
        """
        await requests.end(self.connection, self.request, message.SerializeToString(), last, self.seen)
        return message


@dataclass(frozen=True, slots=True)
class Page:
    """What a list request asks for, in the words of storage."""

    expression: filters.Expression | None
    keys: Sequence[orders.Key]
    cursor: list[Any] | None
    size: int
    #: Makes the token of the page that comes after a cursor.
    token: Callable[[Sequence[Any]], str]

    @property
    def after(self) -> str:
        """What the page comes after, of a list in the order of one text; "" for the first page."""
        return self.cursor[0] if self.cursor else ""

    def filled(self, rows: Sequence[Row], make: Callable[[Row], Answer]) -> tuple[list[Answer], str]:
        """The messages of the page, and the token of the next one, "" if there is none.

        Args:
            rows: those of the page, and one more if there is one.
            make: the message of a row.
        """
        made = [make(row) for row in rows[: self.size]]
        number = _fitting(message.ByteSize() for message in made)
        last = rows[number - 1] if number < len(rows) else None
        token = self.token([getattr(last, key.field) for key in self.keys]) if last else ""
        return made[:number], token

    def cut(self, entries: Sequence[Entry]) -> tuple[list[bytes], str]:
        """As `filled`, of images that are serialized already."""
        number = _fitting(len(entry.message) for entry in entries[: self.size])
        token = self.token(entries[number - 1].cursor) if number < len(entries) else ""
        return [entry.message for entry in entries[:number]], token


def _fitting(sizes_bytes: Iterable[int]) -> int:
    """How many messages of these sizes go on a page: at least one, if there is one."""
    total_bytes = number = 0
    for size_bytes in sizes_bytes:
        total_bytes += size_bytes
        if number and total_bytes > PAGE_SIZE_BYTES:
            break
        number += 1
    return number


class Servicer:
    """The base of every servicer.

    What gRPC calls the context of a call is the `Call` here. A method answers with a message or with the bytes of one.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    @asynccontextmanager
    async def mutation(
        self, request: Any, call: Call, beginning: requests.Beginning = _WITHOUT_LOCK, **arguments: Any
    ) -> AsyncIterator[Mutation]:
        """A mutation that is a transaction.

        Committed on return, rolled back on any exception and with validate_only. A request id is claimed first: if the
        request was answered before, that answer is sent instead. Source: ALL-2, ALL-3.

        Args:
            beginning: what is locked next.
            arguments: those of the lock.
        Refuses: REQUEST_ID_REUSED.
        """
        request_id, asked = _asked(request, call)
        async with self.service.database.transaction(rehearsal=call.rehearsal) as connection:
            begun = await requests.begin(connection, beginning, asked, **arguments)
            _answer_again(asked, begun)
            mutation = Mutation(_caller(call), connection, asked, call.rehearsal, request_id, begun.time)
            yield mutation
        self._begin_work(mutation)

    @asynccontextmanager
    async def one_write(
        self, request: Any, call: Call, look: requests.Look, **arguments: Any
    ) -> AsyncIterator[tuple[Mutation, Sequence[Any]]]:
        """A mutation that is decided by what it sees at one moment, and is one write; and the columns of its look.

        The write happens only if the basis of the look is as it was seen; if it is not, the call begins again, and then
        locks the basis before it looks. Otherwise as `mutation`, with no transaction to begin and to commit.

        Args:
            arguments: those of the look.
        Refuses: REQUEST_ID_REUSED.
        """
        request_id, asked = _asked(request, call)
        locked, database = call.rehearsal or call.conflicts > 0, self.service.database
        async with database.transaction(rehearsal=call.rehearsal) if locked else database.connection() as connection:
            seen = await requests.look(connection, look, asked, locked=locked, **arguments)
            _answer_again(asked, seen.begun)
            mutation = Mutation(_caller(call), connection, asked, call.rehearsal, request_id, seen.begun.time, seen)
            yield mutation, seen.facts
        self._begin_work(mutation)

    def _begin_work(self, mutation: Mutation) -> None:
        """Tells the workers of an operation that the mutation may have begun."""
        if mutation.new_ids and not mutation.rehearsal:
            self.service.work.wake()

    def reading(self) -> AbstractAsyncContextManager[Connection]:
        """A connection to read by."""
        return self.service.database.connection()

    def page(
        self,
        caller: Caller,
        request: Any,
        *,
        filter: Language | None = None,
        order: Language | None = None,
        tie_breaker: str = "",
        size_max: int = PAGE_SIZE_MAX,
    ) -> Page:
        """What the list request asks for, whose shape has been checked. Refuses: INVALID_PAGE_TOKEN.

        Args:
            filter: the language of the request's filter, if it has one.
            order: that of its order_by; None if the only order is by `tie_breaker`.
            size_max: results in a page at most.
        """
        expression = filter.parse(request.filter) if filter else None
        keys = order.parse(getattr(request, "order_by", "")) if order else [orders.Key(tie_breaker, False)]
        cursor = self.service.page_tokens.cursor(caller, request)
        if cursor is not None:
            cursor = [
                datetime.fromisoformat(value) if key.field.endswith("_time") else value
                for key, value in zip(keys, cursor, strict=True)
            ]
        token = partial(self.service.page_tokens.make, caller, request)
        return Page(expression, keys, cursor, min(request.page_size or PAGE_SIZE_DEFAULT, size_max), token)


def one_region(region_id: str) -> str | None:
    """The region to list; None for "-", all of them."""
    return None if region_id == "-" else region_id


def all_of(caller: Caller) -> str | None:
    """The account whose things a list shows; None for the operator, who sees all."""
    return None if caller.role is Role.OPERATOR else caller.account_id


def _caller(call: Call) -> Caller:
    assert call.caller, "calls are answered to those who are known"
    return call.caller


def _asked(request: Any, call: Call) -> tuple[str, requests.Request | None]:
    """The id of a request as it was sent, and what is kept of it; "" and None if it has none."""
    request_id = request.request_id if hasattr(request, "request_id") else ""
    request_id = request_id or _idempotency_key(call)
    if not request_id:
        return "", None
    caller = _caller(call)
    scope = f"operator:{caller.actor}" if caller.role is Role.OPERATOR else caller.account_id
    method = request.DESCRIPTOR.name.removesuffix("Request")
    return request_id, requests.Request(scope, method, request_id.lower(), _fingerprint(request))


def _answer_again(asked: requests.Request | None, begun: requests.Begun) -> None:
    """Raises Replayed if the request was answered before. Refuses: REQUEST_ID_REUSED."""
    if asked is None or begun.answered is None:
        return
    if begun.answered.fingerprint != asked.fingerprint:
        raise Refusal(Reason.REQUEST_ID_REUSED, request_id=asked.request_id, method=asked.method)
    raise Replayed(begun.answered.answer)


def _fingerprint(request: Any) -> bytes:
    """What the arguments of a request are, in short."""
    bare = type(request)()
    bare.CopyFrom(request)
    for name in ("request_id", "validate_only"):
        if hasattr(bare, name):
            bare.ClearField(name)
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).digest()


def _idempotency_key(call: Call) -> str:
    key = next((value for name, value in call.metadata if name == IDEMPOTENCY_KEY), "")
    if problem := request_id_problem(key):
        raise malformed([Violation(IDEMPOTENCY_KEY, problem)])
    return str(key)
