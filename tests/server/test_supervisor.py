"""The server's processes, from outside: on one port, kept up, replaced, stopped, and PostgreSQL coming and going."""

import asyncio
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import grpc
import pytest
from tests.end_to_end.requests_of import BY_NAME, call
from tests.end_to_end.steps import until
from tests.server_process import (
    NOT_SERVING,
    SERVING,
    Server,
    health,
    locked,
    metric,
    postgres_process,
    serving,
)
from tests.world import Postgres

from cunho import Client, Refused, v1
from cunho_server import supervisor
from cunho_server.address import reserved
from cunho_server.exposition import Exposed
from cunho_server.settings import Settings
from cunho_storage import migrations


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)  # every user may enter it, which those of pytest are not for
    yield folder / "data"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[Server]:
    with serving(data_dir, PROCESSES=2, SHUTDOWN_SECONDS=20) as running:
        yield running


def fresh(server: Server) -> Client:
    """A client on a connection of its own, which any of the processes may have taken."""
    return server.client("operator")


@contextmanager
def calling(server: Server) -> Iterator[list[Refused]]:
    """Calls one after another, each on a new connection, as long as this lasts; those that failed."""
    failed: list[Refused] = []
    stopped = threading.Event()

    def call() -> None:
        while not stopped.is_set():
            try:
                with fresh(server) as client:
                    next(client.list_regions())
            except Refused as refused:
                failed.append(refused)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield failed
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def renew(server: Server) -> None:
    """Has fresh processes take over, and waits until all have."""
    before = server.processes()
    server.process.send_signal(signal.SIGHUP)
    until(lambda: len(server.processes()) == len(before) and not {*before} & {*server.processes()})


def test_as_many_processes_answer_as_the_settings_say(server: Server) -> None:
    assert len(server.processes()) == 2


def test_a_supervisor_over_a_database_with_a_catalogue_starts_without_grpc(server: Server, tmp_path: Path) -> None:
    with serving(tmp_path, DATABASE_URL=server.dsn, PROCESSES=1) as other:
        assert [has_loaded_grpc(number) for number in (other.process.pid, *other.processes())] == [False, True]


def has_loaded_grpc(process: int) -> bool:
    """Whether the process has gRPC in its memory."""
    return "cygrpc" in Path(f"/proc/{process}/maps").read_text()


def test_what_knows_the_database_is_not_loaded_before_the_processes_are_started() -> None:
    program = (
        "import sys, cunho_server.__main__, cunho_server.supervisor; print({'asyncpg', 'peewee'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


def test_a_process_that_serves_searches_for_garbage_again(server: Server) -> None:
    program = """
import gc, os
from cunho_server import process
write = os.write
os.write = lambda file, data: write(file, f"{gc.isenabled()} {gc.get_freeze_count() > 10_000} ".encode() + data)
process.main()
"""
    settings = Settings.model_validate({"data_dir": server.data_dir, "address": "127.0.0.1:0"})
    told = {"settings": settings.model_dump(mode="json"), "dsn": server.dsn, "index": 0}
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"True True ready\n"


def test_calls_go_on_while_a_process_is_killed_and_another_takes_its_place(server: Server) -> None:
    killed, kept = server.processes()
    with calling(server) as failed:
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(server.processes()) == 2 and killed not in server.processes())
        until(lambda: "another takes its place" in server.log)
    assert kept in server.processes()
    # Calls that were with the killed process are sent again by the client.
    assert failed == []


def test_fresh_processes_take_over_at_sighup_and_no_call_fails(server: Server) -> None:
    with calling(server) as failed:
        renew(server)
    assert failed == []


def test_a_process_that_does_not_reach_the_database_says_so_in_a_sentence(server: Server, data_dir: Path) -> None:
    told, postgres = len(server.log), postgres_process(data_dir)
    os.kill(postgres, signal.SIGSTOP)
    try:
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.log.count(" goes on [", told) == 2)
    finally:
        os.kill(postgres, signal.SIGCONT)
    assert "the database cannot be used (TimeoutError)" in server.log[told:]
    assert "Traceback" not in server.log[told:]


@contextmanager
def no_room_for_processes(server: Server) -> Iterator[None]:
    """The supervisor can open no file more."""
    soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_is_started_once_there_is_room_for_it_again(server: Server) -> None:
    old = server.processes()
    with no_room_for_processes(server):
        server.process.send_signal(signal.SIGHUP)
        until(lambda: all(f": process {number} goes on" in server.log for number in old), 20)
        told = server.log.count("no process can be started")
        os.kill(old[0], signal.SIGKILL)
        until(lambda: server.log.count("no process can be started") > told, 20)
    until(lambda: len(server.processes()) == 2)
    renew(server)


async def test_processes_that_end_again_and_again_are_replaced_after_longer_and_longer_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, pauses, lives, done = 0.0, list[float](), [20, *8 * [9], 11, 0], asyncio.Event()

    class Child:
        number = 1

        async def serve(self, told: bytes) -> None:
            pass

        async def ended(self) -> int:
            nonlocal now
            if not lives:
                done.set()
                await asyncio.Event().wait()
            now += lives.pop(0)
            return 1

        async def stop(self, grace_seconds: float) -> None:
            pass

    async def spawn(environment: object) -> Child:
        return Child()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(supervisor._Child, "spawn", spawn)
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: now), raising=False)
    monkeypatch.setattr(supervisor, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
    processes = supervisor._Processes(Settings.model_validate({}), Exposed("", ""))
    await processes.spawn()
    async with processes.serving(""):
        await done.wait()
    assert pauses == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 0, 0.1]


async def test_a_process_that_hangs_is_replaced_and_the_log_says_where_it_hung(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, postgres: Postgres, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, time\ndef hang(*_): time.sleep(1000)\nsignal.signal(signal.SIGUSR1, hang)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(supervisor, "_MISSED_MAX", 3)
    dsn = await asyncio.to_thread(postgres.database)
    with closing(reserved("127.0.0.1:0")) as kept:
        address = f"127.0.0.1:{kept.getsockname()[1]}"
        settings = Settings.model_validate({"data_dir": tmp_path, "processes": 1, "address": address})
        async with supervisor._loading(settings, Exposed("", "")) as processes, processes.serving(dsn):
            for hang in (signal.SIGUSR1, signal.SIGSTOP):
                hung = processes._slots[0]
                os.kill(hung.number, hang)
                async with asyncio.timeout(60):
                    while processes._slots[0] is hung:
                        await asyncio.sleep(0.05)
                assert await hung.ended() == -signal.SIGKILL
            with grpc.insecure_channel(address) as channel:
                await asyncio.to_thread(grpc.channel_ready_future(channel).result, 20)
    assert 'sitecustomize.py", line 2 in hang' in capfd.readouterr().err


def test_processes_of_a_newer_version_do_not_serve_from_the_schema_of_the_one_before(server: Server) -> None:
    before, told = server.processes(), len(server.log)
    applied = server.sql("DELETE FROM schema_migration RETURNING version, name, digest")
    try:
        with calling(server) as failed:
            server.process.send_signal(signal.SIGHUP)
            until(lambda: server.log.count("goes on", told) == len(before), 60)
    finally:
        for migration in applied:
            server.sql("INSERT INTO schema_migration VALUES ($1, $2, $3)", *migration)
    assert {*server.processes()} == {*before}
    assert failed == []
    assert f"the schema lacks {', '.join(name for _, name, _ in applied)}: this process is newer" in server.log


def test_a_killed_postgres_is_started_again_and_the_service_is_healthy_again(server: Server, data_dir: Path) -> None:
    processes, killed = server.processes(), postgres_process(data_dir)
    with fresh(server) as client:
        assert next(client.list_regions())
        os.kill(killed, signal.SIGKILL)
        until(lambda: postgres_process(data_dir) not in (0, killed) and health(server) == SERVING)
        until(lambda: answers(client))
    assert server.processes() == processes


@contextmanager
def suspended(data_dir: Path) -> Iterator[None]:
    """The folder's PostgreSQL and all its connections stand still."""
    stopped = postgres_process(data_dir)
    backends = Path(f"/proc/{stopped}/task/{stopped}/children").read_text().split()
    numbers = [stopped, *map(int, backends)]
    for number in numbers:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        for number in numbers:
            with suppress(ProcessLookupError):  # of a connection that was closing
                os.kill(number, signal.SIGCONT)


def test_a_stopped_postgres_makes_the_service_unhealthy_until_it_goes_on(server: Server, data_dir: Path) -> None:
    with suspended(data_dir):
        until(lambda: all(health(server, "cunho.v1.ImageService") == NOT_SERVING for _ in range(5)))
        with fresh(server) as client, pytest.raises(Refused) as refused:
            next(client.list_regions(timeout_seconds=3))
        assert refused.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    until(lambda: health(server) == SERVING)
    with fresh(server) as client:
        until(lambda: answers(client))


def answers(client: Client) -> bool:
    """Whether a call is answered."""
    try:
        return bool(next(client.list_regions()))
    except Refused:
        return False


NEW_CALL = BY_NAME["ListRegions"].path, b""


def test_two_hundred_calls_under_way_are_answered_before_the_server_stops_and_new_ones_are_not_taken(
    data_dir: Path, server: Server
) -> None:
    server.stop()
    settings: dict[str, Any] = {
        "PROCESSES": 2,
        "SHUTDOWN_SECONDS": 120,
        "CONNECTIONS": 90,
        "CALLS_PER_ACCOUNT_MAX": 200,
        "METRICS_ADDRESS": "127.0.0.1:0",
    }
    with serving(data_dir, **settings) as again, ThreadPoolExecutor(200) as threads:
        image_id = an_image(again)
        clients = [again.client("acme") for _ in range(20)]
        with locked(again, image_id):
            renaming = [
                threads.submit(
                    clients[number % 20].update_image,
                    image=v1.Image(image_id=image_id, name=f"name {number}"),
                    update_mask=["name"],
                )
                for number in range(200)
            ]
            until(lambda: metric(again, 'cunho_calls_under_way{kind="call"}') == 200)
            again.process.terminate()
            until(lambda: health(again) == NOT_SERVING)
            # By who does not repeat it: those under way wait for the image no longer than they have to.
            with grpc.insecure_channel(again.address, [("grpc.enable_retries", 0)]) as channel:
                assert call(channel, *NEW_CALL, again.token("operator")).code is grpc.StatusCode.UNAVAILABLE
        assert {each.result(120).name for each in renaming} == {f"name {number}" for number in range(200)}
        assert again.ended() == 0
        assert "Traceback" not in again.log


def an_image(server: Server) -> str:
    """A custom image of acme's."""
    acme = server.client("acme")
    region = next(acme.list_regions())
    image = next(acme.list_images(region_id=region.region_id, filter='name = "Debian 12 64bit"'))
    launch = acme.create_instance(
        region_id=region.region_id,
        zone_id=region.zones[0].zone_id,
        instance_type="S5.MEDIUM4",
        image_id=image.image_id,
    )
    instance = launch.result(20).instances[0]
    capture = acme.create_image(
        region_id=region.region_id,
        instance_id=instance.instance_id,
        name="an image",
        consistency=v1.CreateImageRequest.CONSISTENCY_CRASH_CONSISTENT,
    )
    return capture.result(20).image_id


def test_the_processes_end_when_the_supervisor_is_killed(data_dir: Path) -> None:
    with serving(data_dir, PROCESSES=2, SHUTDOWN_SECONDS=1) as server:
        processes = server.processes()
        server.process.kill()
        server.ended()
        until(lambda: not any(Path(f"/proc/{number}").exists() for number in processes))


def test_an_interrupt_stops_all_of_it(data_dir: Path) -> None:
    with serving(data_dir, PROCESSES=2, SHUTDOWN_SECONDS=1) as server:
        processes = server.processes()
        server.process.send_signal(signal.SIGINT)
        assert server.ended() == 0
        assert not any(Path(f"/proc/{number}").exists() for number in processes)
        assert postgres_process(data_dir) == 0


@pytest.mark.parametrize("hung", [False, True])
def test_a_server_that_waits_for_the_schema_stops_when_it_is_told_to(
    data_dir: Path, tmp_path: Path, hung: bool
) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with serving(data_dir) as holder, asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(holder.dsn))
        try:
            runner.run(connection.execute(f"SELECT pg_advisory_lock({migrations._LOCK})"))
            starting = Server(tmp_path / "data", DATABASE_URL=holder.dsn)
            until(lambda: holder.sql(waiting) == [(1,)])
            with suspended(data_dir) if hung else nullcontext():
                assert starting.stop() == 0
            until(lambda: holder.sql(waiting) == [(0,)])
        finally:
            runner.run(connection.close())
    assert "Traceback" not in starting.log


def test_a_server_that_waits_for_its_processes_stops_when_it_is_told_to(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and answers none of them
        starting = Server(data_dir, PROCESSES=2, TOKEN_JWKS=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with silent.accept()[0]:
            processes = starting.processes()
            assert starting.stop() == 0
    assert len(processes) == 2
    assert not any(Path(f"/proc/{number}").exists() for number in processes)
    assert postgres_process(data_dir) == 0
    assert re.findall("killed|cannot be fetched|Traceback", starting.log) == []


def test_a_server_that_waits_for_an_earlier_postgres_stops_when_it_is_told_to(data_dir: Path) -> None:
    with (data_dir / "postgres.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as processes of PostgreSQL do, which would be killed
        starting = Server(data_dir)
        until(lambda: (data_dir / "lock").read_text() == str(starting.process.pid))
        assert starting.stop() == 0
    assert "Traceback" not in starting.log


def test_a_server_that_is_stopped_while_its_database_is_made_makes_it_whole_at_the_next_start(data_dir: Path) -> None:
    new = data_dir.with_name("new")
    new.mkdir()  # so that the server makes its database itself
    starting = Server(new)
    until(lambda: [*new.glob("partial-*/PG_VERSION")])
    assert starting.stop() == 0
    assert postgres_process(new) == 0
    with serving(new) as server:
        assert health(server) == SERVING


def test_an_address_in_use_is_refused_even_by_a_server_that_shares_its_own(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = Server(data_dir, ADDRESS=f"127.0.0.1:{taken.getsockname()[1]}")
        assert server.ended() == 1
    assert "stop what listens there" in server.log
    assert "Traceback" not in server.log


def test_an_admin_address_that_another_server_shares_is_refused(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(data_dir, PROCESSES=2, ADMIN_ADDRESS=f"127.0.0.1:{port - 1}")
        until(lambda: server.process.poll() is not None or "serving on" in server.log)
        server.stop()
    assert f"cannot listen on 127.0.0.1:{port} " in server.log
    assert "choose another address with CUNHO_ADMIN_ADDRESS" in server.log


def test_what_keeps_a_process_from_serving_is_said_once_and_the_server_does_not_start(data_dir: Path) -> None:
    wrong = data_dir.parent / "no-key.pem"
    wrong.write_text("no key")
    server = Server(data_dir, PROCESSES=3, TOKEN_KEY=wrong)
    assert server.ended() == 1
    assert server.log.count("no-key.pem") == 1
    assert "Traceback" not in server.log


def test_a_server_whose_output_has_no_room_serves(data_dir: Path) -> None:
    with open("/dev/full", "w") as full, serving(data_dir, stdout=full) as server:
        assert health(server) == SERVING
