"""The language of `order_by`: what orders mean, and how the others are refused."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cunho_rules.orders import IMAGE_ORDER_FIELDS, INSTANCE_ORDER_FIELDS, Key, OrderProblem, parse

PROTOS = Path(__file__).parents[2] / "protos/cunho/v1"


def keys(text: str) -> list[str]:
    return [f"-{key.field}" if key.descending else key.field for key in parse(text, IMAGE_ORDER_FIELDS, "image_id")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name", ["name", "image_id"]),
        ("name asc", ["name", "image_id"]),
        ("name desc", ["-name", "-image_id"]),
        ("create_time desc, name", ["-create_time", "name", "image_id"]),
        ("create_time,name desc", ["create_time", "-name", "-image_id"]),
        (" \tname  desc\n, size_bytes ", ["-name", "size_bytes", "image_id"]),
        ("name, image_id desc", ["name", "-image_id"]),
        ("image_id", ["image_id"]),
    ],
)
def test_fields_order_ascending_unless_desc_follows_and_the_id_breaks_ties(text: str, expected: list[str]) -> None:
    assert keys(text) == expected


@pytest.mark.parametrize("text", ["", "  "])
def test_a_blank_order_is_the_newest_first(text: str) -> None:
    assert keys(text) == ["-create_time", "-image_id"]


def test_the_default_may_be_another() -> None:
    assert parse("", ("a", "b"), "b", "a") == (Key("a", False), Key("b", False))


@pytest.mark.parametrize(
    ("text", "field", "position", "problem"),
    [
        ("nam", "nam", 0, "expected one of create_time, update_time, name, size_bytes, image_id, found 'nam'"),
        ("name, Name", "Name", 6, "found 'Name'"),
        ("description", "description", 0, "found 'description'"),
        (",name", "", 0, "found none"),
        ("name,", "", 5, "found none"),
        ("name, ,size_bytes", "", 6, "found none"),
        ("name, size_bytes, name desc", "name", 18, "name is named twice"),
        ("name DESC", "name", 5, "after name there may be desc or asc, then a comma; found 'DESC'"),
        ("name desc desc", "name", 5, "found 'desc desc'"),
        ("name size_bytes", "name", 5, "found 'size_bytes'"),
        ("name name", "name", 5, "found 'name'"),
        ("-name", "-name", 0, "found '-name'"),
        ("name;", "name;", 0, "found 'name;'"),
    ],
)
def test_what_is_no_order_is_refused_where_it_goes_wrong(text: str, field: str, position: int, problem: str) -> None:
    with pytest.raises(OrderProblem) as refused:
        keys(text)
    assert (refused.value.field, refused.value.position) == (field, position)
    assert problem in refused.value.problem


@given(st.text() | st.lists(st.sampled_from([*IMAGE_ORDER_FIELDS, "asc", "desc", ",", " ", "\0", "é"])).map(" ".join))
def test_any_text_orders_by_the_id_too_or_is_refused_within_itself(text: str) -> None:
    order: tuple[Key, ...] | None = None
    problem = None
    try:
        order = parse(text, IMAGE_ORDER_FIELDS, "image_id")
    except OrderProblem as refused:
        problem = refused
    assert (order is None) != (problem is None)
    if order:
        assert "image_id" in (key.field for key in order)
    if problem:
        assert 0 <= problem.position <= len(text)
        assert problem.problem.isprintable()


@pytest.mark.parametrize(
    ("file", "request_name", "fields"),
    [
        ("image_service.proto", "ListImagesRequest", IMAGE_ORDER_FIELDS),
        ("instance_service.proto", "ListInstancesRequest", INSTANCE_ORDER_FIELDS),
    ],
)
def test_the_fields_are_those_that_the_proto_publishes(file: str, request_name: str, fields: tuple[str, ...]) -> None:
    message = (PROTOS / file).read_text().partition(f"message {request_name} {{")[2].partition("string order_by")[0]
    published = re.findall(r"Fields: ([\w.,\s]*?)\.\s", message.replace("//", ""))[-1]
    assert tuple(published.replace(",", "").split()) == fields
