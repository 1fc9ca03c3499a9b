"""Filters and orders as Peewee expressions, for PostgreSQL. Knows no table: the columns are given.

Every literal is a parameter with a cast, so that PostgreSQL knows its type from the text of the query alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from operator import contains, eq, ge, gt, le, lt
from typing import Any, TypeAlias

from peewee import SQL, Cast, ColumnBase, EnclosedNodeList, Expression, Node, NodeList, Ordering, Select, Value, fn

from cunho_rules import filters
from cunho_rules.filters import And, Comparison, Not, Or
from cunho_rules.orders import Key

#: Makes the condition of a comparison. It is never asked for `!=`, which is NOT with `=`.
Compare: TypeAlias = Callable[[Comparison], ColumnBase]

_CASTS = {str: "text", int: "bigint", bool: "boolean", datetime: "timestamptz"}
_HOLDS: dict[str, Callable[[Any, Any], bool]] = {"=": eq, "<": lt, "<=": le, ">": gt, ">=": ge, ":": contains}


def condition(expression: filters.Expression, columns: Mapping[str, ColumnBase | Compare]) -> ColumnBase:
    """What is true of the rows that a filter selects, and false or NULL of all others.

    `columns` has the column of each field, or what compares it. Text needs the collation "C"; NULL is the empty text
    there, and nothing elsewhere.
    """
    match expression:
        case And(parts):
            return _joined(" AND ", *(condition(part, columns) for part in parts))
        case Or(parts):
            return _joined(" OR ", *(condition(part, columns) for part in parts))
        case Not(part):
            return _refuted(condition(part, columns))
        case Comparison(operator="!="):
            return _refuted(condition(replace(expression, operator="="), columns))
        case Comparison(field=field, operator=operator, value=value):
            column = columns[field]
            if not isinstance(column, ColumnBase):
                return column(expression)
            holds = _compared(column, expression)
            empty_holds = isinstance(value, str) and _HOLDS[operator]("", value)
            return _joined(" OR ", holds, column.is_null()) if empty_holds else holds


def label_of(labels: ColumnBase) -> Compare:
    """Compares one label; `labels` is a JSONB object of texts."""

    def compare(comparison: Comparison) -> ColumnBase:
        if comparison.operator == "=" and not comparison.prefix:
            return _contains(labels, {comparison.key: comparison.value})
        return _compared(_text(Expression(labels, "->>", _literal(comparison.key))), comparison)

    return compare


def some_element(elements: ColumnBase, key: str = "") -> Compare:
    """Compares the elements of a JSONB array, or what each has under `key`; true if any is as compared."""
    element = SQL("element.value")
    text = _text(Expression(element, "->>", _literal(key)) if key else Expression(element, "#>>", SQL("'{}'")))

    def compare(comparison: Comparison) -> ColumnBase:
        if comparison.operator == "=" and not comparison.prefix:
            return _contains(elements, [{key: comparison.value} if key else comparison.value])
        unnested = fn.jsonb_array_elements(elements).alias("element")
        return fn.EXISTS(Select([unnested], [SQL("1")]).where(_compared(text, comparison)))

    return compare


def ordering(keys: Sequence[Key], columns: Mapping[str, ColumnBase]) -> list[Ordering]:
    """What to order by."""
    return [columns[key.field].desc() if key.descending else columns[key.field].asc() for key in keys]


def after(keys: Sequence[Key], columns: Mapping[str, ColumnBase], values: Sequence[filters.Value | Node]) -> ColumnBase:
    """What is true of the rows that follow, in the order of `keys`, the cursor with these values.

    Neither columns nor values may be NULL, and the last key must be unique. The cursor need not be a row's any more.
    """
    bounds = [value if isinstance(value, Node) else _literal(value) for value in values]
    steps = [
        (columns[key.field], "<" if key.descending else ">", bound) for key, bound in zip(keys, bounds, strict=True)
    ]
    if len({key.descending for key in keys}) == 1:  # an index serves a comparison of whole rows from end to end
        return Expression(EnclosedNodeList([column for column, _, _ in steps]), steps[0][1], EnclosedNodeList(bounds))
    *leading, last = steps
    follows: ColumnBase = Expression(*last)
    for column, beyond, bound in reversed(leading):
        tied = _joined(" AND ", Expression(column, "=", bound), follows)
        follows = _joined(" OR ", Expression(column, beyond, bound), tied)
    # The bound of the first key follows from the rest. It is there for the index, which serves no OR.
    column, beyond, bound = steps[0]
    return _joined(" AND ", Expression(column, f"{beyond}=", bound), follows)


def _compared(column: ColumnBase, comparison: Comparison) -> ColumnBase:
    """The comparison, of this column; NULL if that is."""
    if comparison.prefix:
        return _starts_with(column, str(comparison.value))
    if comparison.operator == ":":
        return Expression(fn.strpos(column, _literal(comparison.value)), ">", SQL("0"))
    return Expression(column, comparison.operator, _literal(comparison.value))


def _starts_with(column: ColumnBase, prefix: str) -> ColumnBase:
    """True of the texts from the prefix itself to the least text beyond all that start with it: an index's range."""
    start = Expression(column, ">=", _literal(prefix))
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return start
    successor = "\ue000" if stem[-1] == "\ud7ff" else chr(ord(stem[-1]) + 1)  # between them are no characters
    return _joined(" AND ", start, Expression(column, "<", _literal(stem[:-1] + successor)))


def _contains(column: ColumnBase, part: object) -> ColumnBase:
    """True if the JSONB column contains `part`: what an inverted index serves."""
    return Expression(column, "@>", Cast(_literal(json.dumps(part)), "jsonb"))


def _text(node: ColumnBase) -> ColumnBase:
    """A text without a column of its own, ordered as the columns are."""
    return NodeList((node, SQL('COLLATE "C"')))


def _joined(word: str, *parts: ColumnBase) -> ColumnBase:
    # Side by side and not nested, as Peewee's & and | are: a hundred levels would exhaust Python's stack.
    return NodeList(parts, word, parens=True)


def _refuted(part: ColumnBase) -> ColumnBase:
    """True where `part` is false or NULL."""
    return Expression(part, "IS NOT", SQL("TRUE"))


def _literal(value: filters.Value) -> ColumnBase:
    return Cast(Value(value, converter=False), _CASTS[type(value)])
