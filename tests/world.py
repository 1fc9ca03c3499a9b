"""A whole service for tests: a real server on a loopback port, over a PostgreSQL database of its own, and its callers.

Tests talk to it through the shipped client. No rule is repeated here.
"""

import asyncio
import atexit
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import asyncpg

from cunho import Client
from cunho.v1 import CreateImageRequest, Image, Instance
from cunho_server import app, catalog, keys, opening
from cunho_server.apply import apply
from cunho_server.settings import Settings
from cunho_server.tokens import Signer
from cunho_server.work import Driver
from cunho_storage import embedded, migrations
from cunho_storage.database import Database

CATALOG = Path(__file__).with_name("catalog.toml")
GUANGZHOU, SHANGHAI, FRANKFURT = "ap-guangzhou", "ap-shanghai", "eu-frankfurt"
ZONES = {GUANGZHOU: "ap-guangzhou-3", SHANGHAI: "ap-shanghai-2", FRANKFURT: "eu-frankfurt-1"}


class Tenant(Client):
    """A client with the credentials of one account."""

    account_id: str


class World:
    """A running service.

    Attributes:
        address: where it answers calls.
        dsn: its database, as the owner of the tables.
        operator: a client with the operator's credentials.
        database: what the server itself uses; of its own loop, see `run`.
    """

    operator: Client

    def __init__(self, dsn: str, settings: Settings, driver: Driver | None) -> None:
        self.dsn, self.settings = dsn, settings
        self.signer = Signer(keys.development_key(settings.development_key), settings)
        self._driver = driver
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._clients: list[Client] = []
        self._thread.start()
        if not self._ready.wait(20):
            raise TimeoutError("the service does not start")
        self.operator = self.client("operator", role="operator")

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        async with (
            opening.opened(self.settings, self.dsn) as self.database,
            app.serving(self.settings, self.database, self._driver) as serving,
        ):
            self.address, self.service = serving.address, serving.service
            self._ready.set()
            await self._stopped.wait()

    def stop(self) -> None:
        """Stops the service and closes every client of it."""
        for client in self._clients:
            client.close()
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def run(self, coroutine: Any) -> Any:
        """The result of a coroutine, run in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def sql(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """The rows of a query, run as the owner of the tables and beside the server."""

        async def fetch() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.dsn)
            try:
                return [tuple(row) for row in await connection.fetch(query, *arguments)]
            finally:
                await connection.close()

        return asyncio.run(fetch())

    def token(self, subject: str, role: Any = "account", **claims: Any) -> str:
        """A token that the service accepts."""
        return self.signer.token(subject, role, seconds=3600, **claims)

    def client(self, subject: str, role: Any = "account", **claims: Any) -> Tenant:
        """A client with a token of that subject; the account need not be registered."""
        client = Tenant(self.address, token=self.token(subject, role, **claims))
        client.account_id = subject
        self._clients.append(client)
        return client

    def tenant(self, *region_ids: str, account_id: str = "") -> Tenant:
        """A client of a new account, active in the regions; in all three if none is named."""
        account_id = account_id or f"acc-{uuid.uuid4().hex[:10]}"
        self.operator.register_account(account_id=account_id, region_ids=region_ids or [*ZONES])
        return self.client(account_id)

    # --- the steps that most tests begin with

    def public_image(self, region_id: str = GUANGZHOU, name: str = "Debian 12 64bit") -> Image:
        """A public image of the test catalogue."""
        (image,) = self.operator.list_images(region_id=region_id, filter=f'kind = PUBLIC AND name = "{name}"')
        return image

    def launch(self, tenant: Client, image_id: str = "", region_id: str = GUANGZHOU, **more: Any) -> Instance:
        """A RUNNING instance of the tenant's; of the public Debian if no image is named."""
        image_id = image_id or self.public_image(region_id).image_id
        more = {"zone_id": ZONES[region_id], "instance_type": "S5.MEDIUM4"} | more
        operation = tenant.create_instance(region_id=region_id, image_id=image_id, **more)
        return operation.result(timeout_seconds=20).instances[0]

    def image(
        self, tenant: Client, name: str = "", region_id: str = GUANGZHOU, instance_id: str = "", **more: Any
    ) -> Image:
        """An AVAILABLE custom image of the tenant's."""
        instance_id = instance_id or self.launch(tenant, region_id=region_id).instance_id
        more = {"consistency": CreateImageRequest.CONSISTENCY_CRASH_CONSISTENT} | more
        operation = tenant.create_image(
            region_id=region_id, instance_id=instance_id, name=name or f"image {uuid.uuid4().hex[:10]}", **more
        )
        return operation.result(timeout_seconds=20)


@cache
def _data_folder() -> Path:
    """A data folder with a new database, as long as this process runs."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)  # every user may enter it, which those of pytest are not for
    atexit.register(shutil.rmtree, folder)
    embedded.start(folder / "data", durable=False).stop()
    return folder / "data"


def lay(data_dir: Path) -> None:
    """Makes a data folder where there is none, with a new database: to copy one takes a fifth of what initdb does."""
    if not data_dir.exists():
        subprocess.run(("cp", "-a", _data_folder(), data_dir), check=True)


class Postgres:
    """A PostgreSQL for a run of the tests, with a template that every database starts from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lay(folder / "data")
        self._embedded = embedded.start(folder / "data", durable=False)
        self._template = self._make("template_of_tests", "template1")
        asyncio.run(self._fill())

    async def _fill(self) -> None:
        await migrations.migrate(self._template)
        database = Database(self._template)
        await apply(database, catalog.read(CATALOG))
        await database.close()

    def database(self) -> str:
        """The DSN of a new database with the schema and the test catalogue."""
        return self._make(f"test_{uuid.uuid4().hex[:12]}", "template_of_tests")

    def empty_database(self) -> str:
        """The DSN of a new database with nothing in it."""
        return self._make(f"test_{uuid.uuid4().hex[:12]}", "template1")

    def _make(self, name: str, template: str) -> str:
        async def make() -> None:
            connection = await asyncpg.connect(self._embedded.dsn)
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
            await connection.close()

        asyncio.run(make())
        return self._embedded.dsn.replace("/cunho?", f"/{name}?")

    def settings(self, dsn: str, **settings: Any) -> Settings:
        """Settings of a server for tests over that database."""
        given: dict[str, Any] = {
            "address": "127.0.0.1:0",
            "data_dir": self.folder / "server",
            "shutdown_seconds": 0,
            "workers": 4,
            "calls_per_second_per_account_min": 1_000_000,  # tests wait for nobody else's load
        }
        return Settings(**(given | {"database_url": dsn, "catalog": CATALOG, "lease_seconds": 60} | settings))

    def stop(self) -> None:
        """Stops it; its databases are gone with its folder."""
        self._embedded.stop()


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL in a temporary folder that every user may enter, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    started = Postgres(folder)
    try:
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder)


@contextmanager
def world(postgres: Postgres, driver: Driver | None = None, **settings: Any) -> Iterator[World]:
    """A service over a new database."""
    dsn = postgres.database()
    running = World(dsn, postgres.settings(dsn, **settings), driver)
    try:
        yield running
    finally:
        running.stop()
