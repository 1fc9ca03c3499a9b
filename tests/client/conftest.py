"""A service that answers as each test says, on a real port, so that the client is tested alone. It knows no rules."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
import pytest
from google.longrunning.operations_pb2_grpc import add_OperationsServicer_to_server
from google.protobuf.any_pb2 import Any as PackedMessage
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from cunho import Client
from cunho.refused import CODES
from cunho.v1.account_service_pb2_grpc import add_AccountServiceServicer_to_server
from cunho.v1.image_service_pb2_grpc import add_ImageServiceServicer_to_server
from cunho.v1.instance_service_pb2_grpc import add_InstanceServiceServicer_to_server
from cunho.v1.quota_service_pb2_grpc import add_QuotaServiceServicer_to_server
from cunho.v1.region_service_pb2_grpc import add_RegionServiceServicer_to_server

ADDERS = (
    add_AccountServiceServicer_to_server,
    add_ImageServiceServicer_to_server,
    add_InstanceServiceServicer_to_server,
    add_QuotaServiceServicer_to_server,
    add_RegionServiceServicer_to_server,
    add_OperationsServicer_to_server,
)

Answer = Callable[[Any, grpc.ServicerContext], Message]


class Call(NamedTuple):
    """A call as it arrived."""

    rpc: str
    request: Any
    metadata: dict[str, str | bytes]
    seconds_left: float


def packed(message: Message) -> PackedMessage:
    """A message as it travels inside another."""
    packed = PackedMessage()
    packed.Pack(message)
    return packed


def refusing(status: Status) -> Answer:
    """Refuses as the service does."""

    def answer(request: Message, context: grpc.ServicerContext) -> Message:
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(CODES[status.code], status.message)

    return answer


class FakeService:
    """Answers each RPC by the function in `answers` and keeps every call in `calls`."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.calls: list[Call] = []
        self.address = ""

    def __getattr__(self, rpc: str) -> Answer:
        def answer(request: Message, context: grpc.ServicerContext) -> Message:
            metadata = {key: value for key, value in context.invocation_metadata()}
            self.calls.append(Call(rpc, request, metadata, context.time_remaining()))
            return self.answers[rpc](request, context)

        return answer


@contextmanager
def serving(
    fake: Any, address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None
) -> Iterator[None]:
    """The service on a port, with TLS if it has credentials."""
    with ThreadPoolExecutor(max_workers=2) as threads:
        server = grpc.server(threads)
        for add in ADDERS:
            add(fake, server)
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        fake.address = address if address.startswith("unix:") else f"127.0.0.1:{port}"
        server.start()
        try:
            yield
        finally:
            server.stop(grace=None).wait()


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()
    with serving(fake):
        yield fake


@pytest.fixture
def client(service: FakeService) -> Iterator[Client]:
    with Client(service.address, token="secret") as client:
        yield client
