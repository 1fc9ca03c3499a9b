"""Instances: what they are launched from, what they remember of it, and which life they have."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.end_to_end.steps import (
    GIB,
    IMAGE_LOCKED,
    SHA256,
    Held,
    assert_explained,
    deprecate,
    import_image,
    overtaken,
    refused,
    rename,
)
from tests.world import GUANGZHOU, SHANGHAI, ZONES, Tenant, World

from cunho import Client, Operation, Refused, v1
from cunho_rules.refusals import Reason, Refusal

RUNNING, STOPPED, FAILED = v1.Instance.STATE_RUNNING, v1.Instance.STATE_STOPPED, v1.Instance.STATE_FAILED
BROKEN = Refusal(Reason.OPERATION_FAILED, operation="operations/op-00000000", attempts=1)


def launch(client: Client, image_id: str, **more: Any) -> Operation[v1.CreateInstanceResponse]:
    """Begins to launch an instance in Guangzhou."""
    given: dict[str, Any] = {"region_id": GUANGZHOU, "zone_id": ZONES[GUANGZHOU], "instance_type": "S5.MEDIUM4"} | more
    return client.create_instance(image_id=image_id, **given)


# --- INS-1


@pytest.mark.rule("INS-1")
def test_an_instance_is_launched_from_a_public_an_own_and_a_shared_image(world: World) -> None:
    owner, recipient = world.tenant(), world.tenant()
    public = world.public_image()
    image = world.image(owner)
    owner.share_image(image_id=image.image_id, account_ids=[recipient.account_id])
    for caller, image_id, kind in (
        (owner, public.image_id, v1.ImageKind.IMAGE_KIND_PUBLIC),
        (owner, image.image_id, v1.ImageKind.IMAGE_KIND_CUSTOM),
        (recipient, image.image_id, v1.ImageKind.IMAGE_KIND_SHARED),
    ):
        operation = launch(caller, image_id, name="web", labels={"a": "b"}, description="The shop")
        (instance,) = operation.result(timeout_seconds=20).instances
        assert instance.state == RUNNING
        assert instance.account_id == caller.account_id
        assert (instance.region_id, instance.zone_id) == (GUANGZHOU, ZONES[GUANGZHOU])
        assert (instance.image_id, instance.launch_image.kind) == (image_id, kind)
        assert (instance.name, dict(instance.labels), instance.description) == ("web", {"a": "b"}, "The shop")


@pytest.mark.rule("INS-1", "SEL-2")
def test_nothing_is_launched_from_an_image_that_the_caller_does_not_see(world: World) -> None:
    foreign = world.image(world.tenant()).image_id
    for image_id in (foreign, "img-00000000"):
        with refused("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2", image_id=image_id):
            launch(world.tenant(), image_id)


@pytest.mark.rule("INS-1")
def test_an_image_launches_in_its_region_only(world: World) -> None:
    owner = world.tenant()
    image_id = world.image(owner).image_id
    said: dict[str, Any] = {"image_id": image_id, "image_region_id": GUANGZHOU, "region_id": SHANGHAI}
    with refused("FAILED_PRECONDITION", "IMAGE_REGION_MISMATCH", "INS-1", **said) as caught:
        launch(owner, image_id, region_id=SHANGHAI, zone_id=ZONES[SHANGHAI])
    assert "CopyImage" in caught.value.remedy
    instance_id = world.launch(owner, region_id=SHANGHAI).instance_id
    with refused("FAILED_PRECONDITION", "IMAGE_REGION_MISMATCH", "INS-1", **said) as caught:
        owner.reinstall_instance(instance_id=instance_id, image_id=image_id)
    explanation = owner.check_instance_actions(
        instance_id=instance_id, actions=["ReinstallInstance"], target_image_id=image_id
    )
    assert_explained(caught.value, explanation)


@pytest.mark.rule("INS-1")
def test_an_instance_is_launched_in_a_zone_of_a_region_that_exists(world: World) -> None:
    owner, image_id = world.tenant(), world.public_image().image_id
    said: dict[str, Any] = {
        "zone_id": ZONES[SHANGHAI],
        "region_id": GUANGZHOU,
        "zones": "ap-guangzhou-3, ap-guangzhou-4",
    }
    with refused("INVALID_ARGUMENT", "ZONE_NOT_IN_REGION", "INS-1", **said) as caught:
        launch(owner, image_id, zone_id=ZONES[SHANGHAI])
    assert caught.value.violations.keys() == {"zone_id"}
    assert "ap-guangzhou-3, ap-guangzhou-4" in caught.value.remedy
    explanation = owner.check_image_actions(image_id=image_id, actions=["CreateInstance"], zone_id=ZONES[SHANGHAI])
    assert_explained(caught.value, explanation)
    with refused("INVALID_ARGUMENT", "REGION_NOT_FOUND", "INS-1", region_id="nowhere") as caught:
        launch(owner, image_id, region_id="nowhere")
    assert caught.value.violations.keys() == {"region_id"}


@pytest.mark.rule("INS-1")
def test_only_an_available_image_launches(world: World, driver: Held) -> None:
    owner = world.tenant()
    with driver.holding("import"):
        operation = import_image(owner, "stock")
        (image_id,) = operation.metadata.target_ids
        said: dict[str, Any] = {
            "image_id": image_id,
            "state": "IMPORTING",
            "allowed": "AVAILABLE",
            "action": "CreateInstance",
        }
        with refused("FAILED_PRECONDITION", "IMAGE_STATE_INVALID", "INS-1", **said) as caught:
            launch(owner, image_id)
        explanation = owner.check_image_actions(image_id=image_id, actions=["CreateInstance"])
        assert_explained(caught.value, explanation)
    operation.result(timeout_seconds=20)
    world.launch(owner, image_id)


@pytest.mark.rule("INS-1", "PUB-4")
def test_an_obsolete_custom_image_launches_nothing_for_owner_and_recipient(world: World) -> None:
    owner, recipient = world.tenant(), world.tenant()
    image_id = world.image(owner).image_id
    owner.share_image(image_id=image_id, account_ids=[recipient.account_id])
    deprecate(owner, image_id, v1.Deprecation.STATE_OBSOLETE)
    for caller in (owner, recipient):
        said: dict[str, Any] = {"action": "CreateInstance", "image_id": image_id, "replacement_image_id": ""}
        with refused("FAILED_PRECONDITION", "IMAGE_OBSOLETE", "PUB-4", **said) as caught:
            launch(caller, image_id)
        assert caught.value.remedy.endswith("its replacement: none named.")


# --- INS-2


@pytest.mark.rule("INS-2")
@pytest.mark.parametrize(
    ("image_name", "instance_type", "property", "needed", "given"),
    [
        ("Debian 12 ARM64", "S5.MEDIUM4", "architecture", "ARM64", "X86_64"),
        ("Debian 12 64bit", "SR1.MEDIUM4", "architecture", "X86_64", "ARM64"),
        ("Debian 12 32bit", "SR1.MEDIUM4", "architecture", "I386", "ARM64"),
        ("Windows Server 2022 64bit", "S5.SMALL1", "memory_bytes", "2147483648", "1073741824"),
    ],
)
def test_the_instance_type_fits_the_image(
    world: World, image_name: str, instance_type: str, property: str, needed: str, given: str
) -> None:
    owner, image = world.tenant(), world.public_image(name=image_name)
    said: dict[str, Any] = {"image_id": image.image_id, "instance_type": instance_type, "property": property}
    said |= {"needed": needed, "given": given}
    reason = "IMAGE_INCOMPATIBLE_WITH_INSTANCE_TYPE"
    with refused("FAILED_PRECONDITION", reason, "INS-2", **said) as caught:
        launch(owner, image.image_id, instance_type=instance_type)
    explanation = owner.check_image_actions(
        image_id=image.image_id, actions=["CreateInstance"], instance_type=instance_type
    )
    assert_explained(caught.value, explanation)


@pytest.mark.rule("INS-2")
def test_an_instance_types_disk_fits_the_image(world: World) -> None:
    owner = world.tenant()
    image_id = world.image(owner).image_id
    for min_disk_bytes, fits in ((20 << 30, True), ((20 << 30) + 1, False)):
        owner.update_image(
            image=v1.Image(image_id=image_id, min_disk_bytes=min_disk_bytes), update_mask=["min_disk_bytes"]
        )
        if fits:
            world.launch(owner, image_id, instance_type="S5.SMALL1")
            continue
        said: dict[str, Any] = {"image_id": image_id, "instance_type": "S5.SMALL1", "property": "disk_bytes"}
        said |= {"needed": str(min_disk_bytes), "given": str(20 << 30)}
        with refused("FAILED_PRECONDITION", "IMAGE_INCOMPATIBLE_WITH_INSTANCE_TYPE", "INS-2", **said):
            launch(owner, image_id, instance_type="S5.SMALL1")


@pytest.mark.rule("INS-2")
def test_a_64_bit_type_runs_a_32_bit_image(world: World) -> None:
    image = world.public_image(name="Debian 12 32bit")
    assert world.launch(world.tenant(), image.image_id, instance_type="S5.SMALL1").state == RUNNING


@pytest.mark.rule("INS-2")
def test_an_instance_type_exists(world: World) -> None:
    owner, image_id = world.tenant(), world.public_image().image_id
    with refused("INVALID_ARGUMENT", "INSTANCE_TYPE_NOT_FOUND", "INS-2", instance_type="S9.HUGE") as caught:
        launch(owner, image_id, instance_type="S9.HUGE")
    assert caught.value.violations.keys() == {"instance_type"}
    explanation = owner.check_image_actions(image_id=image_id, actions=["CreateInstance"], instance_type="S9.HUGE")
    assert_explained(caught.value, explanation)
    types = {each.instance_type for each in owner.list_instance_types()}
    assert types == {"S5.MEDIUM4", "S5.SMALL1", "SR1.MEDIUM4"}


# --- INS-3


def launched_while(world: World, caller: Tenant, image_id: str, change: str) -> Operation[v1.CreateInstanceResponse]:
    """A launch that begins before a change of the image is committed, and waits for it."""
    launched: Operation[v1.CreateInstanceResponse]
    launched = overtaken(world, lambda: launch(caller, image_id), IMAGE_LOCKED, change, image_id)
    return launched


@pytest.mark.rule("INS-3", "SHR-11")
def test_no_instance_is_born_of_an_image_that_was_unshared_while_its_launch_waited(world: World) -> None:
    owner, recipient = world.tenant(), world.tenant()
    image_id = world.image(owner).image_id
    owner.share_image(image_id=image_id, account_ids=[recipient.account_id])
    unshare = (
        "WITH gone AS (DELETE FROM image_share WHERE image_id = $1) "
        "UPDATE image SET share_count = 0 WHERE image_id = $1"
    )
    with refused("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2", image_id=image_id):
        launched_while(world, recipient, image_id, unshare)
    assert [*recipient.list_instances(region_id="-")] == []


@pytest.mark.rule("INS-3", "PUB-4")
def test_no_instance_is_born_of_an_image_that_was_retired_while_its_launch_waited(world: World) -> None:
    owner = world.tenant()
    image_id = world.image(owner, instance_id=world.launch(owner).instance_id).image_id
    retire = "UPDATE image SET deprecation_state = 'OBSOLETE' WHERE image_id = $1"
    said: dict[str, Any] = {"action": "CreateInstance", "image_id": image_id, "replacement_image_id": ""}
    with refused("FAILED_PRECONDITION", "IMAGE_OBSOLETE", "PUB-4", **said):
        launched_while(world, owner, image_id, retire)


@pytest.mark.rule("INS-3")
def test_a_launch_that_waited_for_a_harmless_change_goes_on(world: World) -> None:
    owner = world.tenant()
    image_id = world.image(owner).image_id
    operation = launched_while(world, owner, image_id, "UPDATE image SET description = 'new' WHERE image_id = $1")
    assert operation.result(timeout_seconds=20).instances[0].state == RUNNING


# --- INS-4


@pytest.mark.rule("INS-4")
def test_an_instance_remembers_its_image_as_it_was_at_launch_also_after_it_is_gone(world: World) -> None:
    owner, recipient = world.tenant(), world.tenant()
    image = import_image(owner, "as it was", expected_checksum=SHA256).result(timeout_seconds=20)
    owner.share_image(image_id=image.image_id, account_ids=[recipient.account_id])
    instance_id = world.launch(recipient, image.image_id).instance_id
    remembered = v1.LaunchImage(
        image_id=image.image_id,
        name="as it was",
        owner_account_id=owner.account_id,
        kind=v1.ImageKind.IMAGE_KIND_SHARED,
        trust=v1.Image.TRUST_UNVERIFIED,
        checksum=SHA256,
        still_available=True,
        os=image.os,
        architecture=image.architecture,
    )
    assert recipient.get_instance(instance_id=instance_id).launch_image == remembered
    rename(owner, image.image_id, "renamed")
    assert recipient.get_instance(instance_id=instance_id).launch_image == remembered
    owner.delete_image(image_id=image.image_id, force=True)
    remembered.still_available = False
    assert recipient.get_instance(instance_id=instance_id).launch_image == remembered
    (listed,) = recipient.list_instances(region_id=GUANGZHOU, filter=f'image_id = "{image.image_id}"')
    assert listed.launch_image == remembered


@pytest.mark.rule("INS-4")
def test_an_instance_knows_whether_its_image_is_still_available_to_its_account(world: World) -> None:
    owner, recipient = world.tenant(), world.tenant()
    image_id = world.image(owner).image_id
    owner.share_image(image_id=image_id, account_ids=[recipient.account_id])
    instances = [(each, world.launch(each, image_id).instance_id) for each in (owner, recipient)]

    def available() -> list[bool]:
        return [
            caller.get_instance(instance_id=instance_id).launch_image.still_available
            for caller, instance_id in instances
        ]

    assert available() == [True, True]
    owner.unshare_image(image_id=image_id, account_ids=[recipient.account_id])
    assert available() == [True, False]
    owner.share_image(image_id=image_id, account_ids=[recipient.account_id])
    assert available() == [True, True]
    deprecate(owner, image_id, v1.Deprecation.STATE_DEPRECATED)
    assert available() == [True, True]
    deprecate(owner, image_id, v1.Deprecation.STATE_OBSOLETE)
    assert available() == [False, False]


@pytest.mark.rule("INS-4", "INS-5")
def test_a_reinstalled_instance_remembers_the_new_image(world: World) -> None:
    owner = world.tenant()
    image, instance_id = world.image(owner), world.launch(owner).instance_id
    owner.stop_instance(instance_id=instance_id).result(timeout_seconds=20)
    owner.reinstall_instance(instance_id=instance_id, image_id=image.image_id).result(timeout_seconds=20)
    instance = owner.get_instance(instance_id=instance_id)
    assert instance.state == RUNNING
    assert instance.image_id == instance.launch_image.image_id == image.image_id
    assert instance.launch_image.kind == v1.ImageKind.IMAGE_KIND_CUSTOM


@pytest.mark.rule("INS-5")
def test_an_instance_that_got_another_image_while_its_reinstallation_waited_gets_that_one_again(world: World) -> None:
    owner = world.tenant()
    before, after = world.image(owner), world.image(owner)
    instance_id = world.launch(owner, before.image_id).instance_id
    change = f"UPDATE instance SET image_id = '{after.image_id}' WHERE image_id = $1"
    operation = overtaken(
        world, lambda: owner.reinstall_instance(instance_id=instance_id), IMAGE_LOCKED, change, before.image_id
    )
    assert operation.result(timeout_seconds=20).image_id == after.image_id


@pytest.mark.rule("INS-4", "INS-2")
def test_a_reinstalled_instance_remembers_its_image_as_it_was_at_the_call(world: World, driver: Held) -> None:
    owner = world.tenant()
    image, instance_id = world.image(owner, "as it was"), world.launch(owner).instance_id
    with driver.holding("install"):
        reinstalling = owner.reinstall_instance(instance_id=instance_id, image_id=image.image_id)
        changed = v1.Image(
            image_id=image.image_id, name="changed", min_disk_bytes=500 * GIB, min_memory_bytes=500 * GIB
        )
        owner.update_image(image=changed, update_mask=["name", "min_disk_bytes", "min_memory_bytes"])
    assert reinstalling.result(timeout_seconds=20).launch_image.name == "as it was"
    captured = world.image(owner, "captured", instance_id=instance_id)
    assert captured.min_disk_bytes == image.min_disk_bytes
    assert captured.min_memory_bytes == image.min_memory_bytes
    world.launch(owner, captured.image_id)


# --- INS-5

Act = Callable[[Client, str], Operation[Any]]
ACTS: dict[str, Act] = {
    "StartInstance": lambda client, instance_id: client.start_instance(instance_id=instance_id),
    "StopInstance": lambda client, instance_id: client.stop_instance(instance_id=instance_id),
    "RebootInstance": lambda client, instance_id: client.reboot_instance(instance_id=instance_id),
    "ReinstallInstance": lambda client, instance_id: client.reinstall_instance(instance_id=instance_id),
    "DeleteInstance": lambda client, instance_id: client.delete_instance(instance_id=instance_id),
}
ALLOWED = {
    "StartInstance": "STOPPED",
    "StopInstance": "RUNNING",
    "RebootInstance": "RUNNING",
    "ReinstallInstance": "RUNNING or STOPPED",
    "DeleteInstance": "RUNNING or STOPPED or FAILED",
}
ENDS = {
    "StartInstance": "RUNNING",
    "StopInstance": "STOPPED",
    "RebootInstance": "RUNNING",
    "ReinstallInstance": "RUNNING",
    "DeleteInstance": "DELETED",
}


def brought_to(world: World, driver: Held, owner: Tenant, state: str) -> str:
    """An instance in a state that it stays in."""
    image_id = world.public_image().image_id
    if state == "FAILED":
        with driver.failing("launch", BROKEN):
            operation = launch(owner, image_id)
            with pytest.raises(Refused):
                operation.result(timeout_seconds=20)
        return operation.metadata.target_ids[0]
    instance_id = world.launch(owner, image_id).instance_id
    if state == "STOPPED":
        owner.stop_instance(instance_id=instance_id).result(timeout_seconds=20)
    return instance_id


@pytest.mark.rule("INS-5")
@pytest.mark.parametrize("action", ACTS)
@pytest.mark.parametrize("state", ["RUNNING", "STOPPED", "FAILED"])
def test_each_state_allows_its_actions_and_names_those_that_another_action_needs(
    world: World, driver: Held, state: str, action: str
) -> None:
    owner = world.tenant()
    instance_id = brought_to(world, driver, owner, state)
    before = owner.get_instance(instance_id=instance_id)
    assert before.state == v1.Instance.State.Value(f"STATE_{state}")
    assert bool(before.failure) == (state == "FAILED")
    if state in ALLOWED[action].split(" or "):
        ended = ACTS[action](owner, instance_id).result(timeout_seconds=20)
        assert ended.state == v1.Instance.State.Value(f"STATE_{ENDS[action]}")
        return
    said: dict[str, Any] = {"instance_id": instance_id, "state": state, "allowed": ALLOWED[action], "action": action}
    with refused("FAILED_PRECONDITION", "INSTANCE_STATE_INVALID", "INS-5", **said) as caught:
        ACTS[action](owner, instance_id)
    explanation = owner.check_instance_actions(instance_id=instance_id, actions=[action])
    assert_explained(caught.value, explanation)
    assert owner.get_instance(instance_id=instance_id) == before


THROUGH = {
    "launch": ("PROVISIONING", "RUNNING"),
    "start": ("STARTING", "STOPPED"),
    "stop": ("STOPPING", "RUNNING"),
    "reboot": ("REBOOTING", "RUNNING"),
    "install": ("REINSTALLING", "RUNNING"),
    "destroy": ("DELETING", "RUNNING"),
    "capture": ("IMAGING", "RUNNING"),
}
BY_WORD = {
    "start": "StartInstance",
    "stop": "StopInstance",
    "reboot": "RebootInstance",
    "install": "ReinstallInstance",
    "destroy": "DeleteInstance",
}


def begun(world: World, driver: Held, owner: Tenant, word: str) -> tuple[Operation[Any], str]:
    """An operation on an instance that the driver holds in `word`, and the instance."""
    if word == "launch":
        operation = launch(owner, world.public_image().image_id)
        return operation, operation.metadata.target_ids[0]
    instance_id = brought_to(world, driver, owner, THROUGH[word][1])
    if word == "capture":
        crash_consistent = v1.CreateImageRequest.CONSISTENCY_CRASH_CONSISTENT
        image = owner.create_image(
            region_id=GUANGZHOU, instance_id=instance_id, name="captured", consistency=crash_consistent
        )
        return image, instance_id
    return ACTS[BY_WORD[word]](owner, instance_id), instance_id


@pytest.mark.rule("INS-5")
@pytest.mark.parametrize("word", THROUGH)
def test_an_instance_has_one_operation_at_a_time(world: World, driver: Held, word: str) -> None:
    owner = world.tenant()
    state, _ = THROUGH[word]
    with driver.holding(word):
        operation, instance_id = begun(world, driver, owner, word)
        instance = owner.get_instance(instance_id=instance_id)
        assert instance.state == v1.Instance.State.Value(f"STATE_{state}")
        assert instance.operation == operation.name
        for action, act in ACTS.items():
            said: dict[str, Any] = {"instance_id": instance_id, "state": state, "operation": operation.name}
            with refused("ABORTED", "INSTANCE_BUSY", "INS-5", **said) as caught:
                act(owner, instance_id)
            explanation = owner.check_instance_actions(instance_id=instance_id, actions=[action])
            assert_explained(caught.value, explanation)
    operation.result(timeout_seconds=20)
    if word != "destroy":
        assert owner.get_instance(instance_id=instance_id).operation == ""


@pytest.mark.rule("INS-5")
def test_a_deleted_instance_is_gone(world: World) -> None:
    owner = world.tenant()
    instance_id = world.launch(owner).instance_id
    ended = owner.delete_instance(instance_id=instance_id).result(timeout_seconds=20)
    assert ended.state == v1.Instance.STATE_DELETED
    assert ended.HasField("delete_time")
    assert [*owner.list_instances(region_id="-")] == []
    with refused("NOT_FOUND", "INSTANCE_NOT_FOUND", "INS-6", instance_id=instance_id):
        owner.get_instance(instance_id=instance_id)
    for act in ACTS.values():
        with refused("NOT_FOUND", "INSTANCE_NOT_FOUND", "INS-6", instance_id=instance_id):
            act(owner, instance_id)


# --- INS-6


@pytest.mark.rule("INS-6")
def test_an_instance_answers_to_others_as_one_that_does_not_exist(world: World) -> None:
    stranger = world.tenant()
    foreign = world.launch(world.tenant()).instance_id
    acts: list[Callable[[Client, str], object]] = [
        lambda client, instance_id: client.get_instance(instance_id=instance_id),
        lambda client, instance_id: client.check_instance_actions(instance_id=instance_id),
        lambda client, instance_id: client.update_instance(
            instance=v1.Instance(instance_id=instance_id, name="mine"), update_mask=["name"]
        ),
        *ACTS.values(),
    ]
    for act in acts:
        told = []
        for instance_id in (foreign, "ins-00000000"):
            with refused("NOT_FOUND", "INSTANCE_NOT_FOUND", "INS-6", instance_id=instance_id) as caught:
                act(stranger, instance_id)
            told.append(str(caught.value.args).replace(instance_id, "ins-"))
        assert told[0] == told[1]
    assert [*stranger.list_instances(region_id="-")] == []


@pytest.mark.rule("INS-6")
@pytest.mark.parametrize("action", ["UpdateInstance", *ACTS])
def test_the_operator_sees_every_instance_and_touches_none(world: World, action: str) -> None:
    owner = world.tenant()
    instance = world.launch(owner)
    assert world.operator.get_instance(instance_id=instance.instance_id) == instance
    listed = world.operator.list_instances(region_id="-", filter=f'account_id = "{owner.account_id}"')
    assert [*listed] == [instance]
    said: dict[str, Any] = {"instance_id": instance.instance_id, "action": action}
    with refused("PERMISSION_DENIED", "INSTANCE_OWNER_ONLY", "INS-6", **said) as caught:
        if action == "UpdateInstance":
            wanted = v1.Instance(instance_id=instance.instance_id, name="mine")
            world.operator.update_instance(instance=wanted, update_mask=["name"])
        else:
            ACTS[action](world.operator, instance.instance_id)
    explanation = world.operator.check_instance_actions(instance_id=instance.instance_id, actions=[action])
    assert_explained(caught.value, explanation)


@pytest.mark.rule("INS-6")
def test_the_account_changes_its_instance(world: World) -> None:
    owner = world.tenant()
    instance = world.launch(owner, name="before", labels={"a": "b"})
    wanted = v1.Instance(instance_id=instance.instance_id, name="after", labels={"c": "d"})
    changed = owner.update_instance(instance=wanted, update_mask=["name"])
    assert (changed.name, dict(changed.labels)) == ("after", {"a": "b"})
    assert changed.etag != instance.etag


@pytest.mark.rule("ALL-5")
def test_numbered_instances_have_names_that_any_other_may_have(world: World) -> None:
    tenant = world.tenant(GUANGZHOU)
    asked: dict[str, Any] = {
        "zone_id": ZONES[GUANGZHOU],
        "instance_type": "S5.MEDIUM4",
        "image_id": world.public_image().image_id,
    }
    problems = "name: must have at most 57 characters with a count of 10, has 58"
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST", "ALL-5", problems=problems):
        tenant.create_instance(region_id=GUANGZHOU, name="n" * 58, count=10, **asked)
    operation = tenant.create_instance(region_id=GUANGZHOU, name="n" * 57, count=10, **asked)
    for instance in operation.result(timeout_seconds=20).instances:
        tenant.update_instance(instance=instance, update_mask=["*"])
