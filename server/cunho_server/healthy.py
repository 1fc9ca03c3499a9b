"""What the health service answers: SERVING while the database answers too. Who asks needs no credentials."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from cunho_storage.database import Database

log = logging.getLogger(__name__)

SERVICE_NAME = health.SERVICE_NAME

_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

#: How often the database is asked, and how long it may take to answer.
_LOOK_SECONDS, _ANSWER_SECONDS = 0.5, 2


class Health:
    """The health of every service, told by all servers that it is added to.

    Args:
        names: the services; "", all of them together, is told as well.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._servicer = health.aio.HealthServicer()
        self._names = names
        self._told: bool | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        """Lets the server, which has not started yet, tell it."""
        answer = health_pb2.HealthCheckResponse.SerializeToString
        check: Any = grpc.stream_unary_rpc_method_handler(_of_one(self._servicer.Check), response_serializer=answer)
        watch: Any = grpc.stream_stream_rpc_method_handler(_of_one(self._servicer.Watch), response_serializer=answer)
        handler = grpc.method_handlers_generic_handler(SERVICE_NAME, {"Check": check, "Watch": watch})
        server.add_generic_rpc_handlers((handler,))

    async def tell(self, answers: bool) -> None:
        """Tells whether the database answers."""
        for name in ("", SERVICE_NAME, *self._names):
            await self._servicer.set(name, _SERVING if answers else _NOT_SERVING)
        self._told = answers

    async def follow(self, database: Database) -> None:
        """Tells whenever the database stops answering, or answers again, until cancelled."""
        while True:
            answers = await database.answers(_ANSWER_SECONDS)
            if answers is not self._told:
                log.log(logging.INFO if answers else logging.ERROR, "health: %s", _said(answers))
                await self.tell(answers)
            await asyncio.sleep(_LOOK_SECONDS)

    async def stop(self) -> None:
        """Tells NOT_SERVING from now on."""
        await self._servicer.enter_graceful_shutdown()


def _of_one(answer: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """The behavior of a method whose request is read here: without one, the library would leave its caller waiting."""

    async def behavior(messages: object, context: Any) -> Any:
        request = _parsed(await context.read())
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "there is no request, or its bytes are none")
        return await answer(request, context)

    return behavior


def _parsed(data: Any) -> health_pb2.HealthCheckRequest | None:
    """The request, if there is one."""
    if data is grpc.aio.EOF:
        return None
    try:
        return health_pb2.HealthCheckRequest.FromString(data)
    except DecodeError:
        return None


def _said(answers: bool) -> str:
    return "SERVING, the database answers" if answers else "NOT_SERVING, the database does not answer"
