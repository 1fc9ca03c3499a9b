"""Whether this process takes up calls in time: asked by calls that it makes to itself, on sockets of its own.

What a busy process has not taken up yet waits in the servers of gRPC, where nothing counts it. A call of its own waits
with the others of that server.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from operator import sub
from typing import Any
from urllib.parse import quote

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cunho_server.pace import Pace

#: The longest name of a folder in which a folder of ours can hold sockets, whose paths have 103 bytes at most.
_FOLDER_LENGTH_MAX_BYTES = 80


@contextmanager
def own_addresses(servers: Sequence[grpc.aio.Server]) -> Iterator[list[str]]:
    """Where each of the servers, which have not started yet, is reached by nobody but its own user."""
    # Where the temporary folder is called something long, paths in it are too long for sockets.
    parent = "/tmp" if len(os.fsencode(tempfile.gettempdir())) > _FOLDER_LENGTH_MAX_BYTES else None
    with tempfile.TemporaryDirectory(prefix="cunho-", dir=parent) as folder:
        addresses = [f"unix:{quote(folder)}/{number}" for number in range(len(servers))]
        for server, address in zip(servers, addresses, strict=True):
            server.add_insecure_port(address)
        yield addresses


async def follow(pace: Pace, addresses: Sequence[str], taken_up: Callable[[], Sequence[int]]) -> None:
    """Keeps the pace to what the servers at the addresses take up in time, until cancelled.

    The one with most calls since the last look is asked, because to ask costs as much as a call. Only if it is in time
    are the others with calls asked, too, while the process is behind.

    Args:
        taken_up: how many calls each of them has taken up.
    """
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(address)) for address in addresses]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        stubs: list[Any] = list(map(health_pb2_grpc.HealthStub, channels))
        before = [0] * len(stubs)

        async def answer(timeout_seconds: float) -> bool:
            nonlocal before
            now = [*taken_up()]
            calls, before = [*map(sub, now, before)], now
            busiest = calls.index(max(calls))
            if not await _answers(stubs[busiest], timeout_seconds):
                return False
            if not pace.behind:
                return True
            others = (stub for at, stub in enumerate(stubs) if calls[at] and at != busiest)
            return all(await asyncio.gather(*(_answers(stub, timeout_seconds) for stub in others)))

        await pace.follow(answer)


async def _answers(stub: Any, timeout_seconds: float) -> bool:
    try:
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
    except grpc.RpcError:
        return False
    return True
