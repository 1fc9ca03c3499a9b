"""The server's processes: started on one port, kept up, replaced without losing a call, stopped.

This process answers no calls itself. It keeps the embedded PostgreSQL up as well. What knows the database is imported
once the processes load their code: whoever starts a server waits for both.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cunho_server import logs
from cunho_server.address import BEAT_SECONDS, READY, reserved
from cunho_server.exposition import Exposed, exposed
from cunho_server.settings import Settings
from cunho_storage import embedded

log = logging.getLogger(__name__)

Started = TypeVar("Started")

#: Pause before another process takes the place of one that ended soon, doubled each time, and the longest pause: one
#: that lived longer than that is replaced at once.
_PAUSE_SECONDS, _PAUSE_SECONDS_MAX = 0.1, 10

#: How long a process may take to start, and to stop beyond the settings' grace, before it is killed.
_START_SECONDS, _STOP_SECONDS = 60, 5

#: Beats in a row that a process may miss before it is taken to hang, and how long it has to say where.
_MISSED_MAX, _SAYING_SECONDS = 30, 1

#: How often the embedded PostgreSQL is looked after.
_LOOK_SECONDS = 0.2


class StartError(Exception):
    """The server cannot start; its log says why."""


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT; at SIGHUP fresh processes take over. Raises AddressError, StartError."""
    logs.configure(settings)
    stopped, renewing = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, renewing.set)
    with closing(reserved(settings.address)) as kept, exposed(settings.metrics_address) as metrics:
        address = f"{settings.address.rpartition(':')[0]}:{kept.getsockname()[1]}"
        settings = settings.model_copy(update={"address": address})
        async with AsyncExitStack() as stack:
            for each in {settings.admin_address_of(index) for index in range(settings.processes)} - {""}:
                stack.enter_context(closing(reserved(each, "CUNHO_ADMIN_ADDRESS")))
            processes = await _unless(stopped, _started(stack, settings, metrics))
            if processes is None:
                log.info("stopping: it did not serve yet")
                return
            renewal = asyncio.create_task(processes.renew_at(renewing))
            await stopped.wait()
            log.info("stopping: calls under way may take %g s more", settings.shutdown_seconds)
            renewal.cancel()


async def _unless(stopped: asyncio.Event, start: Coroutine[Any, Any, Started]) -> Started | None:
    """What was started; None if the event is set before, and then the start is given up."""
    starting, told = asyncio.create_task(start), asyncio.create_task(stopped.wait())
    await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if stopped.is_set():
        starting.cancel()
    await asyncio.wait({starting})
    return None if starting.cancelled() else starting.result()


async def _started(stack: AsyncExitStack, settings: Settings, metrics: Exposed) -> "_Processes":
    """The processes, which serve until the stack is closed. Raises StartError."""
    processes = await stack.enter_async_context(_loading(settings, metrics))
    from cunho_server import development
    from cunho_server.opening import opened

    dsn = await stack.enter_async_context(_postgresql(settings))
    database = await stack.enter_async_context(opened(settings, dsn))
    if settings.development:
        await development.register(database)
    await stack.enter_async_context(processes.serving(dsn))
    log.info("serving on %s by %d processes", settings.address, settings.processes)
    if metrics.address:
        log.info("metrics on http://%s/metrics", metrics.address)
    if settings.development:
        await development.welcome(settings.address, settings, database)
    return processes


class _Child:
    """One process that answers calls. It loads its code at once, and serves when it is told what."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._serves = False

    @classmethod
    async def spawn(cls, environment: Mapping[str, str]) -> "_Child":
        """A new process, waiting to be told what to serve. Raises StartError."""
        command = (sys.executable, "-m", "cunho_server.process")
        # In a session of its own: Ctrl-C reaches the supervisor alone.
        given: dict[str, Any] = {"env": os.environ | environment, "start_new_session": True}
        try:
            return cls(await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, **given))
        except OSError as error:  # the machine has no room for it, now
            raise StartError(f"no process can be started ({error.strerror})") from error

    @property
    def number(self) -> int:
        """Its process number."""
        return self._process.pid

    async def serve(self, told: bytes) -> None:
        """Tells it what to serve; returns when it answers calls. Raises StartError."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(told)
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_START_SECONDS):
                if await self._process.stdout.readline() == READY:
                    self._serves = True
                    return
        await self.stop(0)
        raise StartError(
            f"process {self.number} does not serve (exit code {self._process.returncode}): its log says why"
        )

    async def ended(self) -> int:
        """Its exit code, once it has ended; it is killed if it hangs."""
        if await self._falls_silent():
            log.error("process %d hangs, and is killed: where it hangs stands below", self.number)
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGUSR2)
                await asyncio.sleep(_SAYING_SECONDS)
                self._process.kill()
        return await self._process.wait()

    async def _falls_silent(self) -> bool:
        """True once it has missed its beats, False once it ends. No clock: the machine may have been suspended."""
        assert self._process.stdout
        missed = 0
        while missed < _MISSED_MAX:
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    if not await self._process.stdout.read(1024):
                        return False
                missed = 0
            except TimeoutError:
                missed += 1
        return True

    async def stop(self, grace_seconds: float) -> None:
        """Has it end when its calls under way have, or at the end of the grace; kills it if it does not.

        One that does not serve yet is killed at once: it has no calls, and what it waits for may take long.
        """
        assert self._process.stdin
        if not self._serves:
            with suppress(ProcessLookupError):
                self._process.kill()
        self._process.stdin.close()
        try:
            async with asyncio.timeout(grace_seconds + _STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            log.error("process %d does not stop, and is killed", self.number)
            self._process.kill()
            await self._process.wait()


class _Processes:
    """As many processes as the settings say, each in its slot, where another follows it if it ends by itself."""

    def __init__(self, settings: Settings, metrics: Exposed) -> None:
        self._settings = settings
        self._metrics = metrics
        self._dsn = ""
        self._slots: list[_Child] = []
        #: Those in the slots, and those that still have to end.
        self._living: set[_Child] = set()
        self._keeping: set[asyncio.Task[None]] = set()
        #: Held while a slot changes hands.
        self._changing = asyncio.Lock()

    async def spawn(self) -> _Child:
        """A new process that loads its code. Raises StartError."""
        child = await _Child.spawn(self._metrics.environment)
        self._living.add(child)
        return child

    @asynccontextmanager
    async def serving(self, dsn: str) -> AsyncIterator[None]:
        """All of them serve over that database. Raises StartError."""
        self._dsn = dsn
        loading = [*self._living]
        # The first one alone: what keeps it from serving is said once.
        await loading[0].serve(self._told(0))
        await asyncio.gather(*(child.serve(self._told(index)) for index, child in enumerate(loading) if index))
        self._slots = loading
        for index, child in enumerate(loading):
            self._keep(index, child)
        try:
            yield
        finally:
            await self.stop()

    async def renew_at(self, event: asyncio.Event) -> None:
        """Whenever the event is set, has fresh processes take over, each before the old one stops."""
        while True:
            await event.wait()
            event.clear()
            for index in range(len(self._slots)):
                async with self._changing:
                    await self._renew(index)

    async def stop(self) -> None:
        """Ends them all."""
        for task in self._keeping:
            task.cancel()
        if self._keeping:
            await asyncio.wait(self._keeping)
        await asyncio.gather(*map(self._end, [*self._living]))

    async def _renew(self, index: int) -> None:
        old = self._slots[index]
        try:
            await self._start(index)
        except StartError as error:
            log.error("%s: process %d goes on", error, old.number)
            return
        log.info("process %d takes over from %d", self._slots[index].number, old.number)
        await self._end(old)

    async def _start(self, index: int, pause_seconds: float = 0) -> None:
        """Puts a new process in a slot. Raises StartError."""
        child = await self.spawn()
        try:
            await child.serve(self._told(index))
        except StartError:
            self._forget(child)
            raise
        self._slots[index] = child
        self._keep(index, child, pause_seconds)

    async def _end(self, child: _Child) -> None:
        await child.stop(self._settings.shutdown_seconds)
        self._forget(child)

    def _forget(self, child: _Child) -> None:
        self._living.discard(child)
        self._metrics.forget(child.number)

    def _keep(self, index: int, child: _Child, pause_seconds: float = 0) -> None:
        task = asyncio.create_task(self._follow(index, child, pause_seconds))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _follow(self, index: int, child: _Child, pause_seconds: float) -> None:
        """Starts another process when this one has ended by itself; after the pause, if that was soon."""
        since = time.monotonic()
        code = await child.ended()
        if self._slots[index] is not child:
            return
        log.error("process %d has ended (exit code %d): another takes its place", child.number, code)
        self._forget(child)
        pause_seconds = pause_seconds if time.monotonic() - since < _PAUSE_SECONDS_MAX else 0
        while True:
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(max(2 * pause_seconds, _PAUSE_SECONDS), _PAUSE_SECONDS_MAX)
            async with self._changing:
                if self._slots[index] is not child:
                    return
                try:
                    return await self._start(index, pause_seconds)
                except StartError as error:
                    log.error("%s", error)

    def _told(self, index: int) -> bytes:
        settings = self._settings.model_dump(mode="json")
        return json.dumps({"settings": settings, "dsn": self._dsn, "index": index}).encode() + b"\n"


@asynccontextmanager
async def _loading(settings: Settings, metrics: Exposed) -> AsyncIterator[_Processes]:
    """The processes, which load their code while the database is made ready; none is left on leaving."""
    processes = _Processes(settings, metrics)
    try:
        for _ in range(settings.processes):
            await processes.spawn()
        yield processes
    finally:
        await processes.stop()


@asynccontextmanager
async def _postgresql(settings: Settings) -> AsyncIterator[str]:
    """The URL of the PostgreSQL to use; the embedded one is started, and again if it ends by itself.

    Raises EmbeddedError; UnfitError if what is written to it could be lost.
    """
    from cunho_server.opening import embedded_connections
    from cunho_storage.installation import refuse_unfit

    if settings.database_url:
        await refuse_unfit(settings.database_url)
        yield settings.database_url
        return
    own = await _embedded(settings.data_dir, embedded_connections(settings))
    keeping = asyncio.create_task(_keep_up(own))
    try:
        await refuse_unfit(own.dsn)
        yield own.dsn
    finally:
        keeping.cancel()
        own.stop()  # before anything is waited for: here, too, a start may be given up
        await asyncio.wait({keeping})


async def _embedded(folder: Path, connections: int) -> embedded.Embedded:
    """The PostgreSQL of the folder, started; if it is given up meanwhile, it is stopped. Raises EmbeddedError."""
    given_up = threading.Event()
    start = partial(embedded.start, folder, connections=connections, given_up=given_up)
    starting = asyncio.create_task(asyncio.to_thread(start))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        given_up.set()
        with suppress(embedded.EmbeddedError):
            (await starting).stop()
        raise


async def _keep_up(own: embedded.Embedded) -> None:
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if own.ended():
            log.error("the embedded PostgreSQL has ended, and is started again")
            try:
                await asyncio.to_thread(own.start_again)
            except embedded.EmbeddedError as error:
                log.error("%s", error)
