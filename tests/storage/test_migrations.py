"""The schema that migrations make is the one that the models describe, and bringing it up to date is safe."""

import asyncio
from collections.abc import Iterable
from typing import Any

import asyncpg
import pytest
from peewee import PostgresqlDatabase, SchemaManager
from tests.storage.schemas import schema
from tests.world import Postgres

from cunho_storage import migrations
from cunho_storage.migrations import APP_ROLE, MigrationError, migrate, pending
from cunho_storage.tables import TABLES

FILES = migrations.files()
NEWEST = FILES[-1][0]


@pytest.fixture
def dsn(postgres: Postgres) -> str:
    """A database with nothing in it."""
    return postgres.empty_database()


async def execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def tables(dsn: str) -> set[str]:
    connection = await asyncpg.connect(dsn)
    try:
        return {row[0] for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    finally:
        await connection.close()


def also(monkeypatch: pytest.MonkeyPatch, *more: str, name: str = "more") -> None:
    """Adds migrations of these texts."""
    files = [(NEWEST + number, f"{NEWEST + number:04}_{name}.sql", text) for number, text in enumerate(more, start=1)]
    monkeypatch.setattr(migrations, "files", lambda: FILES + files)


# --- the models and the files


def sql_of_models() -> str:
    """What makes the tables that the models describe."""
    statements: list[str] = []
    for model in TABLES:
        manager: Any = SchemaManager(model, PostgresqlDatabase(None))
        parts: Iterable[Any] = (manager._create_table(safe=False), *manager._create_indexes(safe=False))
        statements += [part.query()[0] for part in parts]
    return ";\n".join(statements)


async def test_the_migrations_make_the_tables_that_the_models_describe(dsn: str, postgres: Postgres) -> None:
    of_models = await asyncio.to_thread(postgres.empty_database)
    await migrate(dsn)
    await execute(of_models, sql_of_models())
    assert schema(dsn) == schema(of_models)
    assert "CREATE TABLE public.image (" in schema(dsn)


@pytest.mark.parametrize(
    ("text", "drifted"),
    [
        ("images_used >= 0 AND", "images_used >= -1 AND"),
        ("'DELETED' AND owner_account_id IS NULL", "'FAILED' AND owner_account_id IS NULL"),
        ('"family" TEXT NOT NULL COLLATE "C"', '"family" TEXT NOT NULL'),
        ('"delete_time" TIMESTAMPTZ', '"delete_time" TIMESTAMPTZ NOT NULL'),
    ],
)
async def test_a_drift_between_the_two_is_seen(dsn: str, postgres: Postgres, text: str, drifted: str) -> None:
    of_models = await asyncio.to_thread(postgres.empty_database)
    await migrate(dsn)
    assert text in sql_of_models()
    await execute(of_models, sql_of_models().replace(text, drifted))
    assert schema(dsn) != schema(of_models)


# --- applying them


async def test_every_migration_is_applied_once(dsn: str) -> None:
    assert await migrate(dsn) == [name for _, name, _ in FILES]
    assert await migrate(dsn) == []


async def test_what_would_be_applied_is_named_and_not_applied(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await pending(dsn) == [name for _, name, _ in FILES]
    assert await tables(dsn) == set()
    await migrate(dsn)
    assert await pending(dsn) == []
    also(monkeypatch, "CREATE TABLE later ();")
    assert await pending(dsn) == [f"{NEWEST + 1:04}_more.sql"]
    assert "later" not in await tables(dsn)


async def test_servers_that_start_at_once_migrate_once(dsn: str) -> None:
    applied = await asyncio.gather(*(migrate(dsn) for _ in range(8)))
    assert sorted(applied) == [[]] * 7 + [[name for _, name, _ in FILES]]


async def test_servers_that_start_at_once_make_the_role_once(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "APP_ROLE", "cunho_another")
    await asyncio.gather(*(migrate(dsn) for _ in range(8)))
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = 'cunho_another'") == 1
    await connection.close()


async def test_a_later_migration_is_applied_to_what_the_earlier_made(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await migrate(dsn)
    also(monkeypatch, "CREATE TABLE later ();", "ALTER TABLE later ADD COLUMN note TEXT;")
    assert await migrate(dsn) == [f"{NEWEST + 1:04}_more.sql", f"{NEWEST + 2:04}_more.sql"]
    assert "later" in await tables(dsn)


async def test_a_migration_that_fails_leaves_nothing_of_itself_and_of_those_before_it(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    also(monkeypatch, "CREATE TABLE half ();", "CREATE TABLE rest (); SELECT 1 / 0;")
    with pytest.raises(
        MigrationError, match=rf"{NEWEST + 2:04}_more.sql failed \(division by zero\), and nothing was changed"
    ):
        await migrate(dsn)
    assert await tables(dsn) == set()
    also(monkeypatch, "CREATE TABLE half ();", "CREATE TABLE rest ();")
    assert len(await migrate(dsn)) == len(FILES) + 2


async def test_a_migration_that_fails_leaves_the_schema_that_there_was(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(dsn)
    before = schema(dsn)
    also(monkeypatch, "ALTER TABLE image DROP COLUMN quote; SELECT 1 / 0;")
    with pytest.raises(MigrationError):
        await migrate(dsn)
    assert schema(dsn) == before


@pytest.mark.parametrize("name", ["more", f"less_since_{NEWEST:04}"])
async def test_a_newer_schema_is_served_from_if_it_has_what_the_server_needs(
    dsn: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    also(monkeypatch, "CREATE TABLE later ();", name=name)
    await migrate(dsn)
    monkeypatch.undo()
    assert await migrate(dsn) == []
    assert await pending(dsn) == []


async def test_a_newer_schema_that_took_away_what_the_server_needs_is_refused(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    also(monkeypatch, "CREATE TABLE later ();", "CREATE TABLE last ();", name=f"less_since_{NEWEST + 1:04}")
    await migrate(dsn)
    monkeypatch.undo()
    told = (
        f"schema is version {NEWEST + 2}, for servers that know version {NEWEST + 1}, "
        f"this one knows only up to {NEWEST}"
    )
    for call in (migrate, pending):
        with pytest.raises(MigrationError, match=told):
            await call(dsn)


async def test_a_file_that_was_changed_after_it_was_applied_is_refused(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(dsn)
    version, name, text = FILES[0]
    monkeypatch.setattr(migrations, "files", lambda: [(version, name, f"{text}-- a remark\n"), *FILES[1:]])
    with pytest.raises(MigrationError, match=f"{name} was applied to this database with another content: restore"):
        await migrate(dsn)


# --- applying them under traffic


async def waiting(dsn: str) -> None:
    """Returns when a migration waits for a table."""
    connection = await asyncpg.connect(dsn)
    while not await connection.fetch("SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"):
        await asyncio.sleep(0.01)
    await connection.close()


async def test_a_migration_that_waits_for_a_backup_lets_calls_pass_and_is_applied_when_that_ends(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(dsn)
    also(monkeypatch, "ALTER TABLE image ADD COLUMN addition TEXT;")
    monkeypatch.setattr(migrations, "_PAUSE_SECONDS", 0.1)
    backup = await asyncpg.connect(dsn)
    await backup.execute("BEGIN; SELECT FROM image")
    migrating = asyncio.create_task(migrate(dsn))
    for _ in range(2):
        await waiting(dsn)
        await execute(dsn, "SET statement_timeout = '20s'; SELECT FROM image")
    assert not migrating.done()
    await backup.close()
    assert await migrating == [f"{NEWEST + 1:04}_more.sql"]


async def test_a_migration_that_never_gets_its_tables_says_why(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await migrate(dsn)
    before = schema(dsn)
    also(monkeypatch, "CREATE TABLE early (); ALTER TABLE image ADD COLUMN addition TEXT;")
    monkeypatch.setattr(migrations, "_TRIES", 2)
    monkeypatch.setattr(migrations, "_PAUSE_SECONDS", 0.1)
    backup = await asyncpg.connect(dsn)
    await backup.execute("BEGIN; SELECT FROM image")
    with pytest.raises(MigrationError, match="at each of 2 tries a transaction, as that of a backup, had its tables"):
        await migrate(dsn)
    await backup.close()
    assert schema(dsn) == before


async def test_a_migration_and_a_call_that_wait_for_each_other_both_end_well(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(dsn)
    also(monkeypatch, "ALTER TABLE image ADD COLUMN addition TEXT; ALTER TABLE instance ADD COLUMN addition TEXT;")
    call = await asyncpg.connect(dsn)
    await call.execute("SET deadlock_timeout = '1min'")  # the migration finds it, also on a busy machine
    await call.execute("BEGIN; SELECT FROM instance")
    migrating = asyncio.create_task(migrate(dsn))
    await waiting(dsn)
    await call.execute("SELECT FROM image; COMMIT")
    await call.close()
    assert await migrating == [f"{NEWEST + 1:04}_more.sql"]


# --- who may what


async def test_a_user_who_may_not_make_the_role_is_told_what_an_administrator_must_do(dsn: str) -> None:
    await execute(
        dsn,
        """
        CREATE ROLE tester LOGIN;
        DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO tester', current_database()); END $$;
        """,
    )
    of_tester = dsn.replace("//cunho@", "//tester@")
    with pytest.raises(MigrationError, match=f"CREATE ROLE {APP_ROLE} NOLOGIN; GRANT {APP_ROLE} TO "):
        await migrate(of_tester)
    assert await tables(dsn) == set()
    await execute(dsn, f"GRANT {APP_ROLE} TO tester")
    assert len(await migrate(of_tester)) == len(FILES)


@pytest.mark.parametrize(
    "forbidden",
    [
        "DELETE FROM image",
        "DELETE FROM instance",
        "DELETE FROM account",
        "TRUNCATE request_log",
        "DROP TABLE secret",
        "ALTER TABLE image DROP CONSTRAINT image_shares",
        "CREATE TABLE another ()",
        "UPDATE schema_migration SET digest = ''",
    ],
)
async def test_the_servers_role_neither_changes_the_schema_nor_deletes_what_must_stay(
    postgres: Postgres, forbidden: str
) -> None:
    connection = await asyncpg.connect(await asyncio.to_thread(postgres.database))
    await connection.execute(f"SET ROLE {APP_ROLE}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(forbidden)
    await connection.close()
