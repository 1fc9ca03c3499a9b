"""A database filled as one that was used for long: by SQL, into the schema that the migrations made.

The built-in catalogue in 16 regions with older builds of its images, accounts, their images and shares. However many
images there are, an account that has any has a hundred of them, six or seven in each region, and an account receives
twenty: what is measured asks for as much of a small database as of a large one. Ids and the order of the rows on disk
are scattered.
"""

import json
from collections.abc import Mapping
from typing import Any

import asyncpg
from peewee import BigIntegerField, BlobField, BooleanField, Field, IntegerField, Model, TextField

from cunho_rules.pricing import Quote
from cunho_server.shown import kept
from cunho_storage import images
from cunho_storage.database import connect
from cunho_storage.statements import Statement
from cunho_storage.tables import AccountRegionRow, AccountRow, ImageRow, ImageShareRow, JsonField, TimeField

_IMAGES_OF_ACCOUNT = 100
_RECEIVED = 20
_REGIONS = 16
_BATCH = 500
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"

#: Accounts that nothing is shared with until the bench does; images have few enough shares that all may receive them.
RECIPIENT_IDS = [f"recipient-{number:02}" for number in range(25)]

_DEFAULTS: Mapping[type[Field], str] = {
    TextField: "''",
    IntegerField: "0",
    BigIntegerField: "0",
    BooleanField: "false",
    BlobField: "''",
    JsonField: "'{}'",
    TimeField: "now()",
}


def insert(model: type[Model], given: Mapping[str, str], source: str) -> str:
    """SQL that inserts rows of the table: every column from its expression, or else NULL where it may be, or nothing.

    Args:
        source: what follows FROM.
    """
    fields: list[Any] = model._meta.sorted_fields
    assert given.keys() <= {field.name for field in fields}, "each is a column"
    values = (given.get(field.name) or ("NULL" if field.null else _DEFAULTS[type(field)]) for field in fields)
    names = ", ".join(field.name for field in fields)
    return f"INSERT INTO {model._meta.table_name} ({names}) SELECT {', '.join(values)} FROM {source}"


def _account_id(number: str) -> str:
    return f"'acc-' || lpad(({number})::text, 5, '0')"


def _image_id(number: str) -> str:
    """SQL of an image's id: the factor is odd, so that no two numbers have the same."""
    return f"'img-' || lpad(to_hex(({number})::bigint * 2654435761 % 4294967296), 8, '0')"


def _region_id(number: str) -> str:
    return f"(SELECT ids[({number}) % {_IMAGES_OF_ACCOUNT} % {_REGIONS} + 1] FROM region_ids)"


async def seed(dsn: str, image_count: int, accounts: int) -> None:
    """Fills the database, which has the built-in catalogue and no accounts.

    Args:
        image_count: how many the accounts have together, a multiple of 100, of two of them at least.
    """
    assert image_count % _IMAGES_OF_ACCOUNT == 0 < image_count // (2 * _IMAGES_OF_ACCOUNT)
    assert image_count <= accounts * _IMAGES_OF_ACCOUNT
    connection = await asyncpg.connect(dsn)
    try:
        # Foreign keys are not checked while this is inserted, which would take most of the time.
        await connection.execute("SET session_replication_role = replica; SET work_mem = '256MB'")
        await connection.execute(
            "CREATE TEMPORARY TABLE region_ids AS SELECT array_agg(region_id ORDER BY region_id) AS ids FROM region"
        )
        inserted = (*_accounts(image_count, accounts), _shares(image_count, accounts), _images(image_count))
        for statement in (*inserted, _older_builds()):
            await connection.execute(statement)
        await connection.execute("ANALYZE")  # or else every batch would read the whole table
        await _complete(dsn)
        await connection.execute("VACUUM (FULL) image")
        await connection.execute("VACUUM (ANALYZE)")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def _complete(dsn: str) -> None:
    """Fills what the server computes from a row and keeps beside it: the messages of images."""
    connection = await connect(dsn)
    try:
        rows = await connection.rows(Statement(ImageRow.select(ImageRow.image_id)))
        for first in range(0, len(rows), _BATCH):
            image_ids = [image_id for (image_id,) in rows[first : first + _BATCH]]
            found = await images.get_some(connection, image_ids, "")
            await images.keep(connection, {(each.image_id, each.version): kept(each) for each in found.values()})
    finally:
        await connection.close()


def _accounts(image_count: int, accounts: int) -> list[str]:
    owners, in_each = image_count // _IMAGES_OF_ACCOUNT, _IMAGES_OF_ACCOUNT // _REGIONS
    used = f"CASE WHEN n <= {owners} THEN {in_each} + (i <= {_IMAGES_OF_ACCOUNT % _REGIONS})::int ELSE 0 END"
    ids = f"(SELECT {_account_id('n - 1')} AS id, n FROM generate_series(1, {accounts}) n"
    ids += f" UNION ALL SELECT id, {accounts} + 1 FROM unnest(ARRAY{RECIPIENT_IDS}) id) account"
    place = {"account_id": "id", "region_id": "region_id", "images_used": used, "images_limit": "10"}
    return [
        insert(AccountRow, {"account_id": "id", "state": "'ACTIVE'", "version": "1"}, ids),
        insert(AccountRegionRow, place, f"{ids}, region_ids, unnest(ids) WITH ORDINALITY AS region (region_id, i)"),
    ]


def _shares(image_count: int, accounts: int) -> str:
    step = max(1, image_count // (accounts * _RECEIVED))
    owner = _account_id(f"n / {_IMAGES_OF_ACCOUNT}")
    values = {
        "image_id": _image_id("n"),
        "recipient_account_id": _account_id("recipient"),
        "owner_account_id": owner,
        "region_id": _region_id("n"),
        "granted_by": owner,
        "create_time": _time("n"),
    }
    return insert(
        ImageShareRow,
        values,
        f"generate_series(0, {accounts - 1}) recipient, generate_series(0, {_RECEIVED - 1}) i,"
        f" LATERAL (SELECT ((recipient * {_RECEIVED} + i) * {step} + {image_count // 2}) % {image_count} AS n) image"
        f" WHERE n / {_IMAGES_OF_ACCOUNT} <> recipient ORDER BY 1, 2",
    )


def _images(image_count: int) -> str:
    quote = Quote("", 2_000_000_000, "CNY", 120_000_000, 1_000_000_000, 120_000_000)
    values = {
        "image_id": _image_id("n"),
        "name": "(ARRAY['web', 'database', 'cache', 'build'])[n % 4 + 1] || '-' || n",
        "description": "'As installed by the platform team'",
        "region_id": _region_id("n"),
        "owner_account_id": _account_id(f"n / {_IMAGES_OF_ACCOUNT}"),
        "origin": "'INSTANCE'",
        "state": "'AVAILABLE'",
        "os_family": "'LINUX'",
        "os_platform": "(ARRAY['debian', 'ubuntu', 'rocky'])[n % 3 + 1]",
        "os_version": "'12'",
        "architecture": "'X86_64'",
        "size_bytes": "1000000000 + n",
        "min_disk_bytes": "10737418240",
        "min_memory_bytes": "536870912",
        "labels": """jsonb_build_object('team', 'team-' || n % 50, 'stage', 'production')""",
        "deprecation_state": "'CURRENT'",
        "content_uri": "'store:images/' || n",
        "checksum_algorithm": "'SHA256'",
        "checksum_value": "md5(n::text) || md5((n + 1)::text)",
        "source_instance_id": "'ins-' || lpad(n::text, 8, '0')",
        "source_region_id": _region_id("n"),
        "software": """'[{"name": "Python", "version": "3.11"}, {"name": "MySQL", "version": "8.4"}]'""",
        "share_count": "COALESCE(shares, 0)",
        "share_limit": "50",
        "cloud_init": "true",
        "boot_mode": "'UEFI'",
        "quote": f"'{json.dumps(quote._asdict())}'::jsonb || jsonb_build_object('region_id', {_region_id('n')})",
        "version": "1",
        "create_time": _time("n"),
        "update_time": _time("n"),
    }
    counts = "(SELECT image_id, count(*) AS shares FROM image_share GROUP BY image_id) counted"
    return insert(
        ImageRow,
        values,
        f"generate_series(0, {image_count - 1}) n LEFT JOIN {counts} ON counted.image_id = {_image_id('n')} ORDER BY 1",
    )


def _older_builds() -> str:
    """Two builds that came before each public image."""
    given = {field.name: f"image.{field.name}" for field in ImageRow._meta.sorted_fields}
    # Each character by one further on in the alphabet, so that no two are the same.
    turned = f"right('{_ALPHABET}', -build) || left('{_ALPHABET}', build)"
    given["image_id"] = f"'img-' || translate(substr(image.image_id, 5), '{_ALPHABET}', {turned})"
    given["name"] = "left(image.name, 50) || ' build ' || build"
    given["create_time"] = given["update_time"] = "image.create_time - build * interval '30 days'"
    return insert(ImageRow, given, "image, generate_series(1, 2) build WHERE image.owner_account_id IS NULL")


def _time(number: str) -> str:
    """SQL of when an image was made: one a minute, or all within a year if there are more."""
    return f"'2026-01-01Z'::timestamptz + ({number}) * interval '30 seconds'"
