"""Filters, orders and masks, right or nearly so, drawn at random. Whether they are right is not known here."""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from types import MappingProxyType

from tests.robustness.mutating import NUMBERS, edited, text

from cunho_rules import filters, orders
from cunho_rules.filters import Field, Label

#: By the name of the request that has them.
FIELDS: Mapping[str, Mapping[str, Field]] = {
    "ListImagesRequest": filters.IMAGE_FIELDS,
    "ListInstancesRequest": filters.INSTANCE_FIELDS,
    "ListOperationsRequest": filters.OPERATION_FIELDS,
}
ORDERS: Mapping[str, Sequence[str]] = {
    "ListImagesRequest": orders.IMAGE_ORDER_FIELDS,
    "ListInstancesRequest": orders.INSTANCE_ORDER_FIELDS,
}
PATHS = (
    *("name", "description", "family", "labels", "min_disk_bytes", "min_memory_bytes", "display_name", "region_ids"),
    *("*", "", "image_id", "etag", "state", "labels.env", "os.family", "Name", "name.", "`name`", "a,b"),
)

_OPERATORS = ("=", "!=", "<", "<=", ">", ">=", ":")
_TIMES = (
    *("2026-01-31T12:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-12:00", "2026-02-30T00:00:00Z"),
    *("2026-01-31t12:00:00.0000001z", "10000-01-01T00:00:00Z", "0000-00-00T00:00:00Z", "2026-06-30T23:59:60Z"),
    *("2026-01-31T12:00:00+99:99", "2026-01-31", "١٢٣٤-01-31T12:00:00Z"),
    *("2026-01-31T12:00:00", "2026-01-31 12:00:00+08:00", "20260131T120000Z", "2026-W05-6T12:00:00"),
)
_WORDS = ("AVAILABLE", "PUBLIC", "true", "false", "64", "null", "AND", "NOT", "a*", "*", "\\*", '""', "--", "-1", "a-b")


def filter_text(draw: Random, request: str) -> str:
    """A filter for that request."""
    fields = FIELDS.get(request, filters.IMAGE_FIELDS)
    # A filter with one slip is refused, and only one without gets to the database.
    made = _expression(draw, fields, depth=draw.choice((0, 1, 1, 2, 4)), slips=draw.choice((0, 0, 0.1)))
    match draw.randrange(20):
        case 0:
            depth = draw.choice((10, 49, 50, 51, 200, 900))
            made = draw.choice(("NOT ", "(", "-", "NOT(", "-(NOT ")) * depth + made + ")" * draw.choice((0, depth))
        case 1:
            made = draw.choice((" AND ", " OR ", " ", "AND")).join([made] * draw.choice((2, 30, 100, 101, 3000)))
        case 2 | 3 | 4:
            made = edited(draw, made)
        case 5:
            made = text(draw)
    return made


def order_text(draw: Random, request: str) -> str:
    """An order for that request."""
    names = ORDERS.get(request, orders.IMAGE_ORDER_FIELDS)
    ends = ("", " desc", " asc", " DESC", " desc desc", "\tdesc", " nulls first", ";")
    terms = [draw.choice(names) + draw.choice(ends) for _ in range(draw.choice((1, 1, 2, 2, 3, 5, 300)))]
    made = draw.choice((",", ", ", " , ", ",,")).join(terms)
    return edited(draw, made) if draw.random() < 0.3 else made


def paths(draw: Random) -> list[str]:
    """The paths of a mask."""
    made = [draw.choice(PATHS) for _ in range(draw.choice((0, 1, 1, 2, 3, 8)))]
    if draw.random() < 0.2:
        made += [text(draw)] * draw.choice((1, 2, 200))
    return made


def _expression(draw: Random, fields: Mapping[str, Field], *, depth: int, slips: float) -> str:
    """Comparisons with each other.

    Args:
        slips: how likely any part of one is that of another, or nothing.
    """
    if not depth:
        return _comparison(draw, fields, slips)
    parts = [_expression(draw, fields, depth=depth - 1, slips=slips) for _ in range(draw.choice((1, 2, 2)))]
    joined = draw.choice((" AND ", " OR ")).join(parts)
    return draw.choice(("{}", "{}", "({})", "NOT ({})", "-({})")).format(joined)


def _comparison(draw: Random, fields: Mapping[str, Field], slips: float) -> str:
    # By kinds, of which some have few fields and others many.
    kind = draw.choice(tuple(dict.fromkeys(map(type, fields.values()))))
    name, field = draw.choice([(name, field) for name, field in fields.items() if type(field) is kind])
    if draw.random() < slips:
        name = draw.choice(("nope", "region_id", "os", "os.nope", "labels", "labels.", "Name", "a" * 300))
    elif isinstance(field, Label):
        name += ".env" if draw.random() > slips else draw.choice(("", ".a.b", ".A", "..", ".*", ".é"))
    operator = draw.choice(field.operators if draw.random() > slips else _OPERATORS)
    value = (_VALUES.get(type(field), _any_value) if draw.random() > slips else _any_value)(draw, field)
    return f"{name}{draw.choice(('', ' '))}{operator}{draw.choice(('', ' '))}{value}"


def _any_value(draw: Random, field: Field) -> str:
    match draw.randrange(4):
        case 0:
            return draw.choice(_WORDS)
        case 1:
            return str(draw.choice(NUMBERS))
        case 2:
            return f'"{draw.choice(_TIMES)}"'
    quote = draw.choice("\"'")
    return quote + text(draw).replace("\\", "\\\\").replace(quote, "\\" + quote)[:200] + quote


def _name(draw: Random, field: Field) -> str:
    assert isinstance(field, filters.Enum)
    return draw.choice(("", "", field.enum + "_", "x")) + draw.choice(field.values)


_VALUES: Mapping[type[Field], Callable[[Random, Field], str]] = MappingProxyType(
    {
        filters.Enum: _name,
        filters.Int: lambda draw, field: str(draw.choice(NUMBERS)),
        filters.Bool: lambda draw, field: draw.choice(("true", "false", "TRUE", "1")),
        filters.Time: lambda draw, field: f'"{draw.choice(_TIMES)}"',
    }
)
