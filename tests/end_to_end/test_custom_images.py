"""Custom images: made, priced, counted, copied and deleted by their owner, and by nobody else."""

from collections.abc import Callable
from typing import Any

import pytest
from google.rpc.error_details_pb2 import QuotaFailure
from google.type.money_pb2 import Money
from tests import world as worlds
from tests.end_to_end.steps import (
    GIB,
    IMAGE_LOCKED,
    SHA256,
    STOCK_URI,
    Held,
    assert_explained,
    assert_told,
    deprecate,
    detail_of,
    import_image,
    names,
    overtaken,
    publish,
    refused,
    rename,
    suspend,
    to,
)
from tests.world import FRANKFURT, GUANGZHOU, SHANGHAI, Postgres, Tenant, World

from cunho import Client, Operation, Refused, v1
from cunho_rules.refusals import Reason, Refusal

AVAILABLE = v1.Image.STATE_AVAILABLE
CRASH_CONSISTENT = v1.CreateImageRequest.CONSISTENCY_CRASH_CONSISTENT
STOP_INSTANCE = v1.CreateImageRequest.CONSISTENCY_STOP_INSTANCE
UNREADABLE = Refusal(Reason.IMAGE_FORMAT_MISMATCH, format="QCOW2", found="VMDK")


def create(client: Client, instance_id: str, name: str, **more: Any) -> Operation[v1.Image]:
    """Begins to make an image."""
    given: dict[str, Any] = {"region_id": GUANGZHOU, "consistency": CRASH_CONSISTENT} | more
    return client.create_image(instance_id=instance_id, name=name, **given)


def quota(client: Client, region_id: str = GUANGZHOU) -> tuple[int, int, int]:
    """Usage, reserved and limit of the account's custom images."""
    found = client.get_quota(quota_id=v1.QuotaId.QUOTA_ID_CUSTOM_IMAGES, region_id=region_id)
    return found.usage, found.reserved, found.limit


def set_limit(world: World, account_id: str, limit: int, region_id: str = GUANGZHOU) -> v1.Quota:
    return world.operator.set_quota_limit(
        quota_id=v1.QuotaId.QUOTA_ID_CUSTOM_IMAGES, account_id=account_id, region_id=region_id, limit=limit
    )


# --- CUS-1 to CUS-4


@pytest.mark.rule("CUS-1")
def test_an_image_made_from_an_instance_is_the_owners_own_and_names_what_it_came_from(world: World) -> None:
    owner, public = world.tenant(), world.public_image()
    instance = world.launch(owner, public.image_id)
    image = world.image(owner, "web", instance_id=instance.instance_id, description="The shop", labels={"a": "b"})
    assert image.kind == v1.ImageKind.IMAGE_KIND_CUSTOM
    assert image.trust == v1.Image.TRUST_OWN
    assert image.state == AVAILABLE
    assert image.origin == v1.Image.ORIGIN_INSTANCE
    assert image.owner_account_id == owner.account_id
    assert image.source == v1.ImageSource(
        image_id=public.image_id, region_id=GUANGZHOU, instance_id=instance.instance_id
    )
    assert (image.os, image.architecture, image.size_bytes) == (public.os, public.architecture, public.size_bytes)
    assert (image.name, image.description, dict(image.labels)) == ("web", "The shop", {"a": "b"})
    assert owner.get_image(image_id=image.image_id) == image


@pytest.mark.rule("CUS-1", "CUS-9", "PUB-2")
def test_an_image_made_from_an_instance_names_the_software_that_came_with_it_and_so_does_a_copy(world: World) -> None:
    owner, recipient = world.tenant(), world.tenant()
    software = [v1.Software(name="MySQL", version=version) for version in ("8.0", "8.4")]
    public = publish(world.operator, "bundle", software=software)
    instance_id = world.launch(owner, public.image_id).instance_id
    world.operator.delete_image(image_id=public.image_id)
    image = world.image(owner, instance_id=instance_id)
    (copied,) = owner.copy_image(image_id=image.image_id, destinations=to(SHANGHAI)).result(timeout_seconds=20).results
    owner.share_image(image_id=image.image_id, account_ids=[recipient.account_id])
    again = world.image(recipient, instance_id=world.launch(recipient, image.image_id).instance_id)
    assert [*image.software] == [*copied.image.software] == [*again.software] == software
    owner.reinstall_instance(instance_id=instance_id, image_id=world.public_image().image_id).result(20)
    assert [*world.image(owner, instance_id=instance_id).software] == [*world.public_image().software] != software


@pytest.mark.rule("CUS-1", "CUS-10")
def test_an_imported_image_is_the_owners_own_and_names_its_uri(world: World) -> None:
    owner = world.tenant()
    image = import_image(owner, "stock", expected_checksum=SHA256, cloud_init=True).result(timeout_seconds=20)
    assert image.kind == v1.ImageKind.IMAGE_KIND_CUSTOM
    assert image.state == AVAILABLE
    assert image.origin == v1.Image.ORIGIN_IMPORTED
    assert image.source == v1.ImageSource(uri=STOCK_URI)
    assert image.content.checksum == SHA256
    assert image.boot_mode == v1.BootMode.BOOT_MODE_UEFI
    assert (image.size_bytes, image.min_disk_bytes, image.cloud_init) == (2 * GIB, 10 * GIB, True)
    assert world.launch(owner, image.image_id).launch_image.checksum == SHA256


@pytest.mark.rule("CUS-2")
def test_a_custom_image_is_visible_to_its_owner_its_recipients_and_the_operator_only(world: World) -> None:
    owner, recipient, stranger = world.tenant(), world.tenant(), world.tenant()
    image = world.image(owner)
    owner.share_image(image_id=image.image_id, account_ids=[recipient.account_id])
    for caller in (owner, recipient, world.operator):
        assert caller.get_image(image_id=image.image_id).image_id == image.image_id
    with refused("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2", image_id=image.image_id):
        stranger.get_image(image_id=image.image_id)


@pytest.mark.rule("CUS-3")
def test_a_custom_image_launches_any_number_of_instances_with_the_same_contents(world: World) -> None:
    owner = world.tenant()
    image = import_image(owner, "stock", expected_checksum=SHA256).result(timeout_seconds=20)
    launched = owner.create_instance(
        region_id=GUANGZHOU,
        zone_id="ap-guangzhou-3",
        instance_type="S5.MEDIUM4",
        image_id=image.image_id,
        count=12,
        name="web",
    ).result(timeout_seconds=20)
    assert [instance.name for instance in launched.instances] == [f"web-{number}" for number in range(1, 13)]
    assert len({instance.instance_id for instance in launched.instances}) == 12
    assert {str(instance.launch_image) for instance in launched.instances} == {str(launched.instances[0].launch_image)}
    assert launched.instances[0].launch_image.checksum == SHA256


@pytest.mark.rule("CUS-4")
def test_the_owner_renames_copies_shares_and_deletes_its_image(world: World) -> None:
    owner, other = world.tenant(), world.tenant()
    image_id = world.image(owner).image_id
    assert rename(owner, image_id, "renamed").name == "renamed"
    assert owner.copy_image(image_id=image_id, destinations=to(SHANGHAI)).result(timeout_seconds=20).results
    shares = owner.share_image(image_id=image_id, account_ids=[other.account_id]).shares
    assert [share.account_id for share in shares] == [other.account_id]
    assert owner.delete_image(image_id=image_id, force=True).state == v1.Image.STATE_DELETED


@pytest.mark.rule("CUS-4")
@pytest.mark.parametrize(
    ("action", "act"),
    [
        ("UpdateImage", lambda client, image_id: rename(client, image_id, "taken over")),
        ("CopyImage", lambda client, image_id: client.copy_image(image_id=image_id, destinations=to(SHANGHAI))),
        ("ShareImage", lambda client, image_id: client.share_image(image_id=image_id, account_ids=["somebody"])),
        ("UnshareImage", lambda client, image_id: client.unshare_image(image_id=image_id, account_ids=["somebody"])),
        ("SetImageShares", lambda client, image_id: client.set_image_shares(image_id=image_id)),
        ("DeprecateImage", lambda client, image_id: deprecate(client, image_id, v1.Deprecation.STATE_OBSOLETE)),
        ("DeleteImage", lambda client, image_id: client.delete_image(image_id=image_id)),
    ],
)
def test_only_the_owner_does_so_not_even_the_operator(
    world: World, action: str, act: Callable[[Client, str], object]
) -> None:
    image = world.image(world.tenant())
    with refused("PERMISSION_DENIED", "IMAGE_OWNER_ONLY", "CUS-4", image_id=image.image_id, action=action) as caught:
        act(world.operator, image.image_id)
    assert_explained(
        caught.value,
        world.operator.check_image_actions(
            image_id=image.image_id, actions=[action], target_region_id=SHANGHAI, target_account_ids=["somebody"]
        ),
    )


# --- CUS-5


@pytest.fixture(scope="module")
def full(world: World) -> Tenant:
    """An account with 10 custom images in Guangzhou, one of Shanghai and an instance."""
    owner = world.tenant()
    instance_id = world.launch(owner).instance_id
    for number in range(1, 11):
        world.image(owner, f"image {number}", instance_id=instance_id)
    return owner


def assert_full(caught: pytest.ExceptionInfo[Refused]) -> None:
    (violation,) = detail_of(caught.value, QuotaFailure).violations
    assert "10 of 10 custom images" in violation.description


@pytest.mark.rule("CUS-5")
def test_the_eleventh_custom_image_of_a_region_is_refused_however_it_is_made(world: World, full: Tenant) -> None:
    assert quota(full) == (10, 0, 10)
    (instance,) = full.list_instances(region_id=GUANGZHOU)
    elsewhere = world.image(full, "elsewhere", SHANGHAI)  # the other region has its own count
    assert quota(full, SHANGHAI) == (1, 0, 10)
    said: dict[str, Any] = {"account_id": full.account_id, "region_id": GUANGZHOU, "limit": 10, "usage": 10}
    exceeded = ("RESOURCE_EXHAUSTED", "CUSTOM_IMAGE_QUOTA_EXCEEDED", "CUS-5")
    with refused(*exceeded, **said) as caught:
        create(full, instance.instance_id, "image 11")
    assert_full(caught)
    assert_explained(
        caught.value,
        full.check_instance_actions(instance_id=instance.instance_id, actions=["CreateImage"], image_name="image 11"),
    )
    with refused(*exceeded, **said) as caught:
        import_image(full, "image 11")
    assert_full(caught)
    with refused(*exceeded, **said) as caught:
        full.copy_image(image_id=elsewhere.image_id, destinations=to(GUANGZHOU))
    assert_full(caught)
    assert_explained(
        caught.value,
        full.check_image_actions(image_id=elsewhere.image_id, actions=["CopyImage"], target_region_id=GUANGZHOU),
    )
    assert quota(full) == (10, 0, 10)
    full.delete_image(image_id=elsewhere.image_id)


@pytest.mark.rule("CUS-5")
def test_deleting_frees_a_place(full: Tenant) -> None:
    (instance,) = full.list_instances(region_id=GUANGZHOU)
    (image,) = full.list_images(region_id=GUANGZHOU, filter='name = "image 10"')
    full.delete_image(image_id=image.image_id)
    assert quota(full) == (9, 0, 10)
    create(full, instance.instance_id, "image 10").result(timeout_seconds=20)
    assert quota(full) == (10, 0, 10)


@pytest.mark.rule("CUS-5", "SHR-1")
def test_images_shared_with_me_do_not_count(world: World, full: Tenant) -> None:
    other = world.tenant()
    image = world.image(other, "shared")
    other.share_image(image_id=image.image_id, account_ids=[full.account_id])
    assert quota(full) == (10, 0, 10)
    assert names(full.list_images(region_id=GUANGZHOU, filter="kind = SHARED")) == ["shared"]
    other.unshare_image(image_id=image.image_id, account_ids=[full.account_id])


@pytest.mark.rule("CUS-5", "PUB-1")
def test_a_full_account_launches_on(world: World, full: Tenant) -> None:
    instance = world.launch(full)
    full.delete_instance(instance_id=instance.instance_id).result(timeout_seconds=20)


@pytest.mark.rule("CUS-5")
def test_images_that_are_being_made_count_copies_where_they_land(world: World, driver: Held) -> None:
    owner = world.tenant()
    instance_id = world.launch(owner).instance_id
    source = world.image(owner, "source", SHANGHAI)
    set_limit(world, owner.account_id, 3)
    with driver.holding("capture", "import", "copy"):
        operations = [create(owner, instance_id, "created"), import_image(owner, "imported")]
        operations.append(owner.copy_image(image_id=source.image_id, destinations=to(GUANGZHOU)))  # type: ignore[arg-type]
        assert quota(owner) == (0, 3, 3)
        assert quota(owner, SHANGHAI) == (1, 0, 10)
        states = {image.name: image.state for image in owner.list_images(region_id=GUANGZHOU, filter="kind = CUSTOM")}
        assert states == {
            "created": v1.Image.STATE_CREATING,
            "imported": v1.Image.STATE_IMPORTING,
            "source": v1.Image.STATE_COPYING,
        }
        said: dict[str, Any] = {"account_id": owner.account_id, "region_id": GUANGZHOU, "limit": 3, "usage": 3}
        with refused("RESOURCE_EXHAUSTED", "CUSTOM_IMAGE_QUOTA_EXCEEDED", "CUS-5", **said):
            import_image(owner, "one too many")
    for operation in operations:
        operation.result(timeout_seconds=20)
    assert quota(owner) == (3, 0, 3)


@pytest.mark.rule("CUS-5")
def test_failed_and_cancelled_images_do_not_count(world: World, driver: Held) -> None:
    owner = world.tenant()
    with driver.failing("import", UNREADABLE), pytest.raises(Refused, match="VMDK"):
        import_image(owner, "fails").result(timeout_seconds=20)
    assert quota(owner) == (0, 0, 10)
    with driver.holding("import"):
        operation = import_image(owner, "is cancelled")
        assert quota(owner) == (0, 1, 10)
        operation.cancel()
        with pytest.raises(Refused) as caught:
            operation.result(timeout_seconds=20)
    assert caught.value.reason == "OPERATION_CANCELLED"
    assert quota(owner) == (0, 0, 10)
    assert names(owner.list_images(region_id=GUANGZHOU, filter="kind = CUSTOM")) == ["fails"]
    (failed,) = owner.list_images(region_id=GUANGZHOU, filter="state = FAILED")
    owner.delete_image(image_id=failed.image_id)  # which frees no place a second time
    assert quota(owner) == (0, 0, 10)


@pytest.mark.rule("CUS-5")
def test_the_operator_raises_and_lowers_the_limit_but_not_below_what_is_used(world: World) -> None:
    owner = world.tenant()
    instance_id = world.launch(owner).instance_id
    for number in range(10):
        world.image(owner, f"image {number}", instance_id=instance_id)
    raised = set_limit(world, owner.account_id, 11)
    assert (raised.limit, raised.usage, raised.is_default) == (11, 10, False)
    world.image(owner, "image 11", instance_id=instance_id)
    said: dict[str, Any] = {"quota_id": "CUSTOM_IMAGES", "limit": 10, "usage": 11}
    with refused("FAILED_PRECONDITION", "QUOTA_BELOW_USAGE", "CUS-5", **said):
        set_limit(world, owner.account_id, 10)
    assert quota(owner) == (11, 0, 11)
    image = next(owner.list_images(region_id=GUANGZHOU, filter='name = "image 11"'))
    owner.delete_image(image_id=image.image_id)
    assert set_limit(world, owner.account_id, 10).is_default
    with refused("PERMISSION_DENIED", "OPERATOR_ROLE_REQUIRED", "PUB-8", action="SetQuotaLimit"):
        owner.set_quota_limit(
            quota_id=v1.QuotaId.QUOTA_ID_CUSTOM_IMAGES, account_id=owner.account_id, region_id=GUANGZHOU, limit=99
        )


# --- CUS-6, CUS-7


def yuan(units: int, nanos: int = 0) -> Money:
    return Money(currency_code="CNY", units=units, nanos=nanos)


def dollars(units: int, nanos: int = 0) -> Money:
    return Money(currency_code="USD", units=units, nanos=nanos)


@pytest.mark.rule("CUS-6")
def test_the_price_is_shown_before_an_image_is_made_and_kept_on_it(world: World) -> None:
    owner = world.tenant()
    instance_id = world.launch(owner).instance_id  # of 5 GiB
    # Guangzhou: 0.12 CNY per GiB and month, 4 GiB free for each account.
    first = v1.PriceQuote(
        region_id=GUANGZHOU,
        size_bytes=5 * GIB,
        storage_per_gib_month=yuan(0, 120_000_000),
        free_allowance_bytes=4 * GIB,
        monthly_total=yuan(0, 120_000_000),  # 1 GiB
        transfer=yuan(0),
    )
    assert create(owner, instance_id, "first", validate_only=True).quotes == [first]
    operation = create(owner, instance_id, "first")
    assert operation.quotes == [first]
    image = operation.result(timeout_seconds=20)
    assert image.quote == first
    assert owner.get_image(image_id=image.image_id).quote == first

    second = v1.PriceQuote()
    second.CopyFrom(first)
    second.free_allowance_bytes = 0
    second.monthly_total.CopyFrom(yuan(0, 600_000_000))  # 5 GiB
    assert create(owner, instance_id, "second", validate_only=True).quotes == [second]
    owner.delete_image(image_id=image.image_id)
    assert create(owner, instance_id, "second", validate_only=True).quotes == [first]


@pytest.mark.rule("CUS-6")
@pytest.mark.parametrize(
    ("size_bytes", "free_bytes", "total"),
    [
        (GIB, GIB, yuan(0)),
        (5 * GIB // 2, 5 * GIB // 2, yuan(0)),
        (5 * GIB // 2 + 1, 5 * GIB // 2, yuan(0)),  # 0.11 nanos
        (4 * GIB, 5 * GIB // 2, yuan(0, 180_000_000)),
        (21 * GIB // 2, 5 * GIB // 2, yuan(0, 960_000_000)),
        (50 * GIB, 5 * GIB // 2, yuan(5, 700_000_000)),
    ],
)
def test_what_is_left_of_the_free_allowance_is_taken_off(
    world: World, size_bytes: int, free_bytes: int, total: Money
) -> None:
    owner = world.tenant()
    import_image(owner, "1.5 GiB", size_bytes=3 * GIB // 2).result(timeout_seconds=20)  # leaves 2.5 GiB of 4
    (quote,) = import_image(owner, "next", size_bytes=size_bytes, validate_only=True).quotes
    assert (quote.size_bytes, quote.free_allowance_bytes, quote.monthly_total) == (size_bytes, free_bytes, total)


@pytest.mark.rule("CUS-6")
def test_images_being_made_use_the_allowance_and_failed_ones_do_not(world: World, driver: Held) -> None:
    owner = world.tenant()

    def total() -> Money:
        return import_image(owner, "asked", size_bytes=4 * GIB, validate_only=True).quotes[0].monthly_total

    with driver.failing("import", UNREADABLE):
        with driver.holding("import"):
            operation = import_image(owner, "fails", size_bytes=3 * GIB)
            assert total() == yuan(0, 360_000_000)
        with pytest.raises(Refused):
            operation.result(timeout_seconds=20)
    assert total() == yuan(0)


@pytest.mark.rule("CUS-7", "CUS-6", "CUS-12")
def test_copying_is_free_of_charge_and_the_copy_is_priced_where_it_lands(world: World) -> None:
    owner = world.tenant()
    image = world.image(owner)  # of 5 GiB
    frankfurt = v1.PriceQuote(
        region_id=FRANKFURT,
        size_bytes=5 * GIB,
        storage_per_gib_month=dollars(0, 20_000_000),
        monthly_total=dollars(0, 100_000_000),
        transfer=dollars(0),
    )
    shanghai = v1.PriceQuote(
        region_id=SHANGHAI,
        size_bytes=5 * GIB,
        storage_per_gib_month=yuan(0, 120_000_000),
        free_allowance_bytes=5 * GIB,  # of 50
        monthly_total=yuan(0),
        transfer=yuan(0),
    )
    destinations = to(FRANKFURT, SHANGHAI)
    rehearsal = owner.copy_image(image_id=image.image_id, destinations=destinations, validate_only=True)
    operation = owner.copy_image(image_id=image.image_id, destinations=destinations)
    assert rehearsal.quotes == operation.quotes == [frankfurt, shanghai]
    copies = [result.image for result in operation.result(timeout_seconds=20).results]
    assert [copy.quote for copy in copies] == [frankfurt, shanghai]
    assert [owner.get_image(image_id=copy.image_id).quote for copy in copies] == [frankfurt, shanghai]


@pytest.mark.rule("CUS-6", "PUB-6")
def test_a_custom_image_tells_its_owner_what_its_storage_costs(world: World) -> None:
    owner = world.tenant()
    windows = world.public_image(FRANKFURT, "Windows Server 2022 64bit")
    instance = world.launch(owner, windows.image_id, FRANKFURT)
    image = world.image(owner, "own", FRANKFURT, instance.instance_id)
    assert image.pricing.free
    assert not image.pricing.HasField("license_fee_per_hour")
    assert image.pricing.storage_per_gib_month == dollars(0, 20_000_000)


# --- CUS-8


@pytest.mark.rule("CUS-8")
def test_an_image_is_made_from_a_running_or_a_stopped_instance_which_ends_as_it_was(world: World) -> None:
    owner = world.tenant()
    instance_id = world.launch(owner).instance_id

    def steps(name: str, consistency: v1.CreateImageRequest.Consistency.ValueType) -> list[str]:
        operation = create(owner, instance_id, name, consistency=consistency)
        operation.result(timeout_seconds=20)
        return [step.name for step in operation.metadata.steps]

    assert steps("stopping", STOP_INSTANCE) == ["stop", "capture", "start"]
    assert steps("by default", v1.CreateImageRequest.CONSISTENCY_UNSPECIFIED) == ["stop", "capture", "start"]
    assert steps("running on", CRASH_CONSISTENT) == ["capture"]
    assert owner.get_instance(instance_id=instance_id).state == v1.Instance.STATE_RUNNING
    owner.stop_instance(instance_id=instance_id).result(timeout_seconds=20)
    assert steps("stopped before", STOP_INSTANCE) == ["capture"]
    assert owner.get_instance(instance_id=instance_id).state == v1.Instance.STATE_STOPPED


@pytest.mark.rule("CUS-8")
def test_an_instance_in_another_state_is_not_imaged(world: World, driver: Held) -> None:
    owner = world.tenant()
    with driver.failing("launch", UNREADABLE):
        operation = owner.create_instance(
            region_id=GUANGZHOU,
            zone_id="ap-guangzhou-3",
            instance_type="S5.MEDIUM4",
            image_id=world.public_image().image_id,
        )
        with pytest.raises(Refused):
            operation.result(timeout_seconds=20)
    (instance_id,) = operation.metadata.target_ids
    said: dict[str, Any] = {
        "instance_id": instance_id,
        "state": "FAILED",
        "allowed": "RUNNING or STOPPED",
        "action": "CreateImage",
    }
    with refused("FAILED_PRECONDITION", "INSTANCE_STATE_INVALID", "CUS-8", **said) as caught:
        create(owner, instance_id, "broken")
    assert_explained(caught.value, owner.check_instance_actions(instance_id=instance_id, actions=["CreateImage"]))


@pytest.mark.rule("CUS-8", "INS-5")
def test_an_instance_with_an_operation_in_progress_is_not_imaged(world: World, driver: Held) -> None:
    owner = world.tenant()
    instance_id = world.launch(owner).instance_id
    with driver.holding("capture"):
        operation = create(owner, instance_id, "first")
        assert owner.get_instance(instance_id=instance_id).state == v1.Instance.STATE_IMAGING
        said: dict[str, Any] = {"instance_id": instance_id, "state": "IMAGING", "operation": operation.name}
        with refused("ABORTED", "INSTANCE_BUSY", "INS-5", **said) as caught:
            create(owner, instance_id, "second")
        assert caught.value.retry_may_help
        assert_explained(caught.value, owner.check_instance_actions(instance_id=instance_id, actions=["CreateImage"]))
    operation.result(timeout_seconds=20)
    create(owner, instance_id, "second").result(timeout_seconds=20)


@pytest.mark.rule("CUS-8", "INS-6")
def test_an_image_is_made_from_an_instance_of_ones_own_in_its_region(world: World) -> None:
    owner = world.tenant()
    instance_id = world.launch(owner).instance_id
    said: dict[str, Any] = {"instance_id": instance_id, "instance_region_id": GUANGZHOU, "region_id": SHANGHAI}
    with refused("FAILED_PRECONDITION", "INSTANCE_REGION_MISMATCH", "CUS-8", **said):
        create(owner, instance_id, "elsewhere", region_id=SHANGHAI)
    with refused("NOT_FOUND", "INSTANCE_NOT_FOUND", "INS-6", instance_id=instance_id):
        create(world.tenant(), instance_id, "not mine")


# --- CUS-9


@pytest.mark.rule("CUS-9")
def test_an_image_of_an_instance_from_a_shared_image_is_ones_own_and_names_the_shared_one(world: World) -> None:
    owner, recipient, third = world.tenant(), world.tenant(), world.tenant()
    shared = world.image(owner)
    owner.share_image(image_id=shared.image_id, account_ids=[recipient.account_id])
    instance = world.launch(recipient, shared.image_id)
    image = world.image(recipient, "my own", instance_id=instance.instance_id)
    assert image.kind == v1.ImageKind.IMAGE_KIND_CUSTOM
    assert image.owner_account_id == recipient.account_id
    assert image.source == v1.ImageSource(
        image_id=shared.image_id, region_id=GUANGZHOU, instance_id=instance.instance_id
    )
    assert quota(recipient) == (1, 0, 10)
    # All that an owner may, it may with it; also when the shared one is gone.
    owner.delete_image(image_id=shared.image_id, force=True)
    recipient.share_image(image_id=image.image_id, account_ids=[third.account_id])
    world.launch(third, image.image_id)
    (copied,) = (
        recipient.copy_image(image_id=image.image_id, destinations=to(SHANGHAI)).result(timeout_seconds=20).results
    )
    assert copied.image.source == v1.ImageSource(image_id=image.image_id, region_id=GUANGZHOU)


# --- CUS-10


@pytest.mark.rule("CUS-10")
@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("http://cloud.debian.org/a.qcow2", 'its scheme is "http", not "https"'),
        ("https://user:secret@cloud.debian.org/a.qcow2", "it carries credentials"),
        ("https://example.org/a.qcow2", 'host "example.org" is not allowed'),
        ("https://169.254.169.254/latest", 'host "169.254.169.254" is not allowed'),
        ("https://cloud.debian.org:8443/a.qcow2", "its port is 8443, not 443"),
        ("/etc/shadow", 'its scheme is "", not "https"'),
    ],
)
def test_an_import_names_an_https_uri_of_an_allowed_host(world: World, uri: str, problem: str) -> None:
    owner = world.tenant()
    allowed = ", ".join(world.settings.import_host_list)
    with refused("INVALID_ARGUMENT", "IMPORT_URI_NOT_ALLOWED", "CUS-10", problem=problem, allowed=allowed) as caught:
        import_image(owner, "stock", uri=uri)
    assert caught.value.violations.keys() == {"uri"}
    assert "secret" not in str(caught.value.args)
    assert quota(owner) == (0, 0, 10)


@pytest.mark.rule("CUS-10")
def test_the_settings_say_which_hosts_are_allowed(postgres: Postgres) -> None:
    with worlds.world(postgres, import_hosts="*.example.org") as world:
        owner = world.tenant()
        assert import_image(owner, "stock", uri="https://images.example.org/a.qcow2", validate_only=True).quotes
        problem = 'host "cloud.debian.org" is not allowed'
        with refused("INVALID_ARGUMENT", "IMPORT_URI_NOT_ALLOWED", "CUS-10", problem=problem, allowed="*.example.org"):
            import_image(owner, "stock", uri="https://cloud.debian.org/a.qcow2", validate_only=True)
    with worlds.world(postgres, import_hosts="") as world:
        with refused("INVALID_ARGUMENT", "IMPORT_URI_NOT_ALLOWED", "CUS-10", problem=problem, allowed="") as caught:
            import_image(world.tenant(), "stock", uri="https://cloud.debian.org/a.qcow2", validate_only=True)
        assert "an allowed host (none)" in caught.value.remedy


@pytest.mark.rule("CUS-10")
@pytest.mark.parametrize(
    ("ending", "format", "found"),
    [
        (".qcow2", "RAW", "QCOW2"),
        (".RAW", "QCOW2", "RAW"),
        (".vmdk?v=2", "VHD", "VMDK"),
        (".vhd", "VHDX", "VHD"),
        (".vhdx", "VHD", "VHDX"),
    ],
)
def test_the_declared_format_agrees_with_the_files_name(world: World, ending: str, format: str, found: str) -> None:
    uri = f"https://cloud.debian.org/stock{ending}"
    declared = v1.ImportImageRequest.Format.Value(f"FORMAT_{format}")
    with refused("FAILED_PRECONDITION", "IMAGE_FORMAT_MISMATCH", "CUS-10", format=format, found=found):
        import_image(world.tenant(), "stock", uri=uri, format=declared)
    right = v1.ImportImageRequest.Format.Value(f"FORMAT_{found}")
    assert import_image(world.tenant(), "stock", uri=uri, format=right, validate_only=True).quotes


@pytest.mark.rule("CUS-10")
def test_a_name_that_tells_no_format_is_believed(world: World) -> None:
    uri = "https://cloud.debian.org/stock.img"
    for format in (v1.ImportImageRequest.FORMAT_RAW, v1.ImportImageRequest.FORMAT_QCOW2):
        assert import_image(world.tenant(), "stock", uri=uri, format=format, validate_only=True).quotes


@pytest.mark.rule("CUS-10")
@pytest.mark.parametrize(("field", "limit"), [("size_bytes", 50 * GIB), ("min_disk_bytes", 500 * GIB)])
def test_a_file_has_at_most_50_gib_and_the_disk_in_it_500(world: World, field: str, limit: int) -> None:
    owner = world.tenant()
    said: dict[str, Any] = {"field": field, "size_bytes": limit + 1, "limit_bytes": limit}
    most: dict[str, Any] = {field: limit}
    too_much: dict[str, Any] = {field: limit + 1}
    with refused("FAILED_PRECONDITION", "IMAGE_TOO_LARGE", "CUS-10", **said):
        import_image(owner, "too large", **too_much)
    image = import_image(owner, "as large as may be", **most).result(timeout_seconds=20)
    assert getattr(image, field) == limit


@pytest.mark.rule("CUS-10")
def test_what_is_wrong_with_the_contents_is_told_by_the_operation_and_kept_on_the_image(
    world: World, driver: Held
) -> None:
    owner = world.tenant()
    with driver.failing("import", UNREADABLE):
        operation = import_image(owner, "not what it says")
        with pytest.raises(Refused) as caught:
            operation.result(timeout_seconds=20)
    told = caught.value
    assert_told(told, "FAILED_PRECONDITION", "IMAGE_FORMAT_MISMATCH", "CUS-10", format="QCOW2", found="VMDK")
    (image_id,) = operation.metadata.target_ids
    image = owner.get_image(image_id=image_id)
    assert image.state == v1.Image.STATE_FAILED
    assert image.failure == v1.ImageFailure(reason="IMAGE_FORMAT_MISMATCH", message=told.message)
    (step,) = operation.metadata.steps
    assert step.state == v1.OperationMetadata.Step.STATE_FAILED
    assert Refused.from_status(step.error).reason == "IMAGE_FORMAT_MISMATCH"
    said: dict[str, Any] = {"image_id": image_id, "state": "FAILED", "allowed": "AVAILABLE", "action": "CreateInstance"}
    with refused("FAILED_PRECONDITION", "IMAGE_STATE_INVALID", "INS-1", **said):
        world.launch(owner, image_id)


# --- CUS-11


@pytest.mark.rule("CUS-11")
def test_an_image_is_not_deleted_while_it_is_being_made(world: World, driver: Held) -> None:
    owner = world.tenant()
    instance_id = world.launch(owner).instance_id
    with driver.holding("capture", "import"):
        for operation, state in (
            (create(owner, instance_id, "created"), "CREATING"),
            (import_image(owner, "imported"), "IMPORTING"),
        ):
            (image_id,) = operation.metadata.target_ids
            said: dict[str, Any] = {"image_id": image_id, "state": state, "copies": 0}
            for force in (False, True):
                with refused("ABORTED", "IMAGE_BUSY", "CUS-11", **said) as caught:
                    owner.delete_image(image_id=image_id, force=force)
            assert caught.value.retry_may_help
            assert_explained(caught.value, owner.check_image_actions(image_id=image_id, actions=["DeleteImage"]))
    image = operation.result(timeout_seconds=20)
    assert owner.delete_image(image_id=image.image_id).state == v1.Image.STATE_DELETED


@pytest.mark.rule("CUS-11", "CUS-12")
def test_an_image_is_not_deleted_while_it_is_copied_from(world: World, driver: Held) -> None:
    owner = world.tenant()
    image = world.image(owner)
    with driver.holding("copy"):
        operation = owner.copy_image(image_id=image.image_id, destinations=to(SHANGHAI, FRANKFURT))
        said: dict[str, Any] = {"image_id": image.image_id, "state": "AVAILABLE", "copies": 2}
        with refused("ABORTED", "IMAGE_BUSY", "CUS-11", **said) as caught:
            owner.delete_image(image_id=image.image_id)
        assert_explained(caught.value, owner.check_image_actions(image_id=image.image_id, actions=["DeleteImage"]))
        copy_id = operation.metadata.target_ids[0]
        said = {"image_id": copy_id, "state": "COPYING", "copies": 0}
        with refused("ABORTED", "IMAGE_BUSY", "CUS-11", **said):
            owner.delete_image(image_id=copy_id)
    operation.result(timeout_seconds=20)
    assert owner.delete_image(image_id=image.image_id).state == v1.Image.STATE_DELETED
    assert owner.get_image(image_id=copy_id).state == AVAILABLE


@pytest.mark.rule("CUS-11")
def test_a_shared_image_is_deleted_by_force_only_which_takes_it_back(world: World) -> None:
    owner, recipients = world.tenant(), [world.tenant(account_id=f"delete-{number:02}") for number in range(12)]
    image = world.image(owner)
    instance = world.launch(owner, image.image_id)
    account_ids = [recipient.account_id for recipient in recipients]
    owner.share_image(image_id=image.image_id, account_ids=account_ids[:2])
    said: dict[str, Any] = {"image_id": image.image_id, "account_count": 2, "account_ids": "delete-00, delete-01"}
    with refused("FAILED_PRECONDITION", "IMAGE_SHARED", "CUS-11", **said) as caught:
        owner.delete_image(image_id=image.image_id)
    assert_explained(caught.value, owner.check_image_actions(image_id=image.image_id, actions=["DeleteImage"]))
    (decision,) = owner.check_image_actions(image_id=image.image_id, actions=["DeleteImage"], force=True).decisions
    assert decision.allowed

    owner.share_image(image_id=image.image_id, account_ids=account_ids[2:])
    many = ", ".join(account_ids[:10]) + " and 2 more"
    with refused("FAILED_PRECONDITION", "IMAGE_SHARED", "CUS-11", **said | {"account_count": 12, "account_ids": many}):
        owner.delete_image(image_id=image.image_id)

    deleted = owner.delete_image(image_id=image.image_id, force=True)
    assert (deleted.state, deleted.sharing.account_count) == (v1.Image.STATE_DELETED, 0)
    assert deleted.HasField("delete_time")
    for caller in (owner, *recipients):
        with refused("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2", image_id=image.image_id):
            caller.get_image(image_id=image.image_id)
    assert owner.get_instance(instance_id=instance.instance_id).state == v1.Instance.STATE_RUNNING
    owner.reboot_instance(instance_id=instance.instance_id).result(timeout_seconds=20)


@pytest.mark.rule("CUS-11")
def test_an_unshared_image_is_deleted_without_force(world: World) -> None:
    owner, recipient = world.tenant(), world.tenant()
    image = world.image(owner)
    owner.share_image(image_id=image.image_id, account_ids=[recipient.account_id])
    owner.unshare_image(image_id=image.image_id, account_ids=[recipient.account_id])
    assert owner.delete_image(image_id=image.image_id).state == v1.Image.STATE_DELETED
    with refused("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2", image_id=image.image_id):
        owner.delete_image(image_id=image.image_id)


# --- CUS-12


@pytest.mark.rule("CUS-12")
def test_a_copy_that_waited_for_a_change_of_its_image_is_of_the_image_as_that_left_it(world: World) -> None:
    owner = world.tenant()
    image_id = world.image(owner, "before", description="before").image_id
    change = "UPDATE image SET name = 'after', description = 'after' WHERE image_id = $1"
    operation = overtaken(
        world,
        lambda: owner.copy_image(image_id=image_id, destinations=to(SHANGHAI)),
        IMAGE_LOCKED,
        change,
        image_id,
    )
    (made,) = operation.result(timeout_seconds=20).results
    assert (made.image.name, made.image.description) == ("after", "after")


@pytest.mark.rule("CUS-12")
def test_a_copy_is_an_independent_image_that_shares_do_not_follow(world: World) -> None:
    owner, recipient = world.tenant(), world.tenant()
    image = world.image(owner, "web", labels={"env": "test"}, family="web")
    owner.share_image(image_id=image.image_id, account_ids=[recipient.account_id])
    destinations = [*to(SHANGHAI), v1.CopyImageRequest.Destination(region_id=FRANKFURT, name="web in Europe")]
    operation = owner.copy_image(image_id=image.image_id, destinations=destinations, copy_labels=True)
    shanghai, frankfurt = (result.image for result in operation.result(timeout_seconds=20).results)
    assert (shanghai.region_id, shanghai.name) == (SHANGHAI, "web")
    assert (frankfurt.region_id, frankfurt.name) == (FRANKFURT, "web in Europe")
    for copy in (shanghai, frankfurt):
        assert copy.image_id != image.image_id
        assert copy.origin == v1.Image.ORIGIN_COPIED
        assert copy.source == v1.ImageSource(image_id=image.image_id, region_id=GUANGZHOU)
        assert copy.sharing.account_count == 0
        assert (copy.size_bytes, copy.family, dict(copy.labels)) == (image.size_bytes, "web", {"env": "test"})
        with refused("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2", image_id=copy.image_id):
            recipient.get_image(image_id=copy.image_id)
    owner.delete_image(image_id=image.image_id, force=True)
    world.launch(owner, shanghai.image_id, SHANGHAI)
    bare = owner.copy_image(image_id=shanghai.image_id, destinations=to(GUANGZHOU)).result(timeout_seconds=20)
    assert dict(bare.results[0].image.labels) == {}


@pytest.mark.rule("CUS-12")
def test_a_copy_goes_to_another_region_that_exists(world: World) -> None:
    owner = world.tenant()
    image = world.image(owner)
    said: dict[str, Any] = {"image_id": image.image_id, "region_id": GUANGZHOU}
    for destinations in (to(GUANGZHOU), to(SHANGHAI, GUANGZHOU)):
        with refused("INVALID_ARGUMENT", "COPY_TO_SAME_REGION", "CUS-12", **said) as caught:
            owner.copy_image(image_id=image.image_id, destinations=destinations)
        assert caught.value.violations.keys() == {"destinations"}
    assert_explained(
        caught.value,
        owner.check_image_actions(image_id=image.image_id, actions=["CopyImage"], target_region_id=GUANGZHOU),
    )
    for destinations in (to("nowhere"), to(SHANGHAI, "nowhere")):
        with refused("INVALID_ARGUMENT", "REGION_NOT_FOUND", "INS-1", region_id="nowhere") as caught:
            owner.copy_image(image_id=image.image_id, destinations=destinations)
    assert_explained(
        caught.value,
        owner.check_image_actions(image_id=image.image_id, actions=["CopyImage"], target_region_id="nowhere"),
    )
    assert quota(owner, SHANGHAI) == (0, 0, 10)


@pytest.mark.rule("ALL-6")
def test_a_copy_to_a_region_that_is_none_is_refused_before_one_to_the_images_own(world: World) -> None:
    owner = world.tenant()
    image = world.image(owner)
    with refused("INVALID_ARGUMENT", "REGION_NOT_FOUND", "INS-1", region_id="nowhere"):
        owner.copy_image(image_id=image.image_id, destinations=to(GUANGZHOU, "nowhere"))


@pytest.mark.rule("CUS-12")
def test_only_an_available_image_is_copied(world: World, driver: Held) -> None:
    owner = world.tenant()
    with driver.holding("import"):
        operation = import_image(owner, "stock")
        (image_id,) = operation.metadata.target_ids
        said: dict[str, Any] = {
            "image_id": image_id,
            "state": "IMPORTING",
            "allowed": "AVAILABLE",
            "action": "CopyImage",
        }
        with refused("FAILED_PRECONDITION", "IMAGE_STATE_INVALID", "CUS-12", **said) as caught:
            owner.copy_image(image_id=image_id, destinations=to(SHANGHAI))
        assert_explained(
            caught.value, owner.check_image_actions(image_id=image_id, actions=["CopyImage"], target_region_id=SHANGHAI)
        )
    operation.result(timeout_seconds=20)
    owner.copy_image(image_id=image_id, destinations=to(SHANGHAI)).result(timeout_seconds=20)


@pytest.mark.rule("CUS-12", "CUS-5", "CUS-14")
def test_each_destination_of_a_copy_has_its_own_result(world: World) -> None:
    owner = world.tenant(GUANGZHOU, SHANGHAI)
    image, taken = world.image(owner, "web"), "web of Shanghai"
    world.image(owner, taken, SHANGHAI)
    shanghai = v1.CopyImageRequest.Destination(region_id=SHANGHAI, name=taken)

    operation = owner.copy_image(image_id=image.image_id, destinations=[*to(FRANKFURT, SHANGHAI)])
    frankfurt_said = {"account_id": owner.account_id, "region_id": FRANKFURT}
    failed, copied = operation.result(timeout_seconds=20).results
    assert (failed.region_id, copied.region_id) == (FRANKFURT, SHANGHAI)
    assert copied.image.state == AVAILABLE
    told = Refused.from_status(failed.error)
    assert_told(told, "FAILED_PRECONDITION", "ACCOUNT_NOT_IN_REGION", "CUS-14", **frankfurt_said)
    states = [step.state for step in operation.metadata.steps]
    assert states == [v1.OperationMetadata.Step.STATE_FAILED, v1.OperationMetadata.Step.STATE_SUCCEEDED]

    # When all of them refuse, so does the call.
    with refused("FAILED_PRECONDITION", "ACCOUNT_NOT_IN_REGION", "CUS-14", **frankfurt_said):
        owner.copy_image(image_id=image.image_id, destinations=[*to(FRANKFURT), shanghai])
    with refused("ALREADY_EXISTS", "IMAGE_NAME_TAKEN", "SEL-4", name=taken, region_id=SHANGHAI) as caught:
        owner.copy_image(image_id=image.image_id, destinations=[shanghai, *to(FRANKFURT)])
    assert_explained(
        caught.value,
        owner.check_image_actions(
            image_id=image.image_id, actions=["CopyImage"], target_region_id=SHANGHAI, name=taken
        ),
    )
    set_limit(world, owner.account_id, 2, SHANGHAI)
    said: dict[str, Any] = {"account_id": owner.account_id, "region_id": SHANGHAI, "limit": 2, "usage": 2}
    with refused("RESOURCE_EXHAUSTED", "CUSTOM_IMAGE_QUOTA_EXCEEDED", "CUS-5", **said):
        owner.copy_image(
            image_id=image.image_id, destinations=[v1.CopyImageRequest.Destination(region_id=SHANGHAI, name="third")]
        )


@pytest.mark.rule("ALL-5", "SEL-4")
@pytest.mark.parametrize("name", [" ", "web ", " web"])
def test_a_copy_is_given_no_name_that_an_image_may_not_have(world: World, name: str) -> None:
    owner = world.tenant(GUANGZHOU, SHANGHAI)
    image = world.image(owner, "web")
    destination = v1.CopyImageRequest.Destination(region_id=SHANGHAI, name=name)
    problem = "must not begin or end with a blank"
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST", "ALL-5", problems=f"destinations[0].name: {problem}"):
        owner.copy_image(image_id=image.image_id, destinations=[destination])
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST", "ALL-5", problems=f"name: {problem}"):
        owner.check_image_actions(image_id=image.image_id, actions=["UpdateImage"], name=name)


@pytest.mark.rule("CUS-5")
def test_images_that_are_together_larger_than_a_number_can_tell_take_places_as_any(world: World) -> None:
    owner, largest = world.tenant(), publish(world.operator, "largest", size_bytes=2**62)
    instance = world.launch(owner, largest.image_id)
    images = [world.image(owner, name, instance_id=instance.instance_id) for name in ("one", "two", "three")]
    rename(owner, images[0].image_id, "four")
    assert names(owner.list_images(region_id=GUANGZHOU, filter="kind = CUSTOM")) == ["four", "three", "two"]


@pytest.mark.rule("CUS-12", "CUS-5")
def test_a_copy_that_fails_in_one_region_is_made_in_the_others(world: World, driver: Held) -> None:
    owner = world.tenant()
    image = world.image(owner, "web")
    with driver.failing("copy", UNREADABLE, region_id=FRANKFURT):
        operation = owner.copy_image(image_id=image.image_id, destinations=to(FRANKFURT, SHANGHAI))
        failed, copied = operation.result(timeout_seconds=20).results
    assert (failed.region_id, copied.region_id) == (FRANKFURT, SHANGHAI)
    told = Refused.from_status(failed.error)
    assert_told(told, "FAILED_PRECONDITION", "IMAGE_FORMAT_MISMATCH", "CUS-10", **UNREADABLE.metadata)
    failed_id, copied_id = operation.metadata.target_ids
    assert copied.image == owner.get_image(image_id=copied_id)
    assert copied.image.state == AVAILABLE
    left = owner.get_image(image_id=failed_id)
    assert (left.state, left.failure.reason) == (v1.Image.STATE_FAILED, told.reason)
    assert left.failure.message == told.message
    states = [step.state for step in operation.metadata.steps]
    assert states == [v1.OperationMetadata.Step.STATE_FAILED, v1.OperationMetadata.Step.STATE_SUCCEEDED]
    assert str(Refused.from_status(operation.metadata.steps[0].error)) == str(told)
    assert (quota(owner, FRANKFURT), quota(owner, SHANGHAI)) == ((0, 0, 10), (1, 0, 10))
    owner.delete_image(image_id=image.image_id)


@pytest.mark.rule("CUS-12")
def test_a_copy_that_fails_leaves_the_source_as_it_was(world: World, driver: Held) -> None:
    owner = world.tenant()
    image = world.image(owner)
    with driver.failing("copy", UNREADABLE):
        operation = owner.copy_image(image_id=image.image_id, destinations=to(SHANGHAI))
        with pytest.raises(Refused):
            operation.result(timeout_seconds=20)
    (copy_id,) = operation.metadata.target_ids
    assert owner.get_image(image_id=copy_id).state == v1.Image.STATE_FAILED
    assert owner.get_image(image_id=image.image_id) == image
    owner.delete_image(image_id=image.image_id)


# --- CUS-13


@pytest.fixture
def suspended(world: World) -> tuple[Tenant, Tenant, v1.Image, v1.Instance]:
    """A suspended account, one that it shares its image with, that image, and its instance."""
    owner, recipient = world.tenant(), world.tenant()
    instance = world.launch(owner)
    image = world.image(owner, instance_id=instance.instance_id)
    owner.share_image(image_id=image.image_id, account_ids=[recipient.account_id])
    suspend(world, owner.account_id)
    return owner, recipient, image, instance


@pytest.mark.rule("CUS-13")
def test_a_suspended_account_makes_shares_and_launches_nothing(
    world: World, suspended: tuple[Tenant, Tenant, v1.Image, v1.Instance]
) -> None:
    owner, recipient, image, instance = suspended
    new = world.tenant().account_id
    image_actions: dict[str, Callable[[], object]] = {
        "CopyImage": lambda: owner.copy_image(image_id=image.image_id, destinations=to(SHANGHAI)),
        "ShareImage": lambda: owner.share_image(image_id=image.image_id, account_ids=[new]),
        "SetImageShares": lambda: owner.set_image_shares(
            image_id=image.image_id, account_ids=[recipient.account_id, new]
        ),
        "CreateInstance": lambda: world.launch(owner, image.image_id),
    }
    for action, act in image_actions.items():
        said: dict[str, Any] = {"account_id": owner.account_id, "action": action}
        with refused("FAILED_PRECONDITION", "ACCOUNT_SUSPENDED", "CUS-13", **said) as caught:
            act()
        assert_explained(
            caught.value,
            owner.check_image_actions(
                image_id=image.image_id, actions=[action], target_region_id=SHANGHAI, target_account_ids=[new]
            ),
        )
    said = {"account_id": owner.account_id, "action": "CreateImage"}
    with refused("FAILED_PRECONDITION", "ACCOUNT_SUSPENDED", "CUS-13", **said) as caught:
        create(owner, instance.instance_id, "new")
    assert_explained(
        caught.value, owner.check_instance_actions(instance_id=instance.instance_id, actions=["CreateImage"])
    )
    said = {"account_id": owner.account_id, "action": "ImportImage"}
    with refused("FAILED_PRECONDITION", "ACCOUNT_SUSPENDED", "CUS-13", **said):
        import_image(owner, "new")


@pytest.mark.rule("CUS-13")
def test_a_suspended_account_lists_unshares_and_deletes(
    world: World, suspended: tuple[Tenant, Tenant, v1.Image, v1.Instance]
) -> None:
    owner, recipient, image, instance = suspended
    assert names(owner.list_images(region_id=GUANGZHOU, filter="kind = CUSTOM")) == [image.name]
    assert [share.account_id for share in owner.list_image_shares(image_id=image.image_id)] == [recipient.account_id]
    kept = owner.set_image_shares(image_id=image.image_id, account_ids=[recipient.account_id])
    assert [share.account_id for share in kept.shares] == [recipient.account_id]
    assert owner.set_image_shares(image_id=image.image_id).image.sharing.account_count == 0
    assert owner.unshare_image(image_id=image.image_id, account_ids=[recipient.account_id]).account_ids == []
    assert owner.delete_image(image_id=image.image_id).state == v1.Image.STATE_DELETED
    owner.delete_instance(instance_id=instance.instance_id).result(timeout_seconds=20)


@pytest.mark.rule("CUS-13")
def test_an_account_that_is_active_again_makes_images_again(world: World) -> None:
    owner = world.tenant()
    suspend(world, owner.account_id)
    account = v1.Account(account_id=owner.account_id, state=v1.Account.STATE_ACTIVE)
    world.operator.update_account(account=account, update_mask=["state"])
    assert world.image(owner).state == AVAILABLE


#: What an account's calls wait for, and the calls.
WAITING: dict[str, tuple[str, Callable[[Client, str], object]]] = {
    "ImportImage": ("account_region WHERE account_id", lambda owner, image_id: import_image(owner, "stock")),
    "CopyImage": (
        "image WHERE owner_account_id",
        lambda owner, image_id: owner.copy_image(image_id=image_id, destinations=to(SHANGHAI)),
    ),
}


@pytest.mark.rule("CUS-13")
@pytest.mark.parametrize("action", WAITING)
def test_an_account_suspended_while_its_call_waited_makes_nothing(world: World, action: str) -> None:
    owner, (waits_for, act) = world.tenant(), WAITING[action]
    image_id, lock = world.image(owner).image_id, f"SELECT FROM {waits_for} = $1 FOR UPDATE"
    suspended = "UPDATE account SET state = 'SUSPENDED' WHERE account_id = $1"
    with refused("FAILED_PRECONDITION", "ACCOUNT_SUSPENDED", "CUS-13", account_id=owner.account_id, action=action):
        overtaken(world, lambda: act(owner, image_id), lock, suspended, owner.account_id)


# --- CUS-14


@pytest.mark.rule("CUS-14")
def test_an_account_makes_images_and_launches_only_in_regions_that_it_is_active_in(world: World) -> None:
    owner = world.tenant(GUANGZHOU)
    image = world.image(owner)
    said: dict[str, Any] = {"account_id": owner.account_id, "region_id": SHANGHAI}
    for act in (
        lambda: world.launch(owner, region_id=SHANGHAI),
        lambda: import_image(owner, "stock", SHANGHAI),
        lambda: owner.copy_image(image_id=image.image_id, destinations=to(SHANGHAI)),
    ):
        with refused("FAILED_PRECONDITION", "ACCOUNT_NOT_IN_REGION", "CUS-14", **said) as caught:
            act()
    assert_explained(
        caught.value,
        owner.check_image_actions(image_id=image.image_id, actions=["CopyImage"], target_region_id=SHANGHAI),
    )
    account = v1.Account(account_id=owner.account_id, region_ids=[GUANGZHOU, SHANGHAI])
    world.operator.update_account(account=account, update_mask=["region_ids"])
    owner.copy_image(image_id=image.image_id, destinations=to(SHANGHAI)).result(timeout_seconds=20)
    world.launch(owner, region_id=SHANGHAI)


@pytest.mark.rule("CUS-14")
def test_credentials_of_an_account_that_nobody_registered_make_nothing(world: World) -> None:
    unknown = world.client("nobody-knows")
    said: dict[str, Any] = {"account_id": "nobody-knows", "region_id": GUANGZHOU}
    with refused("FAILED_PRECONDITION", "ACCOUNT_NOT_IN_REGION", "CUS-14", **said):
        world.launch(unknown)
    with refused("FAILED_PRECONDITION", "ACCOUNT_NOT_IN_REGION", "CUS-14", **said):
        import_image(unknown, "stock")
