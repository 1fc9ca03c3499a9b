"""A primary that dies and a standby that takes its place: the service goes on, with everything that it acknowledged."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import pytest
from tests.end_to_end.soundness import unsound
from tests.end_to_end.steps import import_image, until
from tests.storage.clusters import Pair, clusters
from tests.world import GUANGZHOU, Postgres, World

from cunho import Refused, v1
from cunho_rules.refusals import Reason, Refusal
from cunho_storage.database import Database


@pytest.fixture(scope="module")
def pair(postgres: Postgres) -> Iterator[Pair]:
    with ExitStack() as undo:
        yield Pair(undo.enter_context(clusters(programs_in=postgres.folder / "data")), undo)


@pytest.fixture(scope="module")
def world(postgres: Postgres, pair: Pair) -> Iterator[World]:
    """A service over whichever of the two is the primary."""
    running = World(pair.url, postgres.settings(pair.url, lease_seconds=2), None)
    try:
        yield running
    finally:
        running.stop()


class Traffic:
    """A caller who registers accounts and imports an image into each, as fast as is answered.

    Args:
        prefix: what the accounts' ids begin with.
    Attributes:
        acknowledged: the images that the service said it took on, by account.
        refusals: the reasons of its refusals.
    """

    def __init__(self, world: World, prefix: str = "acc") -> None:
        self.acknowledged: dict[str, str] = {}
        self.refusals: set[str] = set()
        self._world, self._prefix, self._stopped = world, prefix, threading.Event()

    @contextmanager
    def running(self) -> Iterator["Traffic"]:
        """Calls go out within the block."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            thread.join()

    def _run(self) -> None:
        for number in count():
            if self._stopped.is_set():
                return
            try:
                tenant = self._world.tenant(GUANGZHOU, account_id=f"{self._prefix}-{number}")
                started = import_image(tenant, f"image {number}")
                self.acknowledged[tenant.account_id] = started.metadata.target_ids[0]
            except Refused as refused:
                self.refusals.add(refused.reason)


def test_the_service_goes_on_over_the_standby_with_every_acknowledged_write(pair: Pair, world: World) -> None:
    with Traffic(world).running() as traffic:
        until(lambda: len(traffic.acknowledged) >= 10)
        pair.primary.kill()
        until(lambda: "DATABASE_UNAVAILABLE" in traffic.refusals)
        pair.promote()
        before = len(traffic.acknowledged)
        until(lambda: len(traffic.acknowledged) >= before + 10)
    assert traffic.refusals == {"DATABASE_UNAVAILABLE"}
    for account_id, image_id in traffic.acknowledged.items():
        tenant = world.client(account_id)
        until(lambda: tenant.get_image(image_id=image_id).state == v1.Image.STATE_AVAILABLE, 20)  # noqa: B023
    assert unsound(lambda query: pair.standby.sql(query, database="cunho")) == []


async def test_a_host_that_hangs_does_not_keep_others_from_being_found(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hung:  # takes connections, and never says a word
        hosts = f"127.0.0.1:{hung.getsockname()[1]},127.0.0.1:{pair.standby.port}"
        database = Database(f"postgresql://postgres@{hosts}/cunho?target_session_attrs=read-write")
        try:
            async with database.connection() as connection:
                assert connection.usable
        finally:
            await database.close()


async def test_without_a_primary_the_database_is_unavailable(pair: Pair) -> None:
    # The standby was promoted: now it is the one that a service that looks for standbys does not find.
    database = Database(f"{pair.standby.dsn('cunho')}?target_session_attrs=standby")
    with pytest.raises(Refusal) as refused:
        async with database.connection():
            pass
    assert refused.value.reason is Reason.DATABASE_UNAVAILABLE
