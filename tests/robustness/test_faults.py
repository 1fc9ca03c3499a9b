"""Faults while calls go on: what was acknowledged stays, once, nothing stays half-done, and the service comes back."""

import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from tests.end_to_end.steps import import_image, refused, until
from tests.robustness.faults import NETWORK, Recoveries, Service, Wired, assert_whole, can_mount, filled, small_disk
from tests.robustness.proxy import Proxy
from tests.robustness.scale import only_long, scaled
from tests.robustness.writers import Traffic
from tests.server_process import SERVING, health, metric, serving
from tests.storage.clusters import clusters
from tests.world import GUANGZHOU, ZONES, Postgres

from cunho import Client, Refused, v1
from cunho_server import keys
from cunho_server.settings import Settings
from cunho_server.tokens import Signer

#: What is killed, and how often in the long run: 200 times, those that are soon over more often.
KILLS: dict[Callable[[Service], None], int] = {
    Service.kill_process: 60,
    Service.kill_postgres: 80,
    Service.kill_backend: 38,
    Service.suspend_postgres: 8,
    Service.kill_supervisor: 10,
    Service.kill_lone_supervisor: 4,
}


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder / "data"
    shutil.rmtree(folder)


@pytest.fixture
def service(data_dir: Path) -> Iterator[Service]:
    service = Service(data_dir)
    try:
        yield service
    finally:
        service.stop()


def test_whatever_is_killed_nothing_acknowledged_is_lost_and_nothing_stays_half_done(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    traffic, recoveries, moment = Traffic(service.connect), Recoveries(), random.Random(1)
    kills = [kill for kill, often in KILLS.items() for _ in range(scaled(1, often))]
    moment.shuffle(kills)
    for kill in kills:
        with traffic.running():
            traffic.go_on(moment.randrange(1, 10))
            with recoveries.measured(kill.__name__, service, traffic):
                kill(service)
        assert_whole(service, traffic)
    with capsys.disabled():
        print(f"\n{recoveries}\n{traffic.writes} writes acknowledged; refused meanwhile: {dict(traffic.refusals)}")


@only_long
@pytest.mark.skipif(not can_mount(), reason="only who may mount a small disk can fill one")
def test_a_full_disk_is_unavailability_and_costs_nothing_that_was_acknowledged() -> None:
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        undo.enter_context(small_disk(folder, 400))
        service = Service(folder / "data")
        undo.callback(service.stop)
        traffic, recoveries = Traffic(service.connect), Recoveries()
        with traffic.running():
            traffic.go_on(5)
            with recoveries.measured("full disk", service, traffic), filled(folder):
                until(lambda: traffic.refusals["UNAVAILABLE", "DATABASE_UNAVAILABLE"] > 3, 60)
        assert_whole(service, traffic)


def test_where_postgresql_answers_before_it_has_written_a_kill_is_seen_to_lose(service: Service) -> None:
    service.sql("ALTER DATABASE cunho SET synchronous_commit = off")
    service.sql("ALTER SYSTEM SET wal_writer_delay = '10s'")
    service.sql("SELECT pg_reload_conf()")
    service.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cunho-server'")
    traffic, refusals = Traffic(service.connect), list[Refused]()
    try:
        with traffic.running():
            traffic.go_on(10)
            service.kill_postgres()
    except Refused as refused:  # what it began is not there any more
        refusals.append(refused)
    assert refusals or traffic.differences(service.sql)


# --- clocks


@pytest.fixture
def jump(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many seconds the clocks of servers are off that start from now on."""
    file = data_dir.parent / "jump"
    monkeypatch.setenv("JUMP_FILE", str(file))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("jumping")))

    def jump(seconds: int) -> None:
        (new := file.with_suffix(".new")).write_text(str(seconds))
        new.replace(file)

    jump(0)
    return jump


def test_clocks_that_jump_within_the_skew_are_not_noticed(jump: Callable[[int], None], service: Service) -> None:
    traffic, skew = Traffic(service.connect), Settings.model_validate({}).token_skew_seconds
    with traffic.running():
        for seconds in (skew - 5, 5 - skew) * scaled(1, 10):
            jump(seconds)
            traffic.go_on(3)
    assert_whole(service, traffic)


def test_a_clock_that_jumps_far_is_noticed_by_tokens_alone(jump: Callable[[int], None], data_dir: Path) -> None:
    with serving(data_dir, PROCESSES=1, LEDGER_SECONDS=1, LEASE_SECONDS=1, METRICS_ADDRESS="127.0.0.1:0") as server:
        server.client("operator").register_account(account_id="acc", region_ids=[GUANGZHOU])
        key = keys.private_key(data_dir / "development-key.pem")

        def client(ahead_seconds: int = 0, seconds: int = 600) -> Client:
            signer = Signer(key, Settings.model_validate({}), lambda: time.time() + ahead_seconds)
            return Client(server.address, token=signer.token("acc", "account", seconds=seconds))

        with client() as known, client(seconds=500) as new, client(seconds=400) as newer, client(3600) as ahead:
            request_id, pages = str(uuid4()), known.list_images(region_id=GUANGZHOU, page_size=1)
            begun, first = import_image(known, "begun", request_id=request_id), next(pages)
            jump(3600)
            assert import_image(ahead, "begun", request_id=request_id).name == begun.name
            with refused("UNAUTHENTICATED", "CREDENTIALS_INVALID", "ALL-1"):
                new.get_image(image_id=first.image_id)
            jump(-3600)
            assert next(pages) != first, "a token that was verified before, and a page token"
            with refused("UNAUTHENTICATED", "CREDENTIALS_INVALID", "ALL-1"):
                newer.get_image(image_id=first.image_id)
            jump(0)
            assert new.get_image(image_id=first.image_id) == first
            assert begun.result(20).name == "begun"
        assert server.sql("SELECT attempts FROM operation") == [(1,)], "its lease was not taken for over"
        until(lambda: metric(server, "cunho_operation_oldest_unfinished_seconds") == 0, 20)
        assert health(server) == SERVING


# --- networks


@pytest.fixture(scope="module")
def wired(postgres: Postgres) -> Iterator[Wired]:
    with ExitStack() as undo:
        made = undo.enter_context(clusters(programs_in=postgres.folder / "data"))
        cluster = undo.enter_context(made.running(made.new()))
        cluster.sql("CREATE DATABASE cunho")
        (folder := made.folder / "server").mkdir()
        yield Wired(folder / "data", cluster, undo)


@pytest.fixture
def traffic(wired: Wired) -> Traffic:
    """New writers for each test, so that what one leaves under way when it fails is nothing to the next."""
    return Traffic(wired.connect)


@pytest.fixture
def account_id(wired: Wired) -> str:
    """An account that is none of the writers'."""
    account_id = f"acc-{uuid4().hex[:10]}"
    with wired.connect("operator") as operator:
        operator.register_account(account_id=account_id, region_ids=[*ZONES])
    return account_id


@pytest.fixture(scope="module")
def recoveries() -> Iterator[Recoveries]:
    kept = Recoveries()
    yield kept
    print(f"\n{kept}", file=sys.__stderr__)


@pytest.mark.parametrize("where", ["near", "far"])
@pytest.mark.parametrize("harm", NETWORK, ids=lambda harm: harm.__name__)
def test_whatever_networks_do_nothing_acknowledged_is_lost_and_nothing_stays_half_done(
    wired: Wired, traffic: Traffic, recoveries: Recoveries, where: str, harm: Callable[[Proxy], None]
) -> None:
    for _ in range(scaled(1, 10)):
        with traffic.running():
            traffic.go_on(2)
            harm(getattr(wired, where))
            with recoveries.measured(f"{harm.__name__}, {where}", wired, traffic):
                pass
        assert_whole(wired, traffic)


#: A transaction's last statement.
COMMIT = b"COMMIT"

#: Within the write of a launch, which is its commit: the name in the metadata of the operation that it answers.
LAUNCH = b"\n\x0eCreateInstance"


def test_a_commit_whose_answer_was_lost_is_done_once(wired: Wired, traffic: Traffic) -> None:
    lost = wired.far.lost + scaled(10, 500)
    with traffic.running(), wired.far.losing_answers(COMMIT):
        until(lambda: wired.far.lost >= lost, 300)
    assert_whole(wired, traffic)


def test_a_launch_whose_one_write_was_done_and_its_answer_lost_is_done_once(wired: Wired, traffic: Traffic) -> None:
    lost_before, launches_before = wired.far.lost, launches(wired)
    with wired.far.losing_answers(LAUNCH), traffic.running():
        until(lambda: wired.far.lost >= lost_before + scaled(10, 500), 600)
    assert_whole(wired, traffic)
    assert wired.far.lost - lost_before == launches(wired) - launches_before, "each was lost once, and nothing else"


def launches(wired: Wired) -> int:
    """How many launches with a request id were answered, or would have been."""
    ((number,),) = wired.sql("SELECT count(*) FROM request_log WHERE method = 'CreateInstance'")
    return int(number)


def test_who_repeats_such_a_call_without_its_request_id_does_it_twice(wired: Wired, account_id: str) -> None:
    image_id = wired.sql("SELECT image_id FROM image WHERE name = 'Debian 12 64bit' AND region_id = $1", GUANGZHOU)[0][
        0
    ]
    place = {"region_id": GUANGZHOU, "zone_id": ZONES[GUANGZHOU], "instance_type": "S5.MEDIUM4", "image_id": image_id}

    def launched(client: Client, name: str, *request_ids: str) -> int:
        with wired.far.losing_answers(LAUNCH), pytest.raises(Refused):
            client.create_instance(name=name, request_id=request_ids[0], **place)
        client.create_instance(name=name, request_id=request_ids[-1], **place).result(20)
        return len(wired.sql("SELECT FROM instance WHERE account_id = $1 AND name = $2", account_id, name))

    with wired.connect_once(account_id) as client:
        assert launched(client, "repeated", str(uuid4())) == 1
        assert launched(client, "sent anew", str(uuid4()), str(uuid4())) == 2


# --- PostgreSQL itself


@only_long
@pytest.mark.parametrize("at_commit", [False, True], ids=["statements", "commits"])
def test_errors_of_postgresql_that_pass_cost_nothing_and_are_no_internal_errors(
    wired: Wired, traffic: Traffic, at_commit: bool
) -> None:
    passing = ("40001", "40P01", "55P03", "57014", "53100", "53200", "58030")
    with traffic.running(), wired.raising(*passing, at_commit=at_commit):
        traffic.go_on(scaled(10, 300))
    assert_whole(wired, traffic)


def deadlocks(wired: Wired) -> int:
    """How many deadlocks PostgreSQL has ended."""
    ((number,),) = wired.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = 'cunho'")
    return int(number)


async def deleted_in_a_deadlock(wired: Wired, client: Client, account_id: str, image_id: str) -> v1.Image:
    """The image, whose deletion has the account's place and waits for one who has the image and waits for the place.

    That one has patience, so that the deletion is ended, unless it came first by more than a second: each looks for a
    deadlock once.
    """
    other = await asyncpg.connect(wired.dsn)
    try:
        await other.execute("SET deadlock_timeout = '20s'")
        async with other.transaction():
            await other.fetch("SELECT FROM image WHERE image_id = $1 FOR UPDATE", image_id)
            deleting = asyncio.create_task(asyncio.to_thread(client.delete_image, image_id=image_id))
            waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await asyncio.to_thread(until, lambda: wired.sql(waiting))
            await other.fetch("SELECT FROM account_region WHERE account_id = $1 FOR UPDATE", account_id)
        return await deleting
    finally:
        await other.close()


def test_a_deadlock_costs_nobody_its_call(wired: Wired, account_id: str) -> None:
    before = deadlocks(wired)
    with wired.connect(account_id) as client:
        for number in range(5):
            image_id = import_image(client, f"in deadlock {number}").result(20).image_id
            image = asyncio.run(deleted_in_a_deadlock(wired, client, account_id, image_id))
            assert image.state == v1.Image.STATE_DELETED
            with suppress(TimeoutError):  # they missed each other
                until(lambda: deadlocks(wired) > before, 3)
                return
    pytest.fail("the two never met in a deadlock")
