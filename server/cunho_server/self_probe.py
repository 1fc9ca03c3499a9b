"""Whether this process takes up calls in time: asked by calls that it makes to itself, on a socket of its own.

What a busy process has not taken up yet waits in gRPC, where nothing counts it. A call of its own waits with the others.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cunho_server.pace import Pace


@contextmanager
def own_address(server: grpc.aio.Server) -> Iterator[str]:
    """Where the server, which has not started yet, is reached by nobody but its own user."""
    with tempfile.TemporaryDirectory(prefix="cunho-") as folder:
        address = f"unix:{folder}/probe"
        server.add_insecure_port(address)
        yield address


async def follow(pace: Pace, address: str) -> None:
    """Keeps the pace to what the server at the address takes up in time, until cancelled."""
    async with grpc.aio.insecure_channel(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)

        async def answers(timeout_seconds: float) -> bool:
            try:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
            except grpc.RpcError:
                return False
            return True

        await pace.follow(answers)
