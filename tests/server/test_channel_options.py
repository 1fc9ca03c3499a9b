"""How gRPC treats connections that have our options."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from tests.robustness import peers

from cunho_server.channel_options import channel_options
from cunho_server.settings import Settings


class _Busy:
    """A server that answers calls with nothing, and takes none up until it is told to.

    Attributes:
        address: where it listens.
        take_up: set to let it take up calls.
    """

    def __init__(self) -> None:
        self.take_up = threading.Event()
        self._listening, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the block it runs."""
        self._thread.start()
        try:
            assert self._listening.wait(20), "it cannot listen"
            yield
        finally:
            self.take_up.set()
            self._stopped.set()
            self._thread.join()

    async def _serve(self) -> None:
        async def answer(request: bytes, context: object) -> bytes:
            return b""

        handlers: dict[str, Any] = {"GetImage": grpc.unary_unary_rpc_method_handler(answer)}
        server = grpc.aio.server(options=channel_options(Settings.model_validate({})))
        server.add_registered_method_handlers("cunho.v1.ImageService", handlers)
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._listening.set()
        self.take_up.wait()  # and with it everything that this loop does
        await asyncio.to_thread(self._stopped.wait)
        await server.stop(0)


def test_nobody_is_dropped_without_a_word_while_thousands_of_calls_wait_to_be_taken_up() -> None:
    busy = _Busy()
    with busy.running(), grpc.insecure_channel(busy.address) as channel:
        flood = threading.Thread(target=peers.unclosed_streams, args=(busy.address, 4000))
        flood.start()
        get: Any = channel.unary_unary("/cunho.v1.ImageService/GetImage")
        waiting: list[Any] = []
        for _ in range(5):
            waiting.append(get.future(b""))
            with pytest.raises(grpc.FutureTimeoutError):
                waiting[-1].result(0.3)
        busy.take_up.set()
        assert [call.result(10) for call in waiting] == [b""] * 5
        flood.join()
