"""Pages: the first rows that match, in an order, after a cursor. Knows no table but that of regions.

The rows of each region are found by themselves, by an index that begins with the region, and then merged: a page of one
region and a page of all regions cost the same for each region, and need the same indexes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from peewee import JOIN, SQL, Node, Select

from cunho_rules import filters
from cunho_rules.orders import Key
from cunho_storage.conditions import after, condition, ordering
from cunho_storage.statements import arg, cursor
from cunho_storage.tables import RegionRow


def first_rows(
    query: Any,
    columns: Mapping[str, Any],
    expression: filters.Expression | None,
    keys: Sequence[Key],
    *,
    continued: bool,
) -> Any:
    """The first `limit` rows of the query that match, in the order of `keys`.

    Args:
        columns: the column of each field, or what compares it.
        continued: only rows after the cursor, which is the arguments cursor_0, cursor_1 ....
    """
    if expression is not None:
        query = query.where(condition(expression, columns))
    if continued:
        query = query.where(after(keys, columns, cursor(keys)))
    return query.order_by(*ordering(keys, columns)).limit(arg("limit"))


def union(queries: Sequence[Select]) -> Any:
    """The rows of every query, which may have orders and limits of their own."""
    rows: Any
    rows, *others = (Select([query.alias("rows")], [SQL("*")]) for query in queries)
    for other in others:
        rows = rows.union_all(other)
    return rows


def of_regions(rows: Any, columns: Sequence[Node], keys: Sequence[Key], *, one_region: bool) -> Any:
    """The first `limit` of the rows of all regions, or of the region `region_id`; they and RegionRow have the columns.

    Args:
        rows: what `first_rows` gives of RegionRow's region, named.
    """
    query: Any = RegionRow.select(*columns).join(rows, JOIN.LATERAL, on=SQL("true"))
    if one_region:
        query = query.where(RegionRow.region_id == arg("region_id"))
    return query.order_by(*ordering(keys, {key.field: rows.c[key.field] for key in keys})).limit(arg("limit"))
