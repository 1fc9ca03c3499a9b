"""Images as bytes: what is kept beside a row, and added to it, is the message that the whole row makes."""

import asyncio
import zlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.end_to_end.steps import import_image, rename, send_bytes
from tests.world import GUANGZHOU, Tenant, World

from cunho import v1 as pb
from cunho_rules.model import BEING_MADE, Caller, DeprecationState, Image, ImageState, Origin, Role, ShownImage
from cunho_rules.pricing import Quote
from cunho_server import messages, shown
from cunho_storage import images
from cunho_storage.database import Connection

TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
IMAGE = Image(
    image_id="img-00000001",
    name="web",
    description="with all that it needs",
    region_id="eu-frankfurt",
    owner_account_id="acme",
    origin="IMPORTED",
    state="AVAILABLE",
    failure_reason="CHECKSUM",
    failure_message="is another",
    os_family="WINDOWS",
    os_platform="windows-server",
    os_version="2022",
    architecture="X86_64",
    size_bytes=5,
    min_disk_bytes=6,
    min_memory_bytes=7,
    family="web",
    labels={"tier": "front"},
    deprecation_state="DEPRECATED",
    replacement_image_id="img-00000002",
    deprecation_message="take the other",
    content_uri="store:web.qcow2",
    checksum_algorithm="SHA256",
    checksum_value="ab",
    source_image_id="img-00000003",
    source_region_id="eu-frankfurt",
    source_instance_id="ins-00000004",
    source_uri="https://example.org/web.qcow2",
    copy_owner_account_id=None,
    software=[{"name": "java", "version": "21"}],
    share_count=3,
    share_limit=50,
    support_kind="VENDOR",
    support_contact_uri="https://example.org/help",
    support_note="by day",
    cloud_init=True,
    boot_mode="UEFI",
    quote=Quote("eu-frankfurt", 5, "EUR", 11, 12, 13)._asdict(),
    version=8,
    create_time=TIME,
    update_time=TIME,
    delete_time=None,
    jurisdiction="INTERNATIONAL",
    currency="EUR",
    image_storage_nanos=14,
    windows_license_nanos=15,
    shared_with_caller=True,
)

images_of_any_kind = st.builds(
    IMAGE._replace,
    name=st.text(max_size=60),
    owner_account_id=st.sampled_from(["acme", None]),
    origin=st.sampled_from([*Origin]),
    state=st.sampled_from([*ImageState]),
    failure_reason=st.sampled_from(["", "CHECKSUM"]),
    os_family=st.sampled_from(["LINUX", "WINDOWS"]),
    labels=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    deprecation_state=st.sampled_from([*DeprecationState]),
    checksum_value=st.sampled_from(["", "ab"]),
    source_image_id=st.sampled_from(["img-00000003", None]),
    software=st.lists(st.just({"name": "java", "version": "21"}), max_size=3),
    share_count=st.integers(0, 50),
    support_kind=st.sampled_from(["", "VENDOR"]),
    quote=st.sampled_from([IMAGE.quote, None]),
    version=st.integers(1, 2**40),
    delete_time=st.sampled_from([TIME, None]),
    windows_license_nanos=st.integers(0, 2),
)


def row(image: Image, message: bytes | None) -> ShownImage:
    """What a read finds of the image."""
    values = image._asdict()
    return ShownImage(**{name: values[name] for name in ShownImage._fields[:-1] if name != "message"}, message=message)


@given(images_of_any_kind, st.sampled_from(["acme", "globex"]))
def test_the_bytes_of_an_image_are_its_message_to_everybody_who_sees_it(image: Image, account_id: str) -> None:
    caller = Caller(account_id, Role.ACCOUNT, account_id)
    message = shown.message_of(caller, row(image, shown.kept(image)))
    assert message is not None
    assert pb.Image.FromString(message) == messages.image(caller, image)


def test_what_is_kept_of_another_version_or_in_another_format_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    caller, kept = Caller("acme", Role.ACCOUNT, "acme"), shown.kept(IMAGE)
    assert shown.message_of(caller, row(IMAGE, kept))
    assert shown.message_of(caller, row(IMAGE, None)) is None
    assert shown.message_of(caller, row(IMAGE._replace(version=9), kept)) is None
    monkeypatch.setattr(shown, "FORMAT", shown.FORMAT + 1)
    assert shown.message_of(caller, row(IMAGE, kept)) is None


def test_the_format_is_another_when_what_is_kept_is() -> None:
    """If this fails, count `shown.FORMAT` up, and give its number the new sum."""
    assert {1: 771077454}.get(shown.FORMAT) == zlib.crc32(shown.kept(IMAGE))


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5), st.text(max_size=5))
def test_a_page_is_put_together_as_protobuf_does(sizes: list[bytes], token: str) -> None:
    images = [pb.Image(description=data.hex()) for data in sizes]
    page = shown.list_response([image.SerializeToString() for image in images], token)
    assert pb.ListImagesResponse.FromString(page) == pb.ListImagesResponse(images=images, next_page_token=token)


# --- on a real server


@pytest.fixture
def tenant(world: World) -> Tenant:
    return world.tenant()


def kept(world: World, image_id: str) -> bytes | None:
    ((message,),) = world.sql("SELECT message FROM image WHERE image_id = $1", image_id)
    assert message is None or isinstance(message, bytes)
    return message


def test_the_first_read_keeps_the_message_and_a_change_makes_the_next_one_keep_it_again(
    world: World, tenant: Tenant
) -> None:
    image_id = import_image(tenant, "stock").result(20).image_id
    assert kept(world, image_id) is None
    assert tenant.get_image(image_id=image_id).name == "stock"
    first = kept(world, image_id)
    assert first
    assert tenant.get_image(image_id=image_id).name == "stock"
    rename(tenant, image_id, "other")
    assert kept(world, image_id) == first
    (listed,) = tenant.list_images(region_id=GUANGZHOU, filter="kind = CUSTOM")
    assert (listed.name, tenant.get_image(image_id=image_id)) == ("other", listed)
    assert kept(world, image_id) not in (first, None)


def test_nobody_can_tell_whether_an_image_was_read_before(world: World, tenant: Tenant) -> None:
    image_id = import_image(tenant, "stock").result(20).image_id
    asked = pb.ListImagesRequest(region_id=GUANGZHOU, filter="kind = CUSTOM").SerializeToString()
    for method, data in (
        ("GetImage", pb.GetImageRequest(image_id=image_id).SerializeToString()),
        ("ListImages", asked),
    ):
        world.sql("UPDATE image SET message = NULL WHERE image_id = $1", image_id)
        token = world.token(tenant.account_id)
        first, second = (send_bytes(world, token, f"/cunho.v1.ImageService/{method}", data) for _ in range(2))
        assert first == second


@pytest.mark.parametrize("read_before", [True, False])
def test_who_shares_an_image_is_answered_it_as_a_read_shows_it(
    world: World, tenant: Tenant, *, read_before: bool
) -> None:
    image_id, recipient = import_image(tenant, "stock").result(20).image_id, world.tenant()
    for share in (tenant.share_image, tenant.set_image_shares):
        rename(tenant, image_id, f"by {share.__name__}")  # what is kept is of an older version now
        if read_before:
            tenant.get_image(image_id=image_id)
        answered = share(image_id=image_id, account_ids=[recipient.account_id]).image
        assert answered == tenant.get_image(image_id=image_id)
        assert answered.sharing.account_count == 1


def test_who_shares_an_image_that_is_renamed_before_it_is_read_whole_is_answered_the_new_one(
    world: World, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id, recipient = import_image(tenant, "stock").result(20).image_id, world.tenant()
    original = images.get

    async def get(connection: Connection, *arguments: Any) -> Any:
        monkeypatch.setattr(images, "get", original)
        await asyncio.to_thread(rename, tenant, image_id, "other")
        return await original(connection, *arguments)

    monkeypatch.setattr(images, "get", get)
    answered = tenant.share_image(image_id=image_id, account_ids=[recipient.account_id]).image
    assert (answered.name, answered) == ("other", tenant.get_image(image_id=image_id))


def test_a_page_with_an_image_that_is_not_kept_is_answered_whole(world: World, tenant: Tenant) -> None:
    named = [import_image(tenant, f"image {number}").result(20) for number in range(3)]
    before = [*tenant.list_images(region_id=GUANGZHOU, order_by="name", page_size=2)]
    world.sql("UPDATE image SET message = NULL WHERE image_id = $1", named[1].image_id)
    assert [*tenant.list_images(region_id=GUANGZHOU, order_by="name", page_size=2)] == before
    assert [*tenant.list_images(region_id=GUANGZHOU, order_by="name", page_size=2)] == before


def test_an_image_that_another_holds_is_read_without_waiting(world: World, tenant: Tenant) -> None:
    image_id = import_image(tenant, "stock").result(20).image_id

    async def held() -> pb.Image:
        async with world.database.transaction() as connection:
            await connection.script(f"SELECT FROM image WHERE image_id = '{image_id}' FOR UPDATE")
            return await asyncio.to_thread(lambda: tenant.get_image(image_id=image_id, timeout_seconds=1.5))

    assert world.run(held()).name == "stock"
    assert kept(world, image_id) is None


def test_an_image_that_is_being_made_is_shown_as_it_is(world: World, tenant: Tenant) -> None:
    operation = import_image(tenant, "stock")
    (image_id,) = operation.metadata.target_ids
    seen = tenant.get_image(image_id=image_id)
    assert pb.Image.State.Name(seen.state).removeprefix("STATE_") in {*BEING_MADE, "AVAILABLE"}
    operation.result(20)
    assert tenant.get_image(image_id=image_id).state == pb.Image.STATE_AVAILABLE
