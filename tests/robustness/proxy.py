"""A TCP proxy that does to connections what networks do: cuts, delays, falls silent, closes one half, loses answers.

It knows nothing of what goes through it but bytes.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self


class _Link:
    """One connection through the proxy."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.near, self.far = near, far
        #: Whether what comes back is thrown away, and the connection cut.
        self.answers_lost = False

    def cut(self) -> None:
        for each in (self.near, self.far):
            each.transport.abort()


class Proxy:
    """A proxy on a loopback port, served by a thread of its own.

    Args:
        port: where it connects to on this machine.
    Attributes:
        port: where it listens.
        lost: how many answers it lost.
    """

    def __init__(self, port: int) -> None:
        self._far_port = port
        self._loop = asyncio.new_event_loop()
        self._links: set[_Link] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._delay_seconds = 0.0
        self._refusing = False
        self._losing = b""
        self.lost = 0
        self._ready, self._stopped = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self._do(self._stopped.set)
        self._thread.join()

    # --- what can be done to connections

    def cut(self) -> None:
        """Resets every connection."""
        self._do(self._cut)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Resets every connection, and new ones as soon as they are made, until the block is left."""
        self._refusing = True
        self.cut()
        try:
            yield
        finally:
            self._refusing = False

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Nothing arrives, and nobody is told; what was sent meanwhile arrives once the block is left."""
        self._do(self._open.clear)
        try:
            yield
        finally:
            self._do(self._open.set)

    @contextmanager
    def delaying(self, seconds: float) -> Iterator[None]:
        """Whatever is sent arrives so much later, until the block is left."""
        self._delay_seconds = seconds
        try:
            yield
        finally:
            self._delay_seconds = 0

    def half_close(self, *, near: bool) -> None:
        """Tells one side of every connection that the other will send no more; the other is told nothing.

        Args:
            near: whether the side that connected is told.
        """

        def close() -> None:
            for link in self._links:
                with suppress(OSError):
                    (link.near if near else link.far).write_eof()

        self._do(close)

    @contextmanager
    def losing_answers(self, to: bytes) -> Iterator[None]:
        """Lets what holds these bytes arrive, loses the answer to it, and resets the connection."""
        self._losing = to
        try:
            yield
        finally:
            self._losing = b""

    # --- how it works

    def _do(self, act: Callable[[], Any]) -> None:
        """Acts in the thread of the proxy, and returns when that is done."""

        async def run() -> None:
            act()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._open.set()
        async with await asyncio.start_server(self._connected, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stopped.wait()
            self._open.set()
            self._cut()
            await asyncio.gather(*self._connecting, return_exceptions=True)

    def _cut(self) -> None:
        for link in self._links:
            link.cut()

    async def _connected(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        try:
            await self._open.wait()
            if self._refusing:
                raise ConnectionRefusedError
            answers, far = await asyncio.open_connection("127.0.0.1", self._far_port)
        except OSError:
            near.transport.abort()
            return
        link = _Link(near, far)
        self._links.add(link)
        try:
            await asyncio.gather(self._carry(reader, link, far), self._carry(answers, link, near))
        except OSError:
            link.cut()
        finally:
            self._links.discard(link)
            link.cut()

    async def _carry(self, reader: asyncio.StreamReader, link: _Link, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(self._delay_seconds)
            await self._open.wait()
            if writer is link.near and link.answers_lost:
                self.lost += 1
                link.cut()
                return
            if writer is link.far and self._losing and self._losing in data:
                link.answers_lost = True
            writer.write(data)
            await writer.drain()
        writer.write_eof()
