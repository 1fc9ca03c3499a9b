"""Whether a PostgreSQL is fit to keep what is stored, and its schema and rights are those that the migrations make.

Everything is compared and nothing mended; each finding says what mends it.
"""

from collections.abc import Container, Iterator
from contextlib import suppress
from typing import NamedTuple

import asyncpg

from cunho_storage import migrations
from cunho_storage.database import GUARDS, DriverConnection, leave, reach
from cunho_storage.embedded import MAY_LOSE_DATA
from cunho_storage.migrations import APP_ROLE, Applied
from cunho_storage.soundness import CONTRADICTIONS
from cunho_storage.tables import TABLES

_OLDEST_VERSION = 15
#: What a setting that is off loses.
_KEEPING = {
    "fsync": "a crash of the machine can destroy the database",
    "full_page_writes": "a crash of the machine can leave pages half-written",
    "synchronous_commit": "a crash loses changes that were answered as done",
}
_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")


class Finding(NamedTuple):
    """Something that was found."""

    message: str
    remedy: str
    #: False if it is only worth knowing.
    is_problem: bool = True

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}"


class UnfitError(Exception):
    """A PostgreSQL that must not be served from; the message has one line for each reason."""


async def examine(dsn: str, *, connections: int) -> list[Finding]:
    """Everything that is found in a database, as it is at one moment; it may be in use.

    Args:
        connections: how many servers may open.
    """
    connection = await reach(dsn)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            found = [*await unfit(connection), *await _crowded(connection, connections)]
            applied = await migrations.applied(connection)
            found += _outdated(applied)
            if not applied:
                return found
            if migrations.newer(applied):
                return found + await _contradictions(connection)
            actual = await parts(connection)
            found += await rights(connection)
            found += await _contradictions(connection)
        return found + await _drift(connection, actual, applied)
    finally:
        await leave(connection)


# --- PostgreSQL itself


async def refuse_unfit(dsn: str) -> None:
    """Returns if the PostgreSQL keeps what it is given. Raises UnfitError."""
    connection = await reach(dsn)
    try:
        problems = [finding for finding in await unfit(connection) if finding.is_problem]
    finally:
        await leave(connection)
    if problems:
        raise UnfitError("\n".join(map(str, problems)))


async def unfit(connection: DriverConnection) -> list[Finding]:
    """Why nothing should be stored there, as this connection's user finds it."""
    found = [*await _losing(connection)]
    version = connection.get_server_version()
    if version.major < _OLDEST_VERSION:
        found.append(Finding(f"PostgreSQL is version {version.major}", f"upgrade it to {_OLDEST_VERSION} or newer"))
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        found.append(
            Finding(f"the database's encoding is {encoding}", "make one with CREATE DATABASE ... ENCODING 'UTF8'")
        )
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        remedy = "name the primary in CUNHO_DATABASE_URL, or several hosts with target_session_attrs=read-write"
        found.append(Finding("the database is a standby, which takes no writes", remedy))
    return found


async def _losing(connection: DriverConnection) -> list[Finding]:
    if await connection.fetchval("SELECT current_setting($1, true)", MAY_LOSE_DATA) == "on":
        return [Finding("this PostgreSQL is for tests and may lose everything", "keep nothing in it", False)]
    return [
        Finding(f"{name} is off, so that {loss}", f"set {name} = on in PostgreSQL, for its roles and databases too")
        for name, loss in _KEEPING.items()
        if await connection.fetchval("SELECT current_setting($1)", name) == "off"
    ]


async def _crowded(connection: DriverConnection, wanted: int) -> list[Finding]:
    """What is wrong if ordinary users may not open that many connections."""
    allowed = await connection.fetchval(
        """
        SELECT sum(CASE name WHEN 'max_connections' THEN setting::int ELSE -setting::int END) FROM pg_settings
         WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')
        """
    )
    if wanted <= allowed:
        return []
    remedy = "raise max_connections in PostgreSQL, or lower CUNHO_PROCESSES or CUNHO_CONNECTIONS"
    return [Finding(f"a server may open {wanted} connections and PostgreSQL allows {allowed}", remedy)]


# --- its schema


class Part(NamedTuple):
    """A part of the schema, by what it is, its name and its table."""

    kind: str
    name: str
    table: str

    def __str__(self) -> str:
        if self.kind == "table":
            return f"table {self.table}"
        guarded = f" (the last word of {GUARDS[self.name]})" if self.name in GUARDS else ""
        return f"{self.kind} {self.name} of table {self.table}{guarded}"

    def mend(self, definition: str, *, is_there: bool) -> str:
        """The SQL that makes it as defined."""
        match self.kind:
            case "constraint":
                drop = f"DROP CONSTRAINT {self.name}, " if is_there else ""
                return f"ALTER TABLE {self.table} {drop}ADD CONSTRAINT {self.name} {definition}"
            case "index":
                return f"DROP INDEX {self.name}; {definition}" if is_there else definition
            case "enforcement":
                return f"ALTER TABLE {self.table} ENABLE TRIGGER ALL, then look for rows that break {self.name}"
            case "column" if not is_there:
                return f"ALTER TABLE {self.table} ADD COLUMN {self.name} {definition}"
        return f"restore it from a backup's schema; it should be {definition or 'there'}"


_PARTS = """
WITH tables AS (SELECT oid, relname FROM pg_class WHERE relnamespace = {schema} AND relkind IN ('r', 'p'))
SELECT 'table' AS kind, relname AS name, relname AS "table", '' AS definition FROM tables
UNION ALL
SELECT 'column', attname, relname, concat_ws(' ', format_type(atttypid, atttypmod),
         'COLLATE ' || quote_ident(nullif(collname, 'default')), 'DEFAULT ' || pg_get_expr(adbin, adrelid),
         CASE WHEN attnotnull THEN 'NOT NULL' END)
  FROM tables JOIN pg_attribute ON attrelid = tables.oid AND attnum > 0 AND NOT attisdropped
  LEFT JOIN pg_collation ON pg_collation.oid = attcollation
  LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
UNION ALL
SELECT 'constraint', conname, relname, pg_get_constraintdef(pg_constraint.oid)
  FROM tables JOIN pg_constraint ON conrelid = tables.oid WHERE contype IN ('c', 'f', 'p', 'u', 'x')
UNION ALL
SELECT 'enforcement', conname, relname, CASE WHEN bool_and(tgenabled IN ('O', 'A')) THEN 'on' ELSE 'off' END
  FROM tables JOIN pg_constraint ON conrelid = tables.oid JOIN pg_trigger ON tgconstraint = pg_constraint.oid
 GROUP BY conname, relname
UNION ALL
SELECT 'index', pg_class.relname, tables.relname, pg_get_indexdef(indexrelid)
         || CASE WHEN indisvalid AND indisready THEN '' ELSE ' (INVALID)' END
  FROM tables JOIN pg_index ON indrelid = tables.oid JOIN pg_class ON pg_class.oid = indexrelid
 WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))
"""


def _outdated(applied: dict[int, Applied]) -> Iterator[Finding]:
    """What is wrong with the migrations that were applied."""
    for problem in migrations.problems(applied):
        message, _, remedy = problem.partition(": ")
        yield Finding(message, remedy)
    for version, name, _ in migrations.files():
        if version not in applied:
            yield Finding(f"{name} is not applied", "run `cunho-server migrate`, or start a server")
    for each in migrations.newer(applied).values():
        remedy = "servers of this version go on; the check of a newer one compares the schema and its rights"
        yield Finding(f"{each.name} was applied by a newer server", remedy, False)


async def _contradictions(connection: DriverConnection) -> list[Finding]:
    remedy = (
        "it was changed by hand, or there is a bug; with no server running, restore a backup or mend the rows as the "
        "owner of the tables"
    )
    with suppress(asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):  # the comparison of the schema says it
        async with connection.transaction():
            return [Finding(row[0], remedy) for row in await connection.fetch(CONTRADICTIONS)]
    return []


async def _drift(connection: DriverConnection, actual: "dict[Part, str]", applied: Container[int]) -> list[Finding]:
    try:
        return [*drifted(actual, await declared_parts(connection, applied))]
    except (asyncpg.InsufficientPrivilegeError, asyncpg.ReadOnlySQLTransactionError) as error:
        remedy = "run the check as the owner of the tables, on the primary"
        return [Finding(f"the schema could not be compared ({error})", remedy, False)]


async def parts(connection: DriverConnection) -> dict[Part, str]:
    """What the schema `public` is made of, with the definitions of its parts as PostgreSQL writes them."""
    await connection.execute("SET LOCAL search_path = public")
    return await _parts(connection, "'public'::regnamespace")


async def declared_parts(connection: DriverConnection, versions: Container[int]) -> dict[Part, str]:
    """The same as those migrations make it: made anew, as temporary tables, in a transaction that is rolled back."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(f"SET LOCAL search_path = pg_temp; {migrations.BOOK}")
        for version, _, text in migrations.files():
            if version in versions:
                await connection.execute(text)
        return await _parts(connection, "pg_my_temp_schema()")
    finally:
        await transaction.rollback()


async def _parts(connection: DriverConnection, schema: str) -> dict[Part, str]:
    rows = await connection.fetch(_PARTS.format(schema=schema))
    return {Part(row["kind"], row["name"], row["table"]): _unqualified(row["definition"]) for row in rows}


def _unqualified(definition: str) -> str:
    return definition.replace("public.", "").replace("pg_temp.", "")


def drifted(actual: dict[Part, str], declared: dict[Part, str]) -> Iterator[Finding]:
    """How a schema differs from the declared one."""
    for part in sorted({*actual, *declared}):
        whole = Part("table", part.table, part.table)
        if part != whole and (whole not in actual or whole not in declared):
            continue  # the table's own line says it
        if part not in declared:
            yield Finding(f"{part} is made by no migration", "drop it if nobody needs it", False)
        elif part not in actual:
            if part.kind != "enforcement":  # the constraint's own line says it
                yield Finding(f"{part} is missing", part.mend(declared[part], is_there=False))
        elif actual[part] != declared[part]:
            yield Finding(f"{part} is {actual[part]}", part.mend(declared[part], is_there=True))


# --- who may what


async def rights(connection: DriverConnection) -> list[Finding]:
    """What the server's role may do beyond what the migrations grant, and what it may not of that."""
    role = await connection.fetchrow("SELECT oid, rolsuper FROM pg_roles WHERE rolname = $1", APP_ROLE)
    if role is None:
        return [Finding(f"the role {APP_ROLE} is not there", "run `cunho-server migrate`")]
    if role["rolsuper"]:
        return [Finding(f"the role {APP_ROLE} may do everything", f"ALTER ROLE {APP_ROLE} NOSUPERUSER")]
    found = []
    if not await connection.fetchval("SELECT pg_has_role($1::oid, 'MEMBER')", role["oid"]):
        remedy = f'GRANT {APP_ROLE} TO "the user of the database URL"'
        found.append(Finding(f"the user of the database URL may not become {APP_ROLE}", remedy))
    if await connection.fetchval("SELECT has_schema_privilege($1::oid, 'public', 'CREATE')", role["oid"]):
        remedy = f"REVOKE CREATE ON SCHEMA public FROM PUBLIC, {APP_ROLE}"
        found.append(Finding(f"the role {APP_ROLE} may make tables", remedy))
    rows = await connection.fetch(
        """
        SELECT relname, pg_has_role($1::oid, relowner, 'MEMBER') AS owns,
               ARRAY(SELECT name FROM unnest($2::text[]) AS name WHERE has_table_privilege($1::oid, oid, name)) AS has
          FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname = ANY($3) ORDER BY relname
        """,
        role["oid"],
        _RIGHTS,
        ["schema_migration", *(model._meta.table_name for model in TABLES)],
    )
    return found + [finding for row in rows for finding in _rights_on(row["relname"], row["owns"], {*row["has"]})]


def _rights_on(table: str, owns: bool, has: set[str]) -> Iterator[Finding]:
    """What is wrong with the role's rights on one table."""
    if owns:
        remedy = f"ALTER TABLE {table} OWNER TO the user that migrates, and take {APP_ROLE} out of its owner"
        yield Finding(f"the role {APP_ROLE} owns table {table}, and may do everything with it", remedy)
        return
    granted = migrations.granted(table)
    for right in sorted(has - granted):
        yield Finding(f"the role {APP_ROLE} may {right} {table}", f"REVOKE {right} ON {table} FROM PUBLIC, {APP_ROLE}")
    for right in sorted(granted - has):
        yield Finding(f"the role {APP_ROLE} may not {right} {table}", f"GRANT {right} ON {table} TO {APP_ROLE}")
