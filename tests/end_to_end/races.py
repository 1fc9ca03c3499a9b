"""Races on purpose: many callers at once on two servers of one database, windows held open inside of transactions, and
defences taken away to see that they were needed. Nothing is asserted of the service here.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import pytest
from tests import world as worlds
from tests.end_to_end.steps import until
from tests.world import GUANGZHOU, SHANGHAI, ZONES, Postgres, Tenant, World

from cunho import Client, Refused
from cunho.v1 import (
    Architecture,
    CopyImageRequest,
    CreateImageRequest,
    Image,
    ImageContent,
    ImportImageRequest,
    OperatingSystem,
    OsFamily,
    Support,
)
from cunho_storage import accounts, database, images, instances, operations, shares
from cunho_storage.requests import Basis, Beginning, Ending
from cunho_storage.statements import Statement

Call = Callable[[], Any]

#: What the database does now.
_ACTIVE = (
    "SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()"
)

#: No window stays open longer: less than the database lets a transaction be idle.
WINDOW_SECONDS = 4


class Servers(NamedTuple):
    """Two servers over one database: what holds between them holds by the database alone."""

    one: World
    other: World

    def clients(self, *region_ids: str) -> tuple[Tenant, Tenant]:
        """A new account's clients, one for each server."""
        tenant = self.one.tenant(*region_ids)
        return tenant, self.other.client(tenant.account_id)

    def count(self, rows: str, *arguments: Any) -> int:
        """How many rows there are FROM `rows`."""
        return int(self.one.sql(f"SELECT count(*) FROM {rows}", *arguments)[0][0])


@contextmanager
def two_servers(postgres: Postgres) -> Iterator[Servers]:
    """Two servers over one new database."""
    dsn = postgres.database()
    with ExitStack() as stack:
        started = []
        for _ in range(2):
            started.append(World(dsn, postgres.settings(dsn), None))
            stack.callback(started[-1].stop)
        yield Servers(*started)


# --- at once


def at_once(calls: Sequence[Call]) -> list[Any]:
    """What calls came to that were all sent at once: each one's answer, or its Refused."""
    together = threading.Barrier(len(calls))

    def call(each: Call) -> Any:
        together.wait(10)
        return outcome(each)

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(call, calls))


def outcome(call: Call) -> Any:
    """What a call came to: its answer, or its Refused."""
    try:
        return call()
    except Refused as refused:
        return refused


def reason(came_to: Any) -> str:
    """Why a call was refused; "" if it was not."""
    return came_to.reason or came_to.code.name if isinstance(came_to, Refused) else ""


def reasons(outcomes: Sequence[Any]) -> Counter[str]:
    """How many calls were refused for which reason; those under "" were not."""
    return Counter(map(reason, outcomes))


# --- windows


@contextmanager
def _replaced(module: ModuleType, name: str, function: Callable[..., Any]) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, original)


@contextmanager
def _before(module: ModuleType, name: str, arrive: Callable[[], Awaitable[None]]) -> Iterator[None]:
    """Every transaction waits before that function of storage, with its facts read and nothing of it written."""
    original = getattr(module, name)

    async def later(*arguments: Any, **named: Any) -> Any:
        await arrive()
        return await original(*arguments, **named)

    with _replaced(module, name, later):
        yield


@contextmanager
def paused(module: ModuleType, name: str, seconds: float) -> Iterator[None]:
    """Every transaction pauses before that function of storage."""
    with _before(module, name, lambda: asyncio.sleep(seconds)):
        yield


@contextmanager
def gathered(module: ModuleType, name: str) -> Iterator[None]:
    """The first transaction that comes to that function of storage waits there for a second."""
    first, second = threading.Lock(), threading.Event()

    async def arrive() -> None:
        if first.acquire(blocking=False):
            await asyncio.to_thread(second.wait, WINDOW_SECONDS)
        second.set()

    with _before(module, name, arrive):
        yield


class Window(NamedTuple):
    """Where the first transaction to come is held."""

    reached: threading.Event
    open: threading.Event


@contextmanager
def held(module: ModuleType, name: str) -> Iterator[Window]:
    """The first transaction that comes to that function of storage is held there until the window is opened."""
    first, window = threading.Lock(), Window(threading.Event(), threading.Event())

    async def arrive() -> None:
        if first.acquire(blocking=False):
            window.reached.set()
            await asyncio.to_thread(window.open.wait, WINDOW_SECONDS)

    with _before(module, name, arrive):
        try:
            yield window
        finally:
            window.open.set()


@contextmanager
def held_between_statements() -> Iterator[Window]:
    """The first call that asks the database a second time is held there until the window is opened."""
    asked: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
    first, window = threading.Lock(), Window(threading.Event(), threading.Event())

    def holding(original: Any) -> Any:
        async def ask(*arguments: Any, **named: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None
            asked[task] = asked.get(task, 0) + 1
            if asked[task] == 2 and first.acquire(blocking=False):
                window.reached.set()
                await asyncio.to_thread(window.open.wait, WINDOW_SECONDS)
            return await original(*arguments, **named)

        return ask

    with pytest.MonkeyPatch.context() as patched:
        for name in ("rows", "row", "value"):
            patched.setattr(database.Connection, name, holding(getattr(database.Connection, name)))
        try:
            yield window
        finally:
            window.open.set()


@contextmanager
def idle_workers(world: World) -> Iterator[None]:
    """No worker takes up an operation: what is moving stays so."""

    async def nothing(*arguments: Any) -> None:
        return None

    with _replaced(operations, "claim", nothing):
        until(lambda: not world.sql(_ACTIVE))  # what a worker asked before
        yield


def waiting(world: World) -> int:
    """How many transactions wait for a lock."""
    ((count,),) = world.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return int(count)


class Met(NamedTuple):
    """How two calls met of which the first was held with its facts read and nothing written."""

    first: Any
    second: Any
    #: True if the second call was answered before the first could go on.
    overtaken: bool

    @property
    def blind(self) -> bool:
        """True if the second came before the first, with success, and no rule told the first of it."""
        return self.overtaken and not reason(self.second) and reason(self.first) in ("", "INTERNAL_ERROR")


def meet(world: World, hold: tuple[ModuleType, str], first: Call, second: Call, *, waiters: int = 1) -> Met:
    """Sends the second call while the first is held; lets the first go on once the second is answered, or waits.

    Args:
        waiters: how many transactions of the second wait then.
    """
    with idle_workers(world), held(*hold) as window, ThreadPoolExecutor(2) as threads:
        one = threads.submit(outcome, first)
        if not window.reached.wait(5):
            raise TimeoutError(f"the first call never came to {hold[0].__name__}.{hold[1]}: {one.result(1)}")
        two = threads.submit(outcome, second)
        while not wait([two], 0.01).done and waiting(world) < waiters:
            pass
        overtaken = two.done()
        window.open.set()
        return Met(one.result(10), two.result(10), overtaken)


@contextmanager
def conflicts() -> Iterator[list[str]]:
    """Why transactions were run again, as the database said it."""
    seen: list[str] = []

    class Seen(database.Conflict):
        def __init__(self, why: str) -> None:
            seen.append(why)
            super().__init__(why)

    with _replaced(database, "Conflict", Seen):
        yield seen


# --- defences


class Text(NamedTuple):
    """A defence that stands in statements: their text with it, and without."""

    module: ModuleType
    with_it: str
    without: str = ""


class Schema(NamedTuple):
    """A defence that stands in the database: what drops it."""

    drop: str


Defence = Text | Schema

#: That the basis of a write is as it was seen.
_SEEN = ("(xmin = CAST($2 AS xid))", "($2::xid IS NOT NULL)")

DEADLY_IMAGE_LOCK = Text(images, " FOR NO KEY UPDATE", " FOR SHARE")
PLACE_LOCK = Text(accounts, " FOR NO KEY UPDATE")
PLACE_CONDITION = Text(accounts, ' AND ("account_region"."images_used" < "account_region"."images_limit")')
PLACE_CHECK = Schema("ALTER TABLE account_region DROP CONSTRAINT account_region_images")
REGION_LOCK = Text(accounts, " FOR UPDATE")
IMAGE_LOCK = Text(images, " FOR NO KEY UPDATE")
IMAGE_KEPT = Text(images, " FOR SHARE")
SHARED_AS_SEEN = Text(shares, *_SEEN)
IMAGE_LIVES = Text(images, '("image"."state" IN ($3, $4))', "($3::text <> $4::text)")
IMAGE_NAME = Schema("DROP INDEX image_name_of_owner")
PUBLIC_NAME = Schema("DROP INDEX image_name_public")
SHARE_CHECK = Schema("ALTER TABLE image DROP CONSTRAINT image_shares")
SHARE_ONCE = Schema("ALTER TABLE image_share DROP CONSTRAINT image_share_pkey")
SHARED_LIVES = Schema("ALTER TABLE image DROP CONSTRAINT image_shared_is_available")
SHARE_IN_REGION = Schema("ALTER TABLE image_share DROP CONSTRAINT image_share_recipient")
INSTANCE_LOCK = Text(instances, " FOR NO KEY UPDATE")
AS_SEEN = Text(instances, *_SEEN)
INSTANCE_IDLE = Text(instances, '("instance"."state" = $', "('' <> $")
INSTANCE_IN_REGION = Schema("ALTER TABLE instance DROP CONSTRAINT instance_account")
REQUEST_ONCE = Schema("ALTER TABLE request_log DROP CONSTRAINT request_log_pkey")


class Doomed:
    """Servers without defences. Those that lack the same of the schema are one, since nothing lost there comes back."""

    def __init__(self, postgres: Postgres, stack: ExitStack) -> None:
        self._postgres = postgres
        self._stack = stack
        self._worlds: dict[frozenset[Schema], World] = {}

    @contextmanager
    def without(self, *defences: Defence) -> Iterator[Servers]:
        """A server without these defences, in the place of both."""
        world = self._world(frozenset(each for each in defences if isinstance(each, Schema)))
        with ExitStack() as stack:
            for defence in defences:
                if isinstance(defence, Text):
                    stack.enter_context(_rewritten(defence))
            yield Servers(world, world)

    def _world(self, lost: frozenset[Schema]) -> World:
        if lost not in self._worlds:
            self._worlds[lost] = world = self._stack.enter_context(worlds.world(self._postgres))
            for defence in lost:
                world.sql(defence.drop)
        return self._worlds[lost]


def _statements(module: ModuleType) -> Iterator[Statement]:
    for value in vars(module).values():
        if isinstance(value, Statement):
            yield value
        elif isinstance(value, Basis | Beginning | Ending):
            yield from (each for each in vars(value).values() if isinstance(each, Statement))


@contextmanager
def _rewritten(defence: Text) -> Iterator[None]:
    found = [
        each
        for each in _statements(defence.module)
        if defence.with_it in each.text and "SKIP LOCKED" not in each.text  # whoever skips defends nothing
    ]
    if not found:
        raise LookupError(f"no statement of {defence.module.__name__} has {defence.with_it!r} any more")
    texts = [each.text for each in found]
    for each in found:
        each.text = each.text.replace(defence.with_it, defence.without)
    try:
        yield
    finally:
        for each, text in zip(found, texts, strict=True):
            each.text = text


# --- what races are about


def create_image(client: Client, instance_id: str, name: str) -> Any:
    """The operation that makes an image of an instance."""
    return client.create_image(
        region_id=GUANGZHOU,
        instance_id=instance_id,
        name=name,
        consistency=CreateImageRequest.CONSISTENCY_CRASH_CONSISTENT,
    )


def import_image(client: Client, name: str, region_id: str = GUANGZHOU, **more: Any) -> Any:
    """The operation that imports an image, the cheapest way to one: it needs no instance."""
    return client.import_image(
        region_id=region_id,
        name=name,
        uri="https://cloud.debian.org/images/cloud/bookworm/debian-12.qcow2",
        format=ImportImageRequest.FORMAT_QCOW2,
        os=OperatingSystem(family=OsFamily.OS_FAMILY_LINUX, platform="debian", version="12"),
        architecture=Architecture.ARCHITECTURE_X86_64,
        size_bytes=1 << 30,
        min_disk_bytes=8 << 30,
        **more,
    )


def image(client: Client, name: str, region_id: str = GUANGZHOU) -> Image:
    """An AVAILABLE custom image."""
    imported: Image = import_image(client, name, region_id).result(timeout_seconds=20)
    return imported


def launch(client: Client, image_id: str, region_id: str = GUANGZHOU, **more: Any) -> Any:
    """The operation that launches instances of an image."""
    return client.create_instance(
        region_id=region_id, zone_id=ZONES[region_id], instance_type="S5.MEDIUM4", image_id=image_id, **more
    )


def copy(client: Client, image_id: str, region_id: str = SHANGHAI, name: str = "") -> Any:
    """The operation that copies an image."""
    destination = CopyImageRequest.Destination(region_id=region_id, name=name)
    return client.copy_image(image_id=image_id, destinations=[destination])


def publish(world: World, name: str) -> Image:
    """A public image."""
    return world.operator.publish_image(
        region_id=GUANGZHOU,
        name=name,
        os=OperatingSystem(family=OsFamily.OS_FAMILY_LINUX, platform="debian", version="13"),
        architecture=Architecture.ARCHITECTURE_X86_64,
        content=ImageContent(uri="store:debian-13.qcow2"),
        size_bytes=1 << 30,
        min_disk_bytes=8 << 30,
        support=Support(kind=Support.KIND_COMMUNITY, contact_uri="https://www.debian.org/support"),
    )


# --- creators


class Creators(NamedTuple):
    """Callers who all want the last place of one account in a region."""

    account_id: str
    calls: Sequence[Call]

    def images(self, servers: Servers) -> int:
        """How many images the account has there."""
        return servers.count(
            "image WHERE owner_account_id = $1 AND region_id = $2 AND state <> 'DELETED'", self.account_id, GUANGZHOU
        )


def create_calls(clients: Sequence[Client], count: int, servers: Servers) -> list[Call]:
    """CreateImage, each from an instance of its own."""
    public_id = servers.one.public_image().image_id
    instances = launch(clients[0], public_id, count=count).result(20).instances
    return [
        partial(create_image, clients[number % 2], instance.instance_id, f"created {number}")
        for number, instance in enumerate(instances)
    ]


def import_calls(clients: Sequence[Client], count: int, servers: Servers) -> list[Call]:
    """ImportImage."""
    return [partial(import_image, clients[number % 2], f"imported {number}") for number in range(count)]


def copy_calls(clients: Sequence[Client], count: int, servers: Servers) -> list[Call]:
    """CopyImage, all of one image in another region."""
    source = image(clients[0], "source", SHANGHAI)
    return [
        partial(copy, clients[number % 2], source.image_id, GUANGZHOU, f"copied {number}") for number in range(count)
    ]


def mixed_calls(clients: Sequence[Client], count: int, servers: Servers) -> list[Call]:
    """All of them."""
    makers = (create_calls, import_calls, copy_calls)
    found = [call for make in makers for call in make(clients, count // 3 + 1, servers)]
    random.Random(1).shuffle(found)
    return found[:count]


def for_the_last_place(servers: Servers, make: Callable[..., list[Call]], count: int = 32, used: int = 9) -> Creators:
    """Creators for the quota of 10, of which `used` places are taken."""
    clients = servers.clients()
    for number in range(used):
        image(clients[0], f"old {number}")
    return Creators(clients[0].account_id, make(clients, count, servers))
