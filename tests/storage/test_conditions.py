"""Filters and orders as PostgreSQL understands them, held against what they mean in plain Python."""

import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter, contains, eq, ge, gt, le, lt
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from peewee import BigIntegerField, BooleanField, ColumnBase, Model, TextField

from cunho_rules import filters
from cunho_rules.filters import (
    COMPARISONS,
    IMAGE_FIELDS,
    NESTING,
    OPERATION_FIELDS,
    And,
    Comparison,
    Expression,
    Not,
    Or,
)
from cunho_rules.orders import Key
from cunho_storage import embedded
from cunho_storage.conditions import Compare, after, condition, label_of, ordering, some_element
from cunho_storage.statements import Statement, arg
from cunho_storage.tables import JsonField, TimeField

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCHEMA = """
    CREATE TABLE thing (
        id text COLLATE "C" PRIMARY KEY,
        name text COLLATE "C" NOT NULL,
        owner text COLLATE "C",
        version text COLLATE "C",
        size_bytes bigint NOT NULL,
        cloud_init boolean NOT NULL,
        create_time timestamptz NOT NULL,
        labels jsonb NOT NULL,
        software jsonb NOT NULL,
        target_ids jsonb NOT NULL
    );
    CREATE INDEX thing_name ON thing (name);
    CREATE INDEX thing_newest ON thing (create_time, id);
    CREATE INDEX thing_labels ON thing USING gin (labels);
    SET enable_seqscan = off;
"""


class ThingRow(Model):
    id = TextField(primary_key=True)
    name = TextField()
    owner = TextField(null=True)
    version = TextField(null=True)
    size_bytes = BigIntegerField()
    cloud_init = BooleanField()
    create_time = TimeField()
    labels = JsonField()
    software = JsonField()
    target_ids = JsonField()

    class Meta:
        table_name = "thing"


ORDER_COLUMNS: dict[str, ColumnBase] = {
    "id": ThingRow.id,
    "name": ThingRow.name,
    "size_bytes": ThingRow.size_bytes,
    "create_time": ThingRow.create_time,
}
COLUMNS: dict[str, ColumnBase | Compare] = {
    "image_id": ThingRow.id,
    "name": ThingRow.name,
    "owner_account_id": ThingRow.owner,
    "os.version": ThingRow.version,
    "size_bytes": ThingRow.size_bytes,
    "cloud_init": ThingRow.cloud_init,
    "create_time": ThingRow.create_time,
    "labels": label_of(ThingRow.labels),
    "software.name": some_element(ThingRow.software, "name"),
    "software.version": some_element(ThingRow.software, "version"),
    "target_id": some_element(ThingRow.target_ids),
}


class Thing(NamedTuple):
    """A row of the table, as plain values."""

    id: str
    name: str = "web"
    owner: str | None = None
    version: str | None = None
    size_bytes: int = 0
    cloud_init: bool = False
    create_time: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    labels: dict[str, str] = {}  # noqa: RUF012 the field of a tuple, never changed
    software: Sequence[dict[str, str]] = ()
    target_ids: Sequence[str] = ()


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="cunho-") as folder:
        postgresql = embedded.start(Path(folder), durable=False)
        yield postgresql.dsn
        postgresql.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    await connection.execute(SCHEMA)
    yield connection
    await connection.close()


async def insert(connection: asyncpg.Connection, things: Sequence[Thing]) -> None:
    rows = [(*thing[:-3], *map(json.dumps, thing[-3:])) for thing in things]
    await connection.executemany("INSERT INTO thing VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", rows)


async def selected(connection: asyncpg.Connection, expression: Expression, things: Sequence[Thing]) -> set[str]:
    """The ids that PostgreSQL selects of these rows."""
    statement = Statement(ThingRow.select(ThingRow.id).where(condition(expression, COLUMNS)))
    transaction = connection.transaction()
    await transaction.start()
    try:
        await insert(connection, things)
        return {row["id"] for row in await connection.fetch(statement.text, *statement.values({}))}
    finally:
        await transaction.rollback()


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {"=": eq, "<": lt, "<=": le, ">": gt, ">=": ge, ":": contains}


def holds(expression: Expression, thing: Thing) -> bool:
    """What the expression means."""
    match expression:
        case And(parts):
            return all(holds(part, thing) for part in parts)
        case Or(parts):
            return any(holds(part, thing) for part in parts)
        case Not(part):
            return not holds(part, thing)
        case Comparison(operator="!="):
            return not any(equals(expression, value) for value in values_of(expression, thing))
        case Comparison(operator="="):
            return any(equals(expression, value) for value in values_of(expression, thing))
        case Comparison(operator=operator, value=value):
            return any(OPERATORS[operator](of_thing, value) for of_thing in values_of(expression, thing))


def equals(comparison: Comparison, value: Any) -> bool:
    return bool(value.startswith(comparison.value) if comparison.prefix else value == comparison.value)


def values_of(comparison: Comparison, thing: Thing) -> list[Any]:
    match comparison.field:
        case "image_id":
            return [thing.id]
        case "owner_account_id":
            return [thing.owner or ""]
        case "os.version":
            return [thing.version or ""]
        case "labels":
            return [value for key, value in thing.labels.items() if key == comparison.key]
        case "software.name":
            return [software["name"] for software in thing.software]
        case "software.version":
            return [software["version"] for software in thing.software]
        case "target_id":
            return list(thing.target_ids)
        case name:
            return [getattr(thing, name)]


# Characters that patterns, SQL and JSON treat specially, and those at the edges of the ranges that Unicode has.
texts = st.text(st.sampled_from("aab%_\\'\"*$é\ud7ff\ue000\U0010ffff"), max_size=3)
numbers = st.sampled_from([-(2**63), -1, 0, 1, 2**31, 2**63 - 1])
times = st.sampled_from([datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=step) for step in range(3)])
keys = st.sampled_from(["a", "a.b"])
things = st.builds(
    Thing,
    st.just(""),
    texts,
    st.none() | texts,
    st.none() | texts,
    numbers,
    st.booleans(),
    times,
    st.dictionaries(keys, texts),
    st.lists(st.fixed_dictionaries({"name": texts, "version": texts}), max_size=2),
    st.lists(texts, max_size=2),
)
rows = st.lists(things, min_size=1, max_size=8).map(
    lambda things: [thing._replace(id=f"{number}") for number, thing in enumerate(things)]
)


def comparisons(name: str) -> st.SearchStrategy[Expression]:
    field = {**OPERATION_FIELDS, **IMAGE_FIELDS}[name]
    key = keys if name == "labels" else st.just("")
    operators = st.sampled_from(field.operators)
    match field:
        case filters.Text():
            plain = st.builds(Comparison, st.just(name), key, operators, texts, st.just(False), st.just(0))
            equality = st.sampled_from(["=", "!="])
            return plain | st.builds(Comparison, st.just(name), key, equality, texts, st.just(True), st.just(0))
        case filters.Int():
            values: st.SearchStrategy[filters.Value] = numbers
        case filters.Time():
            values = times | st.sampled_from([datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
        case _:
            values = st.booleans()
    return st.builds(Comparison, st.just(name), key, operators, values, st.just(False), st.just(0))


def combined(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(parts, min_size=2, max_size=3).map(tuple)
    return several.map(And) | several.map(Or) | parts.map(Not)


expressions = st.recursive(st.one_of([comparisons(name) for name in COLUMNS]), combined, max_leaves=6)


@given(expression=expressions, things=rows)
async def test_the_rows_selected_are_those_that_the_filter_is_true_of(
    connection: asyncpg.Connection, expression: Expression, things: list[Thing]
) -> None:
    assert await selected(connection, expression, things) == {thing.id for thing in things if holds(expression, thing)}


LABELLED = Thing("labelled", labels={"env": "prod"}, version="24.04", owner="acc-1")
BARE = Thing("bare", name="100%_\\", software=[{"name": "MySQL", "version": "8.0"}, {"name": "Java", "version": "21"}])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('NOT (os.version = "24.04")', {"bare"}),
        ("os.version != 24.04", {"bare"}),
        ("NOT os.version:24", {"bare"}),
        ('os.version = ""', {"bare"}),
        ('owner_account_id = ""', {"bare"}),
        ("owner_account_id != acc-2", {"bare", "labelled"}),
        ("labels.env != prod", {"bare"}),
        ("NOT labels.env > a", {"bare"}),
        ("labels:env", {"labelled"}),
        ("-labels:env", {"bare"}),
        ('labels.env = ""', set[str]()),
        ("labels.env = p*", {"labelled"}),
        ('name:"%"', {"bare"}),
        (r'name:"_\\"', {"bare"}),
        ('name = "_*"', set[str]()),
        ("software.name = MySQL AND software.version = 21", {"bare"}),
        ("software.name != MySQL", {"labelled"}),
        ("software.name = My*", {"bare"}),
        ("software.name:SQL", {"bare"}),
        ("software.name = SQL", set[str]()),
    ],
)
async def test_what_lacks_a_value_is_not_equal_to_any(
    connection: asyncpg.Connection, text: str, expected: set[str]
) -> None:
    expression = filters.parse(text, IMAGE_FIELDS)
    assert expression
    assert await selected(connection, expression, [LABELLED, BARE]) == expected


@pytest.mark.parametrize("prefix", ["a", "", "%", "a\ud7ff", "\U0010ffff", "a\U0010ffff", "a\U0010ffff\U0010ffff"])
async def test_a_prefix_is_that_of_every_text_that_starts_with_it_and_of_no_other(
    connection: asyncpg.Connection, prefix: str
) -> None:
    names = [prefix, f"{prefix}a", f"{prefix}\U0010ffff", prefix[:-1], f"{prefix[:-1]}b", "b", "\ue000", "a\ue000"]
    expression = Comparison("name", "", "=", prefix, True, 0)
    expected = {f"{number}" for number, name in enumerate(names) if name.startswith(prefix)}
    assert await selected(connection, expression, [Thing(f"{n}", name) for n, name in enumerate(names)]) == expected


async def test_the_widest_filter_is_served(connection: asyncpg.Connection) -> None:
    expression = filters.parse(" OR ".join(["-name = web"] * COMPARISONS), IMAGE_FIELDS)
    assert expression
    assert await selected(connection, expression, [LABELLED, BARE]) == {"bare"}


async def test_the_deepest_filter_is_served(connection: asyncpg.Connection) -> None:
    expression = filters.parse("-(" * NESTING + "name = web" + ")" * NESTING, IMAGE_FIELDS)
    assert expression
    assert await selected(connection, expression, [LABELLED, BARE]) == {"labelled"}


async def test_literals_are_parameters_and_never_part_of_the_query() -> None:
    def query(literal: str) -> tuple[str, list[Any]]:
        parts = [f'{field} {operator} "{literal}"' for field in ("name", "software.name") for operator in ("=", ":")]
        expression = filters.parse(" AND ".join([*parts, f'labels.env = "{literal}*"']), IMAGE_FIELDS)
        assert expression
        statement = Statement(ThingRow.select(ThingRow.id).where(condition(expression, COLUMNS)))
        return statement.text, statement.values({})

    (hostile, values), (harmless, _) = query("'); DROP TABLE thing; --"), query("x")
    assert hostile == harmless
    assert "DROP" not in hostile
    assert "'); DROP TABLE thing; --" in values


async def plan(connection: asyncpg.Connection, where: Any, *order: Any) -> str:
    statement = Statement(ThingRow.select(ThingRow.id).where(where).order_by(*order).limit(2))
    lines = await connection.fetch(f"EXPLAIN {statement.text}", *statement.values({}))
    return "\n".join(line[0] for line in lines)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("name = web", "Index Cond: (name = 'web'::text)"),
        ("name = web*", "Index Cond: ((name >= 'web'::text) AND (name < 'wec'::text))"),
        ("create_time < 2026-01-01T00:00:00Z", "Index Cond: (create_time < '2026-01-01"),
        ("labels.env = prod", """Index Cond: (labels @> '{"env": "prod"}'::jsonb)"""),
    ],
)
async def test_an_index_serves(connection: asyncpg.Connection, text: str, index: str) -> None:
    expression = filters.parse(text, IMAGE_FIELDS)
    assert expression
    assert index in await plan(connection, condition(expression, COLUMNS))


NEWEST = datetime(2026, 1, 1, tzinfo=UTC)


async def test_an_index_serves_a_page_in_one_direction_whole(connection: asyncpg.Connection) -> None:
    order = (Key("create_time", True), Key("id", True))
    page = await plan(connection, after(order, ORDER_COLUMNS, (NEWEST, "1")), *ordering(order, ORDER_COLUMNS))
    assert "Index Only Scan Backward using thing_newest" in page
    assert "Index Cond: (ROW(create_time, id) < ROW(" in page
    assert "Sort" not in page


async def test_an_index_serves_the_first_key_of_a_page_in_mixed_directions(connection: asyncpg.Connection) -> None:
    order = (Key("create_time", True), Key("id", False))
    page = await plan(connection, after(order, ORDER_COLUMNS, (NEWEST, "1")), *ordering(order, ORDER_COLUMNS))
    assert "Index Cond: (create_time <= '2026-01-01" in page


async def test_a_page_is_composed_once_for_the_values_of_every_call(connection: asyncpg.Connection) -> None:
    order = (Key("name", False), Key("id", True))
    follows = after(order, ORDER_COLUMNS, [arg(key.field) for key in order])
    statement = Statement(ThingRow.select(ThingRow.id).where(follows))
    arguments = statement.values({"name": "web", "id": "labelled"})
    assert sorted(arguments) == ["labelled", "web"]
    assert await connection.fetch(statement.text, *arguments) == []


orders = st.permutations(["name", "size_bytes", "create_time"]).flatmap(
    lambda fields: st.lists(st.booleans(), min_size=1, max_size=4).map(
        lambda directions: tuple(map(Key, [*fields[: len(directions) - 1], "id"], directions))
    )
)


class Change(NamedTuple):
    """What others do between two pages."""

    deleted: set[int]
    inserted: list[Thing]


changes = st.builds(Change, st.sets(st.integers(0, 7)), st.lists(things, max_size=2))


@given(order=orders, things=rows, changes=st.lists(changes, max_size=4), page_size=st.integers(1, 3))
async def test_pages_visit_each_row_once_and_in_order_whatever_others_insert_and_delete(
    connection: asyncpg.Connection, order: tuple[Key, ...], things: list[Thing], changes: list[Change], page_size: int
) -> None:
    transaction = connection.transaction()
    await transaction.start()
    try:
        await insert(connection, things)
        visited = await walk(connection, order, changes, page_size)
    finally:
        await transaction.rollback()
    deleted = {str(row) for change in changes for row in change.deleted}
    ids = [thing.id for thing in visited]
    assert visited == in_order(order, visited)
    assert len(set(ids)) == len(ids)
    assert {thing.id for thing in things} - deleted <= set(ids)


async def walk(
    connection: asyncpg.Connection, order: tuple[Key, ...], changes: Sequence[Change], page_size: int
) -> list[Thing]:
    """What the pages show, one change being made after each."""
    visited: list[Thing] = []
    pending = list(enumerate(changes))
    for _ in range(100):
        query = ThingRow.select().order_by(*ordering(order, ORDER_COLUMNS)).limit(page_size)
        if visited:
            cursor = [getattr(visited[-1], key.field) for key in order]
            query = query.where(after(order, ORDER_COLUMNS, cursor))
        statement = Statement(query)
        page = [Thing(*row) for row in await connection.fetch(statement.text, *statement.values({}))]
        visited += page
        if len(page) < page_size:
            return visited
        if pending:
            number, change = pending.pop(0)
            await connection.execute("DELETE FROM thing WHERE id = ANY($1)", [str(row) for row in change.deleted])
            await insert(connection, [thing._replace(id=f"{number}-{i}") for i, thing in enumerate(change.inserted)])
    raise AssertionError("the pages never end")


def in_order(order: tuple[Key, ...], things: list[Thing]) -> list[Thing]:
    for key in reversed(order):
        things = sorted(things, key=attrgetter(key.field), reverse=key.descending)
    return things
