"""The bare gRPC server: it parses a request and serializes an answer that it was given. Nothing of the product runs."""

from typing import Any, NamedTuple

import grpc
import uvloop
from google.protobuf.message import Message

from bench.child import Parent


class Echo(NamedTuple):
    """A method, and what it answers to everything."""

    path: str
    request: type[Message]
    answer: Message


async def _serve(parent: Parent) -> None:
    async def answer(request: Message, context: object) -> Message:
        return echo.answer

    echo: Echo = parent.told()
    _, service, method = echo.path.split("/")
    handler: Any = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=echo.request.FromString,
        response_serializer=type(echo.answer).SerializeToString,
    )
    server = grpc.aio.server()
    server.add_registered_method_handlers(service, {method: handler})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    parent.tell(port)
    await server.wait_for_termination()


def main(parent: Parent) -> None:
    """Answers as the echo that it is told, on the port that it tells."""
    uvloop.run(_serve(parent))
