"""Every reason for a refusal is reached by a real call, and protos, table and answers say the same of it."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import grpc
import pytest
from google.rpc import code_pb2
from tests import world as worlds
from tests.end_to_end.steps import (
    GIB,
    Held,
    deprecate,
    import_image,
    publish,
    rename,
    send,
    send_bytes,
    suspend,
    to,
    until,
)
from tests.world import GUANGZHOU, SHANGHAI, ZONES, Postgres, Tenant, World

from cunho import Client, Refused, v1
from cunho_rules.refusals import REFUSALS, Code, Reason, Refusal, Retry, Violation
from cunho_rules.rules import RULES
from cunho_server import status, work
from cunho_server.images import ImageService
from cunho_storage import database

PROTO = Path(__file__).parents[2] / "protos/cunho/v1/error_reason.proto"
ABSENT = "img-00000000"
SECRET = "password=hunter2"  # in the text of errors that no caller may read
CUSTOM_IMAGES, SHARES = v1.QuotaId.QUOTA_ID_CUSTOM_IMAGES, v1.QuotaId.QUOTA_ID_SHARES_PER_IMAGE


@dataclass
class Scene:
    """What a call needs to be refused."""

    world: World
    driver: Held
    postgres: Postgres
    monkeypatch: pytest.MonkeyPatch

    def caller(self) -> Tenant:
        """A new account."""
        return self.world.tenant()

    def sharing(self) -> tuple[Tenant, Tenant, str]:
        """An owner, a recipient, and the image that the one shares with the other."""
        owner, recipient = self.world.tenant(), self.world.tenant()
        image_id = self.world.image(owner).image_id
        owner.share_image(image_id=image_id, account_ids=[recipient.account_id])
        return owner, recipient, image_id

    def launch(self, caller: Tenant, **more: Any) -> None:
        """Launches the public Debian, unless `more` says otherwise."""
        given: dict[str, Any] = {"image_id": self.world.public_image().image_id, "instance_type": "S5.MEDIUM4"}
        given |= {"region_id": GUANGZHOU, "zone_id": ZONES[GUANGZHOU]} | more
        caller.create_instance(**given)


@pytest.fixture
def scene(world: World, driver: Held, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(world, driver, postgres, monkeypatch)


REACHED: dict[Reason, Callable[[Scene], object]] = {}


def reaches(reason: Reason) -> Callable[[Callable[[Scene], object]], None]:
    """Says that the function makes a call that is refused with the reason."""

    def enter(act: Callable[[Scene], object]) -> None:
        REACHED[reason] = act

    return enter


@pytest.mark.parametrize("reason", Reason)
def test_a_real_call_is_refused_with_the_reason_as_the_table_has_it(reason: Reason, scene: Scene) -> None:
    with pytest.raises(Refused) as caught:
        REACHED[reason](scene)
    told, entry = caught.value, REFUSALS[reason]
    assert told.reason == reason
    assert told.code.name == entry.code
    assert told.metadata.keys() == entry.keys
    metadata: dict[str, Any] = {**told.metadata}
    refusal = Refusal(reason, **metadata)
    assert (told.message, told.remedy) == (str(refusal), refusal.remedy)
    assert told.rule in RULES
    assert told.retry_may_help == (entry.retry is Retry.CALL)
    assert told.retry == v1.Advice.Retry.Value(f"RETRY_{entry.retry}")
    assert SECRET not in str(told.args)


def test_every_reason_has_its_call() -> None:
    assert {*REACHED} == {*Reason}


# --- protos and table


def worded() -> dict[str, tuple[str, set[str]]]:
    """Code and metadata keys of each reason, as the comments of the proto word them."""
    found = {}
    for comment, name in re.findall(r"((?:  //[^\n]*\n)+)  ([A-Z_]+) = [1-9]", PROTO.read_text()):
        text = re.sub(r"\s*//\s*", " ", comment)
        keys = re.search(r"metadata: ([\w, ]+)", text)
        found[name] = (text.split(".")[0].strip(), {*keys[1].strip().split(", ")} if keys else set())
    return found


def test_the_enum_of_the_protos_the_reasons_and_the_table_have_the_same_names() -> None:
    assert {*v1.ErrorReason.keys()} - {"ERROR_REASON_UNSPECIFIED"} == {*Reason} == {*REFUSALS}


@pytest.mark.parametrize("reason", Reason)
def test_the_comment_of_a_reason_words_its_code_and_its_metadata(reason: Reason) -> None:
    assert worded()[reason] == (REFUSALS[reason].code, {*REFUSALS[reason].keys})


@pytest.mark.parametrize("reason", Reason)
def test_a_refusal_of_any_reason_becomes_a_status_with_its_code(reason: Reason) -> None:
    entry = REFUSALS[reason]
    violations = (Violation("name", "must not be empty"),) if reason is Reason.INVALID_REQUEST else ()
    refusal = Refusal(reason, violations=violations, **{key: f"<{key}>" for key in entry.keys})
    made = status.status(refusal)
    assert code_pb2.Code.Name(made.code) == entry.code
    assert status.code(refusal).name == entry.code
    told = Refused.from_status(made)
    assert (told.reason, told.rule, told.metadata) == (reason, entry.rule, {key: f"<{key}>" for key in entry.keys})
    assert bool(told.violations) == (entry.code is Code.INVALID_ARGUMENT)
    assert told.message.isprintable()
    assert told.remedy.endswith(".")


# --- credentials and input


@reaches(Reason.CREDENTIALS_MISSING)
def _(scene: Scene) -> None:
    send(scene.world, "", v1.GetImageRequest(image_id=ABSENT))


@reaches(Reason.CREDENTIALS_INVALID)
def _(scene: Scene) -> None:
    send(scene.world, "not.a.token", v1.GetImageRequest(image_id=ABSENT))


@reaches(Reason.ACTING_NOT_ALLOWED)
def _(scene: Scene) -> None:
    send(scene.world, scene.world.token("acme"), v1.GetImageRequest(image_id=ABSENT), cunho_account="globex")


@reaches(Reason.INVALID_REQUEST)
def _(scene: Scene) -> None:
    scene.caller().get_image(image_id="")


@reaches(Reason.INVALID_FILTER)
def _(scene: Scene) -> None:
    list(scene.caller().list_images(region_id="-", filter="colour = red"))


@reaches(Reason.INVALID_ORDER_BY)
def _(scene: Scene) -> None:
    list(scene.caller().list_images(region_id="-", order_by="colour"))


@reaches(Reason.INVALID_PAGE_TOKEN)
def _(scene: Scene) -> None:
    send(scene.world, scene.world.token("acme"), v1.ListImagesRequest(region_id="-", page_token="A" * 40))


@reaches(Reason.REQUEST_ID_REUSED)
def _(scene: Scene) -> None:
    caller, request_id = scene.caller(), str(uuid4())
    import_image(caller, "first", request_id=request_id)
    import_image(caller, "second", request_id=request_id)


@reaches(Reason.ETAG_MISMATCH)
def _(scene: Scene) -> None:
    caller = scene.caller()
    rename(caller, scene.world.image(caller).image_id, "renamed", etag="v0")


@reaches(Reason.METHOD_NOT_FOUND)
def _(scene: Scene) -> None:
    send_bytes(scene.world, scene.world.token("acme"), "/cunho.v1.ImageService/PaintImage", b"")


@reaches(Reason.REGION_NOT_FOUND)
def _(scene: Scene) -> None:
    list(scene.caller().list_images(region_id="nowhere"))


@reaches(Reason.ZONE_NOT_IN_REGION)
def _(scene: Scene) -> None:
    scene.launch(scene.caller(), zone_id=ZONES[SHANGHAI])


@reaches(Reason.INSTANCE_TYPE_NOT_FOUND)
def _(scene: Scene) -> None:
    scene.launch(scene.caller(), instance_type="S9.HUGE")


@reaches(Reason.IMPORT_URI_NOT_ALLOWED)
def _(scene: Scene) -> None:
    import_image(scene.caller(), "stock", uri="https://example.org/stock.qcow2")


@reaches(Reason.COPY_TO_SAME_REGION)
def _(scene: Scene) -> None:
    caller = scene.caller()
    caller.copy_image(image_id=scene.world.image(caller).image_id, destinations=to(GUANGZHOU))


@reaches(Reason.SHARE_WITH_SELF)
def _(scene: Scene) -> None:
    caller = scene.caller()
    caller.share_image(image_id=scene.world.image(caller).image_id, account_ids=[caller.account_id])


# --- visibility


@reaches(Reason.IMAGE_NOT_FOUND)
def _(scene: Scene) -> None:
    scene.caller().get_image(image_id=ABSENT)


@reaches(Reason.IMAGE_FAMILY_NOT_FOUND)
def _(scene: Scene) -> None:
    scene.caller().resolve_image(region_id=GUANGZHOU, family="beos")


@reaches(Reason.INSTANCE_NOT_FOUND)
def _(scene: Scene) -> None:
    scene.caller().get_instance(instance_id="ins-00000000")


@reaches(Reason.OPERATION_NOT_FOUND)
def _(scene: Scene) -> None:
    scene.caller().get_operation(name="operations/op-00000000")


@reaches(Reason.ACCOUNT_NOT_FOUND)
def _(scene: Scene) -> None:
    scene.world.operator.get_account(account_id="nobody")


# --- permission


@reaches(Reason.OPERATOR_ROLE_REQUIRED)
def _(scene: Scene) -> None:
    list(scene.caller().list_accounts())


@reaches(Reason.ACCOUNT_ROLE_REQUIRED)
def _(scene: Scene) -> None:
    import_image(scene.world.operator, "stock")


@reaches(Reason.PUBLIC_IMAGE_READ_ONLY)
def _(scene: Scene) -> None:
    scene.caller().delete_image(image_id=scene.world.public_image().image_id)


@reaches(Reason.SHARED_IMAGE_NOT_MODIFIABLE)
def _(scene: Scene) -> None:
    _, recipient, image_id = scene.sharing()
    rename(recipient, image_id, "mine")


@reaches(Reason.SHARED_IMAGE_NOT_COPYABLE)
def _(scene: Scene) -> None:
    _, recipient, image_id = scene.sharing()
    recipient.copy_image(image_id=image_id, destinations=to(SHANGHAI))


@reaches(Reason.SHARED_IMAGE_NOT_RESHAREABLE)
def _(scene: Scene) -> None:
    owner, recipient, image_id = scene.sharing()
    recipient.unshare_image(image_id=image_id, account_ids=[owner.account_id])


@reaches(Reason.SHARED_IMAGE_NOT_DELETABLE)
def _(scene: Scene) -> None:
    _, recipient, image_id = scene.sharing()
    recipient.delete_image(image_id=image_id)


@reaches(Reason.SHARED_IMAGE_SHARES_HIDDEN)
def _(scene: Scene) -> None:
    _, recipient, image_id = scene.sharing()
    list(recipient.list_image_shares(image_id=image_id))


@reaches(Reason.IMAGE_OWNER_ONLY)
def _(scene: Scene) -> None:
    scene.world.operator.delete_image(image_id=scene.world.image(scene.caller()).image_id)


@reaches(Reason.INSTANCE_OWNER_ONLY)
def _(scene: Scene) -> None:
    scene.world.operator.stop_instance(instance_id=scene.world.launch(scene.caller()).instance_id)


# --- state


@reaches(Reason.ACCOUNT_SUSPENDED)
def _(scene: Scene) -> None:
    caller = scene.caller()
    suspend(scene.world, caller.account_id)
    scene.launch(caller)


@reaches(Reason.ACCOUNT_NOT_IN_REGION)
def _(scene: Scene) -> None:
    scene.launch(scene.world.tenant(SHANGHAI))


@reaches(Reason.ACCOUNT_ALREADY_EXISTS)
def _(scene: Scene) -> None:
    scene.world.operator.register_account(account_id=scene.caller().account_id)


@reaches(Reason.ACCOUNT_REGION_IN_USE)
def _(scene: Scene) -> None:
    caller = scene.caller()
    scene.world.launch(caller)
    account = v1.Account(account_id=caller.account_id, region_ids=[SHANGHAI])
    scene.world.operator.update_account(account=account, update_mask=["region_ids"])


@reaches(Reason.IMAGE_NAME_TAKEN)
def _(scene: Scene) -> None:
    publish(scene.world.operator, scene.world.public_image().name)


@reaches(Reason.IMAGE_STATE_INVALID)
def _(scene: Scene) -> None:
    caller = scene.caller()
    with scene.driver.holding("import"):
        (image_id,) = import_image(caller, "stock").metadata.target_ids
        deprecate(caller, image_id, v1.Deprecation.STATE_OBSOLETE)


@reaches(Reason.IMAGE_BUSY)
def _(scene: Scene) -> None:
    caller = scene.caller()
    with scene.driver.holding("import"):
        (image_id,) = import_image(caller, "stock").metadata.target_ids
        caller.delete_image(image_id=image_id)


@reaches(Reason.IMAGE_SHARED)
def _(scene: Scene) -> None:
    owner, _, image_id = scene.sharing()
    owner.delete_image(image_id=image_id)


@reaches(Reason.IMAGE_OBSOLETE)
def _(scene: Scene) -> None:
    caller = scene.caller()
    image_id = scene.world.image(caller).image_id
    deprecate(caller, image_id, v1.Deprecation.STATE_OBSOLETE)
    scene.launch(caller, image_id=image_id)


@reaches(Reason.REPLACEMENT_NOT_PUBLIC)
def _(scene: Scene) -> None:
    operator, image_id = scene.world.operator, scene.world.image(scene.caller()).image_id
    deprecate(
        operator,
        publish(operator, "replaced by a custom image").image_id,
        v1.Deprecation.STATE_DEPRECATED,
        replacement_image_id=image_id,
    )


@reaches(Reason.IMAGE_REGION_MISMATCH)
def _(scene: Scene) -> None:
    scene.launch(scene.caller(), image_id=scene.world.public_image(SHANGHAI).image_id)


@reaches(Reason.IMAGE_INCOMPATIBLE_WITH_INSTANCE_TYPE)
def _(scene: Scene) -> None:
    scene.launch(scene.caller(), instance_type="SR1.MEDIUM4")


@reaches(Reason.IMAGE_NOT_SHARED_WITH_CALLER)
def _(scene: Scene) -> None:
    scene.caller().leave_image_share(image_id=scene.world.public_image().image_id)


@reaches(Reason.IMAGE_FORMAT_MISMATCH)
def _(scene: Scene) -> None:
    import_image(scene.caller(), "stock", format=v1.ImportImageRequest.FORMAT_RAW)


@reaches(Reason.IMAGE_TOO_LARGE)
def _(scene: Scene) -> None:
    import_image(scene.caller(), "stock", size_bytes=51 * GIB)


@reaches(Reason.SHARE_REGION_MISMATCH)
def _(scene: Scene) -> None:
    owner, _, image_id = scene.sharing()
    owner.share_image(image_id=image_id, account_ids=[scene.world.tenant(SHANGHAI).account_id])


@reaches(Reason.INSTANCE_BUSY)
def _(scene: Scene) -> None:
    caller = scene.caller()
    instance_id = scene.world.launch(caller).instance_id
    with scene.driver.holding("reboot"):
        caller.reboot_instance(instance_id=instance_id)
        caller.stop_instance(instance_id=instance_id)


@reaches(Reason.INSTANCE_STATE_INVALID)
def _(scene: Scene) -> None:
    caller = scene.caller()
    caller.start_instance(instance_id=scene.world.launch(caller).instance_id)


@reaches(Reason.INSTANCE_REGION_MISMATCH)
def _(scene: Scene) -> None:
    caller = scene.caller()
    caller.create_image(region_id=SHANGHAI, instance_id=scene.world.launch(caller).instance_id, name="elsewhere")


@reaches(Reason.OPERATION_RUNNING)
def _(scene: Scene) -> None:
    caller = scene.caller()
    with scene.driver.holding("import"):
        caller.delete_operation(name=import_image(caller, "stock").name)


# --- quota


@reaches(Reason.CUSTOM_IMAGE_QUOTA_EXCEEDED)
def _(scene: Scene) -> None:
    caller = scene.caller()
    scene.world.operator.set_quota_limit(
        quota_id=CUSTOM_IMAGES, account_id=caller.account_id, region_id=GUANGZHOU, limit=0
    )
    import_image(caller, "stock")


@reaches(Reason.SHARE_QUOTA_EXCEEDED)
def _(scene: Scene) -> None:
    owner, _, image_id = scene.sharing()
    scene.world.operator.set_quota_limit(quota_id=SHARES, image_id=image_id, limit=1)
    owner.share_image(image_id=image_id, account_ids=[scene.caller().account_id])


@reaches(Reason.QUOTA_BELOW_USAGE)
def _(scene: Scene) -> None:
    _, _, image_id = scene.sharing()
    scene.world.operator.set_quota_limit(quota_id=SHARES, image_id=image_id, limit=0)


# --- operations that do not succeed


@reaches(Reason.OPERATION_CANCELLED)
def _(scene: Scene) -> None:
    with scene.driver.holding("import"):
        operation = import_image(scene.caller(), "stock")
        operation.cancel()
        operation.result(timeout_seconds=20)


@reaches(Reason.OPERATION_FAILED)
def _(scene: Scene) -> None:
    scene.monkeypatch.setattr(work, "_PAUSE_SECONDS", 0)
    with scene.driver.failing("import", RuntimeError(SECRET)):
        import_image(scene.caller(), "stock").result(timeout_seconds=20)


# --- a broken world


@contextmanager
def unreachable(world: World) -> Iterator[None]:
    """The server's database lets nobody in, and has thrown out who was there."""
    path = urlsplit(world.dsn).path
    name = path.removeprefix("/")

    async def let(in_: bool) -> None:
        connection = await asyncpg.connect(world.dsn.replace(path, "/postgres"))
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {in_}")
        await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        await connection.close()

    asyncio.run(let(False))
    try:
        yield
    finally:
        asyncio.run(let(True))


@reaches(Reason.DATABASE_UNAVAILABLE)
def _(scene: Scene) -> None:
    with worlds.world(scene.postgres, workers=0) as world, unreachable(world):
        once = grpc.insecure_channel(world.address)  # of our own, which does not try again
        with Client(once, token=world.token("acme")) as client:
            client.get_image(image_id=ABSENT)


@reaches(Reason.TRANSACTION_CONFLICT)
def _(scene: Scene) -> None:
    scene.monkeypatch.setitem(database.SESSION, "lock_timeout", "50")
    with worlds.world(scene.postgres) as world:
        caller = world.tenant()
        image_id = world.image(caller).image_id

        async def renamed_while_locked() -> None:
            connection = await asyncpg.connect(world.dsn)
            try:
                async with connection.transaction():
                    await connection.execute("SELECT FROM image WHERE image_id = $1 FOR UPDATE", image_id)
                    await asyncio.to_thread(rename, caller, image_id, "renamed")
            finally:
                await connection.close()

        asyncio.run(renamed_while_locked())


@contextmanager
def silent(scene: Scene, **settings: Any) -> Iterator[tuple[World, Client, threading.Event]]:
    """A service one of whose methods answers when it is told to, a client that does not try again, and who tells."""
    let = threading.Event()

    async def waiting(self: ImageService, request: object, context: object) -> v1.Image:
        await asyncio.to_thread(let.wait, 20)
        return v1.Image()

    scene.monkeypatch.setattr(ImageService, "ResolveImage", waiting)
    with worlds.world(scene.postgres, workers=0, **settings) as world:
        once = grpc.insecure_channel(world.address, [("grpc.enable_retries", 0)])
        with Client(once, token=world.token("acme")) as client:
            try:
                yield world, client, let
            finally:
                let.set()


@reaches(Reason.TOO_MANY_CALLS)
def _(scene: Scene) -> None:
    with silent(scene, calls_per_account_max=1) as (world, client, let), ThreadPoolExecutor(1) as others:
        waiting = others.submit(client.resolve_image, region_id=GUANGZHOU, family="debian-12")
        try:
            until(lambda: world.service.admission.calls == 1)
            client.get_image(image_id=ABSENT)
        finally:
            let.set()
            waiting.result(20)


@reaches(Reason.CALL_TIMED_OUT)
def _(scene: Scene) -> None:
    with silent(scene, call_seconds_max=1) as (_, client, _):
        client.resolve_image(region_id=GUANGZHOU, family="debian-12")


@reaches(Reason.SERVICE_STOPPING)
def _(scene: Scene) -> None:
    with silent(scene) as (world, client, _):
        world.service.admission.close()
        client.get_image(image_id=ABSENT)


@reaches(Reason.INTERNAL_ERROR)
def _(scene: Scene) -> None:
    async def broken(self: ImageService, request: object, context: object) -> None:
        raise RuntimeError(SECRET)

    scene.monkeypatch.setattr(ImageService, "ResolveImage", broken)
    with worlds.world(scene.postgres) as world:
        world.operator.resolve_image(region_id=GUANGZHOU, family="debian-12")
