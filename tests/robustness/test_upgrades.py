"""Every release beside the code here: its servers and clients, over the schema of today, and the change from it.

Whatever fails here is an outage for those who upgrade, or data that one server tells and the other does not.
"""

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
from tests.end_to_end.soundness import unsound
from tests.end_to_end.steps import until
from tests.robustness import releases
from tests.robustness.releases import HERE, Code, told
from tests.robustness.scale import LONG
from tests.server_process import Server, reserved_port, serving
from tests.storage.schemas import schema
from tests.world import ZONES, Postgres, World

from cunho_server import keys
from cunho_server.settings import Settings
from cunho_server.tokens import Signer
from cunho_storage import embedded, migrations

ROOT = Path(__file__).parents[2]

#: What a later release may do to the schema while servers of this one go on.
ADDITIONS = """
ALTER TABLE image ADD COLUMN addition JSONB;
ALTER TABLE image_share ADD COLUMN addition TEXT NOT NULL DEFAULT '';
ALTER TABLE instance ADD COLUMN addition BYTEA;
ALTER TABLE operation ADD COLUMN addition INTEGER NOT NULL DEFAULT 0;
ALTER TABLE account_region ADD COLUMN addition BOOLEAN NOT NULL DEFAULT false;
ALTER TABLE request_log ADD COLUMN addition TEXT;
CREATE INDEX addition_of_image ON image (addition);
CREATE TABLE addition (image_id TEXT NOT NULL PRIMARY KEY REFERENCES image);
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder outside of the repository; every user may enter it, as PostgreSQL's must."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def postgresql(folder: Path) -> Iterator[str]:
    """The URL of a PostgreSQL that keeps what it is given: servers refuse one that does not."""
    started = embedded.start(folder / "postgresql")
    yield started.dsn
    started.stop()


def sql(dsn: str, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query."""

    async def fetch() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(dsn)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return asyncio.run(fetch())


def run(dsn: str, script: str) -> None:
    """Runs statements as the owner of the tables."""

    async def execute() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    asyncio.run(execute())


def new_database(postgresql: str) -> str:
    """The URL of a new database with nothing in it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    run(postgresql, f"CREATE DATABASE {name}")
    return postgresql.replace("/cunho?", f"/{name}?")


@pytest.fixture(scope="module", params=releases.VERSIONS)
def release(request: pytest.FixtureRequest, folder: Path) -> Code:
    """Each release, installed."""
    return releases.installed(request.param, folder / request.param)


def test_a_release_runs_its_own_code(release: Code) -> None:
    packages = ("cunho", "cunho_rules", "cunho_server", "cunho_storage")
    printed = f"import {', '.join(packages)}; print(*({'.__file__, '.join(packages)}.__file__), sep='\\n')"
    files = subprocess.check_output((release.python, "-c", printed), text=True).splitlines()
    assert len(files) == len(packages)
    assert all(Path(file).is_relative_to(release.python.parents[1]) for file in files), files


def test_both_wheels_and_the_api_of_every_release_are_kept() -> None:
    kept = {path.name for path in releases.RELEASED.iterdir()}
    wheels = {
        f"{name}-{version}-py3-none-any.whl" for name in ("cunho", "cunho_server") for version in releases.VERSIONS
    }
    assert kept == wheels | {f"cunho-{version}.binpb" for version in releases.VERSIONS}


@pytest.mark.parametrize("version", releases.VERSIONS)
def test_a_change_that_breaks_callers_of_a_release_is_seen(tmp_path: Path, version: str) -> None:
    for name in ("protos", "buf.yaml"):
        copy: Any = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    subprocess.run((HERE.python, "protos/googleapis.py", ".build/googleapis"), cwd=tmp_path, check=True)

    def breaking() -> str:
        against = releases.RELEASED / f"cunho-{version}.binpb"
        command = (HERE.python.with_name("buf"), "breaking", "protos", "--against", against)
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout

    assert breaking() == ""
    image = tmp_path / "protos/cunho/v1/image.proto"
    image.write_text(image.read_text().replace("string name = 2;", "string name = 9999;"))
    assert 'Previously present field "2" with name "name" on message "Image" was deleted' in breaking()


@cache
def methods(code: Code) -> list[str]:
    """The methods that its client has."""
    found: list[str] = code.call("methods")
    return found


# --- beside each other


class Pair(NamedTuple):
    """A server of a release and one of the code here, over one database."""

    release: Server
    here: World
    at_work: int

    @property
    def addresses(self) -> list[str]:
        """Where they answer."""
        return [self.release.address, self.here.address]


@pytest.fixture(scope="module", params=[0, 1], ids=["its workers", "the workers here"])
def pair(
    request: pytest.FixtureRequest, postgres: Postgres, postgresql: str, release: Code, folder: Path
) -> Iterator[Pair]:
    """Both over one new database, the release's first; one alone carries out the operations that either begins."""
    dsn, workers = new_database(postgresql), (0, 4) if request.param else (4, 0)
    settings = postgres.settings(dsn, workers=workers[1], data_dir=folder / release.version / "pair")
    of_release: dict[str, Any] = {"DATABASE_URL": dsn, "WORKERS": workers[0], "SHUTDOWN_SECONDS": 0}
    with serving(settings.data_dir, python=release.python, **of_release) as old, ExitStack() as stack:
        here = World(dsn, settings, None)
        stack.callback(here.stop)
        yield Pair(old, here, request.param)
        assert unsound(here.sql) == []


def test_servers_of_a_release_and_of_here_answer_its_client_as_one(release: Code, pair: Pair) -> None:
    for first in (0, 1) if LONG else (pair.at_work,):
        given = told(pair.here.signer, pair.addresses, begin_with=first, methods=methods(release))
        assert release.call("tour", **given) == []


def test_every_method_of_a_release_is_there_still(release: Code) -> None:
    assert {*methods(release)} <= {*methods(HERE)}


# --- one after the other


class Installation:
    """Servers of one installation: one database, one data folder with the keys.

    Args:
        folder: of this installation alone.
    """

    def __init__(self, folder: Path, dsn: str) -> None:
        folder.mkdir(parents=True)
        self.dsn, self._data_dir = dsn, folder / "data"
        self._variables: dict[str, Any] = {"DATABASE_URL": dsn}

    def start(self, code: Code, port: int = 0, **settings: Any) -> Server:
        """A server, which may not serve yet."""
        return Server(self._data_dir, port=port, python=code.python, **self._variables | settings)

    @property
    def signer(self) -> Signer:
        """Makes tokens that its servers accept."""
        return Signer(keys.private_key(self._data_dir / "development-key.pem"), Settings.model_validate({}))

    def check(self, code: Code) -> None:
        """Runs `cunho-server check`. Raises CalledProcessError if something is not as it should be."""
        variables = {f"CUNHO_{name}": str(value) for name, value in self._variables.items()}
        variables |= {"CUNHO_DATA_DIR": str(self._data_dir), "PATH": os.defpath}
        subprocess.run((code.python, "-m", "cunho_server", "check"), check=True, env=variables)


def add_as_later_releases_may(monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    """Applies the migration of a release that is still to come."""
    files = migrations.files()
    later = (files[-1][0] + 1, f"{files[-1][0] + 1:04}_later.sql", ADDITIONS)
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "files", lambda: [*files, later])
        asyncio.run(migrations.migrate(dsn))


class Toured(NamedTuple):
    """A server of a release, and what a tour left with it."""

    installation: Installation
    server: Server
    #: Whose it is.
    told: dict[str, Any]
    #: Calls of the tour that were not made.
    missed: list[str]


@pytest.fixture(scope="module")
def toured(postgresql: str, release: Code, folder: Path) -> Iterator[Toured]:
    """A server of the release, after a tour of the client here."""
    installation = Installation(folder / release.version / "replaced", new_database(postgresql))
    with ending(installation.start(release)) as server:
        server.ready()
        known = [*{*methods(release)} & {*methods(HERE)}]
        given = told(installation.signer, [server.address], begin_with=0, methods=known)
        yield Toured(installation, server, given, HERE.call("tour", **given))


@contextmanager
def ending(server: Server) -> Iterator[Server]:
    """Stops the server in the end, if it still runs."""
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def test_a_server_of_a_release_answers_the_client_here(toured: Toured) -> None:
    assert toured.missed == []


def test_a_release_is_replaced_under_traffic_without_a_failed_call_and_nothing_is_lost(
    release: Code, toured: Toured, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation, old = toured.installation, toured.server
    with closing(reserved_port()) as reserved:
        port: int = reserved.getsockname()[1]
    kept = release.call("everything", **toured.told)
    busy = told(installation.signer, [old.address, f"127.0.0.1:{port}"])
    for who in ("owner", "recipient"):
        old.client("operator").register_account(account_id=busy["accounts"][who], region_ids=[*ZONES])
    with release.traffic(folder / f"traffic-{release.version}", **busy) as traffic:
        traffic.goes_on()

        with ending(installation.start(HERE, port)) as new:
            new.ready()
            traffic.goes_on()
            until(lambda: "ImportImage" in new.log)  # it answers some of the traffic
            assert release.call("everything", **toured.told) == kept
            installation.check(HERE)

            add_as_later_releases_may(monkeypatch, installation.dsn)
            traffic.goes_on()

            assert old.stop() == 0
            traffic.goes_on()
            came_to = traffic.end()
            assert came_to["wrong"] == []
            assert came_to["images"] > 10
            assert release.call("everything", **toured.told | {"addresses": [new.address]}) == kept
    assert unsound(lambda query: sql(installation.dsn, query)) == []


def steps_back_and_forward() -> tuple[str, str]:
    """What the manual has the owner of the tables do around a time with 0.1.0."""
    manual = (ROOT / "docs/operations.md").read_text()
    _, _, section = manual.partition("### Going back")
    back, forward = re.findall(r"```sql\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    return back, forward


def test_a_release_starts_over_a_newer_schema_or_says_why_not_and_starts_after_the_steps_of_the_manual(
    postgresql: str, release: Code, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = Installation(folder / release.version / "back", new_database(postgresql))
    asyncio.run(migrations.migrate(installation.dsn))
    add_as_later_releases_may(monkeypatch, installation.dsn)
    back, forward = steps_back_and_forward()
    if release.version == "0.1.0":
        refused = installation.start(release)
        assert refused.ended() == 1
        assert "this server knows only up to 1: start a server as new as the one that migrated it" in refused.log
        run(installation.dsn, back)
    with ending(installation.start(release)) as server:
        server.ready()
        given = told(installation.signer, [server.address])
        account_id = given["accounts"]["owner"]
        server.client("operator").register_account(account_id=account_id, region_ids=[*ZONES])
        assert server.client(account_id).get_account(account_id=account_id).account_id == account_id
    if release.version == "0.1.0":
        run(installation.dsn, forward)
    assert asyncio.run(migrations.migrate(installation.dsn)) == []


def test_the_schema_that_an_old_database_comes_to_is_that_of_a_new_one(
    postgresql: str, release: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = new_database(postgresql), new_database(postgresql)
    here = migrations.files()
    known = releases.migrations_of(release.version)
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "files", lambda: [file for file in here if file[1] in known])
        assert asyncio.run(migrations.migrate(old)) == known
    asyncio.run(migrations.migrate(old))
    asyncio.run(migrations.migrate(new))
    assert schema(old) == schema(new)
