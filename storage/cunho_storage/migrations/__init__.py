"""The schema, as numbered SQL files that only go forward, and what applies them.

A file that was ever applied anywhere never changes again. Applying is one transaction under a lock, so that servers
that start at once do it once. Servers go on over a newer schema, and start over it, unless it took away what they need.
"""

import asyncio
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import resources
from typing import NamedTuple

import asyncpg

from cunho_storage.database import DriverConnection, leave, reach

#: The role that statements run as: it owns no table, so it can neither change the schema nor delete an image's row.
APP_ROLE = "cunho_app"

#: Names the lock: it must be there before the first table is.
_LOCK = 0x63756E686F

#: How long tables are waited for, since calls queue behind that, and how often: a backup has them for its whole time.
_WAIT_SECONDS, _PAUSE_SECONDS, _TRIES = 1, 1, 60

#: The end of the name of a migration that takes away what only servers before a version of the schema need.
_SINCE = re.compile(r"_since_(\d{4})\.sql$")

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


class Applied(NamedTuple):
    """A migration that was applied."""

    name: str
    #: Of its text.
    digest: str

    @property
    def since(self) -> int:
        """The version of the schema that servers must know to do without what it took away; 0 if it took nothing."""
        found = _SINCE.search(self.name)
        return int(found[1]) if found else 0


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
        for _ in range(_TRIES):
            with suppress(asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                return await _apply_missing(connection)
            await asyncio.sleep(_PAUSE_SECONDS)
        raise MigrationError(
            f"the schema was not changed: at each of {_TRIES} tries a transaction, as that of a backup, had its "
            "tables; migrate when it has ended"
        )
    finally:
        await leave(connection)


async def pending(dsn: str) -> list[str]:
    """The names of the migrations that `migrate` would apply now. Raises MigrationError as it would."""
    connection = await reach(dsn)
    try:
        return [name for _, name, _ in _missing(await applied(connection))]
    finally:
        await leave(connection)


async def applied(connection: DriverConnection) -> dict[int, Applied]:
    """Every migration that was applied, by its version."""
    if await connection.fetchval("SELECT to_regclass('schema_migration')") is None:
        return {}
    return await _book(connection)


def newer(applied: Mapping[int, Applied]) -> dict[int, Applied]:
    """Those of the applied that this server does not know."""
    known = {version for version, _, _ in files()}
    return {version: each for version, each in applied.items() if version not in known}


def problems(applied: Mapping[int, Applied]) -> Iterator[str]:
    """Why a schema to which these were applied cannot be brought up to date, or served from."""
    known, unknown = files(), newer(applied)
    newest = known[-1][0]
    if (since := max((each.since for each in unknown.values()), default=0)) > newest:
        yield (
            f"the database's schema is version {max(unknown)}, for servers that know version {since}, "
            f"this one knows only up to {newest}: start a newer server"
        )
    for version, name, text in known:
        if version in applied and applied[version].digest != _digest(text):
            yield f"{name} was applied to this database with another content: restore the file"


async def _apply_missing(connection: DriverConnection) -> list[str]:
    async with connection.transaction():
        await connection.execute(f"{BOOK} SET LOCAL lock_timeout = '{_WAIT_SECONDS}s'")
        missing = _missing(await _book(connection))
        for version, name, text in missing:
            await _apply(connection, version, name, text)
        return [name for _, name, _ in missing]


def _missing(applied: Mapping[int, Applied]) -> list[tuple[int, str, str]]:
    """The migrations still to be applied. Raises MigrationError."""
    if wrong := "\n".join(problems(applied)):
        raise MigrationError(wrong)
    return [file for file in files() if file[0] not in applied]


async def _book(connection: DriverConnection) -> dict[int, Applied]:
    rows = await connection.fetch("SELECT version, name, digest FROM schema_migration")
    return {version: Applied(name, digest) for version, name, digest in rows}


async def _apply(connection: DriverConnection, version: int, name: str, text: str) -> None:
    try:
        await connection.execute(text)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        raise
    except asyncpg.PostgresError as error:
        raise MigrationError(f"{name} failed ({error}), and nothing was changed") from error
    await connection.execute(_GRANTS)
    await connection.execute(
        "INSERT INTO schema_migration (version, name, digest) VALUES ($1, $2, $3)", version, name, _digest(text)
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def _make_role(connection: DriverConnection) -> None:
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
