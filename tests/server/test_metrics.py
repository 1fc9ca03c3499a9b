"""What Prometheus is told: of calls as callers saw them, of every process, and under names that callers do not make."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from tests import world as worlds
from tests.end_to_end.requests_of import BY_NAME, call
from tests.end_to_end.steps import Held, import_image, until
from tests.world import Postgres, World

from cunho import Refused
from cunho import v1 as pb
from cunho_server import metrics
from cunho_server.exposition import MetricsAddressError, exposed
from cunho_storage.database import Database, Usage

ABSENT = pb.GetImageRequest(image_id="img-00000000").SerializeToString()
GET = {"service": "cunho.v1.ImageService", "method": "GetImage"}


@pytest.fixture(scope="module")
def driver() -> Held:
    return Held()


@pytest.fixture(scope="module")
def world(postgres: Postgres, driver: Held) -> Iterator[World]:
    with worlds.world(postgres, driver) as running:
        yield running


def value(name: str, **labels: str) -> float:
    """What a metric of this process is at; 0 if there is none."""
    return REGISTRY.get_sample_value(name, labels) or 0


def send(world: World, path: str = BY_NAME["GetImage"].path, token: str | None = None) -> None:
    with grpc.insecure_channel(world.address) as channel:
        call(channel, path, ABSENT, world.token("acme") if token is None else token)


# --- one process


def test_calls_are_counted_by_code_and_timed(world: World) -> None:
    before = value("cunho_calls_total", **GET, code="NOT_FOUND"), value("cunho_call_seconds_count", **GET)
    took = value("cunho_call_seconds_sum", **GET)
    for _ in range(3):
        send(world)
    assert value("cunho_calls_total", **GET, code="NOT_FOUND") == before[0] + 3
    assert value("cunho_call_seconds_count", **GET) == before[1] + 3
    assert value("cunho_call_seconds_sum", **GET) > took


def test_refusals_are_counted_by_reason_and_rule(world: World) -> None:
    quota = {"reason": "CUSTOM_IMAGE_QUOTA_EXCEEDED", "rule": "CUS-5"}
    before = value("cunho_refusals_total", **quota)
    tenant = world.tenant()
    world.operator.set_quota_limit(
        quota_id=pb.QuotaId.QUOTA_ID_CUSTOM_IMAGES,
        account_id=tenant.account_id,
        region_id=worlds.GUANGZHOU,
        limit=0,
    )
    with pytest.raises(Refused, match="images"):
        import_image(tenant, "stock")
    assert value("cunho_refusals_total", **quota) == before + 1, "which no retry of the client can change"


@pytest.mark.parametrize("path", ["/cunho.v1.ImageService/Paint", "/cunho.v1.X/Y", "/a/b", "/cunho.v1.ImageService/"])
def test_callers_make_no_names(world: World, path: str) -> None:
    names = {tuple(sample.labels.values()) for family in REGISTRY.collect() for sample in family.samples}
    unknown = {"service": "unknown", "method": "unknown"}
    before = value("cunho_call_seconds_count", **unknown)
    send(world, path)
    send(world, path, token="")
    assert value("cunho_call_seconds_count", **unknown) == before + 2
    new = {tuple(sample.labels.values()) for family in REGISTRY.collect() for sample in family.samples} - names
    assert all("unknown" in labels or labels[0] in ("METHOD_NOT_FOUND", "CREDENTIALS_MISSING") for labels in new)


async def _look(world: World) -> None:
    metrics.sample(world.service.admission, world.database)
    await metrics._sample_operations(world.database)


def test_what_is_under_way_and_unfinished_is_told(world: World, driver: Held) -> None:
    with driver.holding("import"):
        operation = import_image(world.tenant(), "stock")
        world.sql("UPDATE operation SET create_time = create_time - interval '1 hour' WHERE end_time IS NULL")
        world.run(_look(world))
        assert (
            value("cunho_operations_unfinished", state="PENDING")
            + value("cunho_operations_unfinished", state="RUNNING")
            == 1
        )
        assert 3600 < value("cunho_operation_oldest_unfinished_seconds") < 4000
    operation.result(timeout_seconds=20)
    world.run(_look(world))
    assert value("cunho_operations_unfinished", state="RUNNING") == 0
    assert value("cunho_operation_oldest_unfinished_seconds") == 0
    assert value("cunho_database_connections", state="open") >= 1
    assert value("cunho_process_memory_bytes") > 10 << 20
    assert value("cunho_process_cpu_seconds") > 0


def test_calls_under_way_and_connections_are_told_as_they_are() -> None:
    busy: Any = SimpleNamespace(calls=7, waits=3, usage=Usage(5, 4, 2))

    def told() -> list[float]:
        metrics.sample(busy, busy)
        under_way = [value("cunho_calls_under_way", kind=kind) for kind in ("call", "wait")]
        connections = [value("cunho_database_connections", state=state) for state in ("open", "in_use")]
        return [*under_way, *connections, value("cunho_database_calls_waiting")]

    until(lambda: told() == [7, 3, 5, 4, 2])  # a server in this process tells of itself every second


# --- several processes

PROCESS = """
import sys
from types import SimpleNamespace as Made
from cunho_server import metrics
from cunho_server.call import Call, Method
from cunho_storage.database import Usage
for _ in range(int(sys.argv[1])):
    metrics.count(Call(Method("cunho.v1.ImageService", "GetImage", False), "ipv4:127.0.0.1:1", ()))
metrics.sample(Made(calls=int(sys.argv[1]), waits=0), Made(usage=Usage(2, 1, 0)))
print("counted", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def told(address: str) -> dict[tuple[str, ...], float]:
    """What is told, by name and values of labels."""
    with urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_the_metrics_of_all_processes_are_told_together(processes: list[subprocess.Popen[bytes]]) -> None:
    with exposed("127.0.0.1:0") as telling:
        for number in (3, 4):
            process = subprocess.Popen(
                [sys.executable, "-c", PROCESS, str(number)],
                env=os.environ | telling.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            processes.append(process)
            assert process.stdout
            assert process.stdout.readline() == b"counted\n"
        counted = ("cunho_calls_total", "OK", "GetImage", "cunho.v1.ImageService")
        both = told(telling.address)
        assert (both[counted], both["cunho_calls_under_way", "call"]) == (7, 7)
        assert both["cunho_database_connections", "open"] == 4
        numbers = {str(process.pid) for process in processes}
        assert {labels[0] for name, *labels in both if name == "cunho_process_memory_bytes"} == numbers
        processes[0].kill()
        processes[0].wait()
        telling.forget(processes[0].pid)
        one = told(telling.address)
        assert one[counted] == 7, "what was counted stays"
        assert one["cunho_calls_under_way", "call"] == 4
        assert {labels[0] for name, *labels in one if name == "cunho_process_memory_bytes"} == {str(processes[1].pid)}
        (folder,) = telling.environment.values()
    assert not Path(folder).exists()
    with pytest.raises(OSError, match="refused"):
        told(telling.address)


def test_an_address_that_is_taken_is_refused_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MetricsAddressError, match=f"{address} .*CUNHO_METRICS_ADDRESS"), exposed(address):
            pass


def test_without_an_address_nothing_is_told_and_processes_need_nothing() -> None:
    with exposed("") as telling:
        assert (telling.address, telling.environment) == ("", {})
        telling.forget(1)


async def test_a_database_that_is_away_does_not_end_the_looking(world: World, tmp_path: Path) -> None:
    away = Database(f"postgresql://cunho@/cunho?host={tmp_path}")
    following = asyncio.create_task(metrics.follow(world.service.admission, away))
    await asyncio.wait({following}, timeout=0.1)
    assert not following.done()
    following.cancel()
