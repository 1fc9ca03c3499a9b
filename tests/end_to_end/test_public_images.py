"""Public images: for every account, supported, priced, retired by the operator, and touched by nobody else."""

from collections.abc import Callable
from typing import Any

import pytest
from google.type.money_pb2 import Money
from tests.end_to_end.steps import (
    STOCK_URI,
    assert_explained,
    deprecate,
    import_image,
    names,
    publish,
    refused,
    rename,
    to,
)
from tests.world import FRANKFURT, GUANGZHOU, SHANGHAI, World

from cunho import Client, v1

WINDOWS = "Windows Server 2022 64bit"
DEPRECATED, OBSOLETE = v1.Deprecation.STATE_DEPRECATED, v1.Deprecation.STATE_OBSOLETE
CURRENT = v1.Deprecation.STATE_CURRENT


# --- PUB-1, PUB-5


@pytest.mark.rule("PUB-1", "PUB-5")
def test_every_account_sees_and_launches_every_public_image_that_nobody_owns(world: World) -> None:
    for caller in (world.tenant(GUANGZHOU), world.tenant()):
        of_catalog = 'kind = PUBLIC AND (family = "debian-12" OR family = "windows-server-2022")'
        images = [*caller.list_images(region_id=GUANGZHOU, filter=of_catalog)]
        assert len(images) == 4
        for image in images:
            assert caller.get_image(image_id=image.image_id) == image
            assert image.kind == v1.ImageKind.IMAGE_KIND_PUBLIC
            assert image.trust == v1.Image.TRUST_PROVIDER
            assert image.origin == v1.Image.ORIGIN_PUBLISHED
            assert image.owner_account_id == ""
            instance_type = "SR1.MEDIUM4" if image.architecture == v1.Architecture.ARCHITECTURE_ARM64 else "S5.MEDIUM4"
            instance = world.launch(caller, image.image_id, instance_type=instance_type)
            assert instance.launch_image.trust == v1.Image.TRUST_PROVIDER


@pytest.mark.rule("PUB-1")
def test_no_quota_applies_to_public_images(world: World) -> None:
    published = [publish(world.operator, f"unlimited {number}", SHANGHAI) for number in range(11)]
    caller = world.tenant()
    assert names(caller.list_images(region_id=SHANGHAI, filter='name = "unlimited*"')) == names(published)
    quota = caller.get_quota(quota_id=v1.QuotaId.QUOTA_ID_CUSTOM_IMAGES, region_id=SHANGHAI)
    assert (quota.usage, quota.reserved, quota.limit) == (0, 0, 10)
    for image in published:
        world.operator.delete_image(image_id=image.image_id)


# --- PUB-2, PUB-3


@pytest.mark.rule("PUB-2", "PUB-3")
def test_a_public_image_has_an_operating_system_start_up_components_and_software_to_filter_on(world: World) -> None:
    software = [v1.Software(name="MySQL", version=version) for version in ("8.0", "8.4")]
    software += [v1.Software(name="Tomcat", version="11")]
    image = publish(world.operator, "stack", cloud_init=True, software=software, family="stack")
    assert image.os == v1.OperatingSystem(family=v1.OsFamily.OS_FAMILY_LINUX, platform="ubuntu", version="24.04")
    assert image.cloud_init
    assert [*image.software] == software

    caller = world.tenant()

    def found(filter: str) -> list[str]:
        return names(caller.list_images(region_id=GUANGZHOU, filter=filter))

    assert found('software.name = MySQL AND software.version = "8.4"') == ["stack"]
    assert found('software.name = MySQL AND software.version = "5.7"') == []
    assert found('software.name = "SQL Server"') == [WINDOWS]
    assert "stack" not in found("NOT software.name = Tomcat")
    world.operator.delete_image(image_id=image.image_id)


@pytest.mark.rule("PUB-3")
def test_the_family_of_a_public_image_is_linux_or_windows_that_of_an_imported_one_may_be_other(world: World) -> None:
    other = v1.OperatingSystem(family=v1.OsFamily.OS_FAMILY_OTHER, platform="bsd", version="14")
    problem = "must be one of OS_FAMILY_LINUX, OS_FAMILY_WINDOWS, is 3"
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST", "ALL-5", problems=f"os.family: {problem}") as caught:
        publish(world.operator, "bsd", os=other)
    assert caught.value.violations == {"os.family": problem}
    assert import_image(world.tenant(), "bsd", os=other).result(timeout_seconds=20).os == other


# --- PUB-4


@pytest.mark.rule("PUB-4")
def test_a_family_resolves_to_its_newest_image_that_can_be_launched(world: World) -> None:
    caller, operator = world.tenant(), world.operator

    def resolved(**more: Any) -> str:
        return caller.resolve_image(region_id=GUANGZHOU, family="rolling", **more).name

    missing = {"family": "rolling", "region_id": GUANGZHOU}
    with refused("NOT_FOUND", "IMAGE_FAMILY_NOT_FOUND", "PUB-4", **missing):
        resolved()
    first = publish(operator, "rolling 1", family="rolling")
    assert resolved() == "rolling 1"
    second = publish(operator, "rolling 2", family="rolling")
    arm = v1.Architecture.ARCHITECTURE_ARM64
    third = publish(operator, "rolling 3", family="rolling", architecture=arm)
    assert resolved() == "rolling 3"
    assert resolved(architecture=v1.Architecture.ARCHITECTURE_X86_64) == "rolling 2"

    deprecate(operator, second.image_id, DEPRECATED)  # still usable
    assert resolved(architecture=v1.Architecture.ARCHITECTURE_X86_64) == "rolling 2"
    deprecate(operator, second.image_id, OBSOLETE)
    assert resolved(architecture=v1.Architecture.ARCHITECTURE_X86_64) == "rolling 1"
    operator.delete_image(image_id=third.image_id)
    assert resolved() == "rolling 1"
    deprecate(operator, first.image_id, OBSOLETE)
    with refused("NOT_FOUND", "IMAGE_FAMILY_NOT_FOUND", "PUB-4", **missing):
        resolved()
    deprecate(operator, second.image_id, CURRENT)
    assert resolved() == "rolling 2"


@pytest.mark.rule("PUB-4")
def test_nobody_can_pose_as_a_family_of_the_operators(world: World) -> None:
    owner = world.tenant()
    world.image(owner, "newer debian", family="debian-12")
    resolved = owner.resolve_image(
        region_id=GUANGZHOU, family="debian-12", architecture=v1.Architecture.ARCHITECTURE_X86_64
    )
    assert resolved.name == "Debian 12 64bit"


@pytest.mark.rule("ALL-5")
def test_no_image_is_its_own_replacement(world: World) -> None:
    image_id = publish(world.operator, "replaces itself").image_id
    problems = "deprecation.replacement_image_id: must be another image"
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST", "ALL-5", problems=problems):
        deprecate(world.operator, image_id, DEPRECATED, replacement_image_id=image_id)


@pytest.mark.rule("PUB-4")
def test_a_deprecated_image_launches_with_a_warning_that_names_its_replacement(world: World) -> None:
    caller, operator = world.tenant(), world.operator
    old, new = publish(operator, "warns"), publish(operator, "warns not")
    assert caller.create_instance(**launching(new.image_id)).warnings == []
    image = deprecate(operator, old.image_id, DEPRECATED, replacement_image_id=new.image_id)
    assert image.deprecation == v1.Deprecation(state=DEPRECATED, replacement_image_id=new.image_id)
    operation = caller.create_instance(**launching(old.image_id))
    (warning,) = operation.warnings
    assert warning.reason == "IMAGE_DEPRECATED"
    assert new.image_id in warning.message
    assert warning.metadata == {"image_id": old.image_id, "replacement_image_id": new.image_id}
    assert [*operation.result(timeout_seconds=20).warnings] == [warning]
    (decision,) = caller.check_image_actions(image_id=old.image_id, actions=["CreateInstance"]).decisions
    assert decision.allowed
    assert [*decision.warnings] == [warning]


@pytest.mark.rule("PUB-4")
def test_a_retired_image_refuses_new_instances_and_those_that_exist_live_on(world: World) -> None:
    caller, operator = world.tenant(), world.operator
    image, other = publish(operator, "retires"), publish(operator, "replaces")
    instance_id = world.launch(caller, image.image_id).instance_id
    deprecate(operator, image.image_id, OBSOLETE, replacement_image_id=other.image_id)

    said: dict[str, Any] = {"image_id": image.image_id, "replacement_image_id": other.image_id}
    with refused("FAILED_PRECONDITION", "IMAGE_OBSOLETE", "PUB-4", action="CreateInstance", **said) as caught:
        world.launch(caller, image.image_id)
    assert other.image_id in caught.value.remedy
    assert caught.value.message == f"image {image.image_id} is obsolete: CreateInstance is not possible from it"
    explanation = caller.check_image_actions(image_id=image.image_id, actions=["CreateInstance"])
    assert_explained(caught.value, explanation)
    with refused("FAILED_PRECONDITION", "IMAGE_OBSOLETE", "PUB-4", action="ReinstallInstance", **said) as caught:
        caller.reinstall_instance(instance_id=instance_id)
    assert caught.value.message == f"image {image.image_id} is obsolete: ReinstallInstance is not possible from it"
    assert_explained(
        caught.value, caller.check_instance_actions(instance_id=instance_id, actions=["ReinstallInstance"])
    )
    assert caller.get_image(image_id=image.image_id).deprecation.state == OBSOLETE
    assert not caller.get_instance(instance_id=instance_id).launch_image.still_available
    for act in (caller.reboot_instance, caller.stop_instance, caller.start_instance):
        act(instance_id=instance_id).result(timeout_seconds=20)
    assert world.image(caller, instance_id=instance_id).state == v1.Image.STATE_AVAILABLE

    deprecate(operator, image.image_id, CURRENT)
    assert caller.get_instance(instance_id=instance_id).launch_image.still_available
    world.launch(caller, image.image_id)


@pytest.mark.rule("PUB-4", "SEL-2")
def test_a_replacement_must_be_visible_and_in_the_same_region(world: World) -> None:
    operator = world.operator
    image, elsewhere = publish(operator, "replaced"), publish(operator, "elsewhere", SHANGHAI)
    for image_id in (elsewhere.image_id, "img-00000000"):
        with refused("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2", image_id=image_id):
            deprecate(operator, image.image_id, DEPRECATED, replacement_image_id=image_id)
    assert operator.get_image(image_id=image.image_id).deprecation.state == CURRENT


@pytest.mark.rule("PUB-4")
def test_a_public_image_is_replaced_by_a_public_one_alone(world: World) -> None:
    operator, owner = world.operator, world.tenant()
    image_id, custom_id = publish(operator, "replaced publicly").image_id, world.image(owner).image_id
    said = {"image_id": image_id, "replacement_image_id": custom_id}
    with refused("FAILED_PRECONDITION", "REPLACEMENT_NOT_PUBLIC", "PUB-4", **said):
        deprecate(operator, image_id, DEPRECATED, replacement_image_id=custom_id)
    assert operator.get_image(image_id=image_id).deprecation.state == CURRENT
    deprecate(owner, world.image(owner).image_id, DEPRECATED, replacement_image_id=custom_id)
    deprecate(owner, custom_id, DEPRECATED, replacement_image_id=image_id)


@pytest.mark.rule("PUB-4")
def test_a_deleted_public_image_is_gone_and_its_instances_live_on(world: World) -> None:
    caller, operator = world.tenant(), world.operator
    image = publish(operator, "short-lived")
    instance = world.launch(caller, image.image_id)
    assert operator.delete_image(image_id=image.image_id).state == v1.Image.STATE_DELETED
    with refused("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2", image_id=image.image_id):
        world.launch(caller, image.image_id)
    caller.reboot_instance(instance_id=instance.instance_id).result(timeout_seconds=20)


# --- PUB-6, PUB-7


@pytest.mark.rule("PUB-6")
def test_windows_has_a_licence_fee_outside_mainland_china_and_every_other_public_image_is_free(world: World) -> None:
    caller = world.tenant()
    for region_id, name, fee in (
        (FRANKFURT, WINDOWS, Money(currency_code="USD", nanos=46_000_000)),
        (FRANKFURT, "Debian 12 64bit", None),
        (GUANGZHOU, WINDOWS, None),
        (SHANGHAI, WINDOWS, None),
        (GUANGZHOU, "Debian 12 64bit", None),
    ):
        (image,) = caller.list_images(region_id=region_id, filter=f'kind = PUBLIC AND name = "{name}"')
        assert image.pricing.free == (fee is None)
        assert image.pricing.HasField("license_fee_per_hour") == (fee is not None)
        assert fee is None or image.pricing.license_fee_per_hour == fee
        assert not image.pricing.HasField("storage_per_gib_month")
        assert image.pricing.note.endswith(".")
        assert not image.HasField("quote")


@pytest.mark.rule("PUB-7")
def test_a_public_image_names_who_supports_it_and_how_to_reach_them(world: World) -> None:
    caller = world.tenant()
    debian, windows = world.public_image(), world.public_image(name=WINDOWS)
    own = publish(
        world.operator,
        "the operator's own",
        support=v1.Support(kind=v1.Support.KIND_OPERATOR, contact_uri="mailto:help@example.org", note="Day and night"),
    )
    kinds = [v1.Support.KIND_COMMUNITY, v1.Support.KIND_VENDOR, v1.Support.KIND_OPERATOR]
    shown = [caller.get_image(image_id=image.image_id).support for image in (debian, windows, own)]
    assert [support.kind for support in shown] == kinds
    assert shown[0].contact_uri == "https://www.debian.org/support"
    assert shown[2].note == "Day and night"
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST", "ALL-5", problems="support: must be given") as caught:
        publish(world.operator, "unsupported", support=None)
    assert caught.value.violations == {"support": "must be given"}
    assert not world.image(caller).HasField("support")


# --- PUB-8

TOUCHES: dict[str, Callable[[Client, str], object]] = {
    "UpdateImage": lambda client, image_id: rename(client, image_id, "mine"),
    "DeprecateImage": lambda client, image_id: deprecate(client, image_id, OBSOLETE),
    "DeleteImage": lambda client, image_id: client.delete_image(image_id=image_id),
    "CopyImage": lambda client, image_id: client.copy_image(image_id=image_id, destinations=to(SHANGHAI)),
    "ShareImage": lambda client, image_id: client.share_image(image_id=image_id, account_ids=["somebody"]),
    "UnshareImage": lambda client, image_id: client.unshare_image(image_id=image_id, account_ids=["somebody"]),
    "SetImageShares": lambda client, image_id: client.set_image_shares(image_id=image_id),
}


def assert_read_only(client: Client, image: v1.Image, action: str) -> None:
    said: dict[str, Any] = {"image_id": image.image_id, "action": action}
    with refused("PERMISSION_DENIED", "PUBLIC_IMAGE_READ_ONLY", "PUB-8", **said) as caught:
        TOUCHES[action](client, image.image_id)
    assert_explained(
        caught.value,
        client.check_image_actions(
            image_id=image.image_id, actions=[action], target_region_id=SHANGHAI, target_account_ids=["somebody"]
        ),
    )


@pytest.mark.rule("PUB-8")
@pytest.mark.parametrize("action", TOUCHES)
def test_no_account_changes_copies_shares_or_deletes_a_public_image(world: World, action: str) -> None:
    image = world.public_image()
    assert_read_only(world.tenant(), image, action)
    assert world.public_image() == image


@pytest.mark.rule("PUB-8")
@pytest.mark.parametrize("action", ["CopyImage", "ShareImage", "UnshareImage", "SetImageShares"])
def test_the_operator_neither_copies_nor_shares_a_public_image_either(world: World, action: str) -> None:
    assert_read_only(world.operator, world.public_image(), action)


@pytest.mark.rule("PUB-8")
def test_the_operator_publishes_changes_retires_and_deletes_public_images(world: World) -> None:
    operator = world.operator
    image = publish(operator, "kept up")
    assert rename(operator, image.image_id, "kept up well").name == "kept up well"
    assert deprecate(operator, image.image_id, DEPRECATED).deprecation.state == DEPRECATED
    assert operator.delete_image(image_id=image.image_id).state == v1.Image.STATE_DELETED


@pytest.mark.rule("PUB-8")
def test_no_account_publishes(world: World) -> None:
    with refused("PERMISSION_DENIED", "OPERATOR_ROLE_REQUIRED", "PUB-8", action="PublishImage"):
        publish(world.tenant(), "mine")


@pytest.mark.rule("PUB-8", "CUS-14")
def test_the_operator_launches_and_makes_nothing(world: World) -> None:
    instance = world.launch(world.tenant())
    for action, act in (
        ("CreateInstance", lambda: world.launch(world.operator)),
        ("CreateImage", lambda: world.image(world.operator, instance_id=instance.instance_id)),
        ("ImportImage", lambda: import_image(world.operator, "mine", uri=STOCK_URI)),
    ):
        with refused("PERMISSION_DENIED", "ACCOUNT_ROLE_REQUIRED", "CUS-14", action=action):
            act()


def launching(image_id: str) -> dict[str, Any]:
    """Arguments that launch one instance of the image."""
    return {
        "region_id": GUANGZHOU,
        "zone_id": "ap-guangzhou-3",
        "instance_type": "S5.MEDIUM4",
        "image_id": image_id,
    }


@pytest.mark.rule("PUB-4")
def test_of_builds_published_at_one_moment_a_family_resolves_to_the_64_bit_one(world: World) -> None:
    image = world.operator.resolve_image(region_id=GUANGZHOU, family="debian-12")
    assert image.name == "Debian 12 64bit"
