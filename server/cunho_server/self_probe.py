"""Whether this process takes up calls in time: asked by calls that it makes to itself, on sockets of its own.

What a busy process has not taken up yet waits in the servers of gRPC, where nothing counts it. A call of its own waits with
the others of that server.
"""

import asyncio
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cunho_server.pace import Pace


@contextmanager
def own_addresses(servers: Sequence[grpc.aio.Server]) -> Iterator[list[str]]:
    """Where each of the servers, which have not started yet, is reached by nobody but its own user."""
    with tempfile.TemporaryDirectory(prefix="cunho-") as folder:
        addresses = [f"unix:{folder}/{number}" for number in range(len(servers))]
        for server, address in zip(servers, addresses, strict=True):
            server.add_insecure_port(address)
        yield addresses


async def follow(pace: Pace, addresses: Sequence[str]) -> None:
    """Keeps the pace to what the servers at the addresses take up in time, until cancelled.

    They are asked in turn. One that is late is asked again, until it is not.
    """
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(address)) for address in addresses]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        turn: deque[Any] = deque(map(health_pb2_grpc.HealthStub, channels))

        async def answers(timeout_seconds: float) -> bool:
            try:
                await turn[0].Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
            except grpc.RpcError:
                return False
            turn.rotate()
            return True

        await pace.follow(answers)
