"""Which of a process's servers are asked whether they take up calls in time, and what becomes of the answers."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cunho_server import self_probe
from cunho_server.pace import Pace


class Asked(health_pb2_grpc.HealthServicer):
    """A server that counts how often it is asked, and answers unless it is stuck."""

    def __init__(self) -> None:
        self.times, self.stuck = 0, False

    async def Check(self, request: object, context: object) -> health_pb2.HealthCheckResponse:
        self.times += 1
        while self.stuck:
            await asyncio.sleep(0.01)
        return health_pb2.HealthCheckResponse()


class Looked(Pace):
    """A pace that is only followed when a test looks."""

    def __init__(self) -> None:
        super().__init__(1000, 10)
        self.probe = asyncio.get_running_loop().create_future()

    async def follow(self, probe: Callable[[float], Awaitable[bool]]) -> None:
        self.probe.set_result(probe)
        await asyncio.Event().wait()


class Scene:
    """Three servers, and a pace that asks them."""

    def __init__(self) -> None:
        self.servers, self.pace, self.taken_up = [Asked() for _ in range(3)], Looked(), [0, 0, 0]

    async def look(self, *calls: int) -> tuple[bool, list[int]]:
        """After so many more calls at each server: whether those asked answered in time, and how often each was."""
        for server in self.servers:
            server.times = 0
        self.taken_up = [before + more for before, more in zip(self.taken_up, calls, strict=True)]
        in_time = await (await self.pace.probe)(0.3)
        return in_time, [server.times for server in self.servers]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            servers = [grpc.aio.server() for _ in self.servers]
            for server, asked in zip(servers, self.servers, strict=True):
                add: Any = health_pb2_grpc.add_HealthServicer_to_server
                add(asked, server)
            addresses = stack.enter_context(self_probe.own_addresses(servers))
            for server in servers:
                await server.start()
                stack.push_async_callback(server.stop, 0)
            task = asyncio.create_task(self_probe.follow(self.pace, addresses, lambda: self.taken_up))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.wait({task})


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    async with scene.running():
        yield scene


async def test_the_server_with_most_calls_is_asked(scene: Scene) -> None:
    assert await scene.look(1, 5, 2) == (True, [0, 1, 0])
    assert await scene.look(1, 0, 3) == (True, [0, 0, 1])


async def test_no_other_is_asked_of_a_process_that_is_slowed_and_in_time(scene: Scene) -> None:
    scene.pace.calls_per_second = 50
    assert await scene.look(1, 0, 2) == (True, [0, 0, 1])


async def test_all_with_calls_are_asked_while_the_process_is_behind(scene: Scene) -> None:
    scene.pace.adjust(1000, in_time=False)
    assert scene.pace.behind
    assert await scene.look(1, 0, 2) == (True, [1, 0, 1])


async def test_one_that_is_late_is_enough_to_be_behind(scene: Scene) -> None:
    scene.pace.behind = True
    scene.servers[1].stuck = True
    assert await scene.look(2, 1, 1) == (False, [1, 1, 1])
    scene.servers[1].stuck = False
    assert await scene.look(2, 1, 1) == (True, [1, 1, 1])


async def test_no_other_is_asked_once_the_one_with_most_calls_is_late(scene: Scene) -> None:
    scene.pace.behind = True
    scene.servers[1].stuck = True
    assert await scene.look(1, 2, 1) == (False, [0, 1, 0])


@pytest.mark.parametrize("name", ["a b%20c#é?", "x" * 100], ids=["unusual", "long"])
async def test_a_server_reaches_itself_whatever_the_temporary_folder_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    server = grpc.aio.server()
    asked = Asked()
    health_pb2_grpc.add_HealthServicer_to_server(asked, server)
    with self_probe.own_addresses([server]) as (address,):
        await server.start()
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        await server.stop(0)
    assert asked.times == 1
