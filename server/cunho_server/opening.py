"""The database: found, brought up to date, filled with a catalogue, opened. Nothing here serves calls or knows gRPC.

What reads and applies catalogues is imported when there is one to apply: most starts find one in the database.
"""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cunho_server.settings import Settings
from cunho_storage import embedded, migrations, regions
from cunho_storage.database import Database
from cunho_storage.migrations import MigrationError

if TYPE_CHECKING:
    from cunho_server.apply import Applied

log = logging.getLogger(__name__)

#: Connections that the embedded PostgreSQL takes beyond those of the processes: commands, people, itself.
_CONNECTIONS_OF_OTHERS = 50


def connections_max(settings: Settings) -> int:
    """How many connections the processes may open: beyond those of calls, each has one that asks for health."""
    return settings.processes * (settings.connections + 1)


def embedded_connections(settings: Settings) -> int:
    """How many connections the embedded PostgreSQL takes."""
    return connections_max(settings) + _CONNECTIONS_OF_OTHERS


@contextmanager
def postgresql(settings: Settings) -> Iterator[str]:
    """The URL of the PostgreSQL for a command: the embedded one of a running server, or else started for this alone."""
    if url := settings.database_url or embedded.running(settings.data_dir):
        yield url
        return
    own = embedded.start(settings.data_dir, connections=embedded_connections(settings))
    try:
        yield own.dsn
    finally:
        own.stop()


@asynccontextmanager
async def opened(settings: Settings, dsn: str) -> AsyncIterator[Database]:
    """The database, its schema up to date, its catalogue loaded if it had none."""
    async with _migrated(settings, dsn) as database:
        async with database.connection() as connection:
            empty = not await regions.list_(connection, after="", limit=1)
        if empty:
            await _fill(database, settings.catalog)
        yield database


@asynccontextmanager
async def _migrated(settings: Settings, dsn: str) -> AsyncIterator[Database]:
    """The database, its schema up to date, with what is in it."""
    for name in await migrations.migrate(dsn):
        log.info("applied migration %s", name)
    database = database_of(settings, dsn)
    try:
        yield database
    finally:
        await database.close()


async def _fill(database: Database, path: Path | None) -> None:
    from cunho_server import catalog
    from cunho_server.apply import apply

    applied = await apply(database, catalog.read(path))
    log.info("loaded the catalogue: %d public images", applied.published)


def database_of(settings: Settings, dsn: str) -> Database:
    """The database as a process that answers calls uses it."""
    return Database(dsn, connections=settings.connections, role=migrations.APP_ROLE)


async def refuse_outdated(dsn: str) -> None:
    """Returns if every migration that this code knows was applied. Raises MigrationError."""
    if names := await migrations.pending(dsn):
        raise MigrationError(
            f"the schema lacks {', '.join(names)}: this process is newer than the server that it belongs to; restart "
            "that server, which migrates, rather than reload it"
        )


async def migrate(settings: Settings) -> list[str]:
    """Brings the schema up to date; the names of the migrations applied."""
    with postgresql(settings) as dsn:
        return await migrations.migrate(dsn)


async def pending(settings: Settings) -> list[str]:
    """The names of the migrations that `migrate` would apply."""
    with postgresql(settings) as dsn:
        return await migrations.pending(dsn)


async def apply_catalog(settings: Settings, path: Path) -> "Applied":
    """Applies a catalogue file, the only one even if the database is empty; what that did. Raises CatalogError."""
    from cunho_server import catalog
    from cunho_server.apply import apply

    wanted = catalog.read(path)
    with postgresql(settings) as dsn:
        async with _migrated(settings, dsn) as database:
            return await apply(database, wanted)
