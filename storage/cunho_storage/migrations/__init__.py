"""The schema, as numbered SQL files that only go forward, and what applies them.

A file that was ever applied anywhere never changes again. Applying is one transaction under a lock, so that servers
that start at once do it once.
"""

import hashlib
from contextlib import suppress
from importlib import resources

import asyncpg

#: The role that statements run as: it owns no table, so it can neither change the schema nor delete an image's row.
APP_ROLE = "cunho_app"

#: Names the lock: it must be there before the first table is.
_LOCK = 0x63756E686F

_BOOK = """
CREATE TABLE IF NOT EXISTS schema_migration (
  version INTEGER PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, apply_time TIMESTAMPTZ NOT NULL DEFAULT now()
);
"""

_GRANTS = f"""
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {APP_ROLE};
GRANT DELETE ON account_region, image_share, operation, request_log TO {APP_ROLE};
REVOKE INSERT, UPDATE ON schema_migration FROM {APP_ROLE};
"""


class MigrationError(Exception):
    """The schema cannot be brought up to date; the message says why and what to do."""


def files() -> list[tuple[int, str, str]]:
    """Version, name and text of every migration, in order."""
    found = [path for path in resources.files(__name__).iterdir() if path.name.endswith(".sql")]
    return [(int(path.name[:4]), path.name, path.read_text()) for path in sorted(found, key=lambda path: path.name)]


async def migrate(dsn: str) -> list[str]:
    """Brings the schema up to date; the names of the migrations applied. Raises MigrationError."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        await connection.execute(f"SELECT pg_advisory_lock({_LOCK})")  # held until the connection is closed
        await _make_role(connection)
        async with connection.transaction():
            await connection.execute(_BOOK)
            applied = {row["version"]: row for row in await connection.fetch("SELECT * FROM schema_migration")}
            known = files()
            if newer := applied.keys() - {version for version, _, _ in known}:
                raise MigrationError(
                    f"the database's schema is version {max(newer)}, this server knows only up to {known[-1][0]}: "
                    "start a server as new as the one that migrated it"
                )
            return [name for version, name, text in known if await _apply(connection, applied, version, name, text)]
    finally:
        await connection.close()


async def _apply(
    connection: "asyncpg.Connection[asyncpg.Record]",
    applied: dict[int, asyncpg.Record],
    version: int,
    name: str,
    text: str,
) -> bool:
    digest = hashlib.sha256(text.encode()).hexdigest()
    if version in applied:
        if applied[version]["digest"] != digest:
            raise MigrationError(f"{name} was applied to this database with another content: restore the file")
        return False
    try:
        await connection.execute(text)
    except asyncpg.PostgresError as error:
        raise MigrationError(f"{name} failed ({error}), and nothing was changed") from error
    await connection.execute(_GRANTS)
    await connection.execute(
        "INSERT INTO schema_migration (version, name, digest) VALUES ($1, $2, $3)", version, name, digest
    )
    return True


async def _make_role(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
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
