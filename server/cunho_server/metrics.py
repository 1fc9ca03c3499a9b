"""Metrics for Prometheus, counted in a process that answers calls. What tells them, for all processes, is `exposition`.

A single process, as in tests, keeps them to itself.
"""

import asyncio
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from cunho_rules.refusals import Refusal
from cunho_server import memory
from cunho_storage import operations
from cunho_storage.database import Conflict, Database

if TYPE_CHECKING:
    from cunho_server.admission import Admission
    from cunho_server.call import Call

_CALLS = Counter("cunho_calls", "Calls that have ended.", ["service", "method", "code"])
_SECONDS = Histogram(
    "cunho_call_seconds",
    "How long calls took.",
    ["service", "method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
_REFUSALS = Counter("cunho_refusals", "Calls refused, by reason and the rule that refuses.", ["reason", "rule"])
_UNDER_WAY = Gauge(
    "cunho_calls_under_way", "Calls under way, and those that wait.", ["kind"], multiprocess_mode="livesum"
)
_CONNECTIONS = Gauge("cunho_database_connections", "Connections to PostgreSQL.", ["state"], multiprocess_mode="livesum")
_WAITING = Gauge("cunho_database_calls_waiting", "Calls that wait for a connection.", multiprocess_mode="livesum")
_UNFINISHED = Gauge(
    "cunho_operations_unfinished", "Operations to be carried out.", ["state"], multiprocess_mode="livemostrecent"
)
_OLDEST = Gauge(
    "cunho_operation_oldest_unfinished_seconds",
    "Age of the oldest operation that has not ended; 0 if all have.",
    multiprocess_mode="livemostrecent",
)
_MEMORY = Gauge("cunho_process_memory_bytes", "Resident memory of each process.", multiprocess_mode="liveall")
_CPU = Gauge("cunho_process_cpu_seconds", "Processor time of each process.", multiprocess_mode="liveall")

#: How often the gauges are set, and at every how many of these times those of the operations.
_LOOK_SECONDS, _LOOKS = 1, 5


def count(call: "Call") -> None:
    """Counts a call that has ended."""
    method = call.method
    _calls(method.service, method.name, call.code).inc()
    _seconds(method.service, method.name).observe(call.seconds)
    if call.refusal:
        _REFUSALS.labels(call.refusal.reason, call.refusal.rule).inc()


async def follow(admission: "Admission", database: Database) -> None:
    """Sets the gauges again and again, until cancelled: calls under way, connections, operations, the process."""
    look = 0
    while True:
        sample(admission, database)
        if look % _LOOKS == 0:
            await _sample_operations(database)
        look += 1
        await asyncio.sleep(_LOOK_SECONDS)


def sample(admission: "Admission", database: Database) -> None:
    """Sets the gauges of the calls under way, the connections, and what the process uses."""
    usage = database.usage
    _UNDER_WAY.labels("call").set(admission.calls)
    _UNDER_WAY.labels("wait").set(admission.waits)
    _CONNECTIONS.labels("open").set(usage.open)
    _CONNECTIONS.labels("in_use").set(usage.in_use)
    _WAITING.set(usage.waiting)
    _CPU.set(time.process_time())
    _MEMORY.set(memory.resident_bytes())


async def _sample_operations(database: Database) -> None:
    try:
        async with database.connection() as connection:
            unfinished = await operations.unfinished(connection)
    except (Refusal, Conflict):  # the database is away, which is logged and told by other means
        return
    for state, number in unfinished.numbers.items():
        _UNFINISHED.labels(state).set(number)
    _OLDEST.set(unfinished.oldest_seconds)


@lru_cache
def _calls(service: str, method: str, code: str) -> Counter:
    return _CALLS.labels(service, method, code)


@lru_cache
def _seconds(service: str, method: str) -> Histogram:
    return _SECONDS.labels(service, method)
