"""What those cost who wait for operations: when they come, while they wait, to others, and when they are answered."""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg
from google.longrunning.operations_pb2 import WaitOperationRequest

from bench.calls import CALLS, Account
from bench.child import child
from bench.data import insert
from bench.installation import Installation
from bench.load import Lane, Load, Loaded
from bench.machine import cpu_seconds, demand_seconds, resident_bytes
from bench.measure import CALLERS, Bench, Sample, WrongAnswer
from cunho_storage.tables import OperationRow

_STREAMS = 100
#: How many come in a second: slowly enough that they need not queue for a connection to the database.
_COMING_PER_SECOND = 300

#: They have all come when the server needed less than that part of a core, each second for so many.
_IDLE, _QUIET_SECONDS = 0.2, 3


class Waiting(NamedTuple):
    """What so many waiters cost."""

    waiters: int
    #: Of each that comes: its request is read, its operation looked up.
    coming_us: float
    #: Memory of each that waits.
    memory_bytes: float
    #: CPU time of all of them in a second.
    idle_ms: float
    #: A call by others meanwhile, and without anybody who waits.
    beside: Sample
    alone: Sample
    #: Of each that is answered, and how long after its operation ended the last one was.
    answered_us: float
    last_seconds: float


def wait(installation: Installation, waiters: int, *, seconds: float) -> Waiting:
    """So many callers, each waiting for an operation of its own. Raises WrongAnswer."""
    bench, call = Bench(installation), CALLS[0]
    (process,) = installation.server.processes()

    def used() -> float:
        return cpu_seconds(installation.server.process.pid) + cpu_seconds(installation.postgresql)

    accounts = installation.scene.accounts(max(1, waiters // _STREAMS))
    asyncio.run(_add_operations(installation.scene.dsn, accounts))
    alone, beside = (Sample(CALLERS) for _ in range(2))
    bench.add(alone, call, seconds)
    with child("load", installation.cores.other) as waiting:
        memory_bytes, before = resident_bytes(process), used()
        waiting.ask(_load(installation.scene.port, accounts))
        waiting.tell("go")
        _settled(process)
        come, memory_bytes = used() - before, resident_bytes(process) - memory_bytes
        before = used()
        time.sleep(max(2, seconds))
        idle = (used() - before) / max(2, seconds)
        bench.add(beside, call, seconds)
        before, begin = used(), time.monotonic()
        asyncio.run(_end_operations(installation.scene.dsn))
        loaded: Loaded = waiting.told()
        last_seconds, answered = time.monotonic() - begin, used() - before
    if loaded.errors or loaded.calls != len(accounts) * _STREAMS:
        raise WrongAnswer(f"WaitOperation: {loaded.errors} of {loaded.calls} failed, the first with {loaded.error}")
    return Waiting(
        loaded.calls,
        1e6 * come / loaded.calls,
        memory_bytes / loaded.calls,
        1e3 * idle,
        beside,
        alone,
        1e6 * answered / loaded.calls,
        last_seconds,
    )


def _load(port: int, accounts: Sequence[Account]) -> Load:
    lanes = [
        Lane(
            account.token,
            [
                WaitOperationRequest(name=f"operations/{_id(index, number)}").SerializeToString()
                for number in range(_STREAMS)
            ],
        )
        for index, account in enumerate(accounts)
    ]
    path = "/google.longrunning.Operations/WaitOperation"
    return Load(port, path, lanes, 3600, 0, once=True, rate=_COMING_PER_SECOND, streams=_STREAMS)


def _settled(number: int) -> None:
    """Waits until a process has little to do any more."""
    quiet = 0
    while quiet < _QUIET_SECONDS:
        before = demand_seconds(number)
        time.sleep(1)
        quiet = quiet + 1 if demand_seconds(number) - before < _IDLE else 0


def _id(account: int, number: int) -> str:
    return f"op-{account:04}{number:04}"


async def _add_operations(dsn: str, accounts: Sequence[Account]) -> None:
    given = {
        "operation_id": "'op-' || lpad(account::text, 4, '0') || lpad(number::text, 4, '0')",
        "account_id": "$1",
        "method": "'CreateInstance'",
        "state": "'PENDING'",
        "target_ids": "'[]'",
        "steps": "'[]'",
        "warnings": "'[]'",
        "quotes": "'[]'",
    }
    source = f"(SELECT $2::int AS account) account, generate_series(0, {_STREAMS - 1}) number"
    connection = await asyncpg.connect(dsn)
    try:
        for index, account in enumerate(accounts):
            await connection.execute(insert(OperationRow, given, source), account.account_id, index)
    finally:
        await connection.close()


async def _end_operations(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "UPDATE operation SET state = 'SUCCEEDED', response = '', end_time = now() WHERE length(operation_id) = 11"
            " AND method = 'CreateInstance' AND request_id = ''"
        )
    finally:
        await connection.close()
