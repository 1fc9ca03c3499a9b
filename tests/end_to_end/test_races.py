"""Races: whatever calls meet, on whichever servers, the outcome is one that they could have had one after the other.

Every race is run twice: as the service is, and without the defences that it names, where the violation must be seen.
The comment on a race says which defences those are.
"""

import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import grpc
import pytest
from tests.end_to_end import races
from tests.end_to_end.races import (
    AS_SEEN,
    DEADLY_IMAGE_LOCK,
    IMAGE_KEPT,
    IMAGE_LIVES,
    IMAGE_LOCK,
    IMAGE_NAME,
    INSTANCE_IDLE,
    INSTANCE_IN_REGION,
    INSTANCE_LOCK,
    PLACE_CHECK,
    PLACE_CONDITION,
    PLACE_LOCK,
    PUBLIC_NAME,
    REGION_LOCK,
    REQUEST_ONCE,
    SHARE_CHECK,
    SHARE_IN_REGION,
    SHARE_ONCE,
    SHARED_AS_SEEN,
    SHARED_LIVES,
    Call,
    Creators,
    Defence,
    Doomed,
    Servers,
    at_once,
    copy,
    copy_calls,
    create_calls,
    create_image,
    for_the_last_place,
    gathered,
    image,
    import_calls,
    import_image,
    launch,
    meet,
    mixed_calls,
    outcome,
    paused,
    publish,
    reason,
    reasons,
)
from tests.end_to_end.soundness import unsound
from tests.world import GUANGZHOU, SHANGHAI, ZONES, Postgres, Tenant, World

from cunho import Client
from cunho.v1 import (
    Account,
    CreateInstanceRequest,
    Deprecation,
    Image,
    QuotaId,
)
from cunho_storage import accounts, images, requests, shares

CUSTOM_IMAGES, SHARES = QuotaId.QUOTA_ID_CUSTOM_IMAGES, QuotaId.QUOTA_ID_SHARES_PER_IMAGE


@pytest.fixture(scope="module")
def servers(postgres: Postgres) -> Iterator[Servers]:
    """Two servers over one database: the first calls of a race go to one, the second to the other."""
    with races.two_servers(postgres) as started:
        yield started


@pytest.fixture(scope="module")
def doomed(postgres: Postgres) -> Iterator[Doomed]:
    """Servers without defences."""
    with ExitStack() as stack:
        yield Doomed(postgres, stack)


# --- two calls meet


Prepare = Callable[[Servers], tuple[Call, Call]]


class Duel(NamedTuple):
    """Two calls that meet: the first has read its facts and is held before `hold`, when the second comes."""

    prepare: Prepare
    hold: tuple[ModuleType, str]
    #: Why the calls are refused; "" if they are not.
    first: str
    second: str
    #: All that must be taken away for the violation to be seen.
    defences: Sequence[Defence]


DUELS: list[Duel] = []


def duel(
    module: ModuleType, name: str, *defences: Defence, first: str = "", second: str = ""
) -> Callable[[Prepare], Prepare]:
    """Makes a function that prepares two calls a duel."""

    def make(prepare: Prepare) -> Prepare:
        DUELS.append(Duel(prepare, (module, name), first, second, defences))
        return prepare

    return make


def shared_image(servers: Servers) -> tuple[Tenant, Tenant, Image]:
    """An image with its owner, on the other server, and a recipient, on the one."""
    _, owner = servers.clients()
    recipient = servers.one.tenant()
    shared = image(owner, "shared")
    owner.share_image(image_id=shared.image_id, account_ids=[recipient.account_id])
    return owner, recipient, shared


def obsolete() -> Deprecation:
    return Deprecation(state=Deprecation.STATE_OBSOLETE)


# Only that the write demands the image as the launch saw it.
@duel(requests, "end", AS_SEEN, first="IMAGE_NOT_FOUND")
def a_launch_and_an_unshare(servers: Servers) -> tuple[Call, Call]:
    owner, recipient, shared = shared_image(servers)
    return (
        lambda: launch(recipient, shared.image_id),
        lambda: owner.unshare_image(image_id=shared.image_id, account_ids=[recipient.account_id]),
    )


# As above: the foreign key knows nothing of states.
@duel(requests, "end", AS_SEEN, first="IMAGE_NOT_FOUND")
def a_launch_and_a_delete(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    own = image(one, "own")
    return lambda: launch(one, own.image_id), lambda: other.delete_image(image_id=own.image_id)


# As above.
@duel(requests, "end", AS_SEEN, first="IMAGE_OBSOLETE")
def a_launch_and_a_retirement(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    own = image(one, "own")
    return (
        lambda: launch(one, own.image_id),
        lambda: other.deprecate_image(image_id=own.image_id, deprecation=obsolete()),
    )


# Only the lock of the image keeps it as the call saw it.
@duel(requests, "end", IMAGE_KEPT)
def a_reinstallation_and_an_unshare(servers: Servers) -> tuple[Call, Call]:
    owner, recipient, shared = shared_image(servers)
    instance = launch(recipient, shared.image_id).result(20).instances[0]
    return (
        lambda: recipient.reinstall_instance(instance_id=instance.instance_id),
        lambda: owner.unshare_image(image_id=shared.image_id, account_ids=[recipient.account_id]),
    )


# As above.
@duel(images, "add", IMAGE_KEPT, second="IMAGE_BUSY")
def a_copy_and_a_delete(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    own = image(one, "own")
    return lambda: copy(one, own.image_id), lambda: other.delete_image(image_id=own.image_id)


# As above, and the lock of the delete with it: one is nothing without the other.
@duel(images, "delete", IMAGE_KEPT, second="IMAGE_NOT_FOUND")
def a_delete_and_a_copy(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    own = image(one, "own")
    return lambda: one.delete_image(image_id=own.image_id), lambda: copy(other, own.image_id)


# The lock of the image, and the constraint that only AVAILABLE images are shared.
@duel(shares, "remove", IMAGE_LOCK, SHARED_LIVES, second="IMAGE_NOT_FOUND")
def a_delete_and_a_share(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    own, recipient = image(one, "own"), servers.one.tenant()
    return (
        lambda: one.delete_image(image_id=own.image_id),
        lambda: other.share_image(image_id=own.image_id, account_ids=[recipient.account_id]),
    )


# That the write demands the image as the share saw it, and that constraint.
@duel(requests, "end", SHARED_AS_SEEN, SHARED_LIVES, first="IMAGE_NOT_FOUND")
def a_share_and_a_delete(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    own, recipient = image(one, "own"), servers.one.tenant()
    return (
        lambda: one.share_image(image_id=own.image_id, account_ids=[recipient.account_id]),
        lambda: other.delete_image(image_id=own.image_id),
    )


# The locks of the place and of the image, and the state that the write demands: a place would be freed twice.
@duel(images, "delete", PLACE_LOCK, IMAGE_LOCK, IMAGE_LIVES, second="IMAGE_NOT_FOUND")
def two_deletes(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    own = image(one, "own")
    image(one, "another")
    return lambda: one.delete_image(image_id=own.image_id), lambda: other.delete_image(image_id=own.image_id)


# Only the lock of the image.
@duel(images, "update", IMAGE_LOCK, second="ETAG_MISMATCH")
def two_updates_with_one_etag(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    own = image(one, "own")

    def change(client: Client, description: str) -> Image:
        wanted = Image(image_id=own.image_id, etag=own.etag, description=description)
        return client.update_image(image=wanted, update_mask=["description"])

    return lambda: change(one, "mine"), lambda: change(other, "mine!")


# Only the lock of the image: the second's change would be lost.
@duel(images, "update", IMAGE_LOCK)
def two_updates_of_different_fields(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    own = image(one, "own")
    return (
        lambda: one.update_image(image=Image(image_id=own.image_id, name="new"), update_mask=["name"]),
        lambda: other.update_image(image=Image(image_id=own.image_id, family="new"), update_mask=["family"]),
    )


# Only the unique index: a rename locks no place.
@duel(images, "update", IMAGE_NAME, first="IMAGE_NAME_TAKEN")
def two_renames_to_one_name(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    a, b = image(one, "a"), image(one, "b")
    return (
        lambda: one.update_image(image=Image(image_id=a.image_id, name="c"), update_mask=["name"]),
        lambda: other.update_image(image=Image(image_id=b.image_id, name="c"), update_mask=["name"]),
    )


# The lock of the place, and the unique index.
@duel(accounts, "take_place", PLACE_LOCK, IMAGE_NAME, second="IMAGE_NAME_TAKEN")
def two_images_created_under_one_name(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    a, b = launch(one, servers.one.public_image().image_id, count=2).result(20).instances

    return (
        lambda: create_image(one, a.instance_id, "c"),
        lambda: create_image(other, b.instance_id, "c"),
    )


# Only the unique index.
@duel(images, "add", IMAGE_NAME, first="IMAGE_NAME_TAKEN")
def an_import_and_a_rename_to_one_name(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    own = image(one, "own")
    return (
        lambda: import_image(one, "c"),
        lambda: other.update_image(image=Image(image_id=own.image_id, name="c"), update_mask=["name"]),
    )


# Only the unique index: public images have no quota to lock.
@duel(images, "add", PUBLIC_NAME, first="IMAGE_NAME_TAKEN")
def two_images_published_under_one_name(servers: Servers) -> tuple[Call, Call]:
    return lambda: publish(servers.one, "new"), lambda: publish(servers.other, "new")


# The lock of the place, and the bounds of the counter.
@duel(accounts, "set_limit", PLACE_LOCK, PLACE_CHECK, second="CUSTOM_IMAGE_QUOTA_EXCEEDED")
def a_lower_image_quota_and_an_import(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    image(one, "own")
    account_id = one.account_id
    return (
        lambda: servers.one.operator.set_quota_limit(
            quota_id=CUSTOM_IMAGES, account_id=account_id, region_id=GUANGZHOU, limit=1
        ),
        lambda: import_image(other, "another"),
    )


# The lock of the image, and the bounds of the counter.
@duel(shares, "set_limit", IMAGE_LOCK, SHARE_CHECK, second="SHARE_QUOTA_EXCEEDED")
def a_lower_share_quota_and_a_share(servers: Servers) -> tuple[Call, Call]:
    owner, _, shared = shared_image(servers)
    another = servers.one.tenant()
    return (
        lambda: servers.one.operator.set_quota_limit(quota_id=SHARES, image_id=shared.image_id, limit=1),
        lambda: owner.share_image(image_id=shared.image_id, account_ids=[another.account_id]),
    )


def leave(world: World, account_id: str, region_id: str) -> Account:
    stays = [each for each in ZONES if each != region_id]
    return world.operator.update_account(
        account=Account(account_id=account_id, region_ids=stays), update_mask=["region_ids"]
    )


# The lock of the region, and the foreign key.
@duel(accounts, "leave", REGION_LOCK, INSTANCE_IN_REGION, second="ACCOUNT_NOT_IN_REGION")
def a_leave_of_the_region_and_a_launch(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    public = servers.one.public_image()
    return lambda: leave(servers.one, one.account_id, GUANGZHOU), lambda: launch(other, public.image_id)


# Only the foreign key: a launch locks no region.
@duel(requests, "end", INSTANCE_IN_REGION, first="ACCOUNT_NOT_IN_REGION")
def a_launch_and_a_leave_of_the_region(servers: Servers) -> tuple[Call, Call]:
    one, _ = servers.clients()
    public = servers.one.public_image()
    return lambda: launch(one, public.image_id), lambda: leave(servers.other, one.account_id, GUANGZHOU)


# As above.
@duel(requests, "end", SHARE_IN_REGION, first="SHARE_REGION_MISMATCH")
def a_share_and_a_leave_of_the_region_by_the_recipient(servers: Servers) -> tuple[Call, Call]:
    one, _ = servers.clients()
    own, recipient = image(one, "own"), servers.one.tenant()
    return (
        lambda: one.share_image(image_id=own.image_id, account_ids=[recipient.account_id]),
        lambda: leave(servers.other, recipient.account_id, GUANGZHOU),
    )


# The lock of the account.
@duel(accounts, "update", PLACE_LOCK, second="ETAG_MISMATCH")
def two_updates_of_an_account_with_one_etag(servers: Servers) -> tuple[Call, Call]:
    account_id = servers.one.tenant().account_id
    account = servers.one.operator.get_account(account_id=account_id)

    def change(world: World, display_name: str) -> Account:
        wanted = Account(account_id=account_id, etag=account.etag, display_name=display_name)
        return world.operator.update_account(account=wanted, update_mask=["display_name"])

    return lambda: change(servers.one, "mine"), lambda: change(servers.other, "mine!")


# That the write demands the instance as the stop saw it, and its state besides.
@duel(requests, "end", AS_SEEN, INSTANCE_IDLE, first="INSTANCE_BUSY")
def a_stop_and_a_reboot(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    instance_id = servers.one.launch(one).instance_id
    return lambda: one.stop_instance(instance_id=instance_id), lambda: other.reboot_instance(instance_id=instance_id)


# The lock of the instance, and the state that the write demands.
@duel(requests, "end", INSTANCE_LOCK, INSTANCE_IDLE, second="INSTANCE_BUSY")
def an_image_and_a_delete_of_the_instance(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    instance_id = servers.one.launch(one).instance_id
    return (
        lambda: one.create_image(region_id=GUANGZHOU, instance_id=instance_id, name="of it"),
        lambda: other.delete_instance(instance_id=instance_id),
    )


# That the write demands the instance as the delete saw it, and its state besides.
@duel(requests, "end", AS_SEEN, INSTANCE_IDLE, first="INSTANCE_BUSY")
def a_delete_of_the_instance_and_an_image(servers: Servers) -> tuple[Call, Call]:
    one, other = servers.clients()
    instance_id = servers.one.launch(one).instance_id
    return (
        lambda: one.delete_instance(instance_id=instance_id),
        lambda: other.create_image(region_id=GUANGZHOU, instance_id=instance_id, name="of it"),
    )


each_duel = pytest.mark.parametrize("duel", DUELS, ids=lambda duel: duel.prepare.__name__)


@pytest.mark.rule("INS-3", "ALL-4", "SEL-4")
@each_duel
def test_of_two_calls_that_meet_the_later_waits_or_one_is_refused(servers: Servers, duel: Duel) -> None:
    met = meet(servers.one, duel.hold, *duel.prepare(servers))
    assert (reason(met.first), reason(met.second)) == (duel.first, duel.second)
    assert not met.blind
    assert unsound(servers.one.sql) == []


@each_duel
def test_without_its_defences_a_call_acts_on_what_is_no_longer_so(doomed: Doomed, duel: Duel) -> None:
    with doomed.without(*duel.defences) as servers:
        assert meet(servers.one, duel.hold, *duel.prepare(servers)).blind


def launch_while_it_is_taken_back(servers: Servers) -> races.Met:
    """How an unshare that has not ended yet and a launch by the recipient meet."""
    launching, unshare = a_launch_and_an_unshare(servers)
    return meet(servers.one, (requests, "end"), unshare, launching)


@pytest.mark.rule("INS-3")
def test_a_launch_that_had_to_wait_for_an_unshare_is_refused(servers: Servers) -> None:
    met = launch_while_it_is_taken_back(servers)
    assert (reason(met.first), reason(met.second)) == ("", "IMAGE_NOT_FOUND")
    assert not met.overtaken


# Only that the write demands the image as the launch saw it: the lock alone keeps what has changed already.
def test_without_its_defence_a_launch_succeeds_that_had_to_wait_for_an_unshare(doomed: Doomed) -> None:
    with doomed.without(AS_SEEN) as servers:
        met = launch_while_it_is_taken_back(servers)
    assert (reason(met.first), reason(met.second), met.overtaken) == ("", "", False)


# --- many calls at once

PLACE_DEFENCES = (PLACE_LOCK, PLACE_CONDITION, PLACE_CHECK)
SHARE_DEFENCES = (SHARED_AS_SEEN, SHARE_CHECK)


each_way = pytest.mark.parametrize("make", [create_calls, import_calls, copy_calls, mixed_calls])


def assert_one_has_the_place(servers: Servers, creators: Creators, outcomes: Sequence[Any]) -> None:
    """Exactly one of the creators succeeded, and the others were told of the quota."""
    assert reasons(outcomes) == {"": 1, "CUSTOM_IMAGE_QUOTA_EXCEEDED": len(outcomes) - 1}
    numbers = {(each.metadata["limit"], each.metadata["usage"]) for each in outcomes if reason(each)}
    assert numbers == {("10", "10")}
    assert creators.images(servers) == 10


@pytest.mark.rule("CUS-5")
@each_way
def test_of_32_creators_one_has_the_last_place(servers: Servers, make: Callable[..., list[Call]]) -> None:
    creators = for_the_last_place(servers, make)
    with paused(accounts, "take_place", 0.05):
        assert_one_has_the_place(servers, creators, at_once(creators.calls))
    assert unsound(servers.one.sql) == []


# The lock of the place, the condition of the write, and the bounds of the counter.
@each_way
def test_without_its_defences_the_quota_is_exceeded(doomed: Doomed, make: Callable[..., list[Call]]) -> None:
    with doomed.without(*PLACE_DEFENCES) as servers:
        creators = for_the_last_place(servers, make, count=2)
        with gathered(accounts, "take_place"):
            at_once(creators.calls)
    assert creators.images(servers) == 11


@pytest.mark.parametrize("kept", PLACE_DEFENCES, ids=("lock", "condition", "check"))
def test_each_defence_of_the_quota_holds_it_alone(doomed: Doomed, kept: Defence) -> None:
    with doomed.without(*(each for each in PLACE_DEFENCES if each != kept)) as servers:
        creators = for_the_last_place(servers, import_calls, count=16)
        with paused(accounts, "take_place", 0.05):
            assert_one_has_the_place(servers, creators, at_once(creators.calls))


def freed(servers: Servers) -> tuple[Creators, races.Met]:
    """What becomes of 16 creators who come, to a full quota, while a delete has not yet freed its place."""
    creators = for_the_last_place(servers, import_calls, count=16, used=10)
    client = servers.one.client(creators.account_id)
    old = next(iter(client.list_images(region_id=GUANGZHOU, filter="kind = CUSTOM")))
    return creators, meet(
        servers.one,
        (accounts, "free_place"),
        lambda: client.delete_image(image_id=old.image_id),
        lambda: at_once(creators.calls),
        waiters=16,
    )


@pytest.mark.rule("CUS-5")
def test_one_of_16_creators_who_wait_has_the_place_that_a_delete_frees(servers: Servers) -> None:
    creators, met = freed(servers)
    assert not met.overtaken
    assert_one_has_the_place(servers, creators, met.second)
    assert unsound(servers.one.sql) == []


def test_without_the_lock_nobody_waits_for_the_place(doomed: Doomed) -> None:
    with doomed.without(PLACE_LOCK) as servers:
        _, met = freed(servers)
    assert met.overtaken
    assert reasons(met.second) == {"CUSTOM_IMAGE_QUOTA_EXCEEDED": 16}


# --- sharing


def accounts_of(servers: Servers, count: int) -> list[str]:
    """New accounts, registered by hand because there are so many of them."""
    prefix = servers.one.tenant().account_id
    servers.one.sql(
        "INSERT INTO account SELECT $1 || n, '', 'ACTIVE', 1, now(), now() FROM generate_series(1, $2) AS n",
        prefix,
        count,
    )
    servers.one.sql(
        "INSERT INTO account_region SELECT $1 || n, $3, 0, 10 FROM generate_series(1, $2) AS n",
        prefix,
        count,
        GUANGZHOU,
    )
    return [f"{prefix}{number + 1}" for number in range(count)]


class Shared(NamedTuple):
    """An image, and those who want to share it, each with one account."""

    owner: Client
    image_id: str
    calls: Sequence[Call]

    def recipients(self, servers: Servers) -> int:
        """How many shares of the image there are."""
        return servers.count("image_share WHERE image_id = $1", self.image_id)


def to_be_shared(servers: Servers, already: int, account_ids: Sequence[str]) -> Shared:
    """An image that is shared with some accounts already, to be shared with others."""
    owner = servers.clients()
    image_id = image(owner[0], "shared").image_id
    if already:
        owner[0].share_image(image_id=image_id, account_ids=accounts_of(servers, already))
    calls = [
        partial(owner[number % 2].share_image, image_id=image_id, account_ids=[account_id])
        for number, account_id in enumerate(account_ids)
    ]
    return Shared(owner[0], image_id, calls)


def assert_50_have_it(servers: Servers, shared: Shared, outcomes: Sequence[Any], already: int) -> None:
    """As many sharers succeeded as there were places, and the others were told of the quota."""
    assert reasons(outcomes) == {"": 50 - already, "SHARE_QUOTA_EXCEEDED": len(outcomes) - 50 + already}
    assert {(each.metadata["limit"], each.metadata["usage"]) for each in outcomes if reason(each)} == {("50", "50")}
    assert shared.recipients(servers) == 50


@pytest.mark.rule("SHR-8")
@pytest.mark.parametrize("already", [0, 49])
def test_100_sharers_share_with_no_more_than_50_accounts(servers: Servers, already: int) -> None:
    shared = to_be_shared(servers, already, accounts_of(servers, 100))
    with paused(requests, "end", 0.005):
        assert_50_have_it(servers, shared, at_once(shared.calls), already)
    assert unsound(servers.one.sql) == []


# That the write demands the image as the share saw it, and the bounds of the counter.
def test_without_its_defences_the_share_limit_is_exceeded(doomed: Doomed) -> None:
    with doomed.without(*SHARE_DEFENCES) as servers:
        shared = to_be_shared(servers, 49, accounts_of(servers, 2))
        with gathered(requests, "end"):
            at_once(shared.calls)
    assert shared.recipients(servers) == 51


@pytest.mark.parametrize("kept", SHARE_DEFENCES, ids=("as seen", "check"))
def test_each_defence_of_the_share_limit_holds_it_alone(doomed: Doomed, kept: Defence) -> None:
    with doomed.without(*(each for each in SHARE_DEFENCES if each != kept)) as servers:
        shared = to_be_shared(servers, 49, accounts_of(servers, 16))
        with paused(requests, "end", 0.005):
            assert_50_have_it(servers, shared, at_once(shared.calls), 49)


@pytest.mark.rule("SHR-10", "SHR-11")
def test_an_image_shared_with_one_account_100_times_at_once_is_taken_back_by_one_unshare(servers: Servers) -> None:
    recipient, elsewhere = servers.clients()
    shared = to_be_shared(servers, 0, [recipient.account_id] * 100)
    with paused(requests, "end", 0.005):
        assert reasons(at_once(shared.calls)) == {"": 100}
    assert shared.recipients(servers) == 1
    assert elsewhere.get_image(image_id=shared.image_id).name == "shared"
    shared.owner.unshare_image(image_id=shared.image_id, account_ids=[recipient.account_id])
    assert reason(outcome(lambda: elsewhere.get_image(image_id=shared.image_id))) == "IMAGE_NOT_FOUND"
    assert unsound(servers.one.sql) == []


# That the write demands the image as the share saw it, and the key of its shares.
def test_without_its_defences_an_image_is_shared_with_one_account_more_than_once(doomed: Doomed) -> None:
    with doomed.without(SHARED_AS_SEEN, SHARE_ONCE) as servers:
        shared = to_be_shared(servers, 0, [servers.one.tenant().account_id] * 2)
        with gathered(requests, "end"):
            at_once(shared.calls)
    assert shared.recipients(servers) == 2


def test_a_list_of_shares_is_of_one_moment(servers: Servers) -> None:
    owner, recipient, shared = shared_image(servers)

    def list_shares() -> list[str]:
        return [share.account_id for share in owner.list_image_shares(image_id=shared.image_id)]

    with races.held_between_statements() as window, ThreadPoolExecutor(1) as threads:
        listing = threads.submit(list_shares)
        while not wait([listing], 0.01).done and not window.reached.is_set():
            pass
        owner.delete_image(image_id=shared.image_id, force=True)
        window.open.set()
        assert listing.result(10) == [recipient.account_id]


@pytest.mark.rule("SHR-8")
def test_a_share_that_adds_nobody_tells_count_and_limit_of_one_moment(servers: Servers) -> None:
    owner, recipient, shared = shared_image(servers)
    other = servers.one.tenant()
    owner.share_image(image_id=shared.image_id, account_ids=[other.account_id])
    with races.held_between_statements() as window, ThreadPoolExecutor(1) as threads:
        again = threads.submit(owner.share_image, image_id=shared.image_id, account_ids=[recipient.account_id])
        assert window.reached.wait(10)
        owner.unshare_image(image_id=shared.image_id, account_ids=[other.account_id])
        of_image = QuotaId.QUOTA_ID_SHARES_PER_IMAGE
        servers.other.operator.set_quota_limit(quota_id=of_image, image_id=shared.image_id, limit=1)
        window.open.set()
        sharing = again.result(10).image.sharing
    assert (sharing.account_count, sharing.account_limit) == (2, 50)


# --- one request, sent again and again


def answers_to_one_launch(servers: Servers, account_id: str, callers: int) -> list[bytes]:
    """What callers are answered, to the byte, who all send one launch at once."""
    request = CreateInstanceRequest(
        region_id=GUANGZHOU,
        zone_id=ZONES[GUANGZHOU],
        instance_type="S5.MEDIUM4",
        image_id=servers.one.public_image().image_id,
        request_id=str(uuid.uuid4()),
    ).SerializeToString()

    def answer(world: World) -> bytes:
        with grpc.insecure_channel(world.address) as channel:
            send: Any = channel.unary_unary("/cunho.v1.InstanceService/CreateInstance")
            sent: bytes = send(request, metadata=[("authorization", f"Bearer {world.token(account_id)}")], timeout=10)
        return sent

    return at_once([partial(answer, servers[number % 2]) for number in range(callers)])


@pytest.mark.rule("ALL-2")
def test_a_request_sent_16_times_at_once_has_one_effect_and_one_answer_to_the_byte(servers: Servers) -> None:
    account_id = servers.one.tenant().account_id
    with paused(requests, "end", 0.05):
        answers = answers_to_one_launch(servers, account_id, 16)
    assert len({*answers}) == 1
    assert servers.count("instance WHERE account_id = $1", account_id) == 1


# The key of the log of requests alone makes it so.
def test_without_its_defence_a_request_has_more_than_one_effect(doomed: Doomed) -> None:
    with doomed.without(REQUEST_ONCE) as servers:
        account_id = servers.one.tenant().account_id
        with gathered(requests, "end"):
            answers = answers_to_one_launch(servers, account_id, 2)
    assert len({*answers}) == 2
    assert servers.count("instance WHERE account_id = $1", account_id) == 2


# --- one call after the other


@pytest.mark.parametrize(
    ("prepare", "refused"),
    [
        (a_launch_and_an_unshare, "IMAGE_NOT_FOUND"),
        (a_launch_and_a_delete, "IMAGE_NOT_FOUND"),
        (a_launch_and_a_retirement, "IMAGE_OBSOLETE"),
        (a_launch_and_a_leave_of_the_region, "ACCOUNT_NOT_IN_REGION"),
        (a_reinstallation_and_an_unshare, "IMAGE_NOT_FOUND"),
        (a_copy_and_a_delete, "IMAGE_NOT_FOUND"),
    ],
)
def test_what_one_server_has_ended_the_other_refuses_from_then_on(
    servers: Servers, prepare: Prepare, refused: str
) -> None:
    call, end = prepare(servers)
    end()
    assert reason(outcome(call)) == refused


@pytest.mark.rule("CUS-11", "CUS-12")
def test_an_image_is_not_deleted_while_it_is_copied(servers: Servers) -> None:
    one, other = servers.clients()
    own = image(one, "own")
    with races.idle_workers(servers.one):
        copying = copy(one, own.image_id)
        assert reason(outcome(lambda: other.delete_image(image_id=own.image_id))) == "IMAGE_BUSY"
    copying.result(20)
    other.delete_image(image_id=own.image_id)


# --- everything at once

CALLS, CALLERS = 400, 16
BROKEN = {"INTERNAL_ERROR", "TRANSACTION_CONFLICT", "DATABASE_UNAVAILABLE", "UNAVAILABLE", "UNKNOWN"}


class Holder(NamedTuple):
    """An account in a storm: its clients on both servers, and what it has, or had."""

    clients: tuple[Tenant, Tenant]
    image_ids: list[str]
    instance_ids: list[str]


class Storm:
    """Random calls of a few accounts about a few things, and what they came to."""

    def __init__(self, servers: Servers) -> None:
        self.operator = servers.one.operator
        self.holders = [self._holder(servers) for _ in range(3)]
        self.outcomes: list[tuple[str, str]] = []

    def _holder(self, servers: Servers) -> Holder:
        one, other = servers.clients()
        public_id = servers.one.public_image().image_id
        launched = launch(one, public_id, count=2).result(20).instances
        image_ids = [image(one, f"first {number}").image_id for number in range(2)]
        return Holder((one, other), image_ids, [instance.instance_id for instance in launched])

    def blow(self, seed: int) -> None:
        """What one of the callers does: calls, one after the other."""
        choose = random.Random(seed)
        for _ in range(CALLS // CALLERS):
            holder, other = choose.sample(self.holders, 2)
            calls = self._calls(choose, holder, other)
            name = choose.choice([*calls])
            self.outcomes.append((name, reason(outcome(calls[name]))))

    def _calls(self, choose: random.Random, holder: Holder, other: Holder) -> dict[str, Call]:
        client, account_id = choose.choice(holder.clients), holder.clients[0].account_id
        # The newest, for most of the others are gone.
        image_id, their_image_id = choose.choice(holder.image_ids[-4:]), choose.choice(other.image_ids[-4:])
        any_image_id = choose.choice([image_id, their_image_id])
        instance_id, their_id = choose.choice(holder.instance_ids[-4:]), other.clients[0].account_id
        all_ids = [each.clients[0].account_id for each in self.holders if each is not holder]
        region_id, name, force = choose.choice([GUANGZHOU, SHANGHAI]), f"{choose.randrange(30)}", choose.random() < 0.5

        def made(operation: Any) -> None:
            holder.image_ids.extend(operation.metadata.target_ids)

        def launched(operation: Any) -> None:
            holder.instance_ids.extend(operation.metadata.target_ids)

        return {
            "import": lambda: made(import_image(client, name, region_id)),
            "create": lambda: made(client.create_image(region_id=GUANGZHOU, instance_id=instance_id, name=name)),
            "copy": lambda: made(copy(client, image_id, region_id, name)),
            "rename": lambda: client.update_image(image=Image(image_id=image_id, name=name), update_mask=["name"]),
            "share": lambda: client.share_image(image_id=image_id, account_ids=all_ids),
            "unshare": lambda: client.unshare_image(image_id=image_id, account_ids=[their_id]),
            "set shares": lambda: client.set_image_shares(image_id=image_id, account_ids=[their_id]),
            "leave": lambda: client.leave_image_share(image_id=their_image_id),
            "delete": lambda: client.delete_image(image_id=image_id, force=force),
            "launch": lambda: launched(launch(client, any_image_id)),
            "stop": lambda: client.stop_instance(instance_id=instance_id),
            "start": lambda: client.start_instance(instance_id=instance_id),
            "reboot": lambda: client.reboot_instance(instance_id=instance_id),
            "reinstall": lambda: client.reinstall_instance(instance_id=instance_id, image_id=any_image_id),
            "limit": lambda: self.operator.set_quota_limit(
                quota_id=CUSTOM_IMAGES, account_id=account_id, region_id=region_id, limit=choose.randrange(2, 7)
            ),
        }

    def subside(self) -> None:
        """Returns once every operation has ended."""
        for holder in self.holders:
            for operation in holder.clients[0].list_operations(filter="done = false"):
                outcome(partial(operation.result, 20))


def test_whatever_many_do_with_a_few_things_nothing_breaks_and_the_counters_stay_true(servers: Servers) -> None:
    storm = Storm(servers)
    with races.conflicts() as conflicts, paused(images, "add", 0.002), paused(requests, "end", 0.002):
        at_once([partial(storm.blow, seed) for seed in range(CALLERS)])
    storm.subside()
    refused = Counter(why for _, why in storm.outcomes)
    assert not refused.keys() & BROKEN
    assert not {"DeadlockDetectedError", "LockNotAvailableError"} & {*conflicts}
    assert unsound(servers.one.sql) == []
    # What was hardly tried proves nothing.
    assert len({name for name, why in storm.outcomes if not why}) > 10
    assert refused.keys() >= {"CUSTOM_IMAGE_QUOTA_EXCEEDED", "IMAGE_NAME_TAKEN", "INSTANCE_BUSY"}


# A shared lock of the image that is then written: each waits for the other to give its own up.
def test_a_deadlock_would_be_seen(doomed: Doomed) -> None:
    with doomed.without(DEADLY_IMAGE_LOCK) as servers:
        shared, account_ids = to_be_shared(servers, 0, []), accounts_of(servers, 2)
        shared.owner.share_image(image_id=shared.image_id, account_ids=account_ids)
        unshare = partial(shared.owner.unshare_image, image_id=shared.image_id)
        with races.conflicts() as conflicts, gathered(shares, "remove"):
            at_once([partial(unshare, account_ids=[each]) for each in account_ids])
    assert "DeadlockDetectedError" in conflicts
