"""The language of `filter`: what filters mean, and how the others are refused."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cunho.v1 import image_pb2, instance_pb2, operating_system_pb2
from cunho_rules.filters import (
    COMPARISONS,
    IMAGE_FIELDS,
    INSTANCE_FIELDS,
    NESTING,
    OPERATION_FIELDS,
    And,
    Comparison,
    Enum,
    Expression,
    Field,
    FilterProblem,
    Label,
    Not,
    Or,
    Text,
    parse,
)

PROTOS = Path(__file__).parents[2] / "protos/cunho/v1"


def is_(field: str, value: Any, operator: str = "=", *, key: str = "", prefix: bool = False) -> Comparison:
    return Comparison(field, key, operator, value, prefix, 0)


def meaning(text: str, fields: Mapping[str, Field] = IMAGE_FIELDS) -> Expression | None:
    expression = parse(text, fields)
    return expression and without_positions(expression)


def without_positions(expression: Expression) -> Expression:
    match expression:
        case And(parts):
            return And(tuple(map(without_positions, parts)))
        case Or(parts):
            return Or(tuple(map(without_positions, parts)))
        case Not(part):
            return Not(without_positions(part))
        case Comparison():
            return replace(expression, position=0)


def refusal(text: str, fields: Mapping[str, Field] = IMAGE_FIELDS) -> FilterProblem:
    with pytest.raises(FilterProblem) as refused:
        parse(text, fields)
    return refused.value


A, B, C = is_("name", "a"), is_("name", "b"), is_("name", "c")


@pytest.mark.parametrize("text", ["", " ", "\t\r\n\N{NO-BREAK SPACE}"])
def test_a_blank_filter_selects_everything(text: str) -> None:
    assert parse(text, IMAGE_FIELDS) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name = a", A),
        ("name=a", A),
        ("(((name = a)))", A),
        ("name = a AND name = b AND name = c", And((A, B, C))),
        ("name = a OR name = b OR name = c", Or((A, B, C))),
        ("name = a AND name = b OR name = c", And((A, Or((B, C))))),
        ("name = a OR name = b AND name = c", And((Or((A, B)), C))),
        ("(name = a AND name = b) OR name = c", Or((And((A, B)), C))),
        ("NOT name = a AND name = b", And((Not(A), B))),
        ("-name = a OR name = b", Or((Not(A), B))),
        ("NOT (name = a OR name = b)", Not(Or((A, B)))),
        ("NOT(name = a)AND(name = b)", And((Not(A), B))),
        ("name = a\nAND\N{NO-BREAK SPACE}\tname = b", And((A, B))),
    ],
)
def test_words_and_parentheses_join_comparisons_and_or_binds_tighter_than_and(text: str, expected: Expression) -> None:
    assert meaning(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('name = "web 1"', is_("name", "web 1")),
        ("name = 'it is \"quoted\"'", is_("name", 'it is "quoted"')),
        (r'name = "\"\\\'\*"', is_("name", "\"\\'*")),
        ('name = ""', is_("name", "")),
        ("name = ANDROID", is_("name", "ANDROID")),
        ('name = "AND"', is_("name", "AND")),
        ('name != "web*"', is_("name", "web", "!=", prefix=True)),
        ("name = web*", is_("name", "web", prefix=True)),
        ('name = "*"', is_("name", "", prefix=True)),
        ('name:"web 1"', is_("name", "web 1", ":")),
        ("name >= é", is_("name", "é", ">=")),
        ("bits = 64", is_("bits", 64)),
        ("bits != '32'", is_("bits", 32, "!=")),
        ("size_bytes > -5", is_("size_bytes", -5, ">")),
        ("size_bytes <= 9223372036854775807", is_("size_bytes", 2**63 - 1, "<=")),
        ("size_bytes >= -9223372036854775808", is_("size_bytes", -(2**63), ">=")),
        ("cloud_init = true", is_("cloud_init", True)),
        ("cloud_init != false", is_("cloud_init", False, "!=")),
        ("state = AVAILABLE", is_("state", "AVAILABLE")),
        ("state = STATE_AVAILABLE", is_("state", "AVAILABLE")),
        ("os.family = OS_FAMILY_LINUX", is_("os.family", "LINUX")),
        ("kind = IMAGE_KIND_PUBLIC", is_("kind", "PUBLIC")),
        ('software.name = "SQL Server"', is_("software.name", "SQL Server")),
        ("labels.env = prod", is_("labels", "prod", key="env")),
        ("labels.team.name_1-x < z", is_("labels", "z", "<", key="team.name_1-x")),
        ("labels.env = ''", is_("labels", "", key="env")),
        ("labels.env = p*", is_("labels", "p", key="env", prefix=True)),
        ("labels.env:prod", is_("labels", "prod", ":", key="env")),
        ("labels:env", is_("labels", "", ":", key="env")),
        ("labels.env:*", is_("labels", "", ":", key="env")),
    ],
)
def test_a_value_is_read_as_its_field_says(text: str, expected: Comparison) -> None:
    assert meaning(text) == expected


@pytest.mark.parametrize(
    ("literal", "moment"),
    [
        ('"2026-01-31T12:00:00Z"', datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31t12:00:00z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00+08:00", datetime(2026, 1, 31, 4, tzinfo=UTC)),
        ("2026-01-31T12:00:00.5Z", datetime(2026, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-01-31T12:00:00.000001000Z", datetime(2026, 1, 31, 12, 0, 0, 1, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_as_rfc_3339_in_any_zone(literal: str, moment: datetime) -> None:
    assert meaning(f"create_time > {literal}") == is_("create_time", moment, ">")


def test_each_comparison_knows_where_it_stands() -> None:
    expression = parse('(name = "é" OR labels:env)', IMAGE_FIELDS)
    assert isinstance(expression, Or)
    assert [part.position for part in expression.parts if isinstance(part, Comparison)] == [1, 15]


def test_values_are_plain_values() -> None:
    expression = parse("state = AVAILABLE", IMAGE_FIELDS)
    assert isinstance(expression, Comparison)
    assert {type(expression.field), type(expression.operator), type(expression.value)} == {str}


@pytest.mark.parametrize(
    ("text", "position", "problem"),
    [
        ("name", 4, "expected one of the operators = != < <= > >= :, found the end"),
        ("name =", 6, "expected a value, in quotes unless it is one plain word, found the end"),
        ("name == a", 6, "expected a value, in quotes unless it is one plain word, found '='"),
        ("name = (a)", 7, "expected a value, in quotes unless it is one plain word, found '(a)'"),
        ("name = AND", 7, "expected a value, in quotes unless it is one plain word, found 'AND'"),
        ('name = "a', 7, "the quotes are never closed"),
        ("name = a name = b", 9, "expected AND or OR, found 'name'"),
        ("name = a, name = b", 10, "expected AND or OR, found 'name'"),
        ("name = a AND", 12, "expected a field, found the end"),
        ("name = a AND AND name = b", 13, "expected a field, found 'AND'"),
        ("NOT NOT name = a", 4, "expected a field, found 'NOT'"),
        ("(name = a", 9, 'expected AND, OR or ")", found the end'),
        ("name = a)", 8, "expected AND or OR, found ')'"),
        ("()", 1, "expected a field, found ')'"),
        ('"name" = a', 0, "expected a field, found '\"name\"'"),
        ("name = a and name = b", 9, "AND, OR and NOT are written in capitals"),
        ("not name = a", 4, "AND, OR and NOT are written in capitals"),
        ("\0", 0, "expected a field, found '\\x00'"),
        ("name\N{NO-BREAK SPACE}", 5, "expected one of the operators = != < <= > >= :, found the end"),
    ],
)
def test_what_is_no_filter_is_refused_where_it_goes_wrong(text: str, position: int, problem: str) -> None:
    refused = refusal(text)
    assert (refused.field, refused.position, refused.problem) == ("", position, problem)


@pytest.mark.parametrize(
    ("text", "field", "position", "problem"),
    [
        ("nam = a", "nam", 0, "there is no field 'nam'; did you mean name?"),
        ("(STATE = AVAILABLE)", "STATE", 1, "there is no field 'STATE'; did you mean state?"),
        ("zzz = a", "zzz", 0, "there is no field 'zzz'"),
        ("label.env = a", "label.env", 0, "there is no field 'label.env'"),
        ("region_id = eu", "region_id", 0, "a field of the request"),
        ("os.version < 3", "os.version", 11, "os.version takes = != :, not <"),
        ("state > AVAILABLE", "state", 6, "state takes = !=, not >"),
        ("bits:64", "bits", 4, "bits takes = != < <= > >=, not :"),
        ("state = available", "state", 8, "'available' is none of CREATING, IMPORTING, COPYING, AVAILABLE"),
        ("state = STATE_UNSPECIFIED", "state", 8, "is none of"),
        ("state = AVAIL*", "state", 8, "a prefix stands after = and != of a text alone"),
        ("bits = 16", "bits", 7, "16 is none of 32, 64"),
        ("size_bytes > 1e9", "size_bytes", 13, "not an integer"),
        ("size_bytes > ٣", "size_bytes", 13, "not an integer"),
        ("size_bytes > 9223372036854775808", "size_bytes", 13, "not an integer of 64 bits"),
        ("size_bytes < -9223372036854775809", "size_bytes", 13, "not an integer of 64 bits"),
        ("cloud_init = yes", "cloud_init", 13, "'yes' is neither true nor false"),
        ("create_time > 2026-01-31", "create_time", 14, "not a time as 2026-01-31T12:00:00Z"),
        ("create_time > 2026-01-31T12:00:00", "create_time", 14, "not a time"),
        ("create_time > 2026-02-30T12:00:00Z", "create_time", 14, "not a time"),
        ("create_time > 2026-01-31T12:00:00.0000001Z", "create_time", 14, "not a time"),
        ("create_time > 0001-01-01T00:00:00+01:00", "create_time", 14, "not a time"),
        ('name = "a\0"', "name", 7, "'a\\x00' holds a control character"),
        ('name = "a\nb"', "name", 7, "holds a control character"),
        ("name = \ud800", "name", 7, "'\\ud800' holds a control character"),
        ('name = "a*b"', "name", 9, "* stands only at the end"),
        (r'name = "a\n"', "name", 9, r"\ stands only before one of"),
        ("name:web*", "name", 5, "a prefix stands after = and != of a text alone"),
        ("name < web*", "name", 7, "a prefix stands after = and != of a text alone"),
        ("labels = a", "labels", 0, "write labels.KEY, or labels:KEY"),
        ("labels:Env", "labels", 0, "keys are 1 to 63 characters of [a-z0-9_.-], the first a letter"),
        (f"labels:{'a' * 64}", "labels", 0, "keys are 1 to 63 characters"),
        ("labels:env*", "labels", 7, "a prefix stands after"),
    ],
)
def test_a_comparison_that_does_not_fit_its_field_is_refused(
    text: str, field: str, position: int, problem: str
) -> None:
    refused = refusal(text)
    assert (refused.field, refused.position) == (field, position)
    assert problem in refused.problem


def test_the_fields_of_another_list_are_unknown() -> None:
    assert refusal("os.platform = ubuntu", INSTANCE_FIELDS).field == "os.platform"
    assert refusal("state = RUNNING", OPERATION_FIELDS).field == "state"


def test_a_long_word_is_quoted_short() -> None:
    refused = refusal("x" * 2000 + " = a")
    assert len(refused.field) < 100
    assert len(refused.problem) < 200


def test_comparisons_are_bounded_and_the_first_too_many_is_named() -> None:
    assert meaning(" OR ".join(["name = a"] * COMPARISONS)) == Or((A,) * COMPARISONS)
    refused = refusal(" OR ".join(["name = a"] * (COMPARISONS + 1)))
    assert refused.position == COMPARISONS * len("name = a OR ")
    assert f"more than {COMPARISONS} comparisons" in refused.problem


def test_nesting_is_bounded_and_the_first_level_too_deep_is_named() -> None:
    assert meaning("-(" * NESTING + "name = a" + ")" * NESTING) is not None
    refused = refusal("-(" * (NESTING + 1) + "name = a" + ")" * (NESTING + 1))
    assert refused.position == 2 * NESTING
    assert f"over {NESTING} deep" in refused.problem


@pytest.mark.parametrize("text", ["(" * 10_000, "-(" * 10_000 + "name=a" + ")" * 10_000, "name = a AND " * 10_000])
def test_no_filter_is_too_long_or_too_deep_to_be_refused(text: str) -> None:
    assert refusal(text).problem


TOKENS = [
    *IMAGE_FIELDS,
    "labels.env",
    "x",
    "AND",
    "OR",
    "NOT",
    "and",
    "-",
    "(",
    ")",
    "=",
    "!=",
    "<",
    "<=",
    ":",
    '"',
    "'",
]
TOKENS += [
    "*",
    "\\",
    '"a b*"',
    "a",
    "AVAILABLE",
    "LINUX",
    "64",
    "true",
    "2026-01-31T12:00:00Z",
    ",",
    " ",
    "\t",
    "\0",
    "é",
]


@given(
    st.text()
    | st.lists(st.sampled_from(TOKENS), max_size=30).map(" ".join)
    | st.lists(st.sampled_from(TOKENS)).map("".join)
)
def test_any_text_is_a_filter_or_is_refused_within_itself(text: str) -> None:
    problem = None
    try:
        parse(text, IMAGE_FIELDS)
    except FilterProblem as refused:
        problem = refused
    if problem:
        assert 0 <= problem.position <= len(text)
        assert problem.problem.isprintable()
        assert problem.field.isprintable()


def written(expression: Expression) -> str:
    """A filter that means `expression`."""
    match expression:
        case And(parts):
            return f"({' AND '.join(map(written, parts))})"
        case Or(parts):
            return f"({' OR '.join(map(written, parts))})"
        case Not(part):
            return f"NOT ({written(part)})"
        case Comparison(field=field, key=key, operator=operator, value=value, prefix=prefix):
            literal = value.isoformat() if isinstance(value, datetime) else str(value)
            if isinstance(value, bool):
                literal = literal.lower()
            quoted = re.sub(r'(["\\*])', r"\\\1", literal)
            return f'{field}{"." * bool(key)}{key} {operator} "{quoted}{"*" * prefix}"'


def comparisons(name: str, field: Field) -> st.SearchStrategy[Comparison]:
    """Comparisons of one field."""
    values: dict[str, st.SearchStrategy[Any]] = {
        "Text": st.text(st.characters(exclude_categories=["Cc", "Cs"])),
        "Label": st.text(st.characters(exclude_categories=["Cc", "Cs"])),
        "Enum": st.sampled_from(getattr(field, "values", ()) or ("",)).map(str),
        "Int": st.sampled_from(getattr(field, "values", ()) or range(-3, 3)),
        "Bool": st.booleans(),
        "Time": st.datetimes(timezones=st.just(UTC)),
    }
    keys = st.from_regex(r"[a-z][a-z0-9_.-]{0,62}", fullmatch=True) if isinstance(field, Label) else st.just("")
    operators = st.sampled_from(field.operators)
    plain = st.builds(is_, st.just(name), values[type(field).__name__], operators, key=keys)
    if not isinstance(field, Text):
        return plain
    prefixes = st.builds(
        is_, st.just(name), values["Text"], st.sampled_from(["=", "!="]), key=keys, prefix=st.just(True)
    )
    return plain | prefixes


def combined(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(parts, min_size=2, max_size=4).map(tuple)
    return several.map(And) | several.map(Or) | parts.map(Not)


expressions: st.SearchStrategy[Expression] = st.recursive(
    st.one_of([comparisons(name, field) for name, field in IMAGE_FIELDS.items()]), combined, max_leaves=20
)


@given(expressions)
def test_what_is_written_is_what_is_read(expression: Expression) -> None:
    assert meaning(written(expression)) == expression


@pytest.mark.parametrize(
    ("file", "request_name", "fields"),
    [
        ("image_service.proto", "ListImagesRequest", IMAGE_FIELDS),
        ("instance_service.proto", "ListInstancesRequest", INSTANCE_FIELDS),
    ],
)
def test_the_fields_are_those_that_the_proto_publishes(
    file: str, request_name: str, fields: Mapping[str, Field]
) -> None:
    message = (PROTOS / file).read_text().partition(f"message {request_name} {{")[2].partition("string filter")[0]
    published = re.findall(r"Fields: ([\w.,\s]*?)\.\s", message.replace("//", ""))[-1]
    assert published.replace(".KEY", "").replace(",", "").split() == list(fields)


@pytest.mark.parametrize(
    ("field", "proto"),
    [
        (IMAGE_FIELDS["kind"], image_pb2.ImageKind),
        (IMAGE_FIELDS["origin"], image_pb2.Image.Origin),
        (IMAGE_FIELDS["state"], image_pb2.Image.State),
        (IMAGE_FIELDS["trust"], image_pb2.Image.Trust),
        (IMAGE_FIELDS["deprecation.state"], image_pb2.Deprecation.State),
        (IMAGE_FIELDS["architecture"], operating_system_pb2.Architecture),
        (IMAGE_FIELDS["os.family"], operating_system_pb2.OsFamily),
        (IMAGE_FIELDS["boot_mode"], operating_system_pb2.BootMode),
        (INSTANCE_FIELDS["state"], instance_pb2.Instance.State),
    ],
)
def test_an_enum_field_takes_every_value_of_the_proto_but_the_unspecified(field: Field, proto: Any) -> None:
    assert isinstance(field, Enum)
    assert [f"{field.enum}_{value}" for value in field.values] == proto.keys()[1:]


def test_every_field_says_what_it_means_in_a_line() -> None:
    for fields in (IMAGE_FIELDS, INSTANCE_FIELDS, OPERATION_FIELDS):
        assert all(re.fullmatch(r"[A-Z].{3,}\.", field.meaning) for field in fields.values())
