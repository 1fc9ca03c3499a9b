"""Whoever has no right to a thing learns nothing of it: byte for byte, its answers are those for what is not there.

Which fields name things is read from the descriptors, so that no new field is forgotten.
"""

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc import StatusCode
from tests import world as worlds
from tests.end_to_end.requests_of import BY_NAME, RPCS, Answer, Ids, Place, Rpc, call, places, valid
from tests.world import GUANGZHOU, SHANGHAI, Postgres, Tenant, World

from cunho import Refused
from cunho import v1 as pb
from cunho_server.ledger import Ledger

Destination = pb.CopyImageRequest.Destination

# --- which fields name things

#: What fields of these names hold the ids of.
THINGS = {
    "image_id": "image",
    "image_ids": "image",
    "replacement_image_id": "image",
    "target_image_id": "image",
    "instance_id": "instance",
    "account_id": "account",
    **{f"google.longrunning.{verb}OperationRequest.name": "operation" for verb in ("Get", "Wait", "Cancel", "Delete")},
}

#: Whom an image is shared with: who shares with an account learns that it is there.
RECIPIENTS = {"account_ids", "target_account_ids"}

#: Fields that can ask for things of others; each has tests of its own.
ASKING = {"filter", "page_token", "request_id"}

#: Fields that name nothing, or what everybody knows of.
HARMLESS = set(
    "actions contact_uri description display_name etag expected_image_etag family image_name instance_type message name"
    " note order_by platform region_id region_ids target_region_id uri usable_with_instance_type"
    " value version zone_id".split()
)


def kind(field: FieldDescriptor) -> str:
    """What the field holds ids of; empty if nothing that belongs to somebody."""
    return THINGS.get(field.full_name) or THINGS.get(field.name, "")


NAMING = [(rpc, place) for rpc in RPCS for place in places(rpc.request.DESCRIPTOR) if kind(place.field)]


def test_every_field_that_could_name_a_thing_is_covered() -> None:
    texts = {
        place.field.name
        for rpc in RPCS
        for place in places(rpc.request.DESCRIPTOR)
        if place.field.cpp_type == FieldDescriptor.CPPTYPE_STRING and not kind(place.field)
    }
    assert texts == HARMLESS | ASKING | RECIPIENTS


# --- the things


class Holding(Ledger):
    """Completes every action by itself, but that it never ends a capture once it is told to hold them."""

    held = False

    async def act(self, action: str, region_id: str, target_id: str) -> None:
        while self.held and action == "capture":
            await asyncio.sleep(0.05)


class Scene(NamedTuple):
    """An owner's things in every state, and those who look for them."""

    world: World
    channel: grpc.Channel
    owner: Tenant
    recipient: Tenant
    #: Has nothing to do with the owner, and one thing of each kind.
    stranger: Tenant
    strangers_own: Ids
    #: Ids of the owner's things, by kind and by what they are like.
    things: dict[str, dict[str, str]]

    def send(self, client: Tenant, rpc: Rpc, request: Message) -> Answer:
        """What the service answers to the client."""
        return call(self.channel, rpc.path, request.SerializeToString(), self.world.token(client.account_id))


@pytest.fixture(scope="module")
def scene(postgres: Postgres) -> Iterator[Scene]:
    driver = Holding()
    with worlds.world(postgres, driver) as world, grpc.insecure_channel(world.address) as channel:
        owner, recipient, stranger = (world.tenant() for _ in range(3))
        things = everything_of(world, owner, recipient, driver)
        yield Scene(world, channel, owner, recipient, stranger, one_of_each(world, stranger), things)
        driver.held = False


def everything_of(world: World, owner: Tenant, recipient: Tenant, driver: Holding) -> dict[str, dict[str, str]]:
    stopped, running, deleted, captured = (world.launch(owner).instance_id for _ in range(4))
    owner.stop_instance(instance_id=stopped).result()
    private, shared, retired, gone = (world.image(owner, instance_id=running).image_id for _ in range(4))
    owner.share_image(image_id=shared, account_ids=[recipient.account_id])
    owner.deprecate_image(image_id=retired, deprecation=pb.Deprecation(state=pb.Deprecation.STATE_OBSOLETE))
    owner.delete_image(image_id=gone)
    owner.delete_instance(instance_id=deleted).result()
    ended = next(owner.list_operations()).name
    driver.held = True
    creating = owner.create_image(region_id=GUANGZHOU, instance_id=captured, name="creating")
    return {
        "image": {
            "private": private,
            "shared with another": shared,
            "obsolete": retired,
            "deleted": gone,
            "being created": creating.metadata.target_ids[0],
        },
        "instance": {"running": running, "stopped": stopped, "deleted": deleted, "being captured": captured},
        "operation": {"ended": ended, "running": creating.name},
        "account": {"active": owner.account_id, "recipient": recipient.account_id},
    }


def one_of_each(world: World, tenant: Tenant) -> Ids:
    image = world.public_image()
    instance = world.launch(tenant)
    return Ids(image.image_id, instance.instance_id, next(tenant.list_operations()).name, tenant.account_id)


def by_kind(ids: Ids) -> dict[str, str]:
    return {"image": ids.image_id, "instance": ids.instance_id, "operation": ids.operation, "account": ids.account_id}


#: Ids of nothing, of the same form as those of things.
ABSENT = Ids("img-zzzzzzzz", "ins-zzzzzzzz", "operations/op-zzzzzzzz", "acc-zzzzzzzzzz")
NONE = Ids("img-yyyyyyyy", "ins-yyyyyyyy", "operations/op-yyyyyyyy", "acc-yyyyyyyyyy")


def naming(rpc: Rpc, place: Place, id: str, own: Ids) -> Any:
    """A request where nothing but this field names what is not the caller's."""
    request = valid(rpc, own)
    owner, name = place.owner(request), place.field.name
    if place.field.is_repeated:
        getattr(owner, name)[:] = [id]
    else:
        setattr(owner, name, id)
    if rpc.name in ("GetQuota", "SetQuotaLimit") and name == "image_id":
        request.quota_id, request.account_id, request.region_id = pb.QuotaId.QUOTA_ID_SHARES_PER_IMAGE, "", ""
    if rpc.name == "WaitOperation":
        request.timeout.seconds = 0
    return request


def variants(request: Any) -> Iterator[Any]:
    """The request, and others that would be answered otherwise if the caller had the right."""
    changes = {
        "validate_only": (False,),
        "etag": ("v1", "v999"),
        "expected_image_etag": ("v1", "v999"),
        "region_id": (SHANGHAI, "eu-nowhere", "-"),
        "name": ("creating",),
        "instance_type": ("SR1.MEDIUM4",),
        "force": (True,),
        "actions": ((),),
        "limit": (0,),
    }
    yield request
    for field, values in changes.items():
        if field in request.DESCRIPTOR.fields_by_name and not request.DESCRIPTOR.full_name.startswith("google."):
            for value in values:
                changed = type(request)()
                changed.CopyFrom(request)
                changed.ClearField(field)
                if value != ():
                    setattr(changed, field, value)
                yield changed


def instead(answer: Answer, id: str, other: str) -> Answer:
    """The answer with one id in the place of another."""
    old, new = id.encode(), other.encode()
    trailers = ((key, value.replace(old, new) if isinstance(value, bytes) else value) for key, value in answer.trailers)
    return Answer(answer.code, answer.body.replace(old, new), answer.message.replace(id, other), tuple(trailers))


def parsed(rpc: Rpc, answer: Answer) -> Message:
    """The answer's message, to be compared where it has maps: they have no order in bytes."""
    return rpc.response.FromString(answer.body)


@pytest.mark.parametrize(("rpc", "place"), NAMING, ids=lambda each: each.name)
def test_a_thing_of_another_answers_as_one_that_is_not_there(scene: Scene, rpc: Rpc, place: Place) -> None:
    of_kind = kind(place.field)
    absent = by_kind(ABSENT)[of_kind]
    for like, id in scene.things[of_kind].items():
        asked = variants(naming(rpc, place, id, scene.strangers_own))
        asked_of_nothing = variants(naming(rpc, place, absent, scene.strangers_own))
        for request, of_nothing in zip(asked, asked_of_nothing, strict=True):
            answer = scene.send(scene.stranger, rpc, request)
            assert instead(answer, id, absent) == scene.send(scene.stranger, rpc, of_nothing), (like, request)
            assert answer.code not in (StatusCode.INTERNAL, StatusCode.UNKNOWN)


@pytest.mark.parametrize(("rpc", "place"), NAMING, ids=lambda each: each.name)
def test_the_operator_finds_what_strangers_do_not(scene: Scene, rpc: Rpc, place: Place) -> None:
    things = scene.things
    found = Ids(
        things["image"]["private"],
        things["instance"]["running"],
        things["operation"]["running" if rpc.name == "DeleteOperation" else "ended"],
        things["account"]["active"],
    )
    request = naming(rpc, place, by_kind(found)[kind(place.field)], found)
    answer = call(scene.channel, rpc.path, request.SerializeToString(), scene.world.token("operator", "operator"))
    assert answer.code is not StatusCode.NOT_FOUND


def test_an_account_that_is_not_registered_is_a_stranger_too(scene: Scene) -> None:
    for rpc, place in NAMING:
        absent = by_kind(ABSENT)[kind(place.field)]
        token = scene.world.token("acc-unregistered")
        for id in scene.things[kind(place.field)].values():
            answer, of_nothing = (
                call(scene.channel, rpc.path, naming(rpc, place, each, NONE).SerializeToString(), token)
                for each in (id, absent)
            )
            assert instead(answer, id, absent) == of_nothing


# --- what can ask for things without naming them as such

QUESTIONS = [
    ("ListImages", "image", 'image_id = "{}"'),
    ("ListImages", "image", 'image_id = "{}" OR NOT image_id = "{}"'),
    ("ListImages", "account", 'owner_account_id = "{}"'),
    ("ListImages", "account", "owner_account_id:{}"),
    ("ListInstances", "image", 'image_id = "{}"'),
    ("ListInstances", "instance", 'instance_id = "{}"'),
    ("ListInstances", "account", 'account_id = "{}"'),
    ("ListOperations", "image", 'target_id = "{}"'),
    ("ListOperations", "instance", 'target_id != "{}"'),
]


@pytest.mark.parametrize(("name", "of_kind", "question"), QUESTIONS)
def test_a_filter_finds_nothing_of_another(scene: Scene, name: str, of_kind: str, question: str) -> None:
    absent = by_kind(ABSENT)[of_kind]
    for id in scene.things[of_kind].values():
        answer, of_nothing = (
            scene.send(scene.stranger, BY_NAME[name], filtered(name, question.replace("{}", each)))
            for each in (id, absent)
        )
        assert answer.code is StatusCode.OK
        assert answer == of_nothing


def filtered(name: str, text: str) -> Message:
    request = BY_NAME[name].request(filter=text, page_size=1000)
    if name != "ListOperations":
        request.region_id = "-"  # type: ignore[attr-defined]
    return request


def test_lists_show_a_stranger_public_images_and_its_own_things_alone(scene: Scene) -> None:
    everything = {id for ids in scene.things.values() for id in ids.values()}
    stranger = scene.stranger
    images = list(stranger.list_images(region_id="-"))
    assert {image.owner_account_id for image in images} == {""}
    seen = str([*images, *stranger.list_instances(region_id="-"), *stranger.list_operations()])
    assert not [id for id in everything if id in seen]


def test_a_name_that_a_stranger_gave_is_free(scene: Scene) -> None:
    taken = scene.owner.get_image(image_id=scene.things["image"]["private"]).name
    operation = scene.stranger.create_image(
        region_id=GUANGZHOU, instance_id=scene.strangers_own.instance_id, name=taken, validate_only=True
    )
    assert not operation.done
    with pytest.raises(Refused) as caught:
        scene.owner.create_image(
            region_id=GUANGZHOU, instance_id=scene.things["instance"]["stopped"], name=taken, validate_only=True
        )
    assert caught.value.reason == "IMAGE_NAME_TAKEN"


def test_a_request_id_that_a_stranger_used_is_new(world: World) -> None:
    first, second = world.tenant(), world.tenant()
    launch: Any = {
        "region_id": GUANGZHOU,
        "zone_id": "ap-guangzhou-3",
        "instance_type": "S5.MEDIUM4",
        "image_id": world.public_image().image_id,
        "request_id": "0b5bd7d4-6cf4-4f6c-8f5e-000000000001",
    }
    operation, repeated, of_another = (each.create_instance(**launch) for each in (first, first, second))
    assert repeated.name == operation.name
    assert of_another.name != operation.name
    assert of_another.metadata.account_id == second.account_id
    assert second.create_instance(**launch).name == of_another.name
    with pytest.raises(Refused) as caught:
        first.create_instance(**launch | {"count": 2})
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert world.tenant().create_instance(**launch | {"count": 2}).metadata.request_id == launch["request_id"]


# --- with whom an image is shared


def test_unsharing_tells_nothing_of_accounts(world: World) -> None:
    tenant, another = world.tenant(), world.tenant()
    image_id = world.image(tenant).image_id
    for validate_only in (True, False):
        unshared = [
            tenant.unshare_image(image_id=image_id, account_ids=[account_id], validate_only=validate_only)
            for account_id in (ABSENT.account_id, another.account_id)
        ]
        assert unshared[0] == unshared[1]


@pytest.mark.parametrize("name", ["ShareImage", "SetImageShares", "UnshareImage", "CheckImageActions"])
def test_who_may_not_share_an_image_learns_nothing_of_accounts_by_trying(scene: Scene, name: str) -> None:
    field = "target_account_ids" if name == "CheckImageActions" else "account_ids"
    here, elsewhere = (scene.world.tenant(region_id).account_id for region_id in (GUANGZHOU, SHANGHAI))
    for client in (scene.stranger, scene.recipient):
        answers = []
        for account_id in (ABSENT.account_id, here, elsewhere):
            request = valid(BY_NAME[name], Ids(image_id=scene.things["image"]["shared with another"]))
            request.ClearField("actions" if name == "CheckImageActions" else "validate_only")
            getattr(request, field)[:] = [account_id]
            answer = instead(scene.send(client, BY_NAME[name], request), account_id, ABSENT.account_id)
            answers.append((answer.status, parsed(BY_NAME[name], answer)))
        assert answers[0] == answers[1] == answers[2]


# --- what a recipient sees of what is shared with it


class Secrets(NamedTuple):
    """Images that are shared with a recipient, and what it must never see of them."""

    world: World
    owner: Tenant
    recipient: Tenant
    others: list[str]
    image_ids: dict[str, str]
    secrets: dict[str, str]


@pytest.fixture(scope="module")
def secret(world: World) -> Secrets:
    owner, recipient = world.tenant(), world.tenant()
    others = [world.tenant().account_id for _ in range(3)]
    instance = world.launch(owner, region_id=SHANGHAI)
    captured = world.image(owner, instance_id=instance.instance_id, region_id=SHANGHAI)
    copying = owner.copy_image(image_id=captured.image_id, destinations=[Destination(region_id=GUANGZHOU)])
    importing = owner.import_image(
        region_id=GUANGZHOU,
        name="imported",
        uri="https://cloud.debian.org/private/disk.raw?signature=5ecre7",
        format=pb.ImportImageRequest.FORMAT_RAW,
        os=pb.OperatingSystem(family=pb.OsFamily.OS_FAMILY_LINUX, platform="debian"),
        architecture=pb.Architecture.ARCHITECTURE_X86_64,
        size_bytes=9 << 30,
        min_disk_bytes=10 << 30,
    )
    image_ids = {
        "captured": world.image(owner).image_id,
        "copied": copying.result().results[0].image.image_id,
        "imported": importing.result().image_id,
    }
    for image_id in image_ids.values():
        owner.share_image(image_id=image_id, account_ids=[recipient.account_id, *others])
    seen = [owner.get_image(image_id=image_id) for image_id in image_ids.values()]
    secrets = {f"recipient {number}": account_id for number, account_id in enumerate(others)}
    secrets |= {
        "instance of a captured image": seen[0].source.instance_id,
        "source of a copied image": captured.image_id,
        "URI of an imported image": "5ecre7",
    }
    known = [*seen, *(share for image_id in image_ids.values() for share in owner.list_image_shares(image_id=image_id))]
    assert all(text in str(known) for text in secrets.values())
    return Secrets(world, owner, recipient, others, image_ids, secrets)


def every_answer(secret: Secrets, ids: Ids) -> Iterator[tuple[str, bytes]]:
    """All that the recipient gets for whatever can be asked with these ids."""
    with grpc.insecure_channel(secret.world.address) as channel:
        for rpc, place in NAMING:
            for variant in variants(naming(rpc, place, by_kind(ids)[kind(place.field)], ids)):
                if hasattr(variant, "validate_only"):
                    variant.validate_only = True
                answer = call(
                    channel, rpc.path, variant.SerializeToString(), secret.world.token(secret.recipient.account_id)
                )
                yield rpc.name, answer.body + str(answer.trailers).encode()


@pytest.mark.parametrize("like", ["captured", "copied", "imported"])
def test_no_answer_to_a_recipient_holds_a_secret_of_the_owner(secret: Secrets, like: str) -> None:
    world, recipient = secret.world, secret.recipient
    image_id = secret.image_ids[like]
    launched = world.launch(recipient, image_id=image_id)
    of_own = world.image(recipient, instance_id=launched.instance_id)
    copying = recipient.copy_image(image_id=of_own.image_id, destinations=[Destination(region_id=SHANGHAI)])
    copied = copying.result().results[0].image
    shown = [
        *recipient.list_images(region_id="-"),
        *recipient.list_instances(region_id="-"),
        *recipient.batch_get_images(image_ids=[image_id, of_own.image_id, copied.image_id]).results,
        *(operation._operation for operation in recipient.list_operations()),
        launched,
        of_own,
        copied,
    ]
    answers = [("a list", message.SerializeToString()) for message in shown]
    for each in (image_id, of_own.image_id, copied.image_id):
        answers += every_answer(secret, Ids(each, launched.instance_id, copying.name, recipient.account_id))
    leaks = {
        (name, what) for name, answer in answers for what, text in secret.secrets.items() if text.encode() in answer
    }
    assert leaks == set()


@pytest.mark.parametrize("like", ["captured", "copied", "imported"])
def test_a_recipient_sees_no_source_no_counts_no_uri_and_no_quote(secret: Secrets, like: str) -> None:
    image_id = secret.image_ids[like]
    own_view = secret.owner.get_image(image_id=image_id)
    assert own_view.HasField("source")
    assert own_view.HasField("sharing")
    assert own_view.HasField("quote")
    (listed,) = secret.recipient.list_images(region_id="-", filter=f"image_id = {image_id}")
    (batched,) = secret.recipient.batch_get_images(image_ids=[image_id]).results
    for image in (secret.recipient.get_image(image_id=image_id), listed, batched.image):
        assert image.kind == pb.ImageKind.IMAGE_KIND_SHARED
        assert not any(image.HasField(name) for name in ("source", "sharing", "quote"))
        assert image.content.uri == ""


@pytest.mark.parametrize("name", ["GetImage", "BatchGetImages", "ListImages", "CheckImageActions"])
def test_a_recipient_cannot_tell_whether_others_have_the_image(secret: Secrets, name: str) -> None:
    image_id = secret.image_ids["captured"]
    request = valid(BY_NAME[name], Ids(image_id=image_id))
    if name == "CheckImageActions":
        request.ClearField("actions")
    token = secret.world.token(secret.recipient.account_id)
    with grpc.insecure_channel(secret.world.address) as channel:
        answers = [call(channel, BY_NAME[name].path, request.SerializeToString(), token)]
        secret.owner.unshare_image(image_id=image_id, account_ids=secret.others)
        answers.append(call(channel, BY_NAME[name].path, request.SerializeToString(), token))
        secret.owner.share_image(image_id=image_id, account_ids=secret.others)
        answers.append(call(channel, BY_NAME[name].path, request.SerializeToString(), token))
    assert answers[0].code is StatusCode.OK
    seen = [parsed(BY_NAME[name], answer) for answer in answers]
    assert seen[0] == seen[1] == seen[2]
