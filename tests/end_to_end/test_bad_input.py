"""Whatever is wrong in a request, whichever RPC it is sent to: every field at fault is named, and nothing is written.

What is wrong is made from the descriptors, so that a new RPC or field is attacked from the day it is there.
"""

import asyncio
import gzip
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import asyncpg
import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.longrunning.operations_pb2 import GetOperationRequest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from grpc import StatusCode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import world as worlds
from tests.end_to_end.requests_of import (
    BY_NAME,
    RPCS,
    TRAILERS_SIZE_BYTES_MAX,
    Answer,
    Ids,
    Place,
    Rpc,
    call,
    is_map,
    is_part,
    places,
    required,
    valid,
)
from tests.world import GUANGZHOU, Postgres, Tenant, World

from cunho import v1 as pb
from cunho_server import shape
from cunho_server.settings import Settings
from cunho_server.tokens import Signer

#: What a server answers that did not expect the call, or that is not there.
UNEXPECTED = {StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}

every_rpc = pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)


class Wire(NamedTuple):
    """A caller without a client: it sends bytes."""

    channel: grpc.Channel
    token: str
    account_id: str

    def send(self, rpc: Rpc | str, request: Message | bytes, *metadata: tuple[str, str]) -> Answer:
        """What the service answers; every answer must fit into what clients accept."""
        path = rpc if isinstance(rpc, str) else rpc.path
        data = request if isinstance(request, bytes) else request.SerializeToString()
        answer = call(self.channel, path, data, self.token, *metadata)
        assert answer.trailers_size_bytes <= TRAILERS_SIZE_BYTES_MAX
        return answer


def everything_stored(world: World) -> dict[str, list[str]]:
    """Every row of every table."""

    async def read() -> dict[str, list[str]]:
        connection = await asyncpg.connect(world.dsn)
        try:
            tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            return {
                table: sorted(
                    row[0]
                    for row in await connection.fetch(f"SELECT (to_jsonb(t) - 'message')::text FROM \"{table}\" t")
                )
                for (table,) in tables
            }
        finally:
            await connection.close()

    return asyncio.run(read())


@pytest.fixture(scope="module")
def wire(world: World) -> Iterator[Wire]:
    """An account's bytes. Once all tests of the file have run, the database must be as it was before."""
    tenant = world.tenant()
    world.launch(tenant)
    before = everything_stored(world)
    with grpc.insecure_channel(world.address) as channel:
        yield Wire(channel, world.token(tenant.account_id), tenant.account_id)
    assert everything_stored(world) == before


# --- what is wrong


class Wrong(NamedTuple):
    """One way for a field to be wrong."""

    what: str
    #: Makes the field of this message wrong.
    make: Callable[[Any], object]
    #: What violations name, after the name of the field itself.
    at: str = ""


TEXTS = {
    "NUL": "a\0b",
    "an escape": "a\x1bb",
    "a C1 control": "a\x85b",
    "a bidirectional override": "a\u202eb",
    "a bidirectional isolate": "a\u2066b",
    "a zero-width space": "a\u200bb",
    "a zero-width joiner": "a\u200db",
    "a byte order mark": "a\ufeffb",
    "a line separator": "a\u2028b",
    "a soft hyphen": "a\u00adb",
    "a Hangul filler": "a\u3164b",
    "a variation selector": "a\ufe0fb",
    "a combining grapheme joiner": "a\u034fb",
    "a tag character": "a\U000e0041b",
    "a noncharacter": "a\uffffb",
    "not NFC": "e\u0301",
    "too long": "x" * 5000,
    "far too long, of four bytes each": "\U0001f600" * 5000,
}

#: What no id, name of a place or token may be, but a name of the caller's choice.
_WORDS = ("A B", "é", "img-0000000\n", "'", "%00", "*", "${x}", "a/b")

#: What looks like an id and is none.
_IDS = ("{}-0000000", "{}-000000000", "{}-0000000A", "{}_00000000", "00000000", "xyz-00000000", " {}-00000000", "{}-")

#: Fields that take any text that can be seen.
_FREE = (
    "description display_name etag expected_image_etag filter image_name message name note"
    " order_by platform uri version"
).split()


_ENTRIES: dict[str, dict[str, str]] = {
    "an empty key": {"": "x"},
    "a key in capitals": {"Env": "x"},
    "a key that starts with a digit": {"1": "x"},
    "a key of 64": {"k" * 64: "x"},
    "a key of 5000": {"語" * 5000: "x"},
    "NUL in a key": {"a\0": "x"},
    "NUL in a value": {"a": "\0"},
    "a value of 64": {"a": "x" * 64},
    "a value not NFC": {"a": "e\u0301"},
    "65 entries": {f"k{number}": "" for number in range(65)},
}

_PATHS = (["nope"], ["image_id"], ["etag"], ["create_time"], ["name", "nope"], ["labels.env"], ["\0"], [""], ["Name"])


def wrongs(place: Place) -> Iterator[Wrong]:
    """Every way for the field to be wrong."""
    field, name = place.field, place.field.name
    if name in ("timeout", "return_partial_success"):  # the server pays no heed to them
        return
    if is_map(field):
        yield from (Wrong(what, _entries(name, entries)) for what, entries in _ENTRIES.items())
    elif field.message_type is not None and field.message_type.name == "FieldMask":
        yield Wrong("left out", lambda owner: owner.ClearField(name))
        yield from (Wrong(f"mask {paths}", _mask(name, paths)) for paths in (*_PATHS, ["\U000e0001" * 60] * 20))
    elif field.is_repeated:
        yield from _wrong_lists(field)
    elif field.message_type is not None:
        if required(field):
            yield Wrong("left out", lambda owner: owner.ClearField(name))
    else:
        if required(field) and name != "limit":  # 0 is a limit
            yield Wrong("left out", lambda owner: owner.ClearField(name))
        yield from (Wrong(what, _set(name, value)) for what, value in _wrong_values(field))


def _wrong_values(field: FieldDescriptor) -> Iterator[tuple[str, Any]]:
    if field.enum_type is not None:
        yield from ((f"unknown number {number}", number) for number in (-1, 99, 2**31 - 1, -(2**31)))
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        yield from TEXTS.items()
        yield from ((repr(text), text) for text in _wrong_words(field))
    elif field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64):
        bits = 31 if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 else 63
        yield from ((str(value), value) for value in (-1, -(2**bits)))
        if field.name != "page_size":
            yield str(2**bits - 1), 2**bits - 1


def _wrong_words(field: FieldDescriptor) -> Iterator[str]:
    name = field.name.removesuffix("s")
    if name not in _FREE or field.full_name.endswith("OperationRequest.name"):
        yield from _WORDS
    for end, prefix in (("image_id", "img"), ("instance_id", "ins")):
        if name.endswith(end):
            yield from (form.format(prefix) for form in _IDS)


def _wrong_lists(field: FieldDescriptor) -> Iterator[Wrong]:
    name = field.name
    if required(field):
        yield Wrong("left out", lambda owner: owner.ClearField(name))
    yield Wrong("far too many", lambda owner: getattr(owner, name).extend([getattr(owner, name)[0]] * 1100))
    if name != "software":  # the same software may be there twice
        yield Wrong("one twice", lambda owner: getattr(owner, name).append(getattr(owner, name)[0]), "[1]")
    if field.message_type is None:
        for text in ("", *TEXTS.values(), *_wrong_words(field)):
            yield Wrong(repr(text[:20]), _appended(name, text), "[1]")


def _set(name: str, value: Any) -> Callable[[Any], object]:
    return lambda owner: setattr(owner, name, value)


def _appended(name: str, value: Any) -> Callable[[Any], object]:
    return lambda owner: getattr(owner, name).append(value)


def _entries(name: str, entries: dict[str, str]) -> Callable[[Any], object]:
    return lambda owner: getattr(owner, name).update(entries)


def _mask(name: str, paths: list[str]) -> Callable[[Any], object]:
    def make(owner: Any) -> None:
        getattr(owner, name).paths[:] = paths

    return make


# --- one wrong field


@every_rpc
def test_a_valid_request_is_not_malformed(wire: Wire, rpc: Rpc) -> None:
    assert wire.send(rpc, valid(rpc)).code not in {*UNEXPECTED, StatusCode.INVALID_ARGUMENT}


@every_rpc
def test_each_wrong_field_is_named_and_no_other(wire: Wire, rpc: Rpc) -> None:
    missed = []
    for place in places(rpc.request.DESCRIPTOR):
        for wrong in wrongs(place):
            request = valid(rpc)
            wrong.make(place.owner(request))
            answer = wire.send(rpc, request)
            if (answer.reason, named(answer)) != ("INVALID_REQUEST", [place.name + wrong.at]):
                missed.append((place.name, wrong.what, answer.code, answer.message, named(answer)))
    assert missed == []


def named(answer: Answer) -> list[str]:
    return [field for field, _ in answer.violations]


# --- many wrong fields


@every_rpc
def test_all_wrong_fields_are_named_at_once(wire: Wire, rpc: Rpc) -> None:
    request = valid(rpc)
    expected = set()
    for place in places(rpc.request.DESCRIPTOR):
        # What takes a part of the request away would hide what is wrong in it.
        kept = [wrong for wrong in wrongs(place) if not (is_part(place.field) or place.field.name == "update_mask")]
        if wrong := next((wrong for wrong in kept if wrong.what != "left out"), None):
            wrong.make(place.owner(request))
            expected.add(place.name + wrong.at)
    assert set(named(wire.send(rpc, request))) == expected


MANY = {
    "BatchGetImages": pb.BatchGetImagesRequest(image_ids=["\0"] * 100),
    "ShareImage": pb.ShareImageRequest(account_ids=[""] * 1000, etag="\0", request_id="x"),
    "UnshareImage": pb.UnshareImageRequest(account_ids=[f"É{number}" for number in range(1000)]),
    "SetImageShares": pb.SetImageSharesRequest(account_ids=["\U0001f600" * 60] * 1000),
    "CheckImageActions": pb.CheckImageActionsRequest(target_account_ids=["語" * 5000] * 200),
    "RegisterAccount": pb.RegisterAccountRequest(account_id="語" * 5000, region_ids=["\0"] * 100),
    "CopyImage": pb.CopyImageRequest(destinations=[pb.CopyImageRequest.Destination(name="\0")] * 20),
    "PublishImage": pb.PublishImageRequest(
        name="\0", software=[pb.Software(name="語" * 999)] * 100, labels={"\U000e0001" * 99: ""}
    ),
}


@pytest.mark.parametrize("name", MANY)
def test_of_very_many_wrong_fields_the_first_are_named_and_the_others_counted(wire: Wire, name: str) -> None:
    answer = wire.send(BY_NAME[name], MANY[name])
    assert answer.reason == "INVALID_REQUEST"
    *first, (last, count) = answer.violations
    assert len(first) > 3
    assert last == "..."
    assert re.fullmatch(r"\d+ more", count)


@pytest.mark.parametrize("character", ["x", "é", "語", "\U0001f600", "\U000e0001", "'", "%"])
def test_what_is_quoted_of_a_wrong_field_is_short(wire: Wire, character: str) -> None:
    long = character * 3000
    request = pb.UpdateImageRequest(
        image=pb.Image(image_id=long, name=long, labels={long: long}, family=long, etag=long),
        update_mask=FieldMask(paths=["labels", "name", "family", *[long] * 100]),
        request_id=long,
    )
    at_fault = {
        "image.image_id",
        "image.name",
        "image.labels",
        "image.family",
        "image.etag",
        "update_mask",
        "request_id",
    }
    assert set(named(wire.send("/cunho.v1.ImageService/UpdateImage", request))) == at_fault


@pytest.mark.parametrize("character", ["x", "é", "語", "\U0001f600"])
@pytest.mark.parametrize(
    "form", ["https://{}/disk.raw", "{}://example.org/disk.raw", "https://example.org/{}.raw", "{}"]
)
def test_what_is_quoted_of_a_uri_is_short(wire: Wire, form: str, character: str) -> None:
    request = valid(BY_NAME["ImportImage"])
    request.uri = form.format(character * 2000)
    answer = wire.send(BY_NAME["ImportImage"], request)
    assert (answer.reason, named(answer)) == ("IMPORT_URI_NOT_ALLOWED", ["uri"])


def test_unknown_masks_leave_nothing_behind(wire: Wire) -> None:
    request = valid(BY_NAME["UpdateImage"])
    request.update_mask.paths[:] = ["nope"]
    wire.send(BY_NAME["UpdateImage"], request)
    kept = shape._finders.cache_info().currsize
    for number in range(50):
        request.update_mask.paths[:] = [f"other_{number}"]
        wire.send(BY_NAME["UpdateImage"], request)
    assert shape._finders.cache_info().currsize == kept


# --- filters, orders, and what else a list is asked by

LISTS = [rpc for rpc in RPCS if "page_token" in rpc.request.DESCRIPTOR.fields_by_name]
FILTERED = [rpc for rpc in LISTS if "filter" in rpc.request.DESCRIPTOR.fields_by_name]
ORDERED = [rpc for rpc in LISTS if "order_by" in rpc.request.DESCRIPTOR.fields_by_name]

#: Wrong filters, and the offset of the character at fault.
FILTERS = {
    "nope = 1": 0,
    "create_time": 11,
    "create_time >": 13,
    "create_time = yesterday": 14,
    'create_time > "9999-12-31T23:59:59-23:59"': 14,
    "create_time = 2026-01-31T12:00:00Z OR": 37,
    "create_time = 2026-01-31T12:00:00Z create_time = 2026-01-31T12:00:00Z": 35,
    "(" * 2000: 2000,
    "NOT NOT create_time = 1": 4,
    "create_time : 1": 12,
    '"create_time" = 1': 0,
    "create_time = '": 14,
    "create_time = 1; DROP TABLE image": 17,
    "語 = 1": 0,
    " OR ".join(["create_time = 2026-01-31T12:00:00Z"] * 50): -1,
}

ORDERS = {
    "nope": 0,
    "create_time sideways": 12,
    "create_time,": 12,
    "create_time, create_time": 13,
    ",": 0,
    "語" * 2000: 0,
}


@pytest.mark.parametrize("rpc", FILTERED, ids=lambda rpc: rpc.name)
def test_a_wrong_filter_is_refused_where_it_is_wrong(wire: Wire, rpc: Rpc) -> None:
    for text, position in FILTERS.items():
        request = valid(rpc)
        request.filter = text
        answer = wire.send(rpc, request)
        if position < 0:
            assert answer.code is StatusCode.OK
        else:
            assert (answer.reason, named(answer)) == ("INVALID_FILTER", ["filter"]), text
            assert answer.violations[0][1].startswith(f"at {position}: "), text


@pytest.mark.parametrize("rpc", ORDERED, ids=lambda rpc: rpc.name)
def test_a_wrong_order_is_refused_where_it_is_wrong(wire: Wire, rpc: Rpc) -> None:
    for text, position in ORDERS.items():
        request = valid(rpc)
        request.order_by = text
        answer = wire.send(rpc, request)
        assert (answer.reason, named(answer)) == ("INVALID_ORDER_BY", ["order_by"])
        assert answer.violations[0][1].startswith(f"at {position}: ")


@pytest.mark.parametrize("rpc", LISTS, ids=lambda rpc: rpc.name)
def test_the_largest_page_size_is_taken_for_a_thousand(wire: Wire, world: World, rpc: Rpc) -> None:
    request = valid(rpc)
    request.page_size = 2**31 - 1
    answer = wire.send(rpc, request)
    assert answer.code in (StatusCode.OK, StatusCode.NOT_FOUND, StatusCode.PERMISSION_DENIED)


# --- names of nothing that everybody may know of

UNKNOWN = [
    ("ListImages", "region_id", "region_id", "xx-nowhere"),
    ("ListImages", "usable_with_instance_type", "usable_with_instance_type", "XXL"),
    ("ListInstances", "region_id", "region_id", "xx-nowhere"),
    ("ResolveImage", "region_id", "region_id", "xx-nowhere"),
    ("CreateImage", "region_id", "region_id", "xx-nowhere"),
    ("ImportImage", "region_id", "region_id", "xx-nowhere"),
    ("CopyImage", "destinations[0].region_id", "destinations", "xx-nowhere"),
    ("PublishImage", "region_id", "region_id", "xx-nowhere"),
    ("CreateInstance", "region_id", "region_id", "xx-nowhere"),
    ("CreateInstance", "zone_id", "zone_id", "xx-nowhere-1"),
    ("CreateInstance", "instance_type", "instance_type", "XXL"),
    ("GetQuota", "region_id", "region_id", "xx-nowhere"),
    ("SetQuotaLimit", "region_id", "region_id", "xx-nowhere"),
    ("RegisterAccount", "region_ids", "region_ids", "xx-nowhere"),
    ("UpdateAccount", "account.region_ids", "account.region_ids", "xx-nowhere"),
]


@pytest.mark.parametrize(("name", "wrong", "at", "value"), UNKNOWN)
def test_a_region_zone_or_type_that_is_not_there_is_named_by_its_field(
    wire: Wire, name: str, wrong: str, at: str, value: str
) -> None:
    request = valid(BY_NAME[name])
    (place,) = [place for place in places(request.DESCRIPTOR) if place.name == wrong]
    if place.field.is_repeated:
        getattr(place.owner(request), place.field.name)[:] = [value]
    else:
        setattr(place.owner(request), place.field.name, value)
    answer = wire.send(BY_NAME[name], request)
    assert (answer.code, named(answer)) == (StatusCode.INVALID_ARGUMENT, [at])
    assert value in answer.message


# --- bytes that are no request


def tagged(number: int, payload: bytes) -> bytes:
    """A field of some length, as protobuf encodes it."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def within(place: Place, payload: bytes) -> bytes:
    """The request that has nothing but this field."""
    for field in reversed(place.fields):
        payload = tagged(field.number, payload)
    return payload


def texts(place: Place) -> list[Callable[[bytes], bytes]]:
    """What makes the content of the field from a text in it, for each text that it has."""
    field = place.field
    if is_map(field):
        return [lambda text: tagged(1, text), lambda text: tagged(1, b"a") + tagged(2, text)]
    if field.message_type is not None and field.message_type.name == "FieldMask":
        return [lambda text: tagged(1, text)]
    return [lambda text: text] if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else []


_NOT_UTF8 = (b"\xff", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xc0\x80", b"a\xe8\xaa", b"\xf4\x90\x80\x80", b"\x80")


@every_rpc
def test_text_that_is_not_utf8_is_refused(wire: Wire, rpc: Rpc) -> None:
    for place in places(rpc.request.DESCRIPTOR):
        for content in texts(place):
            for text in _NOT_UTF8:
                answer = wire.send(rpc, valid(rpc).SerializeToString() + within(place, content(text)))
                assert (answer.reason, named(answer)) == ("INVALID_REQUEST", ["(request)"]), (place.name, text)


NO_MESSAGE = {
    "one byte": b"\xff",
    "text": b"GET / HTTP/1.1",
    "field 0": b"\0\0",
    "a length beyond the end": b"\x0a\x7f",
    "a length of 2 GiB": b"\x0a\xff\xff\xff\xff\x07",
    "a number that never ends": b"\x08" + b"\xff" * 11,
    "wire type 7": b"\x0f",
    "a group that is not closed": varint(999 << 3 | 3),
    "the end of a group that was not begun": varint(999 << 3 | 4),
    "a group closed as another": varint(999 << 3 | 3) + varint(998 << 3 | 4),
    "groups 200 deep": varint(999 << 3 | 3) * 200 + varint(999 << 3 | 4) * 200,
    "groups 100,000 deep": varint(999 << 3 | 3) * 100_000 + varint(999 << 3 | 4) * 100_000,
    "3 MiB of zeroes": bytes(3 << 20),
}


@every_rpc
def test_bytes_that_are_no_message_are_refused(wire: Wire, rpc: Rpc) -> None:
    for what, data in NO_MESSAGE.items():
        answer = wire.send(rpc, data)
        assert (answer.reason, named(answer)) == ("INVALID_REQUEST", ["(request)"]), what


@every_rpc
def test_a_request_cut_anywhere_is_refused_or_read_as_far_as_it_goes(wire: Wire, rpc: Rpc) -> None:
    data = valid(rpc).SerializeToString()
    for length in range(0, len(data), 3):
        assert wire.send(rpc, data[:length]).code not in UNEXPECTED


@every_rpc
def test_fields_that_do_not_exist_change_nothing(wire: Wire, rpc: Rpc) -> None:
    plain, answered = valid(rpc).SerializeToString(), wire.send(rpc, valid(rpc))
    answer = wire.send(rpc, plain + tagged(19_999, b"\xff\0" * 100) + varint(19_998 << 3) + b"\x01")
    assert (answer.code, answer.trailers) == (answered.code, answered.trailers)


HUGE = {
    "BatchGetImages": pb.BatchGetImagesRequest(image_ids=["img-00000000"] * 280_000),
    "CheckInstanceActions": pb.CheckInstanceActionsRequest(instance_id="ins-00000000", actions=[""] * 1_900_000),
    "CopyImage": pb.CopyImageRequest(destinations=[pb.CopyImageRequest.Destination()] * 1_900_000),
    "GetImage": pb.GetImageRequest(image_id="i" * 4_000_000),
    "GetOperation": GetOperationRequest(name="operations/" + "o" * 4_000_000),
    "ListImages": pb.ListImagesRequest(region_id="-", filter="(" * 4_000_000),
    "CreateImage": pb.CreateImageRequest(labels={f"key-{number}": "" for number in range(250_000)}),
    "UpdateImage": pb.UpdateImageRequest(image=pb.Image(), update_mask=FieldMask(paths=["name"] * 600_000)),
    "UpdateInstance": pb.UpdateInstanceRequest(update_mask=FieldMask(paths=map(str, range(420_000)))),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_request_of_nearly_4_mib_is_refused_for_what_is_wrong_in_it(wire: Wire, name: str) -> None:
    assert 3 << 20 < HUGE[name].ByteSize() < 4 << 20
    assert wire.send(BY_NAME[name], HUGE[name]).reason == "INVALID_REQUEST"


def test_a_request_of_more_than_4_mib_is_not_read(wire: Wire) -> None:
    assert wire.send(BY_NAME["GetImage"], bytes(5 << 20)).code is StatusCode.RESOURCE_EXHAUSTED


def test_what_swells_to_more_than_4_mib_is_not_read(world: World, wire: Wire) -> None:
    options = [("grpc.default_compression_algorithm", grpc.Compression.Gzip.value)]
    bomb = bytes(64 << 20)
    assert len(gzip.compress(bomb)) < 1 << 20
    with grpc.insecure_channel(world.address, options=options) as channel:
        answer = call(channel, BY_NAME["GetImage"].path, bomb, wire.token)
    assert answer.code is StatusCode.RESOURCE_EXHAUSTED


# --- calls of nothing

NOWHERE = (
    "/cunho.v1.ImageService/DropImage",
    "/cunho.v1.ImageService/getimage",
    "/cunho.v1.ImageService/",
    "/cunho.v1.ImageService",
    "/cunho.v2.ImageService/GetImage",
    "/google.longrunning.Operations/Nope",
    "/google.longrunning.nope/Nope",
    "/grpc.health.v1.Health/Nope",
    "/grpc.health.v1.Health/List",
    "/grpc.reflection.v9.ServerReflection/Nope",
    "/nope",
    "/",
    "/" + "x" * 4000,
    "/cunho.v1.ImageService/%00%ff",
)


@pytest.mark.parametrize("path", NOWHERE)
@pytest.mark.parametrize("data", [b"", b"\xff"])
def test_a_method_that_does_not_exist_is_said_to_be_none(wire: Wire, path: str, data: bytes) -> None:
    answer = wire.send(path, data)
    assert (answer.code, answer.reason) == (StatusCode.UNIMPLEMENTED, "METHOD_NOT_FOUND")


@pytest.mark.parametrize("path", ["/cunho.v1.ImageService/GetImage", "/cunho.v1.ImageService/Nope"])
def test_a_stream_where_one_message_is_meant_is_answered_by_its_first(wire: Wire, path: str) -> None:
    request = pb.GetImageRequest(image_id="img-00000000").SerializeToString()
    stream: Any = wire.channel.stream_stream(path)
    metadata = (("authorization", f"Bearer {wire.token}"),)
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(iter([request] * 3), timeout=10, metadata=metadata))
    assert caught.value.code() is wire.send(path, request).code


# --- calls of nobody


def credentials(world: World, wire: Wire) -> dict[str, tuple[str, str]]:
    """Headers that entitle to nothing, and the reason."""
    head, claims, signature = wire.token.split(".")
    stranger = Signer(Ed25519PrivateKey.generate(), Settings.model_validate({}))
    return {
        "none": ("x-nothing", "x"),
        "empty": ("authorization", ""),
        "another scheme": ("authorization", f"Basic {wire.token}"),
        "no scheme": ("authorization", wire.token),
        "not a token": ("authorization", "Bearer x"),
        "a changed signature": ("authorization", f"Bearer {head}.{claims}.{signature[::-1]}"),
        "no signature": ("authorization", f"Bearer {head}.{claims}."),
        "signed by another": ("authorization", f"Bearer {stranger.token(wire.account_id, 'account', seconds=60)}"),
        "expired": ("authorization", f"Bearer {world.signer.token(wire.account_id, 'account', seconds=-60)}"),
        "another issuer's": ("authorization", f"Bearer {world.signer.token('a b', 'account', seconds=60)}"),
    }


def test_nobody_learns_anything_whatever_is_called_and_whatever_is_wrong(world: World, wire: Wire) -> None:
    nobody = wire._replace(token="")
    called: list[Rpc | str] = [*RPCS, *NOWHERE]
    for what, header in credentials(world, wire).items():
        answers = {
            nobody.send(rpc, data, header)
            for rpc in called
            for data in (b"", b"\xff", *([] if isinstance(rpc, str) else [valid(rpc).SerializeToString()]))
        }
        (answer,) = answers
        assert answer.code is StatusCode.UNAUTHENTICATED
        assert answer.reason == ("CREDENTIALS_MISSING" if what == "none" else "CREDENTIALS_INVALID"), what


# --- idempotency-key, the metadata that stands for request_id

MUTATIONS = [
    rpc
    for rpc in RPCS
    if rpc.name.startswith(("Cancel", "DeleteOp")) or "request_id" in rpc.request.DESCRIPTOR.fields_by_name
]


@pytest.mark.parametrize("rpc", MUTATIONS, ids=lambda rpc: rpc.name)
@pytest.mark.parametrize(
    "key", ["x", "7f1f6c1e3b6f4f6e9d0e2c5c5a8b6d21", "7f1f6c1e-3b6f-4f6e-9d0e-2c5c5a8b6d21,", "-" * 36]
)
def test_an_idempotency_key_that_is_no_uuid_is_refused(wire: Wire, rpc: Rpc, key: str) -> None:
    request = valid(rpc)
    if hasattr(request, "request_id"):
        request.request_id = ""
    answer = wire.send(rpc, request, ("idempotency-key", key))
    assert (answer.reason, named(answer)) == ("INVALID_REQUEST", ["idempotency-key"])


# --- anything at all


def anything(rpc: Rpc, ids: Ids) -> st.SearchStrategy[Message]:
    """Requests with some fields right, some wrong and some missing."""
    fields = [place for place in places(rpc.request.DESCRIPTOR) if not is_part(place.field)]

    def changed(request: Message, changes: list[tuple[Place, Any]]) -> Message:
        for place, change in changes:
            change(place.owner(request))
        return request

    changes = st.sampled_from(fields).flatmap(lambda place: st.tuples(st.just(place), change(place.field, ids)))
    begun = st.sampled_from([valid(rpc, ids), valid(rpc), rpc.request()])
    return st.builds(lambda begin, changes: changed(copy(begin), changes), begun, st.lists(changes, max_size=5))


def copy(message: Message) -> Message:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def change(field: FieldDescriptor, ids: Ids) -> st.SearchStrategy[Callable[[Any], object]]:
    """Ways to give the field another value, whatever it is."""
    name = field.name
    text = st.sampled_from([*ids, *SAMPLES, *TEXTS.values()]) | st.text(max_size=80)
    if is_map(field):
        return st.dictionaries(text, text, max_size=3).map(lambda value: _entries(name, value))
    if field.message_type is not None and field.message_type.name == "FieldMask":
        return st.lists(st.sampled_from([*SAMPLES]) | text, max_size=3).map(lambda value: _mask(name, value))
    if field.message_type is not None:  # a Duration
        seconds = st.sampled_from([0, -1, 2**63 - 1, -(2**63)])
        return seconds.map(lambda value: lambda owner: setattr(getattr(owner, name), "seconds", value))
    if field.enum_type is not None:
        one: st.SearchStrategy[Any] = st.integers(-1, 12)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        one = st.booleans()
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        one = text
    else:
        bits = 31 if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 else 63
        one = st.sampled_from([0, 1, 2, 100]) | st.integers(-(2**bits), 2**bits - 1)
    if field.is_repeated:
        return st.lists(one, max_size=3).map(lambda value: lambda owner: getattr(owner, name).extend(value))
    return one.map(lambda value: _set(name, value))


#: Texts that are right somewhere.
SAMPLES = (
    *("*", "-", "", "name", "labels", "region_ids", "state", "min_disk_bytes"),
    *(GUANGZHOU, "eu-frankfurt", "ap-guangzhou-4", "S5.SMALL1", "SR1.MEDIUM4", "v1", "CopyImage", "StartInstance"),
    *(
        "name desc",
        "create_time, name",
        'name = "a*" OR state = AVAILABLE',
        "labels.env:x AND NOT bits = 32",
        "done=true",
    ),
    *("https://cloud.debian.org/disk.qcow2", "a name", "another name", "AAAA", "7f1f6c1e-3b6f-4f6e-9d0e-2c5c5a8b6d21"),
)


@pytest.fixture(scope="module")
def playground(postgres: Postgres) -> Iterator[tuple[World, Tenant, Ids]]:
    """A service in which anything may be done to an account's things."""
    with worlds.world(postgres) as world:
        tenant = world.tenant()
        instance = world.launch(tenant)
        image = world.image(tenant, instance_id=instance.instance_id)
        operation = next(tenant.list_operations())
        yield world, tenant, Ids(image.image_id, instance.instance_id, operation.name, tenant.account_id)


def test_no_request_whatever_meets_a_bug(playground: tuple[World, Tenant, Ids]) -> None:
    world, tenant, ids = playground
    tokens = [world.token(tenant.account_id), world.token("operator", "operator"), world.token("acc-unknown")]
    codes: Counter[StatusCode] = Counter()

    @settings(
        max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
    )
    @given(
        st.sampled_from(RPCS).flatmap(lambda rpc: st.tuples(st.just(rpc), anything(rpc, ids))), st.sampled_from(tokens)
    )
    def sends(sent: tuple[Rpc, Message], token: str) -> None:
        rpc, request = sent
        answer = Wire(channel, token, "").send(rpc, request)
        assert answer.code not in UNEXPECTED, answer.message
        codes[answer.code] += 1

    with grpc.insecure_channel(world.address) as channel:
        sends()
    assert codes[StatusCode.OK] > 20, "too few requests get through to where bugs are"
    assert codes[StatusCode.INVALID_ARGUMENT] > 20
