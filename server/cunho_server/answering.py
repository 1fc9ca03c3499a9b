"""What happens around every call: credentials and shape before it, and whatever it raises as a status after it.

Servicers never abort: they return or raise. This is the one place that aborts.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from cunho_rules.refusals import Reason, Refusal, Violation, malformed
from cunho_server import shape, status
from cunho_server.identity import Identity
from cunho_storage.database import Conflict

log = logging.getLogger(__name__)

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Behavior: TypeAlias = Callable[[Any, Any], Awaitable[Message]]

#: Services whose calls are answered here; health and reflection answer by themselves, to everybody.
_OURS = ("/cunho.v1.", "/google.longrunning.")
_OPEN = ("/grpc.health.", "/grpc.reflection.")

#: How often a transaction is run before its caller is told of the conflict.
_ATTEMPTS = 4


class Replayed(Exception):
    """The request was answered before: the bytes of that answer stand."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer


class Answering(grpc.aio.ServerInterceptor):
    """Puts `answer` around every method of ours."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._handlers: dict[str, _Handler] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        method = handler_call_details.method
        if handler := self._handlers.get(method):
            return handler
        handler = await continuation(handler_call_details)
        if method.startswith(_OPEN) and handler is not None:
            return handler
        if handler is None or not method.startswith(_OURS):
            return self._wrapped(method, _no_such_method(method), _anything)
        self._handlers[method] = wrapped = self._wrapped(method, handler.unary_unary, handler.request_deserializer)
        return wrapped

    def _wrapped(self, method: str, behavior: _Behavior, parse: Callable[[bytes], Any]) -> _Handler:
        async def answer(data: bytes, context: Any) -> bytes:
            request = None
            try:
                self._identity.caller(context.invocation_metadata())
                request = _parsed(parse, data)
                return await _answered(behavior, request, context)
            except Replayed as replayed:
                return replayed.answer
            except Refusal as refusal:
                refused = refusal
            except Exception:
                incident_id = secrets.token_hex(6)
                log.exception("bug in %s, incident %s", method, incident_id)
                refused = Refusal(Reason.INTERNAL_ERROR, incident_id=incident_id)
            rich = status.status(refused, request)
            await context.abort(status.code(refused), rich.message, status.trailers(rich))
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(answer)


async def _answered(behavior: _Behavior, request: Message, context: Any) -> bytes:
    """The answer; a transaction that others got in the way of is run again."""
    for attempt in range(_ATTEMPTS):
        try:
            return (await behavior(request, context)).SerializeToString()
        except Conflict:
            await asyncio.sleep(random.uniform(0.5, 1) * 0.02 * attempt)
    raise Refusal(Reason.TRANSACTION_CONFLICT)


def _parsed(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        request = parse(data)
    except DecodeError:
        problem = "its bytes are not a message of this type: not protobuf, not UTF-8, or nested too deep"
        raise malformed([Violation("(request)", problem)]) from None
    if request is not None and (refusal := shape.refusal(request)):
        raise refusal
    return request


def _no_such_method(method: str) -> _Behavior:
    async def behavior(request: object, context: object) -> Message:
        raise Refusal(Reason.METHOD_NOT_FOUND, method=method[:200])

    return behavior


def _anything(data: bytes) -> None:
    """No request: there is no method that would have one."""
