"""The last line: what the database itself refuses, whatever the service does. Every constraint is attacked with SQL
written by hand, as the owner of the tables and as the role that the service works as.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, TypeAlias

import asyncpg
import pytest
from peewee import SQL, BigIntegerField, BlobField, BooleanField, Field, IntegerField, Select, TextField
from tests.world import FRANKFURT, GUANGZHOU, SHANGHAI, ZONES, Postgres, World

from cunho_storage.migrations import APP_ROLE
from cunho_storage.statements import Statement
from cunho_storage.tables import TABLES, JsonField, TimeField

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

#: What a column holds that a row says nothing of.
_BLANK: dict[type[Field], Any] = {
    TextField: "",
    IntegerField: 0,
    BigIntegerField: 0,
    BooleanField: False,
    JsonField: {},
    TimeField: "2026-01-01T00:00:00Z",
    BlobField: "",
}
_MODELS = {model._meta.table_name: model for model in TABLES}


def row(table: str, **columns: Any) -> str:
    """The statement that adds a row; columns that are not named are blank, or NULL where they may be."""
    fields = _MODELS[table]._meta.sorted_fields
    values = {field.column_name: None if field.null else _BLANK[type(field)] for field in fields} | columns
    text = json.dumps(values).replace("'", "''")
    return f"INSERT INTO {table} SELECT * FROM jsonb_populate_record(NULL::{table}, '{text}')"


def account_region(account_id: str, region_id: str, **columns: Any) -> str:
    """An account in a region."""
    columns = {"images_limit": 10} | columns
    return row("account_region", account_id=account_id, region_id=region_id, **columns)


def image(image_id: str, owner: str | None = "ann", **columns: Any) -> str:
    """An image, public if it has no owner."""
    fixed = {"image_id": image_id, "name": image_id, "owner_account_id": owner}
    usual = {"region_id": GUANGZHOU, "state": "AVAILABLE", "deprecation_state": "CURRENT", "share_limit": 50}
    return row("image", **usual | {"origin": "INSTANCE" if owner else "PUBLISHED"} | fixed | columns)


def copied(image_id: str, **columns: Any) -> str:
    """A copy of ann's image."""
    usual = {"origin": "COPIED", "source_image_id": "img-own", "copy_owner_account_id": "ann", "region_id": SHANGHAI}
    return image(image_id, **usual | columns)


def share(recipient: str, **columns: Any) -> str:
    """A share of ann's image."""
    usual = {"image_id": "img-own", "owner_account_id": "ann", "granted_by": "ann", "region_id": GUANGZHOU}
    return row("image_share", recipient_account_id=recipient, **usual | columns)


def operation(operation_id: str, state: str, **columns: Any) -> str:
    """An operation of ann's."""
    return row("operation", operation_id=operation_id, account_id="ann", state=state, **columns)


def instance(instance_id: str, **columns: Any) -> str:
    """An instance of ann's."""
    usual = {"account_id": "ann", "region_id": GUANGZHOU, "zone_id": ZONES[GUANGZHOU], "instance_type": "S5.MEDIUM4"}
    return row("instance", instance_id=instance_id, **usual | {"image_id": "img-own", "state": "RUNNING"} | columns)


NOW = "2026-01-01T00:00:00Z"

#: What is there before each attack.
ROWS = (
    *(row("account", account_id=account_id, state="ACTIVE") for account_id in ("ann", "bob", "cat")),
    account_region("ann", GUANGZHOU, images_used=2),
    account_region("ann", SHANGHAI, images_used=1),
    account_region("bob", GUANGZHOU, images_used=1),
    account_region("cat", FRANKFURT),
    image("img-own", share_count=1),
    image("img-another", state="FAILED"),
    image("img-gone", state="DELETED", delete_time=NOW),
    image("img-bobs", "bob"),
    image("img-public", None),
    copied("img-copy"),
    share("bob"),
    operation("op-running", "RUNNING"),
    operation("op-ended", "SUCCEEDED", response="\\x00", end_time=NOW),
    instance("ins-running"),
    instance("ins-moving", state="STOPPING", operation_id="op-running"),
    row("request_log", account_id="ann", method="CreateImage", request_id="1"),
    row("secret", name="page_tokens"),
)


class Attack(NamedTuple):
    """A statement that a constraint must refuse."""

    constraint: str
    tries: str
    sql: str


ATTACKS = [
    Attack(*each)
    for each in (
        # regions, zones and types
        ("region_pkey", "a region twice", row("region", region_id=GUANGZHOU, jurisdiction="INTERNATIONAL")),
        ("region_jurisdiction", "a region on the moon", row("region", region_id="moon", jurisdiction="LUNAR")),
        ("region_prices", "storage that pays the one who stores", "UPDATE region SET image_storage_nanos = -1"),
        ("region_prices", "a licence that pays the one who uses it", "UPDATE region SET windows_license_nanos = -1"),
        ("zone_pkey", "a zone in two regions", row("zone", zone_id=ZONES[GUANGZHOU], region_id=SHANGHAI)),
        ("zone_region", "a zone of no region", row("zone", zone_id="nowhere-1", region_id="nowhere")),
        ("instance_type_pkey", "an instance type twice", row("instance_type", instance_type="S5.MEDIUM4")),
        # accounts
        ("account_pkey", "an account twice", row("account", account_id="ann", state="ACTIVE")),
        ("account_state", "an account in no known state", "UPDATE account SET state = 'ROYAL'"),
        ("account_region_pkey", "a second quota in a region", account_region("ann", GUANGZHOU)),
        ("account_region_account", "a quota of nobody", account_region("zoe", GUANGZHOU)),
        ("account_region_region", "a quota in no region", account_region("ann", "nowhere")),
        ("account_region_images", "more images than the quota", "UPDATE account_region SET images_used = 11"),
        ("account_region_images", "fewer images than none", "UPDATE account_region SET images_used = -1"),
        ("account_region_images", "a quota below what is used", "UPDATE account_region SET images_limit = 0"),
        # images
        ("image_pkey", "an image's id again", image("img-own", name="new")),
        ("image_pkey", "a deleted image's id again", image("img-gone", name="new")),
        ("image_region", "an image in no region", image("img-new", None, region_id="nowhere")),
        ("image_owner", "an image of nobody", image("img-new", "zoe")),
        ("image_owner", "an image where its owner is not active", image("img-new", "bob", region_id=SHANGHAI)),
        (
            "image_owner",
            "to leave a region that has one's images",
            f"DELETE FROM account_region WHERE account_id = 'ann' AND region_id = '{SHANGHAI}'",
        ),
        ("image_origin", "an image out of thin air", image("img-new", origin="FOUND")),
        ("image_state", "an image in no known state", image("img-new", state="ASLEEP")),
        ("image_deprecation_state", "an image half retired", image("img-new", deprecation_state="TIRED")),
        ("image_public_has_no_owner", "a public image with an owner", image("img-new", origin="PUBLISHED")),
        ("image_public_has_no_owner", "a custom image without", image("img-new", None, origin="IMPORTED")),
        (
            "image_public_has_no_owner",
            "to give away a custom image to all",
            "UPDATE image SET owner_account_id = NULL WHERE image_id = 'img-another'",
        ),
        ("image_shares", "more shares than the limit", "UPDATE image SET share_count = 51 WHERE image_id = 'img-own'"),
        ("image_shares", "fewer shares than none", "UPDATE image SET share_count = -1 WHERE image_id = 'img-own'"),
        ("image_shares", "a limit below the shares", "UPDATE image SET share_limit = 0 WHERE image_id = 'img-own'"),
        ("image_shared_is_available", "a failed image shared", image("img-new", state="FAILED", share_count=1)),
        ("image_shared_is_available", "a public image shared", image("img-new", None, share_count=1)),
        (
            "image_shared_is_available",
            "to delete a shared image",
            "UPDATE image SET state = 'DELETED', delete_time = now() WHERE image_id = 'img-own'",
        ),
        ("image_delete_time", "a deletion at no time", image("img-new", state="DELETED")),
        ("image_delete_time", "a time of no deletion", image("img-new", delete_time=NOW)),
        (
            "image_delete_time",
            "to bring an image back by its state alone",
            "UPDATE image SET state = 'AVAILABLE' WHERE image_id = 'img-gone'",
        ),
        ("image_copy_of_own", "a copy for another", copied("img-new", owner_account_id="bob", region_id=GUANGZHOU)),
        ("image_copy_of_own", "a copy of nobody's image", copied("img-new", copy_owner_account_id=None)),
        ("image_copy_of_own", "a copy of no image", copied("img-new", source_image_id=None)),
        ("image_copy_of_own", "a copy that says it is an import", copied("img-new", origin="IMPORTED")),
        (
            "image_copy",
            "a copy of another's image, said to be one's own",
            copied("img-new", source_image_id="img-bobs"),
        ),
        ("image_copy", "a copy of a public image", copied("img-new", source_image_id="img-public")),
        ("image_name_of_owner", "a name twice", image("img-new", name="img-own")),
        (
            "image_name_of_owner",
            "to rename an image to another's name",
            "UPDATE image SET name = 'img-own' WHERE image_id = 'img-another'",
        ),
        ("image_name_public", "a public name twice", image("img-new", None, name="img-public")),
        # shares
        ("image_share_pkey", "to share twice with an account", share("bob")),
        ("image_share_not_with_owner", "to share with oneself", share("ann")),
        ("image_share_by_owner", "to share on what one was given", share("cat", granted_by="bob")),
        (
            "image_share_image",
            "to share on what one was given, as if it were one's own",
            share("ann", owner_account_id="bob", granted_by="bob"),
        ),
        ("image_share_image", "to share in another region than the image's", share("cat", region_id=FRANKFURT)),
        ("image_share_image", "to share no image", share("bob", image_id="img-none")),
        ("image_share_image", "to share a public image", share("bob", image_id="img-public")),
        ("image_share_recipient", "to share with one who is not active there", share("cat")),
        ("image_share_recipient", "to share with nobody", share("zoe")),
        # operations
        ("operation_pkey", "an operation twice", operation("op-ended", "PENDING")),
        ("operation_state", "an operation in no known state", operation("op-new", "PAUSED", end_time=NOW)),
        ("operation_end_time", "a running operation that has ended", operation("op-new", "RUNNING", end_time=NOW)),
        ("operation_end_time", "an ended one that has not", operation("op-new", "FAILED", error="\\x00")),
        ("operation_response", "a success without a response", operation("op-new", "SUCCEEDED", end_time=NOW)),
        ("operation_response", "a response before the end", operation("op-new", "RUNNING", response="\\x00")),
        ("operation_error", "a failure without an error", operation("op-new", "FAILED", end_time=NOW)),
        ("operation_error", "an error before the end", operation("op-new", "RUNNING", error="\\x00")),
        # instances
        ("instance_pkey", "an instance twice", instance("ins-running")),
        ("instance_state", "no known state", instance("ins-new", state="DREAMING", operation_id="op-running")),
        ("instance_delete_time", "a deletion at no time", instance("ins-new", state="DELETED")),
        ("instance_delete_time", "a time of no deletion", instance("ins-new", delete_time=NOW)),
        ("instance_operation_moves", "to move without an operation", instance("ins-new", state="STOPPING")),
        ("instance_operation_moves", "an operation that moves nothing", instance("ins-new", operation_id="op-running")),
        (
            "instance_operation",
            "to be moved by no operation",
            instance("ins-new", state="STARTING", operation_id="op-0"),
        ),
        ("instance_operation", "to forget who moves", "DELETE FROM operation WHERE operation_id = 'op-running'"),
        ("instance_account", "an instance of nobody", instance("ins-new", account_id="zoe")),
        ("instance_account", "an instance where its account is not active", instance("ins-new", account_id="cat")),
        ("instance_zone", "a zone of another region", instance("ins-new", zone_id=ZONES[SHANGHAI])),
        ("instance_type_known", "no known type", instance("ins-new", instance_type="S5.INFINITE")),
        ("instance_image", "to be born of no image", instance("ins-new", image_id="img-none")),
        # requests and secrets
        (
            "request_log_pkey",
            "to answer a request twice",
            row("request_log", account_id="ann", method="CreateImage", request_id="1"),
        ),
        ("secret_pkey", "a second secret of a name", row("secret", name="page_tokens")),
    )
]

#: Keys that their table's primary key implies: nothing can break them first. Foreign keys need them to refer to.
IMPLIED = {"zone_of_region", "image_of_owner", "image_of_owner_in_region"}


@pytest.fixture(scope="module")
def dsn(postgres: Postgres) -> str:
    """The database of this file."""
    return postgres.database()


@pytest.fixture(scope="module")
async def database(dsn: str) -> AsyncIterator[Connection]:
    """That database with some rows, as the owner of the tables."""
    connection = await asyncpg.connect(dsn)
    for statement in ROWS:
        await connection.execute(statement)
    yield connection
    await connection.close()


@pytest.fixture
async def unchanged(database: Connection) -> AsyncIterator[Connection]:
    """That database, as it was again after the test."""
    transaction = database.transaction()
    await transaction.start()
    yield database
    await transaction.rollback()


as_role = pytest.mark.parametrize("role", ["cunho", APP_ROLE], ids=["as_owner", "as_service"])


@as_role
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.constraint}-{attack.tries}".replace(" ", "_"))
async def test_the_database_refuses(unchanged: Connection, attack: Attack, role: str) -> None:
    await unchanged.execute(f"SET LOCAL ROLE {role}")
    with pytest.raises(asyncpg.IntegrityConstraintViolationError) as raised:
        await unchanged.execute(attack.sql)
    assert raised.value.as_dict()["constraint_name"] == attack.constraint


ALLOWED = {
    "a deleted image's name again": image("img-new", name="img-gone"),
    "another's name": image("img-new", "bob", name="img-own"),
    "one's own name in another region": image("img-new", name="img-own", region_id=SHANGHAI),
    "a custom image's name for a public one": image("img-new", None, name="img-own"),
    "a second copy": copied("img-new"),
    "a copy of a deleted image": copied("img-new", source_image_id="img-gone"),
    "an instance of a deleted image": instance("ins-new", image_id="img-gone"),
    "one moved by an operation that moves another": instance("ins-new", state="STARTING", operation_id="op-running"),
}


@as_role
@pytest.mark.parametrize("sql", ALLOWED.values(), ids=[name.replace(" ", "_") for name in ALLOWED])
async def test_the_database_takes_what_breaks_no_rule(unchanged: Connection, sql: str, role: str) -> None:
    await unchanged.execute(f"SET LOCAL ROLE {role}")
    assert await unchanged.execute(sql) == "INSERT 0 1"


async def test_every_constraint_is_attacked(database: Connection) -> None:
    found = await database.fetch(
        """
        SELECT conname FROM pg_constraint WHERE contype <> 'n' AND conrelid::regclass::text = ANY($1)
         UNION SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
                WHERE indisunique AND indrelid::regclass::text = ANY($1)
        """,
        [*_MODELS],
    )
    assert {row["conname"] for row in found} - IMPLIED == {attack.constraint for attack in ATTACKS}


@pytest.mark.parametrize("key", sorted(IMPLIED))
async def test_a_key_that_is_not_attacked_is_implied_by_the_primary_key(database: Connection, key: str) -> None:
    implied = await database.fetchval(
        """
        SELECT implied.conkey @> primary_key.conkey
          FROM pg_constraint AS implied JOIN pg_constraint AS primary_key USING (conrelid)
         WHERE implied.conname = $1 AND primary_key.contype = 'p'
        """,
        key,
    )
    assert implied is True


@pytest.mark.parametrize("table", _MODELS)
async def test_only_columns_that_may_be_empty_take_null(unchanged: Connection, table: str) -> None:
    taken = {field.column_name for field in _MODELS[table]._meta.sorted_fields if field.null}
    for field in _MODELS[table]._meta.sorted_fields:
        transaction = unchanged.transaction()
        await transaction.start()
        try:
            changed = await unchanged.execute(f"UPDATE {table} SET {field.column_name} = NULL")
            assert changed != "UPDATE 0", "there is no row to try it on"
            assert field.column_name in taken
        except asyncpg.NotNullViolationError:
            assert field.column_name not in taken
        except asyncpg.CheckViolationError:
            assert field.column_name in taken  # NULL may stand there, but not in this row
        finally:
            await transaction.rollback()


# --- what the service's role may do

TABLES_OF_SERVICE = [*_MODELS, "schema_migration"]
FORBIDDEN = [
    *(
        statement.format(table=table)
        for table in TABLES_OF_SERVICE
        for statement in (
            "TRUNCATE {table} CASCADE",
            "ALTER TABLE {table} ADD COLUMN mine INTEGER",
            "ALTER TABLE {table} DISABLE TRIGGER ALL",
            "ALTER TABLE {table} OWNER TO CURRENT_USER",
            "CREATE INDEX ON {table} ((1))",
            "DROP TABLE {table} CASCADE",
        )
    ),
    "DROP INDEX image_name_of_owner",
    "ALTER TABLE image DROP CONSTRAINT image_shares",
    "CREATE TABLE mine ()",
    "CREATE FUNCTION mine() RETURNS INTEGER LANGUAGE SQL RETURN 1",
    "CREATE SCHEMA mine",
    "CREATE ROLE mine",
    "INSERT INTO schema_migration (version, name, digest) VALUES (9999, '', '')",
    "UPDATE schema_migration SET digest = ''",
]


@pytest.mark.parametrize("sql", FORBIDDEN)
async def test_the_service_may_not(unchanged: Connection, sql: str) -> None:
    await unchanged.execute(f"SET LOCAL ROLE {APP_ROLE}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await unchanged.execute(sql)


@pytest.mark.parametrize("table", TABLES_OF_SERVICE)
async def test_the_service_deletes_no_row_that_leaves_a_tombstone(unchanged: Connection, table: str) -> None:
    await unchanged.execute(f"SET LOCAL ROLE {APP_ROLE}")
    try:
        await unchanged.execute(f"DELETE FROM {table} WHERE false")
        assert table in ("account_region", "image_share", "operation", "request_log")
    except asyncpg.InsufficientPrivilegeError:
        assert table not in ("account_region", "image_share", "operation", "request_log")


def test_the_service_works_as_that_role(world: World) -> None:
    async def role() -> Any:
        async with world.database.connection() as connection:
            return await connection.value(Statement(Select(columns=[SQL("current_user")])))

    assert world.run(role()) == APP_ROLE
