"""A server as a process of its own: killed in the middle of its work, stopped, started again, and refused a start."""

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from tests.end_to_end.soundness import unsound
from tests.end_to_end.steps import STOCK_URI, to, until
from tests.server_process import Server, locked, postgres_process, serving
from tests.world import FRANKFURT, GUANGZHOU, SHANGHAI, ZONES, Postgres

from cunho import Client, Operation, v1
from cunho_storage import embedded

#: When servers are killed: seconds after the last operation of a round was begun. A step of an operation takes 0.3 s.
KILLS = (0.0, 0.1, 0.25, 0.4, 0.6)
STEP_SECONDS = 0.3


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """A data folder below one that every user may enter, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder / "data"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def stocks(data_dir: Path) -> Iterator["Stock"]:
    """Accounts that have something to work on, each for one use."""
    with serving(data_dir) as server:
        made = [stocked(server) for _ in range(len(KILLS) + 3)]
    return iter(made)


# --- work for a server to be killed in


class Call(NamedTuple):
    """A call that begins an operation, safe to repeat."""

    method: str
    given: dict[str, Any]

    def send(self, client: Client) -> Operation[Any]:
        """The operation."""
        operation: Operation[Any] = getattr(client, self.method)(**self.given)
        return operation


class Stock(NamedTuple):
    """What an account has before its operations begin."""

    account_id: str
    running: list[str]
    stopped: list[str]
    image_id: str


def stocked(server: Server) -> Stock:
    """A new account with six running and two stopped instances, and an image."""
    account_id = f"acc-{uuid4().hex[:10]}"
    server.client("operator").register_account(account_id=account_id, region_ids=[*ZONES])
    client = server.client(account_id)
    (image, *_) = client.list_images(
        region_id=GUANGZHOU, filter="kind = PUBLIC AND os.family = LINUX", usable_with_instance_type="S5.MEDIUM4"
    )
    place: dict[str, Any] = {"region_id": GUANGZHOU, "zone_id": ZONES[GUANGZHOU], "instance_type": "S5.MEDIUM4"}
    launched = client.create_instance(image_id=image.image_id, count=8, **place).result(20)
    running = [instance.instance_id for instance in launched.instances]
    stopped = [running.pop(), running.pop()]
    for instance_id in stopped:
        client.stop_instance(instance_id=instance_id).result(20)
    own = Call("import_image", importing("the stock")).send(client).result(20)
    return Stock(account_id, running, stopped, own.image_id)


def importing(name: str) -> dict[str, Any]:
    """Arguments of an import."""
    return {
        "region_id": GUANGZHOU,
        "name": name,
        "uri": STOCK_URI,
        "format": v1.ImportImageRequest.FORMAT_QCOW2,
        "os": v1.OperatingSystem(family=v1.OsFamily.OS_FAMILY_LINUX, platform="debian", version="12"),
        "architecture": v1.Architecture.ARCHITECTURE_X86_64,
        "size_bytes": 1 << 30,
        "min_disk_bytes": 8 << 30,
    }


def calls(stock: Stock) -> list[Call]:
    """A dozen calls, of every method that begins an operation."""
    captured, snapped, stopping, rebooting, reinstalled, deleted = stock.running
    idle, starting = stock.stopped
    crash_consistent = v1.CreateImageRequest.CONSISTENCY_CRASH_CONSISTENT
    here: dict[str, Any] = {"region_id": GUANGZHOU}
    given: list[tuple[str, dict[str, Any]]] = [
        ("create_image", here | {"instance_id": captured, "name": "of a stopped one"}),
        ("create_image", here | {"instance_id": snapped, "name": "of a running one", "consistency": crash_consistent}),
        ("create_image", here | {"instance_id": idle, "name": "of an idle one"}),
        ("import_image", importing("imported")),
        ("import_image", importing("imported too")),
        ("copy_image", {"image_id": stock.image_id, "destinations": to(SHANGHAI, FRANKFURT)}),
        ("start_instance", {"instance_id": starting}),
        ("stop_instance", {"instance_id": stopping}),
        ("reboot_instance", {"instance_id": rebooting}),
        ("reinstall_instance", {"instance_id": reinstalled}),
        ("delete_instance", {"instance_id": deleted}),
        (
            "create_instance",
            here | {"image_id": stock.image_id, "zone_id": ZONES[GUANGZHOU], "instance_type": "S5.MEDIUM4", "count": 2},
        ),
    ]
    return [Call(method, arguments | {"request_id": str(uuid4())}) for method, arguments in given]


#: What an operation leaves its targets in, by its method and how it ended.
LEFT = {
    **{(method, "SUCCEEDED"): {"AVAILABLE"} for method in ("CreateImage", "ImportImage", "CopyImage")},
    **{(method, "FAILED"): {"FAILED"} for method in ("CreateImage", "ImportImage", "CopyImage", "CreateInstance")},
    **{(method, "SUCCEEDED"): {"RUNNING"} for method in ("CreateInstance", "StartInstance")},
    **{(method, "SUCCEEDED"): {"RUNNING"} for method in ("RebootInstance", "ReinstallInstance")},
    **{(method, "FAILED"): {"RUNNING"} for method in ("StopInstance", "RebootInstance", "ReinstallInstance")},
    ("ImportImage", "CANCELLED"): {"DELETED"},
    ("StartInstance", "FAILED"): {"STOPPED"},
    ("StopInstance", "SUCCEEDED"): {"STOPPED"},
    ("DeleteInstance", "SUCCEEDED"): {"DELETED"},
    ("DeleteInstance", "FAILED"): {"RUNNING"},
}


def test_whatever_a_killed_server_had_begun_ends_and_nothing_is_lost(data_dir: Path, stocks: Iterator[Stock]) -> None:
    begun, cancelled = dict[str, tuple[str, Call]](), list[Operation[Any]]()
    renamed = dict[str, tuple[str, str]]()
    for kill_after in KILLS:
        stock = next(stocks)
        with serving(data_dir, LEDGER_SECONDS=STEP_SECONDS, LEASE_SECONDS=1, WORKERS=16) as server:
            assert unsound(server.sql) == []
            client = server.client(stock.account_id)
            for call in calls(stock):
                begun[call.send(client).name] = stock.account_id, call
            cancelled.append(Call("import_image", importing("cancelled")).send(client))
            cancelled[-1].cancel()
            name = f"renamed {kill_after}"
            client.update_image(image=v1.Image(image_id=stock.image_id, name=name), update_mask=["name"])
            renamed[stock.image_id] = stock.account_id, name
            time.sleep(kill_after)
            server.kill()
    with serving(data_dir, LEASE_SECONDS=1) as server:
        all_ended(server)
        assert unsound(server.sql) == []
        assert_ended_as_they_should(server, begun, [operation.name for operation in cancelled])
        for name, (account_id, call) in begun.items():
            assert call.send(server.client(account_id)).name == name
        for image_id, (account_id, name) in renamed.items():
            assert server.client(account_id).get_image(image_id=image_id).name == name


def all_ended(server: Server) -> None:
    """Waits until no operation is left."""
    until(lambda: not server.sql("SELECT FROM operation WHERE end_time IS NULL"))


def assert_ended_as_they_should(server: Server, begun: Iterable[str], cancelled: Iterable[str]) -> None:
    """Each operation ended, none was given up early, some were interrupted, and all left what they say they did."""
    query = """
        SELECT 'operations/' || operation.operation_id, method, operation.state, attempts,
               array_agg(coalesce(image.state, instance.state))
          FROM operation CROSS JOIN LATERAL jsonb_array_elements_text(target_ids) AS target_id
               LEFT JOIN image ON image_id = target_id LEFT JOIN instance ON instance_id = target_id
         GROUP BY operation.operation_id
    """
    found = {name: rest for name, *rest in server.sql(query)}
    for name in (*begun, *cancelled):
        method, state, attempts, left = found[name]
        given_up = {"FAILED"} if method == "CopyImage" and attempts > 5 else set()  # in one region only
        assert {*left} in (LEFT[method, state], LEFT[method, state] | given_up), (name, method, state)
    for name in begun:
        _, state, attempts, _ = found[name]
        assert state == "SUCCEEDED" or (state == "FAILED" and attempts > 5)
    assert {found[name][1] for name in cancelled} <= {"CANCELLED", "SUCCEEDED"}
    assert sum(found[name][2] > 1 for name in begun) > 10


def test_a_server_goes_on_after_its_postgres_was_killed_with_it(data_dir: Path, stocks: Iterator[Stock]) -> None:
    stock = next(stocks)
    with serving(data_dir, LEDGER_SECONDS=STEP_SECONDS, LEASE_SECONDS=1, WORKERS=16) as server:
        client = server.client(stock.account_id)
        begun = {call.send(client).name: call for call in calls(stock)}
        time.sleep(STEP_SECONDS / 2)
        os.kill(postgres_process(data_dir), signal.SIGKILL)
        server.kill()
    with serving(data_dir, LEASE_SECONDS=1) as server:
        all_ended(server)
        assert unsound(server.sql) == []
        client = server.client(stock.account_id)
        for name, call in begun.items():
            assert client.get_operation(name=name).result()
            assert call.send(client).name == name


# --- stopping


def test_a_server_that_stops_answers_who_waits_and_leaves_its_work_to_the_next(
    data_dir: Path, stocks: Iterator[Stock]
) -> None:
    stock = next(stocks)
    long: dict[str, Any] = {"LEDGER_SECONDS": 600, "LEASE_SECONDS": 600, "SHUTDOWN_SECONDS": 600}
    with serving(data_dir, **long) as server, ThreadPoolExecutor(1) as threads:
        client = server.client(stock.account_id)
        operation = Call("import_image", importing("left to the next")).send(client)
        until(lambda: client.get_operation(name=operation.name).metadata.HasField("start_time"))
        waiting = threads.submit(client.wait_operation, name=operation.name)
        time.sleep(0.1)
        server.process.terminate()
        assert not waiting.result(20).done
        assert server.ended() == 0
        assert postgres_process(data_dir) == 0
    with serving(data_dir) as server:
        image = server.client(stock.account_id).get_operation(name=operation.name).result(20)
        assert image == server.client(stock.account_id).get_image(image_id=operation.metadata.target_ids[0])
        query = "SELECT attempts FROM operation WHERE 'operations/' || operation_id = $1"
        assert server.sql(query, operation.name) == [(1,)]


def test_a_call_under_way_is_answered_before_the_server_stops(data_dir: Path, stocks: Iterator[Stock]) -> None:
    stock = next(stocks)
    with serving(data_dir) as server, ThreadPoolExecutor(1) as threads:
        client = server.client(stock.account_id)
        wanted = v1.Image(image_id=stock.image_id, name="renamed under way")
        with locked(server, stock.image_id):
            renaming = threads.submit(client.update_image, image=wanted, update_mask=["name"])
            until(lambda: server.sql("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
            server.process.terminate()
            until(lambda: "stopping" in server.log)
        assert renaming.result(20).name == "renamed under way"
        assert server.ended() == 0
        assert "Traceback" not in server.log


# --- refused starts


def test_a_second_server_on_the_same_data_folder_is_refused(data_dir: Path) -> None:
    own = embedded.start(data_dir)
    try:
        assert refused(data_dir) == (
            f"the data folder {data_dir} is in use by process {os.getpid()}: "
            "stop it or choose another with CUNHO_DATA_DIR\n"
        )
    finally:
        own.stop()


def test_an_address_in_use_is_refused(data_dir: Path, postgres: Postgres) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refused(data_dir, ADDRESS=address, DATABASE_URL=postgres.database())
    assert said.splitlines()[-1] == (
        f"cannot listen on {address} (Address already in use): stop what listens there, or choose another address with "
        "CUNHO_ADDRESS"
    )
    assert "Traceback" not in said


def refused(data_dir: Path, **settings: Any) -> str:
    """What a server says that cannot start."""
    server = Server(data_dir, **settings)
    assert server.ended() == 1
    return server.log
