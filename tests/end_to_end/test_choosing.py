"""Choosing an image: what a caller sees, how lists are filtered, ordered and paged, and which names are free."""

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from tests.end_to_end.steps import (
    GIB,
    Held,
    assert_explained,
    assert_told,
    deprecate,
    import_image,
    names,
    publish,
    refused,
    rename,
    send,
    to,
)
from tests.world import FRANKFURT, GUANGZHOU, SHANGHAI, ZONES, Tenant, World

from cunho import Client, Refused, v1
from cunho_rules.refusals import Reason, Refusal

DEBIAN = ["Debian 12 32bit", "Debian 12 64bit", "Debian 12 ARM64"]
WINDOWS = "Windows Server 2022 64bit"
ABSENT = "img-00000000"


def visible(caller: Client, region_id: str = GUANGZHOU, filter: str = "") -> list[str]:
    """Names of the images that the caller is shown, but for public ones."""
    return names(image for image in caller.list_images(region_id=region_id, filter=filter) if image.owner_account_id)


# --- SEL-1


@pytest.mark.rule("SEL-1")
@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ("bits = 32", ["Debian 12 32bit"]),
        ("bits = 64", ["Debian 12 64bit", "Debian 12 ARM64", WINDOWS]),
        ("architecture = I386", ["Debian 12 32bit"]),
        ("architecture = X86_64", ["Debian 12 64bit", WINDOWS]),
        ("architecture = ARM64", ["Debian 12 ARM64"]),
        ("os.family = WINDOWS", [WINDOWS]),
        ('os.platform = "debian" AND os.version = "12"', DEBIAN),
        ('os.platform = "debian" AND bits = 64 AND architecture != ARM64', ["Debian 12 64bit"]),
    ],
)
def test_an_image_is_chosen_by_operating_system_and_architecture(world: World, filter: str, found: list[str]) -> None:
    assert names(world.tenant().list_images(region_id=FRANKFURT, filter=filter)) == found


@pytest.mark.rule("SEL-1")
def test_an_image_is_chosen_by_region_and_is_usable_in_every_zone_of_it(world: World) -> None:
    caller = world.tenant()
    regions = {region.region_id: region for region in caller.list_regions()}
    assert {image.region_id for image in caller.list_images(region_id=SHANGHAI)} == {SHANGHAI}
    assert {image.region_id for image in caller.list_images(region_id="-")} == {*regions}
    zone_ids = [zone.zone_id for zone in regions[GUANGZHOU].zones]
    assert len(zone_ids) == 2
    assert [world.launch(caller, zone_id=zone_id).zone_id for zone_id in zone_ids] == zone_ids


# --- SEL-2


@pytest.mark.rule("SEL-2", "CUS-2")
def test_a_caller_sees_public_images_its_own_and_those_shared_with_it_each_in_its_region(world: World) -> None:
    owner, other, stranger = world.tenant(), world.tenant(), world.tenant()
    own, shared = world.image(owner, "own"), world.image(other, "shared")
    world.image(other, "not shared")
    other.share_image(image_id=shared.image_id, account_ids=[owner.account_id])
    assert visible(owner) == ["own", "shared"]
    assert visible(owner, "-") == ["own", "shared"]
    assert visible(owner, SHANGHAI) == []
    assert visible(stranger, "-") == []
    assert len([*stranger.list_images(region_id="-")]) == 12
    assert visible(world.operator, filter=f'owner_account_id = "{other.account_id}"') == ["not shared", "shared"]
    kinds = {image.name: image.kind for image in owner.list_images(region_id=GUANGZHOU, filter="kind != PUBLIC")}
    assert kinds == {"own": v1.ImageKind.IMAGE_KIND_CUSTOM, "shared": v1.ImageKind.IMAGE_KIND_SHARED}
    results = stranger.batch_get_images(image_ids=[own.image_id, ABSENT]).results
    assert [Refused.from_status(result.error).reason for result in results] == ["IMAGE_NOT_FOUND"] * 2


def requests_that_name(image_id: str, instance_id: str) -> list[tuple[str, Message]]:
    """Every request that may name an image of another account, and its service."""
    images, instances, quotas = "cunho.v1.ImageService", "cunho.v1.InstanceService", "cunho.v1.QuotaService"
    shares_quota = v1.QuotaId.QUOTA_ID_SHARES_PER_IMAGE
    current = v1.Deprecation(state=v1.Deprecation.STATE_CURRENT)
    return [
        (images, v1.GetImageRequest(image_id=image_id)),
        (images, v1.CopyImageRequest(image_id=image_id, destinations=to(SHANGHAI))),
        (
            images,
            v1.UpdateImageRequest(image=v1.Image(image_id=image_id, name="new"), update_mask=FieldMask(paths=["name"])),
        ),
        (images, v1.ShareImageRequest(image_id=image_id, account_ids=["nobody"])),
        (images, v1.UnshareImageRequest(image_id=image_id, account_ids=["nobody"])),
        (images, v1.SetImageSharesRequest(image_id=image_id)),
        (images, v1.ListImageSharesRequest(image_id=image_id)),
        (images, v1.LeaveImageShareRequest(image_id=image_id)),
        (images, v1.DeprecateImageRequest(image_id=image_id, deprecation=current)),
        (images, v1.DeleteImageRequest(image_id=image_id)),
        (images, v1.CheckImageActionsRequest(image_id=image_id)),
        (
            instances,
            v1.CreateInstanceRequest(
                image_id=image_id, region_id=GUANGZHOU, zone_id=ZONES[GUANGZHOU], instance_type="S5.MEDIUM4"
            ),
        ),
        (instances, v1.ReinstallInstanceRequest(image_id=image_id, instance_id=instance_id)),
        (quotas, v1.GetQuotaRequest(image_id=image_id, quota_id=shares_quota)),
        (quotas, v1.SetQuotaLimitRequest(image_id=image_id, quota_id=shares_quota, limit=1)),
    ]


@pytest.mark.rule("SEL-2")
def test_somebody_elses_image_answers_word_for_word_as_one_that_does_not_exist(world: World) -> None:
    stranger = world.tenant()
    token, instance_id = world.token(stranger.account_id), world.launch(stranger).instance_id
    foreign = world.image(world.tenant()).image_id

    def answers(image_id: str) -> list[str]:
        told = []
        for service, request in requests_that_name(image_id, instance_id):
            with pytest.raises(Refused) as caught:
                send(world, token, request, service)
            assert caught.value.reason == "IMAGE_NOT_FOUND", request.DESCRIPTOR.name
            told.append(str(caught.value.args).replace(image_id, "img-"))
        return told

    assert answers(foreign) == answers(ABSENT)


@pytest.mark.rule("SEL-2")
def test_an_image_that_is_not_seen_is_not_found(world: World) -> None:
    image = world.image(world.tenant())
    with refused("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2", image_id=image.image_id):
        world.tenant().get_image(image_id=image.image_id)


# --- SEL-3


@pytest.fixture(scope="module")
def chooser(world: World, driver: Held) -> Tenant:
    """An account with images of its own, one of them FAILED, and one shared with it."""
    caller, other = world.tenant(), world.tenant()
    instance = world.launch(caller).instance_id
    web: dict[str, Any] = {"instance_id": instance, "family": "web"}
    world.image(caller, "web 1", labels={"env": "production"}, description="The shop", **web)
    old = world.image(caller, "web 2", labels={"env": "test", "old": "yes"}, **web)
    deprecate(caller, old.image_id, v1.Deprecation.STATE_DEPRECATED)
    with driver.failing("import", Refusal(Reason.IMAGE_FORMAT_MISMATCH, format="QCOW2", found="VMDK")):
        appliance = import_image(
            caller,
            "appliance",
            os=v1.OperatingSystem(family=v1.OsFamily.OS_FAMILY_OTHER, platform="bsd", version="14"),
            architecture=v1.Architecture.ARCHITECTURE_ARM64,
            min_disk_bytes=30 * GIB,
            boot_mode=v1.BootMode.BOOT_MODE_BIOS,
        )
        with pytest.raises(Refused):
            appliance.result(timeout_seconds=20)
    shared = world.image(other, "gift")
    other.share_image(image_id=shared.image_id, account_ids=[caller.account_id])
    return caller


@pytest.mark.rule("SEL-3")
@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ("kind = CUSTOM", ["appliance", "web 1", "web 2"]),
        ("kind = SHARED", ["gift"]),
        ("kind != PUBLIC", ["appliance", "gift", "web 1", "web 2"]),
        ('name = "web 1"', ["web 1"]),
        ('name = "web*"', ["web 1", "web 2"]),
        ("name:ft", ["gift"]),
        ('description = "The shop"', ["web 1"]),
        ("family = web", ["web 1", "web 2"]),
        ("state = FAILED", ["appliance"]),
        ("kind = CUSTOM AND state = AVAILABLE", ["web 1", "web 2"]),
        ("labels.env = test", ["web 2"]),
        ("labels:old", ["web 2"]),
        ("origin = IMPORTED", ["appliance"]),
        ("origin = INSTANCE AND NOT kind = SHARED", ["web 1", "web 2"]),
        ("trust = UNVERIFIED", ["gift"]),
        ("trust = OWN AND architecture = ARM64", ["appliance"]),
        ("deprecation.state = DEPRECATED", ["web 2"]),
        ("os.family = OTHER", ["appliance"]),
        ("boot_mode = BIOS AND kind = CUSTOM", ["appliance"]),
        ("cloud_init = false", ["appliance"]),
        ("min_disk_bytes > 10737418240 AND kind = CUSTOM", ["appliance"]),
        ("size_bytes = 2147483648", ["appliance"]),
        ('kind = CUSTOM AND (name = "web 2" OR os.platform = bsd)', ["appliance", "web 2"]),
        ('software.name = "SQL Server"', [WINDOWS]),
        ('software.name = Python AND software.version = "3.11" AND bits = 32', ["Debian 12 32bit"]),
        ('create_time < "2020-01-01T00:00:00Z"', []),
    ],
)
def test_lists_are_filtered_by_every_published_field(chooser: Tenant, filter: str, found: list[str]) -> None:
    assert names(chooser.list_images(region_id=GUANGZHOU, filter=filter)) == found


@pytest.mark.rule("SEL-3")
def test_lists_are_filtered_by_owner(world: World, chooser: Tenant) -> None:
    assert visible(chooser, filter=f'owner_account_id = "{chooser.account_id}"') == ["appliance", "web 1", "web 2"]
    assert visible(chooser, filter=f'owner_account_id != "{chooser.account_id}"') == ["gift"]


@pytest.mark.rule("SEL-3", "INS-2")
@pytest.mark.parametrize(
    ("instance_type", "found"),
    [
        ("S5.MEDIUM4", ["Debian 12 32bit", "Debian 12 64bit", WINDOWS, "gift", "web 1", "web 2"]),
        ("S5.SMALL1", ["Debian 12 32bit", "Debian 12 64bit", "gift", "web 1", "web 2"]),
        ("SR1.MEDIUM4", ["Debian 12 ARM64"]),  # the appliance is FAILED
    ],
)
def test_lists_are_narrowed_to_what_an_instance_type_can_launch(
    chooser: Tenant, instance_type: str, found: list[str]
) -> None:
    assert names(chooser.list_images(region_id=GUANGZHOU, usable_with_instance_type=instance_type)) == found


@pytest.mark.rule("SEL-3")
def test_lists_are_ordered(chooser: Tenant) -> None:
    def ordered(order_by: str) -> list[str]:
        found = chooser.list_images(region_id=GUANGZHOU, filter="kind = CUSTOM", order_by=order_by)
        return [image.name for image in found]

    assert ordered("") == ordered("create_time desc") == ["appliance", "web 2", "web 1"]
    assert ordered("name desc") == ["web 2", "web 1", "appliance"]
    assert ordered("size_bytes, name desc") == ["appliance", "web 2", "web 1"]


@pytest.mark.rule("SEL-3")
@pytest.mark.parametrize(
    ("filter", "field", "position"),
    [("colour = red", "colour", 0), ("bits = 64 AND size_bytes = big", "size_bytes", 27), ('name = "open', "", 7)],
)
def test_a_malformed_filter_is_refused_with_field_and_position(
    chooser: Tenant, filter: str, field: str, position: int
) -> None:
    with pytest.raises(Refused) as caught:
        list(chooser.list_images(region_id=GUANGZHOU, filter=filter))
    told = caught.value
    assert_told(told, "INVALID_ARGUMENT", "INVALID_FILTER", "SEL-3", **told.metadata)
    assert (told.metadata["field"], told.metadata["position"]) == (field, str(position))
    assert told.violations == {"filter": told.metadata["problem"]}
    assert told.metadata["problem"] in told.message


@pytest.mark.rule("SEL-3")
def test_a_malformed_order_is_refused_with_field_and_position(chooser: Tenant) -> None:
    problem = "at 6: expected one of create_time, update_time, name, size_bytes, image_id, found 'colour'"
    said: dict[str, Any] = {"field": "colour", "position": 6, "problem": problem}
    with refused("INVALID_ARGUMENT", "INVALID_ORDER_BY", "SEL-3", **said) as caught:
        list(chooser.list_images(region_id=GUANGZHOU, order_by="name, colour desc"))
    assert caught.value.violations == {"order_by": problem}


def page(world: World, caller: Tenant, token: str, **more: Any) -> v1.ListImagesResponse:
    """Two of the caller's own images, by name."""
    request = v1.ListImagesRequest(region_id=GUANGZHOU, filter="kind = CUSTOM", order_by="name", page_size=2)
    request.MergeFrom(v1.ListImagesRequest(page_token=token, **more))
    return v1.ListImagesResponse.FromString(send(world, world.token(caller.account_id), request))


@pytest.mark.rule("SEL-3")
def test_pages_go_on_where_they_were_whatever_is_made_and_deleted_meanwhile(world: World) -> None:
    caller = world.tenant()
    instance_id = world.launch(caller).instance_id
    images = {name: world.image(caller, name, instance_id=instance_id) for name in ("b", "d", "f", "h")}
    first = page(world, caller, "")
    assert names(first.images) == ["b", "d"]
    caller.delete_image(image_id=images["d"].image_id)  # the row that the token was made at
    caller.delete_image(image_id=images["f"].image_id)
    for name in ("a", "e"):
        world.image(caller, name, instance_id=instance_id)
    second = page(world, caller, first.next_page_token)
    assert names(second.images) == ["e", "h"]
    assert second.next_page_token == ""


@pytest.mark.rule("SEL-3")
def test_the_client_fetches_every_page(world: World) -> None:
    whole = [image.image_id for image in world.tenant().list_images(region_id="-")]
    paged = [image.image_id for image in world.tenant().list_images(region_id="-", page_size=5)]
    assert whole == paged
    assert len(whole) == 12


@pytest.mark.rule("SEL-3")
def test_a_page_token_is_good_for_its_caller_and_its_arguments_only(world: World) -> None:
    caller, other = world.tenant(), world.tenant()
    instance_id = world.launch(caller).instance_id
    for name in "abc":
        world.image(caller, name, instance_id=instance_id)
    token = page(world, caller, "").next_page_token
    problem = "it was given to another caller or for other arguments, or is not one that the service gave"
    for who, sent, more in (
        (other, token, {}),
        (caller, token, {"order_by": "name desc"}),
        (caller, token, {"filter": "kind = SHARED"}),
        (caller, "A" + token[1:] if token[0] != "A" else "B" + token[1:], {}),
    ):
        with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN", "SEL-3", problem=problem) as caught:
            page(world, who, sent, **more)
        assert caught.value.violations == {"page_token": problem}


# --- SEL-4


@pytest.mark.rule("SEL-4")
def test_a_name_has_1_to_60_characters_and_a_description_up_to_256(world: World) -> None:
    owner = world.tenant()
    longest = "ü" * 60
    image = world.image(owner, longest, description="d" * 256)
    assert (image.name, image.description) == (longest, "d" * 256)
    for name, problem in (("", "must not be empty"), ("n" * 61, "must have at most 60 characters, has 61")):
        with refused("INVALID_ARGUMENT", "INVALID_REQUEST", "ALL-5", problems=f"image.name: {problem}") as caught:
            rename(owner, image.image_id, name)
        assert caught.value.violations == {"image.name": problem}
    problem = "must have at most 256 characters, has 257"
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST", "ALL-5", problems=f"description: {problem}"):
        world.image(owner, "another", description="d" * 257)


@pytest.mark.rule("SEL-4")
def test_a_name_is_unique_per_owner_and_region(world: World) -> None:
    owner, other = world.tenant(), world.tenant()
    image, second = world.image(owner, "web"), world.image(owner, "second")
    assert world.image(other, "web").name == world.image(owner, "web", SHANGHAI).name == "web"

    taken = {"name": "web", "region_id": GUANGZHOU}
    with refused("ALREADY_EXISTS", "IMAGE_NAME_TAKEN", "SEL-4", **taken):
        world.image(owner, "web")
    with refused("ALREADY_EXISTS", "IMAGE_NAME_TAKEN", "SEL-4", **taken):
        import_image(owner, "web")
    with refused("ALREADY_EXISTS", "IMAGE_NAME_TAKEN", "SEL-4", **taken) as caught:
        rename(owner, second.image_id, "web")
    explanation = owner.check_image_actions(image_id=second.image_id, actions=["UpdateImage"], name="web")
    assert_explained(caught.value, explanation)
    with refused("ALREADY_EXISTS", "IMAGE_NAME_TAKEN", "SEL-4", name="web", region_id=SHANGHAI):
        owner.copy_image(image_id=image.image_id, destinations=to(SHANGHAI))

    assert rename(owner, image.image_id, "web").name == "web"  # its own name is not taken by itself
    owner.delete_image(image_id=image.image_id)
    assert rename(owner, second.image_id, "web").name == "web"


@pytest.mark.rule("SEL-4")
def test_a_failed_image_keeps_its_name_until_it_is_deleted(world: World, driver: Held) -> None:
    owner = world.tenant()
    with driver.failing("import", Refusal(Reason.IMAGE_FORMAT_MISMATCH, format="QCOW2", found="RAW")):
        operation = import_image(owner, "stock")
        with pytest.raises(Refused):
            operation.result(timeout_seconds=20)
    with refused("ALREADY_EXISTS", "IMAGE_NAME_TAKEN", "SEL-4", name="stock", region_id=GUANGZHOU):
        import_image(owner, "stock")
    owner.delete_image(image_id=operation.metadata.target_ids[0])
    assert import_image(owner, "stock").result(timeout_seconds=20).name == "stock"


@pytest.mark.rule("SEL-4", "PUB-8")
def test_the_name_of_a_public_image_is_unique_in_its_region(world: World) -> None:
    published = publish(world.operator, "Ubuntu 24.04 named once")
    with refused("ALREADY_EXISTS", "IMAGE_NAME_TAKEN", "SEL-4", name=published.name, region_id=GUANGZHOU):
        publish(world.operator, published.name)
    assert publish(world.operator, published.name, SHANGHAI).name == published.name
    assert world.image(world.tenant(), published.name).name == published.name
    for image in world.operator.list_images(region_id="-", filter='name = "Ubuntu 24.04 named once" AND kind = PUBLIC'):
        world.operator.delete_image(image_id=image.image_id)
