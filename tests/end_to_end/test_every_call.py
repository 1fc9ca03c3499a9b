"""What holds for every call: callers, repeats, rehearsals, etags, malformed input, and which refusal is first."""

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from tests.end_to_end.steps import (
    GIB,
    STOCK_URI,
    assert_told,
    deprecate,
    import_image,
    publish,
    refused,
    rename,
    send,
    send_bytes,
    suspend,
    to,
)
from tests.world import GUANGZHOU, SHANGHAI, World

from cunho import Client, Operation, Refused, v1
from cunho.v1 import account_service_pb2, image_service_pb2, instance_service_pb2, quota_service_pb2, region_service_pb2
from cunho_rules.actions import IMAGE_ACTIONS

UPDATABLE = "name, description, family, labels, min_disk_bytes, min_memory_bytes"
ABSENT_IMAGE, ABSENT_INSTANCE = "img-00000000", "ins-00000000"
OWN_SERVICES = (
    account_service_pb2,
    image_service_pb2,
    instance_service_pb2,
    quota_service_pb2,
    region_service_pb2,
)
REQUESTS = {
    method.name: method.input_type
    for pb2 in OWN_SERVICES
    for service in pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class Stage:
    """An owner with instances and images, and a recipient of one of them; each is made when it is needed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.owner, self.recipient = world.tenant(), world.tenant()

    @cached_property
    def running(self) -> str:
        """A RUNNING instance."""
        return self.world.launch(self.owner).instance_id

    @cached_property
    def stopped(self) -> str:
        """A STOPPED instance."""
        instance_id = self.world.launch(self.owner).instance_id
        self.owner.stop_instance(instance_id=instance_id).result(timeout_seconds=20)
        return instance_id

    @cached_property
    def image(self) -> str:
        """An image named "own"."""
        return self.world.image(self.owner, "own", instance_id=self.running).image_id

    @cached_property
    def shared(self) -> str:
        """An image named "shared", which the recipient has."""
        image_id = self.world.image(self.owner, "shared", instance_id=self.running).image_id
        self.owner.share_image(image_id=image_id, account_ids=[self.recipient.account_id])
        return image_id


class Mutation(NamedTuple):
    """A mutation that succeeds, and what makes it one that is refused."""

    caller: Client
    arguments: dict[str, Any]
    wrong: dict[str, Any]

    def call(self, name: str, /, **more: Any) -> Any:
        """Calls the RPC of that name."""
        method = re.sub(r"(?<=.)([A-Z])", r"_\1", name).lower()
        return getattr(self.caller, method)(**self.arguments | more)


@pytest.fixture
def stage(world: World) -> Stage:
    return Stage(world)


LINUX = v1.OperatingSystem(family=v1.OsFamily.OS_FAMILY_LINUX, platform="debian", version="12")
DISK = {
    "region_id": GUANGZHOU,
    "name": "new",
    "os": LINUX,
    "architecture": v1.Architecture.ARCHITECTURE_X86_64,
    "size_bytes": GIB,
    "min_disk_bytes": GIB,
}
OBSOLETE = v1.Deprecation.STATE_OBSOLETE


def of_accounts(stage: Stage, name: str) -> Mutation:
    """The mutation of that name, by the operator, of accounts and quotas."""
    operator, account_id = stage.world.operator, stage.owner.account_id
    match name:
        case "RegisterAccount":
            new = {"account_id": f"new-{uuid4()}", "region_ids": [GUANGZHOU]}
            return Mutation(operator, new, {"account_id": account_id})
        case "UpdateAccount":
            wanted = v1.Account(account_id=account_id, display_name="New")
            nobody = v1.Account(account_id="nobody", display_name="New")
            return Mutation(operator, {"account": wanted, "update_mask": ["display_name"]}, {"account": nobody})
        case "SetQuotaLimit":
            quota = {"quota_id": v1.QuotaId.QUOTA_ID_CUSTOM_IMAGES, "account_id": account_id, "region_id": GUANGZHOU}
            assert stage.image
            return Mutation(operator, quota | {"limit": 20}, {"limit": 0})
    return of_instances(stage, name)


def of_instances(stage: Stage, name: str) -> Mutation:
    """The mutation of that name, of an instance."""
    owner = stage.owner
    match name:
        case "CreateInstance":
            place = {"region_id": GUANGZHOU, "zone_id": "ap-guangzhou-3", "instance_type": "S5.MEDIUM4"}
            wanted: dict[str, Any] = place | {"image_id": stage.image, "count": 2, "name": "web"}
            return Mutation(owner, wanted, {"instance_type": "SR1.MEDIUM4"})
        case "UpdateInstance":
            renamed = v1.Instance(instance_id=stage.running, name="renamed")
            absent = v1.Instance(instance_id=ABSENT_INSTANCE, name="renamed")
            return Mutation(owner, {"instance": renamed, "update_mask": ["name"]}, {"instance": absent})
        case "StartInstance":
            return Mutation(owner, {"instance_id": stage.stopped}, {"instance_id": stage.running})
        case "StopInstance" | "RebootInstance":
            return Mutation(owner, {"instance_id": stage.running}, {"instance_id": stage.stopped})
        case "ReinstallInstance":
            return Mutation(owner, {"instance_id": stage.running}, {"image_id": ABSENT_IMAGE})
        case "DeleteInstance":
            return Mutation(owner, {"instance_id": stage.running}, {"instance_id": ABSENT_INSTANCE})
    return of_images(stage, name)


def of_images(stage: Stage, name: str) -> Mutation:
    """The mutation of that name, of an image."""
    owner, operator = stage.owner, stage.world.operator
    match name:
        case "CreateImage":
            wanted: dict[str, Any] = {"region_id": GUANGZHOU, "instance_id": stage.running, "name": "new"}
            assert stage.image
            return Mutation(owner, wanted, {"name": "own"})
        case "ImportImage":
            file = {"uri": STOCK_URI, "format": v1.ImportImageRequest.FORMAT_QCOW2}
            return Mutation(owner, DISK | file, {"size_bytes": 51 * GIB})
        case "PublishImage":
            support = v1.Support(kind=v1.Support.KIND_OPERATOR, contact_uri="mailto:help@example.org")
            wanted = {"name": f"published {uuid4()}", "content": v1.ImageContent(uri="store:new"), "support": support}
            return Mutation(operator, DISK | wanted, {"name": "Debian 12 64bit"})
        case "CopyImage":
            wanted = {"image_id": stage.image, "destinations": to(SHANGHAI)}
            return Mutation(owner, wanted, {"destinations": to(SHANGHAI, GUANGZHOU)})
        case "UpdateImage":
            renamed = v1.Image(image_id=stage.image, name="renamed", description="new")
            clashing = v1.Image(image_id=stage.shared, name="own", description="new")
            return Mutation(owner, {"image": renamed, "update_mask": ["name", "description"]}, {"image": clashing})
        case "DeprecateImage":
            wanted = {"image_id": stage.image, "deprecation": v1.Deprecation(state=OBSOLETE, message="Old")}
            absent = v1.Deprecation(state=OBSOLETE, replacement_image_id=ABSENT_IMAGE)
            return Mutation(owner, wanted, {"deprecation": absent})
        case "DeleteImage":
            return Mutation(owner, {"image_id": stage.image}, {"image_id": stage.shared})
    return of_shares(stage, name)


def of_shares(stage: Stage, name: str) -> Mutation:
    """The mutation of that name, of the shares of an image."""
    owner, account_ids = stage.owner, [stage.recipient.account_id]
    match name:
        case "ShareImage" | "SetImageShares":
            wanted = {"image_id": stage.image, "account_ids": account_ids}
            return Mutation(owner, wanted, {"account_ids": ["nobody"]})
        case "UnshareImage":
            wanted = {"image_id": stage.shared, "account_ids": account_ids}
            return Mutation(owner, wanted, {"image_id": ABSENT_IMAGE})
        case "LeaveImageShare":
            return Mutation(stage.recipient, {"image_id": stage.shared}, {"image_id": stage.image})
    raise AssertionError(f"{name} is not on the stage")


MUTATIONS = sorted(name for name, request in REQUESTS.items() if "validate_only" in request.fields_by_name)
every_mutation = pytest.mark.parametrize("name", MUTATIONS)


def fixed(answer: Any) -> Message:
    """The message of an answer: of an operation, what it says of itself."""
    return answer.metadata if isinstance(answer, Operation) else answer


def ended(answer: Any) -> None:
    """Waits until what the call began has ended."""
    if isinstance(answer, Operation):
        answer.result(timeout_seconds=20)


def dump(world: World) -> list[tuple[Any, ...]]:
    """Every row of every table."""
    tables = [name for (name,) in world.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    assert {"image", "instance", "image_share", "account", "operation", "request_log"} <= {*tables}
    return world.sql(
        " UNION ALL ".join(f"SELECT '{name}', row::text FROM {name} row" for name in tables) + " ORDER BY 1, 2"
    )


# --- ALL-1


@pytest.mark.rule("ALL-1")
def test_the_caller_comes_from_verified_credentials(world: World) -> None:
    image = world.public_image()
    request = v1.GetImageRequest(image_id=image.image_id)
    with refused("UNAUTHENTICATED", "CREDENTIALS_MISSING", "ALL-1"):
        send(world, "", request)
    token = world.token("acme")
    for wrong in ("no token", token[:-4] + "AAAA", world.signer.token("acme", "account", seconds=1_000_000)):
        with refused("UNAUTHENTICATED", "CREDENTIALS_INVALID", "ALL-1"):
            send(world, wrong, request)
    assert v1.Image.FromString(send(world, token, request)).image_id == image.image_id


@pytest.mark.rule("ALL-1")
def test_nothing_in_a_request_makes_the_caller_another_account(world: World) -> None:
    owner, other = world.tenant(), world.tenant()
    image = world.image(owner)
    wanted = v1.Image(image_id=image.image_id, name="renamed", owner_account_id=other.account_id)
    assert owner.update_image(image=wanted, update_mask=["name"]).owner_account_id == owner.account_id
    with refused("NOT_FOUND", "ACCOUNT_NOT_FOUND", "SHR-10", account_ids=other.account_id):
        owner.get_account(account_id=other.account_id)
    with refused("NOT_FOUND", "ACCOUNT_NOT_FOUND", "SHR-10", account_ids=other.account_id):
        list(owner.list_quotas(account_id=other.account_id))
    with refused("PERMISSION_DENIED", "ACTING_NOT_ALLOWED", "ALL-1", account_id=other.account_id):
        send(
            world,
            world.token(owner.account_id),
            v1.GetImageRequest(image_id=image.image_id),
            cunho_account=other.account_id,
        )


@pytest.mark.rule("ALL-1")
def test_a_service_acts_for_the_accounts_that_its_credentials_name_and_says_so(world: World) -> None:
    owner, other = world.tenant(), world.tenant()
    token = world.token("deployer", role="service", acts_for=[owner.account_id])
    with Client(world.address, token=token, account=owner.account_id) as service:
        operation = import_image(service, "stock")
        assert operation.metadata.created_by == "service:deployer"
        assert operation.metadata.account_id == owner.account_id
        assert operation.result(timeout_seconds=20).owner_account_id == owner.account_id
    for account_id in (other.account_id, ""):
        with (
            Client(world.address, token=token, account=account_id) as service,
            refused("PERMISSION_DENIED", "ACTING_NOT_ALLOWED", "ALL-1", account_id=account_id),
        ):
            list(service.list_images(region_id="-"))


# --- ALL-2


@pytest.mark.rule("ALL-2")
@every_mutation
def test_a_repeated_request_has_one_effect_and_gets_the_first_answer(world: World, stage: Stage, name: str) -> None:
    request_id = str(uuid4())
    wanted = of_accounts(stage, name)
    first = wanted.call(name, request_id=request_id)
    ended(first)
    before = dump(world)
    again = wanted.call(name, request_id=request_id)
    assert type(again) is type(first)
    if not isinstance(first, Operation):
        assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)
    else:
        assert again.name == first.name
        assert not again.done  # as it was when it was answered first
    with refused("ALREADY_EXISTS", "REQUEST_ID_REUSED", "ALL-2", request_id=request_id, method=name):
        wanted.call(name, request_id=request_id, **wanted.wrong)
    assert dump(world) == before


@pytest.mark.rule("ALL-2")
def test_the_repeated_answer_is_the_first_byte_by_byte(world: World, stage: Stage) -> None:
    token, request_id = world.token(stage.owner.account_id), str(uuid4())
    requests: list[Message] = [
        v1.CopyImageRequest(image_id=stage.image, destinations=to(SHANGHAI), request_id=request_id),
        v1.ShareImageRequest(
            image_id=stage.image, account_ids=[stage.recipient.account_id], request_id=request_id.upper()
        ),
        v1.DeleteImageRequest(image_id=stage.shared, force=True, request_id=request_id),
    ]
    first = [send(world, token, request) for request in requests]
    assert all(first)
    assert [send(world, token, request) for request in requests] == first


@pytest.mark.rule("ALL-2")
def test_request_ids_are_apart_by_account_and_by_method(world: World) -> None:
    owner, other, request_id = world.tenant(), world.tenant(), str(uuid4())
    mine = import_image(owner, "stock", request_id=request_id)
    theirs = import_image(other, "stock", request_id=request_id)
    assert mine.name != theirs.name
    instance = world.launch(owner, request_id=request_id)
    owner.stop_instance(instance_id=instance.instance_id, request_id=request_id).result(timeout_seconds=20)
    owner.start_instance(instance_id=instance.instance_id, request_id=request_id).result(timeout_seconds=20)


@pytest.mark.rule("ALL-2")
def test_an_account_and_a_service_that_acts_for_it_repeat_each_others_requests(world: World) -> None:
    owner, request_id = world.tenant(), str(uuid4())
    first = import_image(owner, "stock", request_id=request_id)
    token = world.token("deployer", role="service", acts_for=["*"])
    with Client(world.address, token=token, account=owner.account_id) as service:
        assert import_image(service, "stock", request_id=request_id).name == first.name


@pytest.mark.rule("ALL-2")
def test_a_refused_request_is_not_remembered(world: World) -> None:
    owner, request_id = world.tenant(), str(uuid4())
    image = world.image(owner, "in the way")
    with refused("ALREADY_EXISTS", "IMAGE_NAME_TAKEN", "SEL-4", name="in the way", region_id=GUANGZHOU):
        import_image(owner, "in the way", request_id=request_id)
    owner.delete_image(image_id=image.image_id)
    assert import_image(owner, "in the way", request_id=request_id).result(timeout_seconds=20).name == "in the way"


@pytest.mark.rule("ALL-2")
def test_the_metadata_idempotency_key_is_a_request_id(world: World, stage: Stage) -> None:
    token, key = world.token(stage.owner.account_id), str(uuid4())
    request = v1.CopyImageRequest(image_id=stage.image, destinations=to(SHANGHAI))
    first = send(world, token, request, idempotency_key=key)
    assert send(world, token, request, idempotency_key=key) == first
    request.request_id = key
    assert send(world, token, request) == first
    request.copy_labels = True
    with refused("ALREADY_EXISTS", "REQUEST_ID_REUSED", "ALL-2", request_id=key, method="CopyImage"):
        send(world, token, request, idempotency_key=str(uuid4()))  # what the request itself names counts
    request.request_id = ""
    problem = 'must be a UUID, for example "7f1f6c1e-3b6f-4f6e-9d0e-2c5c5a8b6d21"'
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST", "ALL-5", problems=f"idempotency-key: {problem}"):
        send(world, token, request, idempotency_key="again")


# --- ALL-3

ID = re.compile(r"(?:img|ins|op|evt)-[0-9a-z]{8}")


def without_times(message: Message) -> Message:
    """The message without the moments in it."""
    bare = type(message)()
    bare.CopyFrom(message)
    for field, value in bare.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        if field.message_type.full_name == Timestamp.DESCRIPTOR.full_name:
            bare.ClearField(field.name)
        elif field.is_repeated:
            for each in value:
                each.CopyFrom(without_times(each))
        else:
            value.CopyFrom(without_times(value))
    return bare


def but_for_ids(answer: Any, known: set[str]) -> str:
    """What an answer says, without times and without ids that were not there before."""
    lines = str(without_times(fixed(answer))).splitlines()
    return "\n".join(line for line in lines if {*ID.findall(line)} <= known)


@pytest.mark.rule("ALL-3")
@every_mutation
def test_a_rehearsal_gives_the_answer_of_the_call_and_writes_nothing(world: World, stage: Stage, name: str) -> None:
    wanted, request_id = of_accounts(stage, name), str(uuid4())
    before = dump(world)
    rehearsed = wanted.call(name, validate_only=True, request_id=request_id)
    assert dump(world) == before
    called = wanted.call(name, request_id=request_id)
    known = {*ID.findall(str(before))}
    assert but_for_ids(rehearsed, known) == but_for_ids(called, known)
    assert {*ID.findall(str(fixed(rehearsed)))} <= known
    ended(called)
    assert dump(world) != before
    if isinstance(rehearsed, Operation):
        assert (rehearsed.name, rehearsed.done) == ("", False)
        with pytest.raises(ValueError, match="validate_only"):
            rehearsed.result()


@pytest.mark.rule("ALL-3")
@every_mutation
def test_a_rehearsal_is_refused_as_the_call_is(world: World, stage: Stage, name: str) -> None:
    wanted = of_accounts(stage, name)
    before = dump(world)
    told = []
    for validate_only in (True, False):
        with pytest.raises(Refused) as caught:
            wanted.call(name, validate_only=validate_only, **wanted.wrong)
        told.append(caught.value.args)
    assert told[0] == told[1]
    assert dump(world) == before


@pytest.mark.rule("ALL-3", "ALL-2")
def test_a_rehearsal_of_a_repeated_request_is_answered_as_the_repetition(world: World) -> None:
    owner, request_id = world.tenant(), str(uuid4())
    first = import_image(owner, "stock", request_id=request_id)
    ended(first)
    before = dump(world)
    assert import_image(owner, "stock", request_id=request_id, validate_only=True).name == first.name
    with refused("ALREADY_EXISTS", "REQUEST_ID_REUSED", "ALL-2", request_id=request_id, method="ImportImage"):
        import_image(owner, "other", request_id=request_id, validate_only=True)
    assert dump(world) == before


# --- ALL-4


def takes_etag(name: str) -> str:
    """The argument of the mutation that holds an etag; "" if none does."""
    holders = ("etag", "expected_image_etag", "image", "instance", "account")
    return next((str(field.name) for field in REQUESTS[name].fields if field.name in holders), "")


GUARDED = [name for name in MUTATIONS if takes_etag(name)]


def guarded(arguments: dict[str, Any], where: str, etag: str) -> dict[str, Any]:
    """The argument of the mutation that gives the etag."""
    if not where.endswith("etag"):
        resource = type(arguments[where])()
        resource.CopyFrom(arguments[where])
        resource.etag = etag
        return {where: resource}
    return {where: etag}


def resource_of(stage: Stage, name: str, arguments: dict[str, Any]) -> tuple[str, str]:
    """Id and etag of what the mutation is guarded by."""
    owner, operator = stage.owner, stage.world.operator
    if name == "UpdateAccount":
        account = operator.get_account(account_id=arguments["account"].account_id)
        return account.account_id, account.etag
    if "Instance" in name and name != "CreateInstance":
        instance_id = arguments["instance"].instance_id if "instance" in arguments else arguments["instance_id"]
        return instance_id, owner.get_instance(instance_id=instance_id).etag
    image_id = arguments["image"].image_id if "image" in arguments else arguments["image_id"]
    return image_id, owner.get_image(image_id=image_id).etag


@pytest.mark.rule("ALL-4")
@pytest.mark.parametrize("name", GUARDED)
def test_an_etag_if_given_must_match(world: World, stage: Stage, name: str) -> None:
    wanted = of_accounts(stage, name)
    resource_id, current = resource_of(stage, name, wanted.arguments)
    before = dump(world)
    said: dict[str, Any] = {"resource_id": resource_id, "given": "v0", "current": current}
    with refused("ABORTED", "ETAG_MISMATCH", "ALL-4", **said) as caught:
        wanted.call(name, **guarded(wanted.arguments, takes_etag(name), "v0"))
    assert not caught.value.retry_may_help  # not before it is read again
    assert dump(world) == before
    ended(wanted.call(name, **guarded(wanted.arguments, takes_etag(name), current)))
    assert dump(world) != before


@pytest.mark.rule("ALL-4")
def test_an_etag_is_another_after_every_change(world: World) -> None:
    owner = world.tenant()
    image = world.image(owner)
    etags = [image.etag]
    etags.append(rename(owner, image.image_id, "renamed", etag=etags[-1]).etag)
    etags.append(deprecate(owner, image.image_id, v1.Deprecation.STATE_OBSOLETE, etag=etags[-1]).etag)
    assert len({*etags}) == 3
    assert owner.get_image(image_id=image.image_id).etag == etags[-1]
    assert owner.check_image_actions(image_id=image.image_id).image_etag == etags[-1]
    said: dict[str, Any] = {"resource_id": image.image_id, "given": etags[0], "current": etags[-1]}
    with refused("ABORTED", "ETAG_MISMATCH", "ALL-4", **said):
        owner.delete_image(image_id=image.image_id, etag=etags[0])


def test_every_mutation_but_those_that_make_something_takes_an_etag() -> None:
    making = {"CreateImage", "ImportImage", "CopyImage", "PublishImage", "RegisterAccount"}
    assert {*MUTATIONS} - {*GUARDED} == making | {"LeaveImageShare", "SetQuotaLimit"}
    assert len(MUTATIONS) == 21


# --- ALL-5


@pytest.mark.rule("ALL-5")
def test_bad_input_is_refused_with_every_offending_field_named_at_once(world: World) -> None:
    with pytest.raises(Refused) as caught:
        import_image(
            world.tenant(),
            "n" * 61,
            "No Region",
            uri="",
            os=v1.OperatingSystem(platform="\u202eevil"),
            architecture=9,
            labels={"Bad key": ""},
            size_bytes=0,
            expected_checksum=v1.Checksum(algorithm=v1.Checksum.ALGORITHM_SHA256, value="AB"),
            request_id="1",
        )
    told = caught.value
    assert_told(told, "INVALID_ARGUMENT", "INVALID_REQUEST", "ALL-5", **told.metadata)
    assert {*told.violations} == {
        "name",
        "region_id",
        "uri",
        "os.family",
        "os.platform",
        "architecture",
        "labels",
        "size_bytes",
        "expected_checksum.value",
        "request_id",
    }
    assert told.violations["name"] == "must have at most 60 characters, has 61"
    assert "name: must have at most 60 characters, has 61" in told.message


@pytest.mark.rule("ALL-5")
@pytest.mark.parametrize(
    ("act", "field", "problem"),
    [
        (lambda client: client.get_image(image_id=""), "image_id", "must not be empty"),
        (lambda client: client.get_image(image_id="IMG-1"), "image_id", 'must be "img-" and 8 characters of [0-9a-z]'),
        (
            lambda client: [*client.list_images(region_id="-", page_size=-1)],
            "page_size",
            "must be 0 to 2147483647, is -1",
        ),
        (
            lambda client: client.update_image(image=v1.Image(image_id=ABSENT_IMAGE), update_mask=["owner_account_id"]),
            "update_mask",
            f"""must name only {UPDATABLE}, or be "*"; names 'owner_account_id'""",
        ),
        (
            lambda client: client.share_image(image_id=ABSENT_IMAGE, account_ids=["a", "b", "a"]),
            "account_ids[2]",
            "must not be the same as account_ids[0]",
        ),
        (
            lambda client: client.copy_image(image_id=ABSENT_IMAGE, destinations=to("a", "No")),
            "destinations[1].region_id",
            'must be a region, for example "ap-guangzhou"',
        ),
        (
            lambda client: client.check_image_actions(image_id=ABSENT_IMAGE, actions=["Fly"]),
            "actions[0]",
            f"must be one of {', '.join(IMAGE_ACTIONS)}",
        ),
        (
            lambda client: client.get_quota(quota_id=v1.QuotaId.QUOTA_ID_SHARES_PER_IMAGE),
            "image_id",
            "must be given for QUOTA_ID_SHARES_PER_IMAGE",
        ),
    ],
)
def test_a_malformed_field_is_named_with_its_path(
    world: World, act: Callable[[Client], object], field: str, problem: str
) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST", "ALL-5", problems=f"{field}: {problem}") as caught:
        act(world.tenant())
    assert caught.value.violations == {field: problem}


@pytest.mark.rule("ALL-5")
def test_bytes_that_are_no_request_are_malformed_too(world: World) -> None:
    problem = "its bytes are not a message of this type: not protobuf, not UTF-8, or nested too deep"
    for data in (b"\xff", b"\x0a\x02\xff\xff"):
        with refused("INVALID_ARGUMENT", "INVALID_REQUEST", "ALL-5", problems=f"(request): {problem}"):
            send_bytes(world, world.token("acme"), "/cunho.v1.ImageService/GetImage", data)


# --- ALL-6: of several refusals the first stage's is told


@pytest.mark.rule("ALL-6")
def test_credentials_come_before_the_shape_of_the_request(world: World) -> None:
    malformed = v1.GetImageRequest(image_id="?")
    with refused("UNAUTHENTICATED", "CREDENTIALS_MISSING", "ALL-1"):
        send(world, "", malformed)
    with refused("UNAUTHENTICATED", "CREDENTIALS_INVALID", "ALL-1"):
        send(world, "wrong", malformed)
    with refused("PERMISSION_DENIED", "ACTING_NOT_ALLOWED", "ALL-1", account_id="other"):
        send(world, world.token("acme"), malformed, cunho_account="other")
    with refused("UNAUTHENTICATED", "CREDENTIALS_MISSING", "ALL-1"):
        send_bytes(world, "", "/cunho.v1.ImageService/NoSuchMethod", b"\xff")


@pytest.mark.rule("ALL-6")
def test_the_shape_of_the_request_comes_before_visibility(world: World) -> None:
    owner = world.tenant()
    with pytest.raises(Refused) as caught:
        owner.copy_image(image_id=ABSENT_IMAGE, destinations=[])
    assert caught.value.reason == "INVALID_REQUEST"
    with refused("INVALID_ARGUMENT", "REGION_NOT_FOUND", "INS-1", region_id="nowhere"):
        owner.copy_image(image_id=ABSENT_IMAGE, destinations=to(SHANGHAI, "nowhere"))
    with refused("INVALID_ARGUMENT", "SHARE_WITH_SELF", "SHR-10", account_id=owner.account_id):
        owner.share_image(image_id=ABSENT_IMAGE, account_ids=[owner.account_id])
    with refused("INVALID_ARGUMENT", "INSTANCE_TYPE_NOT_FOUND", "INS-2", instance_type="S9.HUGE"):
        world.launch(owner, ABSENT_IMAGE, instance_type="S9.HUGE")


@pytest.mark.rule("ALL-6")
def test_the_shape_of_the_request_comes_before_permission(world: World) -> None:
    caller = world.tenant()
    with pytest.raises(Refused) as caught:
        import_image(world.operator, "stock", uri="https://example.org/stock.qcow2")
    assert caught.value.reason == "IMPORT_URI_NOT_ALLOWED"
    with refused("INVALID_ARGUMENT", "REGION_NOT_FOUND", "INS-1", region_id="nowhere"):
        publish(caller, "mine", "nowhere")
    problem = "it was given to another caller or for other arguments, or is not one that the service gave"
    with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN", "SEL-3", problem=problem):
        token = world.token(caller.account_id)
        send(world, token, v1.ListAccountsRequest(page_token="A" * 40), "cunho.v1.AccountService")


@pytest.mark.rule("ALL-6")
def test_visibility_comes_before_permission(world: World) -> None:
    caller, other = world.tenant(), world.tenant()
    image = world.image(other)
    with refused("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2", image_id=image.image_id):
        rename(caller, image.image_id, "mine")
    limit: dict[str, Any] = {"quota_id": v1.QuotaId.QUOTA_ID_CUSTOM_IMAGES, "region_id": GUANGZHOU, "limit": 99}
    with refused("NOT_FOUND", "ACCOUNT_NOT_FOUND", "SHR-10", account_ids=other.account_id):
        caller.set_quota_limit(account_id=other.account_id, **limit)
    with refused("PERMISSION_DENIED", "OPERATOR_ROLE_REQUIRED", "PUB-8", action="SetQuotaLimit"):
        caller.set_quota_limit(account_id=caller.account_id, **limit)
    with refused("NOT_FOUND", "INSTANCE_NOT_FOUND", "INS-6", instance_id=ABSENT_INSTANCE):
        world.image(world.operator, instance_id=ABSENT_INSTANCE)


@pytest.mark.rule("ALL-6")
def test_permission_comes_before_state(world: World, stage: Stage) -> None:
    suspend(world, stage.recipient.account_id)
    said: dict[str, Any] = {"image_id": stage.shared, "action": "CopyImage"}
    with refused("PERMISSION_DENIED", "SHARED_IMAGE_NOT_COPYABLE", "SHR-4", **said):
        stage.recipient.copy_image(image_id=stage.shared, destinations=to(GUANGZHOU))
    said = {"image_id": stage.shared, "action": "DeleteImage"}
    with refused("PERMISSION_DENIED", "SHARED_IMAGE_NOT_DELETABLE", "SHR-6", **said):
        stage.recipient.delete_image(image_id=stage.shared, etag="v0")
    said = {"instance_id": stage.stopped, "action": "StopInstance"}
    with refused("PERMISSION_DENIED", "INSTANCE_OWNER_ONLY", "INS-6", **said):
        world.operator.stop_instance(instance_id=stage.stopped, etag="v0")
    with refused("PERMISSION_DENIED", "OPERATOR_ROLE_REQUIRED", "PUB-8", action="RegisterAccount"):
        stage.owner.register_account(account_id=stage.recipient.account_id)


@pytest.mark.rule("ALL-6")
def test_state_comes_before_quota(world: World, stage: Stage) -> None:
    owner = stage.owner
    assert owner.get_image(image_id=stage.image).name == "own"
    custom, shares = v1.QuotaId.QUOTA_ID_CUSTOM_IMAGES, v1.QuotaId.QUOTA_ID_SHARES_PER_IMAGE
    world.operator.set_quota_limit(quota_id=custom, account_id=owner.account_id, region_id=GUANGZHOU, limit=2)
    world.operator.set_quota_limit(quota_id=shares, image_id=stage.shared, limit=1)
    with refused("ALREADY_EXISTS", "IMAGE_NAME_TAKEN", "SEL-4", name="own", region_id=GUANGZHOU):
        import_image(owner, "own")
    with refused("NOT_FOUND", "ACCOUNT_NOT_FOUND", "SHR-10", account_ids="nobody"):
        owner.share_image(image_id=stage.shared, account_ids=["nobody"])
    with refused("ABORTED", "ETAG_MISMATCH", "ALL-4", resource_id=stage.shared, given="v0", current="v2"):
        owner.share_image(image_id=stage.shared, account_ids=[world.tenant().account_id], etag="v0")
    suspend(world, owner.account_id)
    with refused(
        "FAILED_PRECONDITION", "ACCOUNT_SUSPENDED", "CUS-13", account_id=owner.account_id, action="ImportImage"
    ):
        import_image(owner, "new")


@pytest.mark.rule("ALL-6")
def test_an_explanation_evaluates_nothing_beyond_the_stage_that_refuses(world: World, stage: Stage) -> None:
    answer = stage.recipient.check_image_actions(
        image_id=stage.shared, actions=["ShareImage"], target_account_ids=["nobody"]
    )
    denied, skipped = v1.RuleOutcome.OUTCOME_DENIED, v1.RuleOutcome.OUTCOME_NOT_EVALUATED
    verdicts = [outcome.outcome for outcome in answer.decisions[0].outcomes]
    assert verdicts.count(denied) == 2  # sharing on, and not being the owner: of one stage
    assert {*verdicts[verdicts.index(denied) + 2 :]} == {skipped}
    demands = [outcome.demand for outcome in answer.decisions[0].outcomes]
    assert all(demand.endswith(".") for demand in demands)
