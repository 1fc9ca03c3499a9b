"""The schema, as numbered SQL files that only go forward, and what applies them.

A file that was ever applied anywhere never changes again. Applying is one transaction under a lock, so that servers
that start at once do it once.
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from importlib import resources
from typing import TypeAlias

import asyncpg

from cunho_storage.database import reach

_Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

#: The role that statements run as: it owns no table, so it can neither change the schema nor delete an image's row.
APP_ROLE = "cunho_app"

#: Names the lock: it must be there before the first table is.
_LOCK = 0x63756E686F

#: The table that says which migrations were applied.
BOOK = """
CREATE TABLE IF NOT EXISTS schema_migration (
  version INTEGER PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, apply_time TIMESTAMPTZ NOT NULL DEFAULT now()
);
"""

_DELETABLE = ("account_region", "image_share", "operation", "request_log")
_GRANTS = f"""
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {APP_ROLE};
GRANT DELETE ON {", ".join(_DELETABLE)} TO {APP_ROLE};
REVOKE INSERT, UPDATE ON schema_migration FROM {APP_ROLE};
"""


class MigrationError(Exception):
    """The schema cannot be brought up to date; the message says why and what to do."""


def files() -> list[tuple[int, str, str]]:
    """Version, name and text of every migration, in order."""
    found = [path for path in resources.files(__name__).iterdir() if path.name.endswith(".sql")]
    return [(int(path.name[:4]), path.name, path.read_text()) for path in sorted(found, key=lambda path: path.name)]


def granted(table: str) -> set[str]:
    """The rights on a table that the server's role is given."""
    if table == "schema_migration":
        return {"SELECT"}
    return {"SELECT", "INSERT", "UPDATE"} | ({"DELETE"} if table in _DELETABLE else set())


async def migrate(dsn: str) -> list[str]:
    """Brings the schema up to date; the names of the migrations applied. Raises MigrationError."""
    connection = await reach(dsn)
    try:
        await connection.execute(f"SELECT pg_advisory_lock({_LOCK})")  # held until the connection is closed
        await _make_role(connection)
        async with connection.transaction():
            await connection.execute(BOOK)
            missing = _missing(await _book(connection))
            for version, name, text in missing:
                await _apply(connection, version, name, text)
            return [name for _, name, _ in missing]
    finally:
        await connection.close()


async def pending(dsn: str) -> list[str]:
    """The names of the migrations that `migrate` would apply now. Raises MigrationError as it would."""
    connection = await reach(dsn)
    try:
        return [name for _, name, _ in _missing(await applied(connection))]
    finally:
        await connection.close()


async def applied(connection: _Connection) -> dict[int, str]:
    """The digest of every migration that was applied, by its version."""
    if await connection.fetchval("SELECT to_regclass('schema_migration')") is None:
        return {}
    return await _book(connection)


def problems(applied: dict[int, str]) -> Iterator[str]:
    """Why a schema to which these were applied cannot be brought up to date."""
    known = files()
    if newer := applied.keys() - {version for version, _, _ in known}:
        yield (
            f"the database's schema is version {max(newer)}, this server knows only up to {known[-1][0]}: "
            "start a server as new as the one that migrated it"
        )
    for version, name, text in known:
        if applied.get(version, _digest(text)) != _digest(text):
            yield f"{name} was applied to this database with another content: restore the file"


def _missing(applied: dict[int, str]) -> list[tuple[int, str, str]]:
    """The migrations still to be applied. Raises MigrationError."""
    if wrong := "\n".join(problems(applied)):
        raise MigrationError(wrong)
    return [file for file in files() if file[0] not in applied]


async def _book(connection: _Connection) -> dict[int, str]:
    return {row["version"]: row["digest"] for row in await connection.fetch("SELECT * FROM schema_migration")}


async def _apply(connection: _Connection, version: int, name: str, text: str) -> None:
    try:
        await connection.execute(text)
    except asyncpg.PostgresError as error:
        raise MigrationError(f"{name} failed ({error}), and nothing was changed") from error
    await connection.execute(_GRANTS)
    await connection.execute(
        "INSERT INTO schema_migration (version, name, digest) VALUES ($1, $2, $3)", version, name, _digest(text)
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def _make_role(connection: _Connection) -> None:
    if await connection.fetchval("SELECT pg_has_role(oid, 'MEMBER') FROM pg_roles WHERE rolname = $1", APP_ROLE):
        return
    try:
        with suppress(asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
            await connection.execute(f"CREATE ROLE {APP_ROLE} NOLOGIN")
        await connection.execute(f"GRANT {APP_ROLE} TO CURRENT_USER")
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationError(
            f"the database user may not make the role {APP_ROLE}: have an administrator of the database run "
            f'CREATE ROLE {APP_ROLE} NOLOGIN; GRANT {APP_ROLE} TO "the user of the database URL";'
        ) from error
