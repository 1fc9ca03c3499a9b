"""The bare statements of a call: prepared once, run through the server's driver, and nothing done with their rows."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from itertools import cycle
from typing import Any, NamedTuple

import asyncpg
import uvloop

from bench.child import Parent
from cunho_storage.database import SESSION

#: Stands where each run of the statements has an argument of its own.
FRESH = "(fresh)"

#: Arguments of the statements of one call.
Arguments = Sequence[Sequence[Any]]


class Script(NamedTuple):
    """The statements of a call, in one transaction if several, and arguments for each connection to go through."""

    dsn: str
    statements: Sequence[str]
    lanes: Sequence[Sequence[Arguments]]
    seconds: float
    warm_up_seconds: float


class Ran(NamedTuple):
    """How often all statements were run, and the CPU time of this process."""

    calls: int
    cpu_seconds: float


class _Lane:
    """One connection, and what it goes through."""

    def __init__(self, connection: Any, prepared: list[Any], arguments: Sequence[Arguments]) -> None:
        self._connection, self._prepared, self._arguments = connection, prepared, cycle(arguments)
        self._transaction = len(prepared) > 1

    async def run(self, seconds: float) -> int:
        """How often the statements were run in the time."""
        end, calls = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            await self._once()
            calls += 1
        return calls

    async def _once(self) -> None:
        fresh = secrets.token_hex(8)
        if self._transaction:
            await self._connection.execute("BEGIN")
        for statement, arguments in zip(self._prepared, next(self._arguments), strict=True):
            await statement.fetch(*(fresh if argument == FRESH else argument for argument in arguments))
        if self._transaction:
            await self._connection.execute("COMMIT")


async def _run(script: Script, parent: Parent) -> None:
    connections = [await asyncpg.connect(script.dsn, server_settings={**SESSION}) for _ in script.lanes]
    try:
        lanes = []
        for connection, arguments in zip(connections, script.lanes, strict=True):
            lanes.append(_Lane(connection, [await connection.prepare(text) for text in script.statements], arguments))
        await asyncio.gather(*(lane.run(script.warm_up_seconds) for lane in lanes))
        parent.tell("ready")
        parent.told()
        before = time.process_time()
        calls = sum(await asyncio.gather(*(lane.run(script.seconds) for lane in lanes)))
        parent.tell(Ran(calls, time.process_time() - before))
    finally:
        for connection in connections:
            connection.terminate()


def main(parent: Parent) -> None:
    """Runs the scripts that it is told."""

    async def serve() -> None:
        while True:
            await _run(parent.told(), parent)

    uvloop.run(serve())
