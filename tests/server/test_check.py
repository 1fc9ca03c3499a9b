"""`cunho-server check`: it finds a sound installation sound, and names everything that is wrong with another one."""

import asyncio
import json
import re
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests import world as worlds
from tests.server_process import Server
from tests.world import CATALOG, GUANGZHOU, Postgres

from cunho_server import check, issuing
from cunho_server.__main__ import main
from cunho_server.settings import Settings
from cunho_storage import installation, migrations
from cunho_storage.database import GUARDS
from cunho_storage.embedded import MAY_LOSE_DATA
from cunho_storage.installation import Finding, UnfitError, refuse_unfit
from cunho_storage.migrations import APP_ROLE

#: What is said of every PostgreSQL of tests.
OF_TESTS = "this PostgreSQL is for tests and may lose everything"


@pytest.fixture(scope="module")
def filled(postgres: Postgres) -> str:
    """A database in which acme shares an image with globex, and nothing is under way. Nobody uses it."""
    with worlds.world(postgres) as world:
        acme, globex = world.tenant(GUANGZHOU, account_id="acme"), world.tenant(GUANGZHOU, account_id="globex")
        image = world.image(acme, "web")
        acme.share_image(image_id=image.image_id, account_ids=[globex.account_id])
        return world.dsn


@pytest.fixture
def dsn(filled: str) -> str:
    """A copy of it."""
    return copy_of(filled)


@pytest.fixture(scope="module")
def mended(filled: str) -> str:
    """A copy of it for those who leave it as it was."""
    return copy_of(filled)


def copy_of(filled: str) -> str:
    name, copy = name_of(filled), f"copy_{uuid.uuid4().hex[:12]}"
    asyncio.run(copied(filled.replace(f"/{name}", "/postgres"), name, copy))
    return filled.replace(name, copy)


def name_of(dsn: str) -> str:
    """The database's name."""
    return urlsplit(dsn).path[1:]


async def copied(dsn: str, name: str, copy: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        while await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", name):
            await asyncio.sleep(0.01)  # what used it is on its way out
        await connection.execute(f"CREATE DATABASE {copy} TEMPLATE {name}")
    finally:
        await connection.close()


def run(dsn: str, sql: str) -> None:
    """Runs statements as the owner of the tables."""

    async def execute() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    asyncio.run(execute())


def examined(dsn: str, connections: int = 10) -> list[Finding]:
    """What is found in a database, but that it is one of tests."""
    found = asyncio.run(installation.examine(dsn, connections=connections))
    return [finding for finding in found if finding.message != OF_TESTS]


def test_a_sound_database_is_found_sound(filled: str) -> None:
    assert examined(filled) == []


# --- the schema and the rights: what mends a finding is said, and does

MENDED = {
    "DROP INDEX image_name_public": r"index image_name_public of table image \(the last word of SEL-4\) is missing",
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'image_copies'::regclass": (
        r"index image_copies of table image is CREATE INDEX .* \(INVALID\)"
    ),
    "DROP INDEX operation_newest; CREATE INDEX operation_newest ON operation (create_time)": (
        r"index operation_newest of table operation is CREATE INDEX .* \(create_time\)"
    ),
    "ALTER TABLE image DROP CONSTRAINT image_shares": (
        r"constraint image_shares of table image \(the last word of SHR-8\) is missing"
    ),
    "ALTER TABLE image_share DROP CONSTRAINT image_share_recipient": "constraint image_share_recipient .* is missing",
    """
    ALTER TABLE account_region DROP CONSTRAINT account_region_images;
    ALTER TABLE account_region ADD CONSTRAINT account_region_images CHECK (images_used >= 0)
    """: r"constraint account_region_images .* is CHECK \(\(images_used >= 0\)\)",
    """
    ALTER TABLE instance DROP CONSTRAINT instance_image;
    ALTER TABLE instance ADD CONSTRAINT instance_image FOREIGN KEY (image_id) REFERENCES image NOT VALID
    """: "constraint instance_image .* NOT VALID",
    "ALTER TABLE instance DISABLE TRIGGER ALL": "enforcement instance_image of table instance .* is off",
    f"GRANT DELETE ON image TO {APP_ROLE}": f"the role {APP_ROLE} may DELETE image",
    "GRANT TRUNCATE ON request_log TO PUBLIC": f"the role {APP_ROLE} may TRUNCATE request_log",
    f"GRANT UPDATE ON schema_migration TO {APP_ROLE}": f"the role {APP_ROLE} may UPDATE schema_migration",
    f"REVOKE UPDATE ON image FROM {APP_ROLE}": f"the role {APP_ROLE} may not UPDATE image",
    f"REVOKE DELETE ON operation FROM {APP_ROLE}": f"the role {APP_ROLE} may not DELETE operation",
    f"GRANT CREATE ON SCHEMA public TO {APP_ROLE}": f"the role {APP_ROLE} may make tables",
}


@pytest.mark.parametrize("broken", MENDED)
def test_what_the_migrations_made_is_missed_when_it_is_changed_and_mended_as_told(mended: str, broken: str) -> None:
    run(mended, broken)
    found = examined(mended)
    assert found
    assert any(re.match(MENDED[broken], finding.message) for finding in found), found
    for finding in found:
        assert finding.is_problem
        run(mended, finding.remedy.partition(", then")[0])
    assert examined(mended) == []


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("ALTER TABLE image DROP COLUMN quote", "column quote of table image is missing"),
        ("ALTER TABLE image ALTER COLUMN labels DROP NOT NULL", "column labels of table image is jsonb"),
        (
            'ALTER TABLE zone ALTER COLUMN zone_id SET DATA TYPE TEXT COLLATE "POSIX"',
            'column zone_id of table zone is text COLLATE "POSIX" NOT NULL',
        ),
        ("DROP TABLE secret", "table secret is missing"),
        (f"ALTER TABLE secret OWNER TO {APP_ROLE}", f"the role {APP_ROLE} owns table secret, and may do everything"),
        ("UPDATE schema_migration SET digest = ''", "0001_initial.sql was applied to this database with another"),
        (
            "INSERT INTO schema_migration VALUES (9999, '9999_less_since_9998.sql', '')",
            "the database's schema is version 9999, for servers that know version 9998",
        ),
    ],
)
def test_what_else_is_wrong_with_the_schema_is_told(dsn: str, broken: str, told: str) -> None:
    run(dsn, broken)
    assert [finding.message for finding in examined(dsn) if finding.is_problem and told in finding.message]


def test_what_no_migration_made_is_only_noted(dsn: str) -> None:
    run(dsn, "CREATE INDEX of_a_report ON image (create_time); CREATE TABLE notes (note TEXT)")
    assert [(finding.message, finding.is_problem) for finding in examined(dsn)] == [
        ("index of_a_report of table image is made by no migration", False),
        ("table notes is made by no migration", False),
    ]


def test_what_a_newer_server_added_is_only_noted(dsn: str) -> None:
    run(dsn, "INSERT INTO schema_migration VALUES (9999, '9999_more.sql', ''); ALTER TABLE image ADD COLUMN more TEXT")
    assert [(finding.message, finding.is_problem) for finding in examined(dsn)] == [
        ("9999_more.sql was applied by a newer server", False),
    ]


def test_every_constraint_that_guards_a_rule_is_among_those_that_are_compared(mended: str) -> None:
    async def declared() -> set[str]:
        connection = await asyncpg.connect(mended)
        try:
            return {part.name for part in await installation.declared_parts(connection, {1})}
        finally:
            await connection.close()

    assert set(GUARDS) <= asyncio.run(declared())


def test_an_empty_database_lacks_every_migration(postgres: Postgres) -> None:
    told = [str(finding) for finding in examined(postgres.empty_database())]
    assert told == [
        f"{name} is not applied: run `cunho-server migrate`, or start a server" for _, name, _ in migrations.files()
    ]


@pytest.mark.parametrize(("role", "told"), [("cunho_absent", "is not there"), ("cunho_almighty", "may do everything")])
def test_a_role_that_is_not_there_or_may_do_everything_is_told(
    dsn: str, monkeypatch: pytest.MonkeyPatch, role: str, told: str
) -> None:
    monkeypatch.setattr(installation, "APP_ROLE", role)
    if role == "cunho_almighty":
        run(dsn, f"DROP ROLE IF EXISTS {role}; CREATE ROLE {role} SUPERUSER")
    assert [finding.message for finding in examined(dsn)] == [f"the role {role} {told}"]


def test_a_user_who_may_not_become_the_servers_role_and_compare_the_schema_is_told(dsn: str) -> None:
    run(
        dsn,
        """
        DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
        DO $$ BEGIN EXECUTE format('REVOKE TEMP ON DATABASE %I FROM PUBLIC', current_database()); END $$
        """,
    )
    found = examined(dsn.replace("//cunho@", "//reader@"))
    assert f"the user of the database URL may not become {APP_ROLE}" in [finding.message for finding in found]
    assert any("the schema could not be compared (permission denied" in finding.message for finding in found)
    run(dsn, "DROP OWNED BY reader; DROP ROLE reader")


# --- the data


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("UPDATE account_region SET images_used = 3 WHERE images_used = 1", "acme has 1 images in ap-guangzhou, count"),
        ("UPDATE account_region SET images_used = 0", "acme has 1 images in ap-guangzhou, counted are 0"),
        ("UPDATE image SET share_count = 0 WHERE share_count = 1", "has 1 shares, counted are 0"),
        ("DELETE FROM image_share", "has 0 shares, counted are 1"),
        (
            "UPDATE image SET state = 'CREATING', share_count = 0 WHERE share_count = 1",
            "is CREATING and 0 operations make it",
        ),
        (
            "UPDATE operation SET state = 'RUNNING', end_time = NULL, response = NULL WHERE method = 'CreateImage'",
            "makes it still",
        ),
        (
            "UPDATE instance SET state = 'STOPPING', operation_id = (SELECT operation_id FROM operation LIMIT 1)",
            "is STOPPING and no operation moves it",
        ),
        (
            """
            UPDATE operation SET state = 'PENDING', end_time = NULL, response = NULL, target_ids = '["img-gone"]'
             WHERE method = 'CreateInstance'
            """,
            "has target img-gone, which is not there",
        ),
        (
            "UPDATE image SET replacement_image_id = 'img-gone' WHERE share_count = 1",
            "is replaced by img-gone, which is not there",
        ),
    ],
)
def test_data_that_contradict_themselves_are_told(dsn: str, broken: str, told: str) -> None:
    run(dsn, broken)
    found = [finding for finding in examined(dsn) if told in finding.message]
    assert len(found) == 1
    assert found[0].is_problem
    assert "restore a backup" in found[0].remedy


# --- PostgreSQL itself


def forgetful(dsn: str, *statements: str) -> None:
    """Has a PostgreSQL of tests taken for one that should keep what it is given."""
    for setting in (f'"{MAY_LOSE_DATA}" = off', *statements):
        run(dsn, f"ALTER DATABASE {name_of(dsn)} SET {setting}")


def test_a_postgresql_that_loses_data_is_refused_with_each_setting_named(dsn: str) -> None:
    forgetful(dsn)
    with pytest.raises(UnfitError) as refused:
        asyncio.run(refuse_unfit(dsn))
    lines = str(refused.value).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["fsync", "full_page_writes", "synchronous_commit"]
    assert lines[0] == (
        "fsync is off, so that a crash of the machine can destroy the database: "
        "set fsync = on in PostgreSQL, for its roles and databases too"
    )
    assert [str(finding) for finding in examined(dsn)] == lines


def test_a_server_does_not_start_on_a_postgresql_that_loses_data(dsn: str, tmp_path: Path) -> None:
    forgetful(dsn)
    server = Server(tmp_path / "data", DATABASE_URL=dsn, PROCESSES=1)
    try:
        assert server.ended() == 1
    finally:
        server.process.kill()
    told = [line.partition(", so that ")[0] for line in server.log.splitlines() if "so that" in line]
    assert told == ["fsync is off", "full_page_writes is off", "synchronous_commit is off"]


def test_a_setting_is_judged_as_the_servers_own_connections_have_it(dsn: str) -> None:
    forgetful(dsn, "synchronous_commit = local")
    assert [finding.message.partition(" ")[0] for finding in examined(dsn)] == ["fsync", "full_page_writes"]


def test_a_postgresql_of_tests_is_not_refused_and_noted(mended: str) -> None:
    asyncio.run(refuse_unfit(mended))
    (noted,) = asyncio.run(installation.examine(mended, connections=10))
    assert (noted.message, noted.is_problem) == (OF_TESTS, False)


def test_a_database_that_is_not_utf_8_is_refused(mended: str) -> None:
    run(mended, "DROP DATABASE IF EXISTS latin")
    run(mended, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(UnfitError, match=r"encoding is LATIN1: make one with CREATE DATABASE \.\.\. ENCODING 'UTF8'"):
        asyncio.run(refuse_unfit(re.sub(r"/\w+\?", "/latin?", mended)))


def test_an_old_postgresql_is_refused(mended: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_OLDEST_VERSION", 99)
    with pytest.raises(UnfitError, match=r"PostgreSQL is version \d+: upgrade it to 99 or newer"):
        asyncio.run(refuse_unfit(mended))


def test_more_connections_than_postgresql_allows_are_told(mended: str, postgres: Postgres) -> None:
    (found,) = examined(mended, connections=198)
    assert str(found) == (
        "a server may open 198 connections and PostgreSQL allows 197: "
        "raise max_connections in PostgreSQL, or lower CUNHO_PROCESSES or CUNHO_CONNECTIONS"
    )
    assert examined(mended, connections=197) == []
    # Health is asked beside the connections of calls: 11 times 18.
    assert found in asyncio.run(check.check(postgres.settings(mended, processes=11, connections=17)))


# --- certificates and keys


@pytest.fixture
def pki(tmp_path: Path) -> dict[str, Any]:
    """The settings of a server with TLS and tokens, whose files are made."""
    issuing.make(tmp_path)
    names = {"tls_certificate": "server.pem", "tls_key": "server-key.pem", "tls_client_ca": "ca.pem"}
    return {name: tmp_path / file for name, file in (names | {"token_key": "token-public.pem"}).items()}


@pytest.fixture
def of_files(postgres: Postgres, filled: str) -> Callable[[dict[str, Any]], list[Finding]]:
    """What is found with such settings, beyond the database."""

    def found(given: dict[str, Any]) -> list[Finding]:
        found = asyncio.run(check.check(postgres.settings(filled, processes=1, **given)))
        return [finding for finding in found if finding.message != OF_TESTS]

    return found


def test_certificates_and_keys_that_are_in_order_are_no_finding(of_files: Any, pki: dict[str, Any]) -> None:
    assert of_files(pki) == []


def test_a_certificate_that_ends_soon_is_noted(
    of_files: Any, pki: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_SOON", timedelta(days=370))
    (noted,) = of_files(pki)
    assert not noted.is_problem
    assert re.fullmatch(r"a certificate in .*/server.pem ends at \d{4}-\d\d-\d\d \d\d:\d\d UTC", noted.message)


@pytest.mark.parametrize(
    ("setting", "content", "told"),
    [
        ("tls_certificate", "nonsense", "server.pem is not a PEM file of certificates"),
        ("tls_key", "nonsense", "server-key.pem is not a PEM file of an unencrypted private key"),
        ("tls_client_ca", "", "ca.pem is not a PEM file of certificates"),
        ("token_key", "nonsense", "token-public.pem is not a PEM file of"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(
    of_files: Any, pki: dict[str, Any], setting: str, content: str, told: str
) -> None:
    pki[setting].write_text(content)
    (found,) = of_files(pki)
    assert found.is_problem
    assert told in str(found)


def test_a_key_of_another_certificate_is_told(of_files: Any, pki: dict[str, Any]) -> None:
    (found,) = of_files(pki | {"tls_key": pki["tls_key"].with_name("ca-key.pem")})
    assert "ca-key.pem is not that of the certificate" in str(found)


def test_a_private_key_that_everybody_may_read_is_told(of_files: Any, pki: dict[str, Any]) -> None:
    pki["tls_key"].chmod(0o644)
    (found,) = of_files(pki)
    assert str(found) == (
        f"every user of this machine may use the private key {pki['tls_key']} (mode 644): chmod 600 {pki['tls_key']}"
    )


def test_a_server_with_the_development_key_is_noted(of_files: Any) -> None:
    (noted,) = of_files({})
    assert not noted.is_problem
    assert "tokens are signed with the development key" in noted.message


# --- the command


def checked(dsn: str, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["check", "--database-url", dsn, "--catalog", str(CATALOG), "--processes", "1", *words])
    return code, capsys.readouterr().out


def test_the_command_prints_each_finding_and_fails_on_problems_alone(
    dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = checked(dsn, capsys)
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines()] == ["note", "note", "sound"]
    run(dsn, f"GRANT DELETE ON image TO {APP_ROLE}")
    code, out = checked(dsn, capsys)
    assert code == 1
    assert out.splitlines()[-2:] == [
        f"problem: the role {APP_ROLE} may DELETE image: REVOKE DELETE ON image FROM PUBLIC, {APP_ROLE}",
        "not sound, problems: 1",
    ]


def test_the_command_prints_json_for_programs(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(dsn, "DROP INDEX image_copies")
    code, out = checked(dsn, capsys, "--json")
    assert code == 1
    told = json.loads(out)
    assert told["sound"] is False
    assert told["findings"][-1] == {
        "message": "index image_copies of table image is missing",
        "remedy": "CREATE INDEX image_copies ON image USING btree (source_image_id) WHERE (state = 'COPYING'::text)",
        "is_problem": True,
    }


def test_the_check_changes_nothing(mended: str) -> None:
    async def counted() -> Any:
        connection = await asyncpg.connect(mended)
        try:
            classes = await connection.fetch("SELECT oid, relname FROM pg_class ORDER BY oid")
            return classes, await connection.fetch("SELECT * FROM image ORDER BY image_id")
        finally:
            await connection.close()

    before = asyncio.run(counted())
    examined(mended)
    assert asyncio.run(counted()) == before


def test_the_settings_of_the_check_are_those_of_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    out = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')} " in out for name in Settings.model_fields)
