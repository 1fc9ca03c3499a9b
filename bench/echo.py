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
        return answers[type(request)]

    echoes: list[Echo] = parent.told()
    answers = {echo.request: echo.answer for echo in echoes}
    server = grpc.aio.server()
    for service in {_service(echo.path) for echo in echoes}:
        handlers: dict[str, Any] = {
            echo.path.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(
                answer,
                request_deserializer=echo.request.FromString,
                response_serializer=type(echo.answer).SerializeToString,
            )
            for echo in echoes
            if _service(echo.path) == service
        }
        server.add_registered_method_handlers(service, handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    parent.tell(port)
    await server.wait_for_termination()


def _service(path: str) -> str:
    return path.split("/")[1]


def main(parent: Parent) -> None:
    """Answers the echoes that it is told, on the port that it tells."""
    uvloop.run(_serve(parent))
