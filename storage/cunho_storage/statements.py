"""Queries composed once from the models, and executed prepared ever after.

    BY_ID = Statement(ImageRow.select().where(ImageRow.image_id == arg("image_id")))
    row = await connection.row(BY_ID, image_id="img-3k9x0q2z")

Composing a query costs more than executing it, so it is done at import. No SQL text is written by hand but in the
migrations, and where an installation is checked (`soundness`, `installation`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from peewee import SQL, Cast, Node, PostgresqlDatabase, Query, Select, Value, fn

from cunho_rules.orders import Key

#: Stands where an argument goes; no SQL that Peewee composes contains it.
_MARK = "\0"


class _Dialect(PostgresqlDatabase):
    param = _MARK


_DIALECT = _Dialect(None)


class _Argument(NamedTuple):
    name: str


def arg(name: str, type: str = "") -> Any:
    """The placeholder of an argument; `type` where PostgreSQL cannot tell it from the context."""
    value = Value(_Argument(name), converter=False, unpack=False)
    return Cast(value, type) if type else value


def any_of(name: str) -> Any:
    """The placeholder of a list of texts, to be compared with `== any_of("image_ids")`."""
    return fn.ANY(arg(name, "text[]"))


def literal(value: str) -> Any:
    """A constant of ours that PostgreSQL must see when it plans, to use an index that is partial by it."""
    return SQL("'" + value.replace("'", "''") + "'")


def locking(query: Any, strength: str, *, skip_locked: bool = False) -> Any:
    """The query, locking the rows that it finds: strength "UPDATE", "NO KEY UPDATE", "SHARE" or "KEY SHARE"."""
    return query.for_update(f"FOR {strength}", skip_locked=skip_locked or None)


def delete_from(model: Any) -> Any:
    """A query that deletes rows of the table; `Model.delete` itself has no type that checkers agree on."""
    return model.delete()


def first_row(query: Any) -> Any:
    """The first row of a query, as one column: a tuple, or None."""
    return Select([query.alias("row")], [SQL('"row"')])


def every_row(query: Any) -> Any:
    """All rows of a query, as one column: a list of tuples."""
    return fn.ARRAY(first_row(query))


def together(*columns: Any) -> Any:
    """What several queries find, in one row: what needs no lock in between needs one round trip alone."""
    return Select([], columns)


_CURSOR_TYPES = {"create_time": "timestamptz", "update_time": "timestamptz", "size_bytes": "bigint"}


def cursor(keys: Sequence[Key]) -> list[Any]:
    """The placeholders of cursor_0, cursor_1 ...: the values of `keys` that a page comes after."""
    return [arg(f"cursor_{index}", _CURSOR_TYPES.get(key.field, "text")) for index, key in enumerate(keys)]


class Statement:
    """A query with named arguments, composed."""

    def __init__(self, query: Query | Node) -> None:
        context: Any = _DIALECT.get_sql_context()
        sql, values = context.sql(query).query()
        parts = sql.split(_MARK)
        numbered: dict[Any, int] = {}
        numbers = [
            numbered.setdefault(value if isinstance(value, _Argument) else (index, id(value)), len(numbered) + 1)
            for index, value in enumerate(values)
        ]
        self.text = parts[0] + "".join(f"${number}{part}" for number, part in zip(numbers, parts[1:], strict=True))
        self._constants: list[Any] = [None] * len(numbered)
        self._names: dict[int, str] = {}
        for number, value in zip(numbers, values, strict=True):
            if isinstance(value, _Argument):
                self._names[number - 1] = value.name
            else:
                self._constants[number - 1] = value

    def values(self, arguments: dict[str, Any]) -> list[Any]:
        """The values of $1, $2 ..., with the arguments among them."""
        values = self._constants.copy()
        for index, name in self._names.items():
            values[index] = arguments[name]
        return values
