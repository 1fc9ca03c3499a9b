"""The table of shapes agrees with the protos: with their messages, their fields, and what their comments promise."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.api.field_behavior_pb2 import IMMUTABLE, OUTPUT_ONLY
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from tests.end_to_end.requests_of import BY_NAME, RPCS, Place, Rpc, behaves, is_map, places, required, valid

from cunho import v1 as pb
from cunho_rules.refusals import Reason, Violation
from cunho_rules.shapes import PARTS, REQUESTS, Each, Enum, Mask
from cunho_rules.shapes import Message as Part
from cunho_server.shape import masked, refusal, violations

PROTOS = Path(__file__).parents[2] / "protos" / "cunho" / "v1"


def described(name: str) -> Any:
    """The descriptor of a request or part; of a shape that one place alone has, that of the message there."""
    outer, _, inner = name.partition(" of ")[0].partition(".")
    found: Any = ASKED.get(outer) or getattr(pb, outer).DESCRIPTOR
    return found.nested_types_by_name[inner] if inner else found


ASKED: dict[str, Any] = {rpc.request.DESCRIPTOR.name: rpc.request.DESCRIPTOR for rpc in RPCS}

# --- the table and the descriptors


def test_every_request_has_its_shape_and_every_shape_its_request() -> None:
    assert REQUESTS.keys() == ASKED.keys()


@pytest.mark.parametrize("name", REQUESTS)
def test_the_shape_of_a_request_has_exactly_its_fields(name: str) -> None:
    assert {*REQUESTS[name]} == {*described(name).fields_by_name}


@pytest.mark.parametrize("name", PARTS)
def test_the_shape_of_a_part_has_exactly_the_fields_that_a_caller_sends(name: str) -> None:
    sent = {field.name for field in described(name).fields if not behaves(field, OUTPUT_ONLY, IMMUTABLE)}
    assert PARTS[name].keys() == sent


def test_every_part_is_a_part_of_some_request() -> None:
    used = {
        place.field.message_type.name
        for rpc in RPCS
        for place in places(rpc.request.DESCRIPTOR)
        if place.field.message_type
    }
    assert {name.split(" of ")[0].split(".")[-1] for name in PARTS} <= used
    named = {shape.shape for shapes in REQUESTS.values() for shape in shapes.values() if isinstance(shape, Part)}
    assert {name for name in PARTS if " of " in name} == named - {""}


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, shapes in (REQUESTS | PARTS).items() for field in shapes]
)
def test_a_shape_is_of_the_kind_of_its_field(name: str, field: str) -> None:
    shape = (REQUESTS | PARTS)[name][field]
    declared = described(name).fields_by_name[field]
    assert isinstance(shape, Each) == (declared.is_repeated and not is_map(declared))
    item = shape.item if isinstance(shape, Each) else shape
    assert isinstance(item, Enum) == (declared.enum_type is not None)
    message = declared.message_type
    ours = message is not None and message.file.package == "cunho.v1" and not is_map(declared)
    assert isinstance(item, Part) == ours
    assert isinstance(item, Mask) == (message is not None and message.name == "FieldMask")


@pytest.mark.parametrize("name", [name for name, shapes in REQUESTS.items() if "update_mask" in shapes])
def test_a_mask_allows_what_a_caller_sends_but_id_and_etag(name: str) -> None:
    mask = REQUESTS[name]["update_mask"]
    assert isinstance(mask, Mask)
    part = described(name).fields_by_name[mask.resource].message_type
    assert {*mask.paths} == PARTS[part.name].keys() - {"image_id", "instance_id", "account_id", "etag"}


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
def test_what_is_required_is_missed_and_nothing_else(rpc: Rpc) -> None:
    top = {
        field.name
        for field in described(rpc.request.DESCRIPTOR.name).fields
        if required(field) and field.name != "limit"
    }
    assert {field for field, _ in violations(rpc.request())} == top
    assert violations(valid(rpc)) == []


def test_a_field_that_the_mask_does_not_name_may_be_anything() -> None:
    request = pb.UpdateImageRequest(
        image=pb.Image(image_id="img-00000000", name="\0", family="\0", description="new"),
        update_mask=FieldMask(paths=["description"]),
    )
    assert violations(request) == []
    request.update_mask.paths.append("family")
    assert [field for field, _ in violations(request)] == ["image.family"]


def test_an_etag_counts_though_no_mask_names_it() -> None:
    request = valid(BY_NAME["UpdateImage"])
    request.image.etag = "\0"
    assert [field for field, _ in violations(request)] == ["image.etag"]


def test_a_star_names_all_and_what_is_not_allowed_is_never_named() -> None:
    every = pb.UpdateInstanceRequest(update_mask=FieldMask(paths=["*"]))
    assert masked(every) == {"name", "description", "labels"}
    some = pb.UpdateInstanceRequest(update_mask=FieldMask(paths=["name", "nope", "etag"]))
    assert masked(some) == {"name"}


# --- the table and the comments


class Bound(NamedTuple):
    """The least and the most that a comment allows; None if it says nothing of that."""

    minimum: int | None
    maximum: int | None


_UNITS = {None: 1, " GiB": 1 << 30, " TiB": 1 << 40}
_WORDS = re.compile(
    r"\b(?:(?P<from>\d+) to|up to|at most|(?P<least>at least)) (?P<number>\d+)(?P<unit> GiB| TiB)?\b", re.IGNORECASE
)


def bound(comment: str) -> Bound | None:
    """The bound that a comment words first; None if it has none."""
    found = _WORDS.search(comment)
    if found is None:
        return None
    number = int(found["number"]) * _UNITS[found["unit"]]
    if found["least"]:
        return Bound(number, None)
    # Where there is a default, leaving the field out is no violation.
    return Bound(int(found["from"]) if found["from"] and "Default" not in comment else None, number)


def comments() -> Iterator[tuple[str, str]]:
    """The comment of every field in the protos, by the full name of the field."""
    for path in PROTOS.glob("*.proto"):
        within = ["cunho.v1"]
        comment = ""
        for line in map(str.strip, path.read_text().splitlines()):
            if line.startswith("//"):
                comment += line.removeprefix("//")
                continue
            if line.endswith("{"):
                within.append(line.split()[1])
            elif line.startswith("}"):
                within.pop()
            elif field := re.match(r"[\w.<>, ]+ (\w+) = \d+", line):
                yield ".".join((*within, field[1])), comment
            comment = ""


WORDED = {name: said for name, comment in comments() if (said := bound(comment))}

BOUNDED = [
    (rpc, place, WORDED[place.field.full_name])
    for rpc in RPCS
    for place in places(rpc.request.DESCRIPTOR)
    if place.field.full_name in WORDED
]


def resize(owner: Any, field: FieldDescriptor, size: int) -> None:
    """Gives the field a value of that size: a number, so many characters, entries or items."""
    value = getattr(owner, field.name)
    if is_map(field):
        value.clear()
        value.update({f"k{number}": "" for number in range(size)})
    elif field.is_repeated and field.message_type is not None:
        value.extend([value[0]] * size)
        del value[size:]
        for number, item in enumerate(value):
            if hasattr(item, "region_id"):
                item.region_id = f"r-{number}"
    elif field.is_repeated:
        form = "img-{:08}" if field.name == "image_ids" else "id-{}"
        value[:] = map(form.format, range(size))
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        begin = "https://" if "uri" in field.name else "name = " if field.name == "filter" else ""
        setattr(owner, field.name, (begin + "x" * size)[:size])
    else:
        setattr(owner, field.name, size)


def at_fault(rpc: Rpc, place: Place, size: int) -> set[str]:
    request = valid(rpc)
    resize(place.owner(request), place.field, size)
    return {field for field, _ in violations(request)}


def test_many_bounds_are_worded_so_that_they_are_found() -> None:
    assert len(BOUNDED) > 50


@pytest.mark.parametrize(
    ("rpc", "place", "worded"), BOUNDED, ids=[f"{rpc.name}-{place.name}" for rpc, place, _ in BOUNDED]
)
def test_the_bounds_are_those_that_the_comments_word(rpc: Rpc, place: Place, worded: Bound) -> None:
    if worded.maximum is not None:
        assert at_fault(rpc, place, worded.maximum) == set()
        if place.field.name != "page_size":  # there is no larger number
            assert at_fault(rpc, place, worded.maximum + 1) == {place.name}
    if worded.minimum is not None:
        assert at_fault(rpc, place, worded.minimum) == set()
        if worded.minimum > 0 or place.field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
            assert at_fault(rpc, place, worded.minimum - 1) == {place.name}


# --- what violations say


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (pb.GetImageRequest(), "image_id: must not be empty"),
        (pb.GetImageRequest(image_id="x"), 'image_id: must be "img-" and 8 characters of [0-9a-z]'),
        (pb.ListRegionsRequest(page_size=-1), "page_size: must be 0 to 2147483647, is -1"),
        (
            pb.BatchGetImagesRequest(image_ids=["img-00000000"] * 2),
            "image_ids[1]: must not be the same as image_ids[0]",
        ),
        (pb.BatchGetImagesRequest(image_ids=["x"] * 101), "image_ids: must have at most 100 items, has 101"),
    ],
    ids=["empty", "not an id", "negative", "twice", "too many"],
)
def test_a_violation_says_what_the_field_must_be(sent: Any, said: str) -> None:
    assert [f"{field}: {problem}" for field, problem in violations(sent)] == [said]


@pytest.mark.parametrize(
    ("algorithm", "name", "length"), [("ALGORITHM_SHA256", "SHA256", 64), ("ALGORITHM_SHA512", "SHA512", 128)]
)
def test_a_checksum_has_as_many_digits_as_its_algorithm_gives(algorithm: str, name: str, length: int) -> None:
    request = valid(BY_NAME["ImportImage"])
    request.expected_checksum.algorithm = pb.Checksum.Algorithm.Value(algorithm)
    request.expected_checksum.value = "a" * length
    assert violations(request) == []
    request.expected_checksum.value = "a" * (192 - length)
    problem = f"must have {length} digits for {name}, has {192 - length}"
    assert violations(request) == [Violation("expected_checksum.value", problem)]


def test_a_quota_has_the_scope_that_its_name_says() -> None:
    images, shares = (pb.QuotaId.Value(f"QUOTA_ID_{name}") for name in ("CUSTOM_IMAGES", "SHARES_PER_IMAGE"))
    of_image, of_account = {"image_id": "img-00000000"}, {"account_id": "acme", "region_id": "ap-guangzhou"}
    requests: list[Callable[..., Any]] = [pb.GetQuotaRequest, pb.SetQuotaLimitRequest]
    for request in requests:
        assert violations(request(quota_id=images, **of_account)) == []
        assert violations(request(quota_id=shares, **of_image)) == []
        wrong = violations(request(quota_id=shares, **of_account))
        assert [field for field, _ in wrong] == ["image_id", "account_id", "region_id"]
        assert all("be given for QUOTA_ID_SHARES_PER_IMAGE" in problem for _, problem in wrong)
        wrong = violations(request(quota_id=images, **of_image))
        assert [field for field, _ in wrong][-1] == "image_id"
        assert all("be given for QUOTA_ID_CUSTOM_IMAGES" in problem for _, problem in wrong)


def test_a_wrong_filter_is_named_together_with_every_other_wrong_field() -> None:
    request = pb.ListImagesRequest(region_id="-", page_size=-1, filter="nam = x", order_by="name sideways")
    refused = refusal(request)
    assert refused is not None
    assert refused.reason is Reason.INVALID_REQUEST
    assert [violation.field for violation in refused.violations] == ["page_size", "filter", "order_by"]


@pytest.mark.parametrize(
    ("field", "reason"), [("filter", Reason.INVALID_FILTER), ("order_by", Reason.INVALID_ORDER_BY)]
)
def test_a_filter_or_an_order_wrong_alone_has_a_reason_of_its_own(field: str, reason: Reason) -> None:
    request = pb.ListImagesRequest(region_id="-")
    setattr(request, field, "nonsense nonsense")
    refused = refusal(request)
    assert refused is not None
    assert refused.reason is reason
    setattr(request, field, "x" * 2049)
    too_long = refusal(request)
    assert too_long is not None
    assert too_long.reason is Reason.INVALID_REQUEST


def test_a_long_name_is_told_how_long_it_is_in_characters_and_not_in_bytes() -> None:
    request = valid(BY_NAME["CreateImage"])
    request.name = "語" * 60
    assert violations(request) == []
    request.name = "語" * 61
    assert violations(request) == [Violation("name", "must have at most 60 characters, has 61")]


def test_an_invisible_character_is_told_by_its_code_point() -> None:
    request = valid(BY_NAME["CreateImage"])
    request.name = "Debian\u200b 12"
    assert violations(request) == [Violation("name", "must not contain control or invisible characters, has U+200B")]
