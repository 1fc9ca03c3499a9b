"""Steps that the tests of the rules share: refusals looked at whole, explanations held against them, short requests.

No rule is repeated here: what is refused and why, each test says itself.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import PreconditionFailure, QuotaFailure
from tests.world import GUANGZHOU, World

from cunho import Client, Operation, Refused, v1

GIB = 1 << 30
STOCK_URI = "https://cloud.debian.org/images/stock.qcow2"
SHA256 = v1.Checksum(algorithm=v1.Checksum.ALGORITHM_SHA256, value="0" * 64)

#: What a refusal of each code tells beyond ErrorInfo and Advice.
_TOLD_BY_CODE = {
    "INVALID_ARGUMENT": {"google.rpc.BadRequest"},
    "RESOURCE_EXHAUSTED": {"google.rpc.QuotaFailure"},
    "FAILED_PRECONDITION": {"google.rpc.PreconditionFailure"},
}


class Held:
    """A compute driver whose actions can be held back or made to fail, by the name of the action, or in one region."""

    def __init__(self) -> None:
        self._held: set[tuple[str, str]] = set()
        self._failing: dict[tuple[str, str], Exception] = {}

    async def act(self, action: str, region_id: str, target_id: str) -> None:
        """Does nothing, once it is let."""
        here = ((action, ""), (action, region_id))
        while not self._held.isdisjoint(here):
            await asyncio.sleep(0.005)
        for failure in filter(None, map(self._failing.get, here)):
            raise failure

    @contextmanager
    def holding(self, *actions: str, region_id: str = "") -> Iterator[None]:
        """Operations stay in those actions until the block is left."""
        held = {(action, region_id) for action in actions}
        self._held |= held
        try:
            yield
        finally:
            self._held -= held

    @contextmanager
    def failing(self, action: str, failure: Exception, *, region_id: str = "") -> Iterator[None]:
        """The action fails within the block."""
        self._failing[action, region_id] = failure
        try:
            yield
        finally:
            del self._failing[action, region_id]


# --- refusals


@contextmanager
def refused(code: str, reason: str, rule: str, **metadata: object) -> Iterator[pytest.ExceptionInfo[Refused]]:
    """What the block does is refused so: with this code, reason, rule and exactly this metadata, and all that fits."""
    with pytest.raises(Refused) as caught:
        yield caught
    assert_told(caught.value, code, reason, rule, **metadata)


def assert_told(told: Refused, code: str, reason: str, rule: str, **metadata: object) -> None:
    """The refusal has this code, reason, rule and metadata, a remedy, and the details that its code calls for."""
    said = (told.code.name, told.reason, told.rule, told.metadata)
    expected = (code, reason, rule, {key: str(value) for key, value in metadata.items()})
    assert said == expected, f"\n{said}\n{expected}"
    assert told.message
    assert told.remedy.endswith("."), told.remedy
    kinds = {"google.rpc.ErrorInfo", "cunho.v1.Advice", *_TOLD_BY_CODE.get(code, ())}
    kinds |= {"google.rpc.RetryInfo"} if told.retry_may_help else set()
    assert {detail.TypeName() for detail in told.args[2]} == kinds
    assert bool(told.violations) == (code == "INVALID_ARGUMENT")
    subjects = {f"{key}:{value}" for key, value in told.metadata.items()}
    for quota in detail_of(told, QuotaFailure).violations:
        assert quota.subject in subjects
        assert quota.description == told.message
    for precondition in detail_of(told, PreconditionFailure).violations:
        assert (precondition.type, precondition.description) == (reason, told.message)
        assert not precondition.subject or precondition.subject in subjects


def detail_of(told: Refused, kind: type[Any]) -> Any:
    """The detail of that type; an empty one if there is none."""
    found = kind()
    for detail in told.args[2]:
        detail.Unpack(found)
    return found


def assert_explained(told: Refused, answer: v1.CheckImageActionsResponse | v1.CheckInstanceActionsResponse) -> None:
    """The explanation of the one action asked for denies it first of all as the real call was refused."""
    (decision,) = answer.decisions
    denied = next(each for each in decision.outcomes if each.outcome == v1.RuleOutcome.OUTCOME_DENIED)
    said = (denied.reason, denied.message, dict(denied.metadata), denied.rule, denied.remedy)
    assert said == (told.reason, told.message, told.metadata, told.rule, told.remedy), said
    assert denied.demand.endswith(".")
    assert not decision.allowed
    assert not decision.warnings


# --- calls that the client does not make


def send(world: World, token: str, request: Message, service: str = "cunho.v1.ImageService", **metadata: str) -> bytes:
    """The bytes of the answer to a request, named as its RPC with "Request" added. Raises Refused.

    Args:
        token: "" for none.
        metadata: sent along, with "_" for "-" in the keys.
    """
    method = f"/{service}/{request.DESCRIPTOR.name.removesuffix('Request')}"
    return send_bytes(world, token, method, request.SerializeToString(), **metadata)


def send_bytes(world: World, token: str, method: str, data: bytes, **metadata: str) -> bytes:
    """The bytes of the answer to bytes sent to a method. Raises Refused."""
    sent = [(key.replace("_", "-"), value) for key, value in metadata.items()]
    sent += [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(world.address) as channel:
        call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        try:
            return call(data, metadata=tuple(sent), timeout=20)
        except grpc.RpcError as error:
            raise Refused.from_call(error) from None


# --- waiting


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Waits for the condition, also on a busy machine. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the condition does not come true")
        time.sleep(0.005)


#: Locks an image by its id.
IMAGE_LOCKED = "SELECT FROM image WHERE image_id = $1 FOR UPDATE"
_WAITING = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def overtaken(world: World, act: Callable[[], Any], lock: str, change: str, of: str) -> Any:
    """What a call gives that waits for what is locked until a change is committed; both are SQL with `of` as $1."""

    async def changed() -> Any:
        connection = await asyncpg.connect(world.dsn)
        async with connection.transaction():
            await connection.execute(lock, of)
            acting = asyncio.get_running_loop().run_in_executor(pool, act)
            await asyncio.to_thread(until, lambda: world.sql(_WAITING))
            await connection.execute(change, of)
        await connection.close()
        return await acting

    with ThreadPoolExecutor(1) as pool:
        return asyncio.run(changed())


# --- short requests


def to(*region_ids: str) -> list[v1.CopyImageRequest.Destination]:
    """Destinations of a copy."""
    return [v1.CopyImageRequest.Destination(region_id=region_id) for region_id in region_ids]


def rename(client: Client, image_id: str, name: str, **more: Any) -> v1.Image:
    """Renames an image."""
    etag = more.pop("etag", "")
    image = v1.Image(image_id=image_id, name=name, etag=etag)
    return client.update_image(image=image, update_mask=["name"], **more)


def deprecate(client: Client, image_id: str, state: v1.Deprecation.State.ValueType, **more: Any) -> v1.Image:
    """Retires an image as far as `state`."""
    replacement = more.pop("replacement_image_id", "")
    deprecation = v1.Deprecation(state=state, replacement_image_id=replacement)
    return client.deprecate_image(image_id=image_id, deprecation=deprecation, **more)


def import_image(client: Client, name: str, region_id: str = GUANGZHOU, **more: Any) -> Operation[v1.Image]:
    """Imports a Linux image for X86_64 of 2 GiB with a disk of 10 GiB, unless `more` says otherwise."""
    stock: dict[str, Any] = {
        "uri": STOCK_URI,
        "format": v1.ImportImageRequest.FORMAT_QCOW2,
        "os": v1.OperatingSystem(family=v1.OsFamily.OS_FAMILY_LINUX, platform="debian", version="12"),
        "architecture": v1.Architecture.ARCHITECTURE_X86_64,
        "size_bytes": 2 * GIB,
        "min_disk_bytes": 10 * GIB,
    }
    return client.import_image(region_id=region_id, name=name, **stock | more)


def publish(operator: Client, name: str, region_id: str = GUANGZHOU, **more: Any) -> v1.Image:
    """Publishes a Linux image for X86_64, unless `more` says otherwise."""
    stock: dict[str, Any] = {
        "os": v1.OperatingSystem(family=v1.OsFamily.OS_FAMILY_LINUX, platform="ubuntu", version="24.04"),
        "architecture": v1.Architecture.ARCHITECTURE_X86_64,
        "content": v1.ImageContent(uri="store:ubuntu-24.04.qcow2", checksum=SHA256),
        "size_bytes": GIB,
        "min_disk_bytes": 10 * GIB,
        "support": v1.Support(kind=v1.Support.KIND_COMMUNITY, contact_uri="https://ubuntu.com/community"),
    }
    return operator.publish_image(region_id=region_id, name=name, **stock | more)


def suspend(world: World, account_id: str) -> None:
    """Suspends an account."""
    account = v1.Account(account_id=account_id, state=v1.Account.STATE_SUSPENDED)
    world.operator.update_account(account=account, update_mask=["state"])


def names(images: Iterable[v1.Image]) -> list[str]:
    """The names of the images, sorted."""
    return sorted(image.name for image in images)
