"""What happens around every call: credentials, limits and shape before it, and whatever it raises as a status after it.

Servicers never abort: they return or raise. This is the one place that aborts.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from cunho_rules.refusals import Reason, Refusal, Violation, malformed
from cunho_server import call, logs, metrics, shape, status
from cunho_server.admission import Admission
from cunho_server.call import CALL_ID_KEY, Call, Method
from cunho_server.identity import Identity
from cunho_server.tracing import Tracing
from cunho_storage import deadlines
from cunho_storage.database import Conflict

log = logging.getLogger(__name__)

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Behavior: TypeAlias = Callable[[Any, Call], Awaitable[Message | bytes]]
_Parse: TypeAlias = Callable[[bytes], Any]

#: Services whose calls are answered here; health and reflection answer by themselves, to everybody.
_OURS = ("/cunho.v1.", "/google.longrunning.")
_OPEN = ("/grpc.health.", "/grpc.reflection.")

#: The method whose calls are counted as waits.
_WAITING = "WaitOperation"

#: How often a call is begun before its caller is told of the conflict.
_ATTEMPTS = 4


class Replayed(Exception):
    """The request was answered before: the bytes of that answer stand."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer


class Answering(grpc.aio.ServerInterceptor):
    """Puts `answer` around every method of ours.

    Args:
        call_seconds_max: longest that a call may take, whatever deadline it came with.
        tracing: where calls are traced; None if nowhere.

    Attributes:
        taken_up: calls since it began.
    """

    def __init__(
        self, identity: Identity, admission: Admission, *, call_seconds_max: float, tracing: Tracing | None = None
    ) -> None:
        self._identity = identity
        self._admission = admission
        self._call_seconds_max = call_seconds_max
        self._tracing = tracing
        self._handlers: dict[str, _Handler] = {}
        self.taken_up = 0

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        path = handler_call_details.method
        if handler := self._handlers.get(path):
            return handler
        handler = await continuation(handler_call_details)
        if path.startswith(_OPEN) and handler is not None:
            return handler
        if handler is None or not path.startswith(_OURS):
            return self._wrapped(call.UNKNOWN, _no_such_method(path), _anything)
        self._handlers[path] = wrapped = self._wrapped(
            call.method(path), handler.unary_unary, handler.request_deserializer
        )
        return wrapped

    def _wrapped(self, method: Method, behavior: _Behavior, parse: _Parse) -> _Handler:
        async def answer(messages: object, context: Any) -> bytes | None:
            this = Call(method, context.peer(), context.invocation_metadata())
            logs.call_id.set(this.call_id)
            self.taken_up += 1
            with self._traced(this):
                try:
                    data = await self._outcome(this, behavior, parse, context)
                finally:
                    metrics.count(this)
                    logs.tell(this)
            sending = _send_status(this, context)
            del messages, context  # see _send_status
            await sending
            return data

        # A stream on this side alone: it is the same on the wire, and reading the request is under our deadline too.
        return grpc.stream_unary_rpc_method_handler(answer)

    def _traced(self, this: Call) -> AbstractContextManager[object]:
        return self._tracing.span(this) if self._tracing else nullcontext()

    async def _outcome(self, this: Call, behavior: _Behavior, parse: _Parse, context: Any) -> bytes | None:
        """The answer; None if the call is refused, which it then knows."""
        seconds = self._seconds(context)
        time = asyncio.timeout(seconds)
        try:
            async with time:
                deadlines.ends_at(time.when() or 0)
                return await self._answer(this, behavior, parse, context)
        except Replayed as replayed:
            this.replayed = True
            return replayed.answer
        except Refusal as refusal:
            this.refuse(refusal)
        except asyncio.CancelledError:
            this.code = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and time.expired():
                this.refuse(Refusal(Reason.CALL_TIMED_OUT, seconds=f"{seconds:.3g}"))
            else:
                incident_id = secrets.token_hex(6)
                log.exception("bug in /%s/%s, incident %s", this.method.service, this.method.name, incident_id)
                this.refuse(Refusal(Reason.INTERNAL_ERROR, incident_id=incident_id))
        return None

    def _seconds(self, context: Any) -> float:
        """How long the call may take."""
        remaining = context.time_remaining()
        return self._call_seconds_max if remaining is None else min(remaining, self._call_seconds_max)

    async def _answer(self, this: Call, behavior: _Behavior, parse: _Parse, context: Any) -> bytes:
        this.caller = await self._identity.verify(this.metadata, context.auth_context)
        await self._admission.keep_pace(this.caller)
        data = await context.read()
        with self._admitted(this):
            this.request = request = _parsed(parse, data)
            while this.conflicts < _ATTEMPTS:
                try:
                    answer = await behavior(request, this)
                    if isinstance(answer, bytes):
                        return answer
                    this.answer = answer
                    return answer.SerializeToString()
                except Conflict:  # others got in its way, and it is begun again
                    await asyncio.sleep(random.uniform(0.5, 1) * 0.02 * this.conflicts)
                    this.conflicts += 1
            raise Refusal(Reason.TRANSACTION_CONFLICT)

    def _admitted(self, this: Call) -> AbstractContextManager[None]:
        if this.method.name == _WAITING:
            return self._admission.wait()
        assert this.caller
        return self._admission.call(this.caller, this.address)


async def _send_status(this: Call, context: Any) -> None:
    """Sets the trailing metadata of an answer; of a refusal, sends it with the status, and raises.

    gRPC keeps in the context what is raised, which keeps the frames that it came through. If they kept the context,
    each refusal would be a ring, and thousands of them stop the process for a tenth of a second when garbage is
    searched for.
    """
    trailers = ((CALL_ID_KEY, this.call_id),)
    if this.refusal is None:
        context.set_trailing_metadata(trailers)
        return
    rich = status.status(this.refusal, this.request)
    aborting = context.abort(status.code(this.refusal), rich.message, (*status.trailers(this.refusal, rich), *trailers))
    del context
    await aborting


def _parsed(parse: _Parse, data: Any) -> Any:
    if data is grpc.aio.EOF:
        raise malformed([Violation("(request)", "there is none")])
    try:
        request = parse(data)
    except DecodeError:
        problem = "its bytes are not a message of this type: not protobuf, not UTF-8, or nested too deep"
        raise malformed([Violation("(request)", problem)]) from None
    if request is not None and (refusal := shape.refusal(request)):
        raise refusal
    return request


def _no_such_method(path: str) -> _Behavior:
    async def behavior(request: object, call: object) -> Message:
        raise Refusal(Reason.METHOD_NOT_FOUND, method=path[:200])

    return behavior


def _anything(data: bytes) -> None:
    """No request: there is no method that would have one."""
