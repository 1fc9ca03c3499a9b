"""Shared images: seen and launched by recipients, in the original's region, and otherwise the owner's alone."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from google.rpc.error_details_pb2 import QuotaFailure
from tests.end_to_end.steps import (
    Held,
    assert_explained,
    deprecate,
    detail_of,
    import_image,
    names,
    refused,
    rename,
    suspend,
    to,
)
from tests.world import FRANKFURT, GUANGZHOU, SHANGHAI, Tenant, World

from cunho import Client, v1

OBSOLETE = v1.Deprecation.STATE_OBSOLETE


def shared(owner: Tenant, image_id: str) -> list[str]:
    """The accounts that the image is shared with, as its owner sees it."""
    account_ids = [share.account_id for share in owner.list_image_shares(image_id=image_id)]
    assert owner.get_image(image_id=image_id).sharing.account_count == len(account_ids)
    return account_ids


@pytest.fixture
def given(world: World) -> tuple[Tenant, Tenant, v1.Image]:
    """An owner, a recipient, and the image that the one shares with the other."""
    owner, recipient = world.tenant(), world.tenant()
    image = world.image(owner, family="web", labels={"env": "test"})
    owner.share_image(image_id=image.image_id, account_ids=[recipient.account_id])
    return owner, recipient, image


Given = tuple[Tenant, Tenant, v1.Image]


# --- SHR-1, SHR-2


@pytest.mark.rule("SHR-1", "SEL-2")
def test_a_shared_image_appears_to_the_recipient_at_once_in_the_region_of_the_original(world: World) -> None:
    owner, recipient = world.tenant(), world.tenant()
    image = world.image(owner)
    with refused("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2", image_id=image.image_id):
        recipient.get_image(image_id=image.image_id)
    answer = owner.share_image(image_id=image.image_id, account_ids=[recipient.account_id])
    assert [share.account_id for share in answer.shares] == [recipient.account_id]
    assert answer.image.sharing == v1.Sharing(account_count=1, account_limit=50)
    received = recipient.get_image(image_id=image.image_id)
    assert (received.kind, received.region_id) == (v1.ImageKind.IMAGE_KIND_SHARED, GUANGZHOU)
    assert received.owner_account_id == owner.account_id
    assert [*recipient.list_images(region_id=GUANGZHOU, filter="kind = SHARED")] == [received]
    assert [*recipient.list_images(region_id=SHANGHAI, filter="kind = SHARED")] == []
    assert recipient.batch_get_images(image_ids=[image.image_id]).results[0].image == received
    assert owner.get_image(image_id=image.image_id).kind == v1.ImageKind.IMAGE_KIND_CUSTOM


@pytest.mark.rule("SHR-2", "SHR-7", "CUS-4")
def test_a_recipient_launches_from_a_shared_image_and_can_do_nothing_else_with_it(given: Given, world: World) -> None:
    _, recipient, image = given
    assert world.launch(recipient, image.image_id).launch_image.kind == v1.ImageKind.IMAGE_KIND_SHARED
    answer = recipient.check_image_actions(image_id=image.image_id)
    allowed = {decision.action for decision in answer.decisions if decision.allowed}
    assert allowed == {"CreateInstance", "LeaveImageShare"}
    assert len(answer.decisions) == 10


# --- SHR-3 to SHR-6

FORBIDDEN: list[tuple[str, str, str, Callable[[Client, str], object]]] = [
    ("SHR-3", "SHARED_IMAGE_NOT_MODIFIABLE", "UpdateImage", lambda client, image_id: rename(client, image_id, "mine")),
    (
        "SHR-3",
        "SHARED_IMAGE_NOT_MODIFIABLE",
        "DeprecateImage",
        lambda client, image_id: deprecate(client, image_id, OBSOLETE),
    ),
    (
        "SHR-4",
        "SHARED_IMAGE_NOT_COPYABLE",
        "CopyImage",
        lambda client, image_id: client.copy_image(image_id=image_id, destinations=to(SHANGHAI)),
    ),
    (
        "SHR-5",
        "SHARED_IMAGE_NOT_RESHAREABLE",
        "ShareImage",
        lambda client, image_id: client.share_image(image_id=image_id, account_ids=["third"]),
    ),
    (
        "SHR-5",
        "SHARED_IMAGE_NOT_RESHAREABLE",
        "UnshareImage",
        lambda client, image_id: client.unshare_image(image_id=image_id, account_ids=["third"]),
    ),
    (
        "SHR-5",
        "SHARED_IMAGE_NOT_RESHAREABLE",
        "SetImageShares",
        lambda client, image_id: client.set_image_shares(image_id=image_id),
    ),
    (
        "SHR-6",
        "SHARED_IMAGE_NOT_DELETABLE",
        "DeleteImage",
        lambda client, image_id: client.delete_image(image_id=image_id, force=True),
    ),
    (
        "SHR-12",
        "SHARED_IMAGE_SHARES_HIDDEN",
        "ListImageShares",
        lambda client, image_id: [*client.list_image_shares(image_id=image_id)],
    ),
]


@pytest.mark.rule("SHR-2", "SHR-3", "SHR-4", "SHR-5", "SHR-6", "SHR-12")
@pytest.mark.parametrize(("rule", "reason", "action", "act"), FORBIDDEN, ids=[each[2] for each in FORBIDDEN])
def test_a_recipient_neither_renames_copies_shares_on_deletes_nor_looks_behind_a_shared_image(
    given: Given, rule: str, reason: str, action: str, act: Callable[[Client, str], object]
) -> None:
    owner, recipient, image = given
    before = owner.get_image(image_id=image.image_id)
    with refused("PERMISSION_DENIED", reason, rule, image_id=image.image_id, action=action) as caught:
        act(recipient, image.image_id)
    explanation = recipient.check_image_actions(
        image_id=image.image_id, actions=[action], target_region_id=SHANGHAI, target_account_ids=["third"], name="mine"
    )
    assert_explained(caught.value, explanation)
    assert owner.get_image(image_id=image.image_id) == before


@pytest.mark.rule("SHR-3")
@pytest.mark.parametrize("path", ["name", "description", "family", "labels", "min_disk_bytes", "min_memory_bytes", "*"])
def test_a_recipient_changes_nothing_at_all_of_a_shared_image(given: Given, path: str) -> None:
    owner, recipient, image = given
    wanted = v1.Image(image_id=image.image_id, name="mine", min_disk_bytes=1 << 30)
    said: dict[str, Any] = {"image_id": image.image_id, "action": "UpdateImage"}
    with refused("PERMISSION_DENIED", "SHARED_IMAGE_NOT_MODIFIABLE", "SHR-3", **said):
        recipient.update_image(image=wanted, update_mask=[path])
    assert owner.update_image(image=wanted, update_mask=[path]).image_id == image.image_id


@pytest.mark.rule("SHR-5")
def test_the_way_on_is_that_the_owner_shares_with_the_third_account(given: Given, world: World) -> None:
    owner, recipient, image = given
    third = world.tenant()
    owner.share_image(image_id=image.image_id, account_ids=[third.account_id])
    assert shared(owner, image.image_id) == sorted([recipient.account_id, third.account_id])


# --- SHR-7


@pytest.mark.rule("SHR-7")
def test_a_shared_image_is_verified_by_nobody_and_every_launch_from_it_says_so(given: Given, world: World) -> None:
    owner, recipient, image = given
    assert recipient.get_image(image_id=image.image_id).trust == v1.Image.TRUST_UNVERIFIED
    launching: dict[str, Any] = {
        "region_id": GUANGZHOU,
        "zone_id": "ap-guangzhou-3",
        "instance_type": "S5.MEDIUM4",
        "image_id": image.image_id,
    }
    operation = recipient.create_instance(**launching)
    (warning,) = operation.warnings
    assert warning.reason == "UNVERIFIED_SHARED_IMAGE"
    assert owner.account_id in warning.message
    assert warning.metadata == {"image_id": image.image_id, "owner_account_id": owner.account_id}
    answer = operation.result(timeout_seconds=20)
    assert [*answer.warnings] == [warning]
    (instance,) = answer.instances
    assert instance.launch_image.trust == v1.Image.TRUST_UNVERIFIED
    again = recipient.reinstall_instance(instance_id=instance.instance_id)
    assert again.warnings == [warning]
    (decision,) = recipient.check_image_actions(image_id=image.image_id, actions=["CreateInstance"]).decisions
    assert [*decision.warnings] == [warning]

    assert owner.get_image(image_id=image.image_id).trust == v1.Image.TRUST_OWN
    assert owner.create_instance(**launching).warnings == []


# --- SHR-8


@pytest.fixture(scope="module")
def crowd(world: World) -> list[str]:
    """52 accounts."""
    return [world.tenant(account_id=f"crowd-{number:02}").account_id for number in range(52)]


@pytest.mark.rule("SHR-8")
def test_an_image_is_shared_with_at_most_50_accounts_the_whole_batch_or_none(world: World, crowd: list[str]) -> None:
    owner = world.tenant()
    image_id = world.image(owner).image_id
    owner.share_image(image_id=image_id, account_ids=crowd[:48])
    said: dict[str, Any] = {"image_id": image_id, "limit": 50, "usage": 48, "requested": 3}
    with refused("RESOURCE_EXHAUSTED", "SHARE_QUOTA_EXCEEDED", "SHR-8", **said) as caught:
        owner.share_image(image_id=image_id, account_ids=crowd[48:51])
    (violation,) = detail_of(caught.value, QuotaFailure).violations
    assert violation.subject == f"image_id:{image_id}"
    assert "50 accounts: 48 that keep it and 3 more" in violation.description
    assert_explained(
        caught.value,
        owner.check_image_actions(image_id=image_id, actions=["ShareImage"], target_account_ids=crowd[48:51]),
    )
    assert shared(owner, image_id) == crowd[:48]

    owner.share_image(image_id=image_id, account_ids=crowd[46:50])  # two of them have it already
    assert shared(owner, image_id) == crowd[:50]
    with refused("RESOURCE_EXHAUSTED", "SHARE_QUOTA_EXCEEDED", "SHR-8", **said | {"usage": 50, "requested": 1}):
        owner.share_image(image_id=image_id, account_ids=crowd[50:51])
    owner.share_image(image_id=image_id, account_ids=crowd[:1])  # again: it needs no place
    owner.unshare_image(image_id=image_id, account_ids=crowd[:1])
    owner.share_image(image_id=image_id, account_ids=crowd[50:51])
    assert shared(owner, image_id) == crowd[1:51]


@pytest.mark.rule("SHR-8")
def test_setting_the_whole_list_counts_only_what_stays_and_what_comes(world: World, crowd: list[str]) -> None:
    owner = world.tenant()
    image_id = world.image(owner).image_id
    owner.share_image(image_id=image_id, account_ids=crowd[:50])
    answer = owner.set_image_shares(image_id=image_id, account_ids=crowd[2:52])
    assert [share.account_id for share in answer.shares] == crowd[2:52] == shared(owner, image_id)
    assert answer.image.sharing.account_count == 50
    said: dict[str, Any] = {"image_id": image_id, "limit": 50, "usage": 50, "requested": 2}
    with refused("RESOURCE_EXHAUSTED", "SHARE_QUOTA_EXCEEDED", "SHR-8", **said) as caught:
        owner.set_image_shares(image_id=image_id, account_ids=crowd)
    assert_explained(
        caught.value,
        owner.check_image_actions(image_id=image_id, actions=["SetImageShares"], target_account_ids=crowd),
    )
    assert shared(owner, image_id) == crowd[2:52]
    owner.set_image_shares(image_id=image_id, account_ids=crowd[:1])
    with refused(
        "RESOURCE_EXHAUSTED", "SHARE_QUOTA_EXCEEDED", "SHR-8", **said | {"usage": 0, "requested": 51}
    ) as caught:
        owner.set_image_shares(image_id=image_id, account_ids=crowd[1:])
    assert "50 accounts: 0 that keep it and 51 more do not fit" in str(caught.value)
    assert shared(owner, image_id) == crowd[:1]


@pytest.mark.rule("SHR-8")
def test_the_operator_raises_and_lowers_the_limit_of_an_image_but_not_below_what_is_used(
    world: World, crowd: list[str]
) -> None:
    owner, of_image = world.tenant(), v1.QuotaId.QUOTA_ID_SHARES_PER_IMAGE
    image_id = world.image(owner).image_id

    def set_limit(limit: int) -> v1.Quota:
        return world.operator.set_quota_limit(quota_id=of_image, image_id=image_id, limit=limit)

    owner.share_image(image_id=image_id, account_ids=crowd[:50])
    raised = set_limit(51)
    assert raised == owner.get_quota(quota_id=of_image, image_id=image_id)
    assert (raised.limit, raised.usage, raised.is_default) == (51, 50, False)
    owner.share_image(image_id=image_id, account_ids=crowd[50:51])
    said: dict[str, Any] = {"quota_id": "SHARES_PER_IMAGE", "limit": 50, "usage": 51}
    with refused("FAILED_PRECONDITION", "QUOTA_BELOW_USAGE", "SHR-8", **said):
        set_limit(50)
    owner.set_image_shares(image_id=image_id, account_ids=crowd[:2])
    set_limit(2)
    said = {"image_id": image_id, "limit": 2, "usage": 2, "requested": 1}
    with refused("RESOURCE_EXHAUSTED", "SHARE_QUOTA_EXCEEDED", "SHR-8", **said):
        owner.share_image(image_id=image_id, account_ids=crowd[2:3])
    assert world.image(owner).sharing.account_limit == 50  # each image has its own


# --- SHR-9


@pytest.mark.rule("SHR-9")
def test_an_image_is_shared_only_with_accounts_that_are_active_in_its_region(world: World) -> None:
    owner, here, elsewhere = world.tenant(), world.tenant(GUANGZHOU), world.tenant(SHANGHAI, FRANKFURT)
    image_id = world.image(owner).image_id
    said: dict[str, Any] = {"account_ids": elsewhere.account_id, "region_id": GUANGZHOU}
    both = [here.account_id, elsewhere.account_id]
    for action, act in (("ShareImage", owner.share_image), ("SetImageShares", owner.set_image_shares)):
        with refused("FAILED_PRECONDITION", "SHARE_REGION_MISMATCH", "SHR-9", **said) as caught:
            act(image_id=image_id, account_ids=both)
        assert "CopyImage" in caught.value.remedy
        explanation = owner.check_image_actions(image_id=image_id, actions=[action], target_account_ids=both)
        assert_explained(caught.value, explanation)
    assert shared(owner, image_id) == []

    # The remedy: copy, then share the copy.
    (result,) = owner.copy_image(image_id=image_id, destinations=to(SHANGHAI)).result(timeout_seconds=20).results
    owner.share_image(image_id=result.image.image_id, account_ids=[elsewhere.account_id])
    assert names(elsewhere.list_images(region_id=SHANGHAI, filter="kind = SHARED")) == [result.image.name]
    account = v1.Account(account_id=elsewhere.account_id, region_ids=[SHANGHAI, FRANKFURT, GUANGZHOU])
    world.operator.update_account(account=account, update_mask=["region_ids"])
    owner.share_image(image_id=image_id, account_ids=both)


@pytest.mark.rule("SHR-9")
def test_an_account_does_not_leave_a_region_where_it_has_or_had_anything(world: World, given: Given) -> None:
    _, recipient, _ = given
    account = v1.Account(account_id=recipient.account_id, region_ids=[SHANGHAI])
    said: dict[str, Any] = {"account_id": recipient.account_id, "region_ids": GUANGZHOU}
    with refused("FAILED_PRECONDITION", "ACCOUNT_REGION_IN_USE", "SHR-9", **said):
        world.operator.update_account(account=account, update_mask=["region_ids"])
    account.region_ids[:] = [GUANGZHOU]
    assert [*world.operator.update_account(account=account, update_mask=["region_ids"]).region_ids] == [GUANGZHOU]


# --- SHR-10


@pytest.mark.rule("SHR-10")
def test_an_image_is_not_shared_with_oneself(world: World) -> None:
    owner, other = world.tenant(), world.tenant()
    image_id = world.image(owner).image_id
    both = [other.account_id, owner.account_id]
    for action, act in (("ShareImage", owner.share_image), ("SetImageShares", owner.set_image_shares)):
        with refused("INVALID_ARGUMENT", "SHARE_WITH_SELF", "SHR-10", account_id=owner.account_id) as caught:
            act(image_id=image_id, account_ids=both)
        assert caught.value.violations.keys() == {"account_ids"}
        explanation = owner.check_image_actions(image_id=image_id, actions=[action], target_account_ids=both)
        assert_explained(caught.value, explanation)
    assert shared(owner, image_id) == []


@pytest.mark.rule("SHR-10")
def test_an_image_is_not_shared_with_unknown_accounts(world: World) -> None:
    owner, other = world.tenant(), world.tenant()
    image_id = world.image(owner).image_id
    wanted = ["nobody-1", other.account_id, "nobody-2"]
    with refused("NOT_FOUND", "ACCOUNT_NOT_FOUND", "SHR-10", account_ids="nobody-1, nobody-2") as caught:
        owner.share_image(image_id=image_id, account_ids=wanted)
    explanation = owner.check_image_actions(image_id=image_id, actions=["ShareImage"], target_account_ids=wanted)
    assert_explained(caught.value, explanation)
    assert shared(owner, image_id) == []


@pytest.mark.rule("SHR-10")
def test_sharing_again_changes_nothing_and_succeeds(given: Given) -> None:
    owner, recipient, image = given
    (before,) = owner.list_image_shares(image_id=image.image_id)
    answer = owner.share_image(image_id=image.image_id, account_ids=[recipient.account_id])
    assert [*answer.shares] == [before]
    assert answer.image.sharing.account_count == 1


@pytest.mark.rule("SHR-10")
def test_only_an_available_image_is_shared(world: World, driver: Held) -> None:
    owner, other = world.tenant(), world.tenant()
    with driver.holding("import"):
        operation = import_image(owner, "stock")
        (image_id,) = operation.metadata.target_ids
        for action, act in (("ShareImage", owner.share_image), ("SetImageShares", owner.set_image_shares)):
            said: dict[str, Any] = {
                "image_id": image_id,
                "state": "IMPORTING",
                "allowed": "AVAILABLE",
                "action": action,
            }
            with refused("FAILED_PRECONDITION", "IMAGE_STATE_INVALID", "SHR-10", **said) as caught:
                act(image_id=image_id, account_ids=[other.account_id])
            explanation = owner.check_image_actions(
                image_id=image_id, actions=[action], target_account_ids=[other.account_id]
            )
            assert_explained(caught.value, explanation)
    operation.result(timeout_seconds=20)
    owner.share_image(image_id=image_id, account_ids=[other.account_id])


@pytest.mark.rule("SHR-10", "CUS-13")
def test_a_suspended_recipient_may_be_shared_with_and_launches_nothing(world: World) -> None:
    owner, recipient = world.tenant(), world.tenant()
    image_id = world.image(owner).image_id
    suspend(world, recipient.account_id)
    owner.share_image(image_id=image_id, account_ids=[recipient.account_id])
    said: dict[str, Any] = {"account_id": recipient.account_id, "action": "CreateInstance"}
    with refused("FAILED_PRECONDITION", "ACCOUNT_SUSPENDED", "CUS-13", **said):
        world.launch(recipient, image_id)


# --- SHR-11


@pytest.mark.rule("SHR-11")
def test_an_image_taken_back_is_neither_seen_nor_launched_and_its_instances_live_on(given: Given, world: World) -> None:
    owner, recipient, image = given
    instance_id = world.launch(recipient, image.image_id).instance_id
    assert recipient.get_instance(instance_id=instance_id).launch_image.still_available
    answer = owner.unshare_image(image_id=image.image_id, account_ids=[recipient.account_id, "never-had-it"])
    assert [*answer.account_ids] == [recipient.account_id]
    assert answer.image.sharing.account_count == 0

    not_found = ("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2")
    with refused(*not_found, image_id=image.image_id):
        recipient.get_image(image_id=image.image_id)
    with refused(*not_found, image_id=image.image_id):
        world.launch(recipient, image.image_id)
    assert names(recipient.list_images(region_id=GUANGZHOU, filter="kind = SHARED")) == []
    with refused(*not_found, image_id=image.image_id) as caught:
        recipient.reinstall_instance(instance_id=instance_id)
    explanation = recipient.check_instance_actions(instance_id=instance_id, actions=["ReinstallInstance"])
    assert_explained(caught.value, explanation)

    assert not recipient.get_instance(instance_id=instance_id).launch_image.still_available
    for act in (recipient.stop_instance, recipient.start_instance, recipient.reboot_instance):
        act(instance_id=instance_id).result(timeout_seconds=20)
    assert world.image(recipient, instance_id=instance_id).state == v1.Image.STATE_AVAILABLE
    public_id = world.public_image().image_id
    reinstalled = recipient.reinstall_instance(instance_id=instance_id, image_id=public_id).result(timeout_seconds=20)
    assert reinstalled.launch_image.image_id == public_id
    recipient.delete_instance(instance_id=instance_id).result(timeout_seconds=20)


@pytest.mark.rule("SHR-11")
def test_the_owner_takes_an_image_back_from_any_of_the_accounts(world: World) -> None:
    owner, *others = [world.tenant() for _ in range(4)]
    account_ids = sorted(other.account_id for other in others)
    image_id = world.image(owner).image_id
    owner.share_image(image_id=image_id, account_ids=account_ids)
    assert [*owner.unshare_image(image_id=image_id, account_ids=account_ids[:2]).account_ids] == account_ids[:2]
    assert shared(owner, image_id) == account_ids[2:]
    assert [*owner.unshare_image(image_id=image_id, account_ids=account_ids).account_ids] == account_ids[2:]
    assert owner.unshare_image(image_id=image_id, account_ids=account_ids).account_ids == []
    assert shared(owner, image_id) == []


# --- SHR-12


@pytest.mark.rule("SHR-12")
def test_a_recipient_learns_neither_of_the_others_nor_of_what_an_image_was_made_from(
    given: Given, world: World
) -> None:
    owner, recipient, image = given
    others = [world.tenant(account_id=f"secret-{number}").account_id for number in range(2)]
    owner.share_image(image_id=image.image_id, account_ids=others)
    received = recipient.get_image(image_id=image.image_id)
    for hidden in ("source", "sharing", "quote"):
        assert not received.HasField(hidden)
        assert owner.get_image(image_id=image.image_id).HasField(hidden)
    assert received.content.uri == ""
    explanation = recipient.check_image_actions(image_id=image.image_id, target_account_ids=others[:1], force=True)
    listed = recipient.list_images(region_id=GUANGZHOU, filter="kind = SHARED")
    for told in (received, explanation, *listed):
        assert others[1] not in str(told)
        assert image.source.instance_id not in str(told)
        assert not re.search(r"\b50\b", str(getattr(told, "decisions", "")))  # ids may have it
    said: dict[str, Any] = {"image_id": image.image_id, "action": "GetQuota"}
    with refused("PERMISSION_DENIED", "SHARED_IMAGE_SHARES_HIDDEN", "SHR-12", **said):
        recipient.get_quota(quota_id=v1.QuotaId.QUOTA_ID_SHARES_PER_IMAGE, image_id=image.image_id)
    assert [share.account_id for share in world.operator.list_image_shares(image_id=image.image_id)] == sorted(
        [recipient.account_id, *others]
    )


@pytest.mark.rule("SHR-12")
def test_a_recipient_leaves_a_share_by_itself(given: Given, world: World) -> None:
    owner, recipient, image = given
    stays = world.tenant()
    owner.share_image(image_id=image.image_id, account_ids=[stays.account_id])
    recipient.leave_image_share(image_id=image.image_id)
    assert shared(owner, image.image_id) == [stays.account_id]
    with refused("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2", image_id=image.image_id):
        recipient.leave_image_share(image_id=image.image_id)
    with refused("FAILED_PRECONDITION", "IMAGE_NOT_SHARED_WITH_CALLER", "SHR-12", image_id=image.image_id) as caught:
        owner.leave_image_share(image_id=image.image_id)
    assert_explained(caught.value, owner.check_image_actions(image_id=image.image_id, actions=["LeaveImageShare"]))
