"""Lists through the client: every order, every filter, pages that go on whatever happens meanwhile, each of one moment.

What a list must give is worked out in plain Python, from everything that the caller sees.
"""

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from google.longrunning.operations_pb2 import ListOperationsRequest, ListOperationsResponse
from google.protobuf.message import Message
from tests.end_to_end.steps import send
from tests.world import FRANKFURT, GUANGZHOU, SHANGHAI, ZONES, Tenant, World

from cunho import Refused, v1
from cunho_rules.filters import IMAGE_FIELDS, INSTANCE_FIELDS
from cunho_rules.orders import IMAGE_ORDER_FIELDS, INSTANCE_ORDER_FIELDS
from cunho_storage import accounts, images, requests, shares

GIB = 1 << 30


class Shelf:
    """Images that are there at once, without instances to make them of."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stock = world.public_image(name="Debian 12 32bit").image_id
        self._numbers = itertools.count()

    def add(self, tenant: Tenant, *wanted: dict[str, Any]) -> list[str]:
        """The ids of new images of the tenant's; `wanted` are the columns that matter."""
        image_ids: list[str] = self._world.run(self._add(tenant.account_id, wanted))
        return image_ids

    async def _add(self, account_id: str, wanted: Sequence[dict[str, Any]]) -> list[str]:
        added = []
        async with self._world.database.transaction() as connection:
            stock = await images.get(connection, self._stock, account_id)
            assert stock is not None
            for columns in wanted:
                number = next(self._numbers)
                image = {
                    "image_id": f"img-{number * 7919 % 100_000:08}",  # in no order
                    "name": f"image {number}",
                    "region_id": GUANGZHOU,
                    "owner_account_id": account_id,
                    "origin": "INSTANCE",
                    "family": "",
                    **columns,
                }
                await accounts.set_limit(connection, account_id, image["region_id"], 1000)
                if image.get("state") != "FAILED":
                    assert await accounts.take_place(connection, account_id, image["region_id"])
                await images.add(connection, stock._asdict() | image)
                added.append(image["image_id"])
        return added


def set_times(world: World, table: str, ids: Sequence[str]) -> None:
    """Gives things times on few days, so that many are of one time."""
    for number, id in enumerate(ids):
        world.sql(
            f"UPDATE {table} SET create_time = '2026-03-01Z'::timestamptz + $1 * interval '1 day',"
            f" update_time = '2026-04-01Z'::timestamptz + $2 * interval '1 day' WHERE {table}_id = $3",
            number % 5,
            number % 3,
            id,
        )


@pytest.fixture(scope="module")
def shelf(world: World) -> Shelf:
    return Shelf(world)


@pytest.fixture(scope="module")
def owner(world: World, shelf: Shelf) -> Tenant:
    """An account with some sixty images of its own in two regions, and ten that are shared with it."""
    chance = random.Random(1)
    owner, other = world.tenant(), world.tenant()
    names = ("web", "Web", "webshop", "db", "Ubuntu 24", "日本", "ä")
    wanted = [
        {
            "name": f"{chance.choice(names)} {number}",
            "description": chance.choice(("", "The shop", "A shopping cart")),
            "region_id": chance.choice((GUANGZHOU, GUANGZHOU, SHANGHAI)),
            "state": chance.choice(("AVAILABLE", "AVAILABLE", "FAILED")),
            "family": chance.choice(("", "web", "db")),
            "architecture": chance.choice(("I386", "X86_64", "ARM64")),
            "os_family": chance.choice(("LINUX", "WINDOWS")),
            "os_platform": chance.choice(("debian", "ubuntu", "windows-server")),
            "os_version": chance.choice(("", "9", "12", "24.04")),
            "size_bytes": chance.choice((1, 2, 5)) * GIB,
            "min_disk_bytes": chance.choice((8, 40, 60)) * GIB,
            "min_memory_bytes": chance.choice((0, 1, 8)) * GIB,
            "labels": chance.choice(({}, {"env": "test"}, {"env": "live", "team": "a b"}, {"team": ""})),
            "software": chance.choice(
                (
                    [],
                    [{"name": "Python", "version": "3.11"}],
                    [{"name": "Python", "version": "3.12"}, {"name": "MySQL", "version": "8"}],
                )
            ),
            "deprecation_state": chance.choice(("CURRENT", "DEPRECATED", "OBSOLETE")),
            "cloud_init": chance.choice((True, False)),
            "boot_mode": chance.choice(("BIOS", "UEFI")),
        }
        for number in range(70)
    ]
    own = shelf.add(owner, *wanted[:60])
    gifts = shelf.add(other, *({**columns, "state": "AVAILABLE"} for columns in wanted[60:]))
    for image_id in gifts:
        other.share_image(image_id=image_id, account_ids=[owner.account_id])
    set_times(world, "image", [*own, *gifts])
    return owner


@pytest.fixture(scope="module")
def launcher(world: World, owner: Tenant) -> Tenant:
    """The same account, with some forty instances in two regions."""
    for region_id, type_, labels in itertools.product(
        (GUANGZHOU, SHANGHAI), ("S5.MEDIUM4", "S5.SMALL1"), ({}, {"env": "test"})
    ):
        name = "Debian 12 64bit" if labels else "Debian 12 32bit"
        owner.create_instance(
            region_id=region_id,
            zone_id=ZONES[region_id],
            instance_type=type_,
            image_id=world.public_image(region_id, name).image_id,
            name="web" if type_ == "S5.SMALL1" else "",
            description="The shop" if labels else "",
            labels=labels,
            count=5,
        ).result(timeout_seconds=20)
    instance_ids = [each.instance_id for each in owner.list_instances(region_id="-", order_by="instance_id")]
    for instance_id in instance_ids[::3]:
        owner.stop_instance(instance_id=instance_id).result(timeout_seconds=20)
    set_times(world, "instance", instance_ids)
    return owner


# --- orders


def value(thing: Any, field: str) -> Any:
    found = getattr(thing, field)
    return found.ToNanoseconds() if field.endswith("_time") else found


def in_order(things: Sequence[Any], order_by: str, tie_breaker: str) -> list[Any]:
    """The things in the order that the text means."""
    terms = [term.split() for term in order_by.split(",")]
    if tie_breaker not in [term[0] for term in terms]:
        terms.append([tie_breaker, *terms[-1][1:]])
    ordered = [*things]
    for field, *direction in reversed(terms):
        ordered.sort(key=lambda thing: value(thing, field), reverse=direction == ["desc"])
    return ordered


def order_texts(fields: Sequence[str], id_field: str) -> list[str]:
    """Every field in both directions, and every two of them that may tie, in one direction and in two."""
    one = [f"{field}{direction}" for field in fields for direction in ("", " desc")]
    tying = [field for field in fields if field not in ("name", id_field)]
    two = [
        f"{first}{down}, {second}{up}"
        for first, second in itertools.permutations((*tying, "name"), 2)
        for down, up in ((" desc", ""), ("", " desc"), (" desc", " desc"))
    ]
    return one + two


@pytest.mark.rule("SEL-3")
@pytest.mark.parametrize("order_by", order_texts(IMAGE_ORDER_FIELDS, "image_id"))
def test_images_are_listed_in_every_order(owner: Tenant, order_by: str) -> None:
    everything = [*owner.list_images(region_id="-", page_size=1000)]
    paged = [*owner.list_images(region_id="-", order_by=order_by, page_size=9)]
    assert len(paged) > 70
    assert paged == in_order(everything, order_by, "image_id")


@pytest.mark.parametrize("order_by", order_texts(INSTANCE_ORDER_FIELDS, "instance_id"))
def test_instances_are_listed_in_every_order(launcher: Tenant, order_by: str) -> None:
    everything = [*launcher.list_instances(region_id="-", page_size=1000)]
    paged = [*launcher.list_instances(region_id="-", order_by=order_by, page_size=9)]
    assert len(paged) == 40
    assert paged == in_order(everything, order_by, "instance_id")


# --- filters


class Filter(NamedTuple):
    """A filter, and what it means of a message."""

    text: str
    selects: Callable[[Any], bool]

    def __str__(self) -> str:
        return self.text


def moment(day: str) -> int:
    at = v1.Image()
    at.create_time.FromJsonString(f"{day}T00:00:00Z")
    return at.create_time.ToNanoseconds()


def has(image: v1.Image, **wanted: str) -> bool:
    """Whether one of its software is as wanted."""
    return any(all(getattr(each, name) == text for name, text in wanted.items()) for each in image.software)


IMAGE_FILTERS = [
    Filter('image_id >= "img-00050000"', lambda i: i.image_id >= "img-00050000"),
    Filter('name = "web*"', lambda i: i.name.startswith("web")),
    Filter('name != "web*"', lambda i: not i.name.startswith("web")),
    Filter('name:"eb "', lambda i: "eb " in i.name),
    Filter('name > "a"', lambda i: i.name > "a"),
    Filter('description = ""', lambda i: i.description == ""),
    Filter("description:shop", lambda i: "shop" in i.description),
    Filter('owner_account_id = ""', lambda i: i.owner_account_id == ""),
    Filter('owner_account_id != ""', lambda i: i.owner_account_id != ""),
    Filter("kind = PUBLIC", lambda i: i.kind == v1.ImageKind.IMAGE_KIND_PUBLIC),
    Filter("kind = IMAGE_KIND_CUSTOM", lambda i: i.kind == v1.ImageKind.IMAGE_KIND_CUSTOM),
    Filter("kind = SHARED OR family = web", lambda i: i.kind == v1.ImageKind.IMAGE_KIND_SHARED or i.family == "web"),
    Filter("kind != SHARED AND bits = 32", lambda i: i.kind != v1.ImageKind.IMAGE_KIND_SHARED and i.architecture == 1),
    Filter("origin = PUBLISHED", lambda i: i.origin == v1.Image.ORIGIN_PUBLISHED),
    Filter("state = FAILED", lambda i: i.state == v1.Image.STATE_FAILED),
    Filter("state != FAILED", lambda i: i.state == v1.Image.STATE_AVAILABLE),
    Filter('family = ""', lambda i: i.family == ""),
    Filter('family = "d*"', lambda i: i.family.startswith("d")),
    Filter("architecture = ARM64", lambda i: i.architecture == v1.Architecture.ARCHITECTURE_ARM64),
    Filter("bits = 32", lambda i: i.architecture == v1.Architecture.ARCHITECTURE_I386),
    Filter("bits != 32", lambda i: i.architecture != v1.Architecture.ARCHITECTURE_I386),
    Filter("os.family = WINDOWS", lambda i: i.os.family == v1.OsFamily.OS_FAMILY_WINDOWS),
    Filter('os.platform < "ubuntu"', lambda i: i.os.platform < "ubuntu"),
    Filter('os.version = "2*"', lambda i: i.os.version.startswith("2")),
    Filter('os.version = ""', lambda i: i.os.version == ""),
    Filter("software.name = Python", lambda i: has(i, name="Python")),
    Filter('software.version = "8"', lambda i: has(i, version="8")),
    Filter(
        'software.name:y AND NOT software.version = "3.11"', lambda i: has(i, version="3.12") or has(i, version="8")
    ),
    Filter("software.name != Python", lambda i: not has(i, name="Python")),
    Filter("labels.env = test", lambda i: i.labels.get("env") == "test"),
    Filter("labels.env != test", lambda i: i.labels.get("env") != "test"),
    Filter("labels:team", lambda i: "team" in i.labels),
    Filter('labels.team = "a*"', lambda i: i.labels.get("team", "").startswith("a")),
    Filter('labels.env < "test"', lambda i: "env" in i.labels and i.labels["env"] < "test"),
    Filter("deprecation.state = OBSOLETE", lambda i: i.deprecation.state == v1.Deprecation.STATE_OBSOLETE),
    Filter("trust = OWN", lambda i: i.trust == v1.Image.TRUST_OWN),
    Filter("cloud_init = false", lambda i: not i.cloud_init),
    Filter("boot_mode = BIOS", lambda i: i.boot_mode == v1.BootMode.BOOT_MODE_BIOS),
    Filter("size_bytes <= 2147483648", lambda i: i.size_bytes <= 2 * GIB),
    Filter("min_disk_bytes > 8589934592", lambda i: i.min_disk_bytes > 8 * GIB),
    Filter("min_memory_bytes = 0", lambda i: i.min_memory_bytes == 0),
    Filter('create_time < "2026-03-03T00:00:00Z"', lambda i: value(i, "create_time") < moment("2026-03-03")),
    Filter('update_time = "2026-04-02T08:00:00+08:00"', lambda i: value(i, "update_time") == moment("2026-04-02")),
]
INSTANCE_FILTERS = [
    Filter('instance_id > "ins-g"', lambda i: i.instance_id > "ins-g"),
    Filter('name = "web*"', lambda i: i.name.startswith("web")),
    Filter('name = ""', lambda i: i.name == ""),
    Filter("description:shop", lambda i: "shop" in i.description),
    Filter("state = STOPPED", lambda i: i.state == v1.Instance.STATE_STOPPED),
    Filter("state != STOPPED", lambda i: i.state == v1.Instance.STATE_RUNNING),
    Filter(f'zone_id = "{ZONES[SHANGHAI]}"', lambda i: i.zone_id == ZONES[SHANGHAI]),
    Filter('instance_type = "S5.SMALL1"', lambda i: i.instance_type == "S5.SMALL1"),
    Filter("labels:env", lambda i: "env" in i.labels),
    Filter("labels.env != test", lambda i: i.labels.get("env") != "test"),
    Filter('create_time >= "2026-03-03T00:00:00Z"', lambda i: value(i, "create_time") >= moment("2026-03-03")),
    Filter('update_time < "2026-04-02T00:00:00Z"', lambda i: value(i, "update_time") < moment("2026-04-02")),
]


@pytest.mark.rule("SEL-3")
@pytest.mark.parametrize("filter", IMAGE_FILTERS, ids=str)
def test_images_are_filtered_by_every_field(world: World, owner: Tenant, filter: Filter) -> None:
    for caller in (owner, world.operator):
        everything = [*caller.list_images(region_id="-", page_size=1000)]
        selected = [image for image in everything if filter.selects(image)]
        assert caller is not owner or 0 < len(selected) < len(everything)
        assert [*caller.list_images(region_id="-", filter=filter.text, page_size=30)] == selected


@pytest.mark.parametrize("filter", INSTANCE_FILTERS, ids=str)
def test_instances_are_filtered_by_every_field(world: World, launcher: Tenant, filter: Filter) -> None:
    everything = [*launcher.list_instances(region_id="-", page_size=1000)]
    selected = [instance for instance in everything if filter.selects(instance)]
    assert 0 < len(selected) < len(everything)
    assert [*launcher.list_instances(region_id="-", filter=filter.text, page_size=30)] == selected


def test_instances_are_filtered_by_image_and_by_account(world: World, launcher: Tenant) -> None:
    image_id = world.public_image(SHANGHAI).image_id
    everything = [*launcher.list_instances(region_id=SHANGHAI)]
    found = [*launcher.list_instances(region_id=SHANGHAI, filter=f'image_id = "{image_id}"')]
    assert 0 < len(found) < len(everything)
    assert found == [instance for instance in everything if instance.image_id == image_id]
    filter = f'account_id = "{launcher.account_id}"'
    assert [*world.operator.list_instances(region_id=SHANGHAI, filter=filter)] == everything


@pytest.mark.rule("SEL-3")
def test_every_published_field_is_tried() -> None:
    def tried(filters: list[Filter]) -> str:
        return " ".join(filter.text for filter in filters)

    assert [field for field in IMAGE_FIELDS if field not in tried(IMAGE_FILTERS)] == []
    assert [field for field in INSTANCE_FIELDS if field not in tried(INSTANCE_FILTERS)] == ["account_id", "image_id"]


@pytest.mark.rule("SEL-3", "INS-2")
def test_images_are_narrowed_to_an_instance_type_in_all_regions(owner: Tenant) -> None:
    everything = [*owner.list_images(region_id="-", page_size=1000)]
    found = [*owner.list_images(region_id="-", usable_with_instance_type="S5.MEDIUM4", page_size=9)]
    assert found == [
        image
        for image in everything
        if image.state == v1.Image.STATE_AVAILABLE
        and image.deprecation.state != v1.Deprecation.STATE_OBSOLETE
        and image.architecture != v1.Architecture.ARCHITECTURE_ARM64
        and image.min_memory_bytes <= 4 * GIB
        and image.min_disk_bytes <= 50 * GIB
    ]
    assert {image.kind for image in found} == {*v1.ImageKind.values()} - {0}


# --- regions


def test_a_list_of_all_regions_is_what_the_lists_of_each_are_together(launcher: Tenant) -> None:
    def ids(*region_ids: str) -> list[str]:
        return sorted(image.image_id for each in region_ids for image in launcher.list_images(region_id=each))

    assert ids("-") == ids(*ZONES)
    instances = [instance for each in ZONES for instance in launcher.list_instances(region_id=each)]
    assert len(instances) == len([*launcher.list_instances(region_id="-")])
    assert {instance.region_id for instance in launcher.list_instances(region_id=SHANGHAI)} == {SHANGHAI}


@pytest.mark.parametrize("filter", ["", 'name = "nobody has this"'])
def test_an_unknown_region_is_refused_and_one_with_nothing_in_it_is_not(world: World, filter: str) -> None:
    newcomer = world.tenant(GUANGZHOU)
    lists: tuple[Callable[..., Iterator[Any]], ...] = (newcomer.list_images, newcomer.list_instances)
    for list_ in lists:
        with pytest.raises(Refused) as caught:
            next(list_(region_id="nowhere", filter=filter))
        assert caught.value.reason == "REGION_NOT_FOUND"
    assert [*newcomer.list_images(region_id=FRANKFURT, filter="kind != PUBLIC")] == []
    assert [*newcomer.list_instances(region_id=FRANKFURT, filter=filter)] == []


# --- pages


class Paged(NamedTuple):
    """A list, its messages, and its things in a page."""

    service: str
    request: Message
    response: type[Message]
    things: str

    def page(self, world: World, token: str, page_size: int, page_token: str = "") -> tuple[list[Any], str]:
        """The things of a page, and the token of the next."""
        asked: Any = type(self.request)()
        asked.CopyFrom(self.request)
        asked.page_size, asked.page_token = page_size, page_token
        answer: Any = self.response.FromString(send(world, token, asked, self.service))
        return [*getattr(answer, self.things)], answer.next_page_token


def whole(world: World, token: str, paged: Paged, page_size: int) -> list[Any]:
    """Everything, in pages of that size; all but the last are full."""
    things, page_token = paged.page(world, token, page_size)
    while page_token:
        assert len(things) % page_size == 0
        more, page_token = paged.page(world, token, page_size, page_token)
        assert more, "a token is given only if there is more"
        things += more
    return things


@pytest.fixture(scope="module")
def lists(world: World, owner: Tenant, launcher: Tenant) -> dict[str, Paged]:
    """Every list, as the account asks for it."""
    shared = next(i for i in owner.list_images(region_id=GUANGZHOU, filter="kind = CUSTOM AND state = AVAILABLE"))
    recipients = [world.tenant(GUANGZHOU).account_id for _ in range(5)]
    owner.share_image(image_id=shared.image_id, account_ids=recipients)
    services = {each: f"cunho.v1.{each}Service" for each in ("Image", "Instance", "Quota", "Region")}
    return {
        "ListImages": Paged(
            services["Image"], v1.ListImagesRequest(region_id=GUANGZHOU), v1.ListImagesResponse, "images"
        ),
        "ListImageShares": Paged(
            services["Image"],
            v1.ListImageSharesRequest(image_id=shared.image_id),
            v1.ListImageSharesResponse,
            "shares",
        ),
        "ListInstances": Paged(
            services["Instance"], v1.ListInstancesRequest(region_id="-"), v1.ListInstancesResponse, "instances"
        ),
        "ListInstanceTypes": Paged(
            services["Instance"], v1.ListInstanceTypesRequest(), v1.ListInstanceTypesResponse, "instance_types"
        ),
        "ListQuotas": Paged(services["Quota"], v1.ListQuotasRequest(), v1.ListQuotasResponse, "quotas"),
        "ListRegions": Paged(services["Region"], v1.ListRegionsRequest(), v1.ListRegionsResponse, "regions"),
        "ListOperations": Paged(
            "google.longrunning.Operations", ListOperationsRequest(), ListOperationsResponse, "operations"
        ),
    }


EVERY_LIST = "ListImages ListImageShares ListInstances ListInstanceTypes ListQuotas ListRegions ListOperations".split()


@pytest.mark.parametrize("name", EVERY_LIST)
def test_pages_of_any_size_are_together_the_whole_list(
    world: World, owner: Tenant, lists: dict[str, Paged], name: str
) -> None:
    token = world.token(owner.account_id)
    everything, nothing = lists[name].page(world, token, 1000)
    assert len(everything) > 2
    assert nothing == ""
    for page_size in (1, 2, len(everything) - 1, len(everything)):
        assert whole(world, token, lists[name], page_size) == everything


def test_a_page_has_50_things_unless_asked_and_1000_at_most(world: World) -> None:
    world.sql("INSERT INTO account SELECT 'many-' || n, '', 'ACTIVE', 1, now(), now() FROM generate_series(1, 1001) n")
    every_account = Paged("cunho.v1.AccountService", v1.ListAccountsRequest(), v1.ListAccountsResponse, "accounts")
    token = world.token("operator", "operator")
    sizes = {asked: len(every_account.page(world, token, asked)[0]) for asked in (0, 1, 999, 1000, 1001, 5000)}
    assert sizes == {0: 50, 1: 1, 999: 999, 1000: 1000, 1001: 1000, 5000: 1000}
    account_ids = [account.account_id for account in whole(world, token, every_account, 400)]
    assert len(account_ids) > 1001
    assert account_ids == sorted({*account_ids})
    world.sql("DELETE FROM account WHERE account_id LIKE 'many-%'")


@pytest.mark.rule("CUS-2")
def test_the_operator_sees_everything_of_everybody(world: World, launcher: Tenant) -> None:
    stranger = world.tenant()
    world.image(stranger)
    for tenant in (launcher, stranger):
        own = [image.image_id for image in tenant.list_images(region_id="-", filter="kind = CUSTOM")]
        filter = f'owner_account_id = "{tenant.account_id}"'
        assert [image.image_id for image in world.operator.list_images(region_id="-", filter=filter)] == own
        filter = f'account_id = "{tenant.account_id}"'
        assert [*world.operator.list_instances(region_id="-", filter=filter)] == [*tenant.list_instances(region_id="-")]
    operations = {operation.name for operation in world.operator.list_operations()}
    for tenant in (launcher, stranger):
        assert {operation.name for operation in tenant.list_operations()} < operations


@pytest.mark.rule("SEL-3")
@pytest.mark.parametrize("direction", ["", " desc"])
@pytest.mark.parametrize("field", IMAGE_ORDER_FIELDS)
def test_no_image_is_skipped_or_repeated_whatever_is_made_and_deleted_between_pages(
    world: World, shelf: Shelf, field: str, direction: str
) -> None:
    chance = random.Random(f"{field}{direction}")
    tenant = world.tenant()

    def some(count: int) -> list[dict[str, Any]]:
        sizes = [chance.randrange(4) for _ in range(count)]
        return [{"size_bytes": size, "name": f"{chance.random()}"} for size in sizes]

    first = [*shelf.add(tenant, *some(8)), *shelf.add(tenant, *some(8))]
    deleted: set[str] = set()
    paged = Paged(
        "cunho.v1.ImageService",
        v1.ListImagesRequest(region_id="-", filter="kind = CUSTOM", order_by=f"{field}{direction}"),
        v1.ListImagesResponse,
        "images",
    )
    seen: list[str] = []
    page_token = ""
    while True:
        page, page_token = paged.page(world, world.token(tenant.account_id), 3, page_token)
        seen += [image.image_id for image in page]
        if not page_token:
            break
        unseen = [image_id for image_id in first if image_id not in {*seen, *deleted}]
        for image_id in {seen[-1], *unseen[:1]}:  # the row that the token was made of, and one to come
            tenant.delete_image(image_id=image_id)
            deleted.add(image_id)
        if len(seen) < 30:
            shelf.add(tenant, *some(2))
    assert len(seen) == len({*seen})
    assert [image_id for image_id in first if image_id not in {*seen, *deleted}] == []


# --- one moment


@pytest.mark.rule("SEL-2")
def test_a_list_is_of_one_moment(world: World, shelf: Shelf) -> None:
    owner, recipient = world.tenant(), world.tenant()
    one, other = shelf.add(owner, {}, {})
    owner.share_image(image_id=one, account_ids=[recipient.account_id])

    async def swap(taken: str, given: str) -> None:
        """Takes one image back and shares the other, as one transaction."""
        async with world.database.transaction() as connection:
            for image_id in sorted((taken, given)):
                await images.lock(connection, image_id)
            await shares.remove(connection, taken, [recipient.account_id])
            await requests.end(connection, None, b"", shares.adding(given, [recipient.account_id], datetime.now(UTC)))

    async def go_on_swapping() -> None:
        for taken, given in itertools.cycle([(one, other), (other, one)]):
            await swap(taken, given)

    async def list_meanwhile() -> list[str]:
        swapping = asyncio.create_task(go_on_swapping())
        found = [await asyncio.to_thread(received) for _ in range(150)]
        swapping.cancel()
        await asyncio.wait([swapping])
        return found

    def received() -> str:
        return " and ".join(image.image_id for image in recipient.list_images(region_id="-", filter="kind = SHARED"))

    assert {*world.run(list_meanwhile())} == {one, other}
