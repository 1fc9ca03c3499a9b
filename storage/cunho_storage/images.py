"""Reads and writes of images."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, cast

from peewee import SQL, Case, ColumnBase, Field, Select, fn

from cunho_rules import filters
from cunho_rules.images import runnable
from cunho_rules.model import BEING_MADE, Image, ImageState, InstanceType, Kind, ShownImage
from cunho_rules.orders import Key
from cunho_storage import pages
from cunho_storage.conditions import Compare, label_of, some_element
from cunho_storage.database import Conflict, Connection
from cunho_storage.requests import Basis, Beginning
from cunho_storage.statements import Statement, any_of, arg, literal, locking
from cunho_storage.tables import IMAGE_COLUMNS, ImageRow, ImageShareRow, RegionRow

#: What an image's region adds to it.
_OF_REGION = (
    RegionRow.jurisdiction,
    RegionRow.currency,
    RegionRow.image_storage_nanos,
    RegionRow.windows_license_nanos,
)
_LIVE = ImageRow.state != literal("DELETED")
_PUBLIC = ImageRow.owner_account_id.is_null()
_SHARED_WITH = fn.EXISTS(
    ImageShareRow.select(SQL("1")).where(
        (ImageShareRow.image_id == ImageRow.image_id) & (ImageShareRow.recipient_account_id == arg("account_id"))
    )
)


#: What is read of an image of which only the message is shown.
_SHOWN: tuple[Field, ...] = (
    ImageRow.image_id,
    ImageRow.version,
    ImageRow.message,
    ImageRow.owner_account_id,
    ImageRow.os_family,
    ImageRow.share_count,
    ImageRow.share_limit,
)


#: What the rules judge an image by, and what its message is shown with.
_JUDGED: tuple[Field, ...] = (
    ImageRow.image_id,
    ImageRow.region_id,
    ImageRow.owner_account_id,
    ImageRow.state,
    ImageRow.architecture,
    ImageRow.min_disk_bytes,
    ImageRow.min_memory_bytes,
    ImageRow.deprecation_state,
    ImageRow.replacement_image_id,
    ImageRow.version,
    ImageRow.share_count,
    ImageRow.share_limit,
    ImageRow.message,
    ImageRow.os_family,
)


def _select(shared_with_caller: ColumnBase, columns: Sequence[Field] = IMAGE_COLUMNS) -> Select:
    return (
        ImageRow.select(*columns, *_OF_REGION, shared_with_caller.alias("shared_with_caller"))
        .join(RegionRow, on=RegionRow.region_id == ImageRow.region_id)
        .where(_LIVE)
    )


# --- one image, or some

#: One image, and whether it is shared with an account.
ONE = _select(_SHARED_WITH).where(ImageRow.image_id == arg("image_id"))
_GET = Statement(ONE)
#: The same, as far as the rules look at it: a JudgedImage.
JUDGED = _select(_SHARED_WITH, _JUDGED).where(ImageRow.image_id == arg("image_id"))
_GET_SHOWN = Statement(_select(_SHARED_WITH, _SHOWN).where(ImageRow.image_id == arg("image_id")))
_GET_SOME = Statement(_select(_SHARED_WITH).where(ImageRow.image_id == any_of("image_ids")))
_RESOLVE = Statement(
    _select(SQL("false"))
    .where(_PUBLIC & (ImageRow.region_id == arg("region_id")) & (ImageRow.family == arg("family")))
    .where((ImageRow.state == literal("AVAILABLE")) & (ImageRow.deprecation_state != "OBSOLETE"))
    .where((arg("architecture", "text") == "") | (ImageRow.architecture == arg("architecture", "text")))
    .order_by(ImageRow.create_time.desc(), ImageRow.architecture.desc(), ImageRow.image_id.desc())
    .limit(SQL("1"))
)
_BY_NAME = Statement(
    _select(SQL("false")).where(_PUBLIC & (ImageRow.region_id == arg("region_id")) & (ImageRow.name == arg("name")))
)
_ID = ImageRow.select(ImageRow.image_id).where(ImageRow.image_id == arg("image_id"))
_LOCK, _LOCK_SHARED = Statement(locking(_ID, "NO KEY UPDATE")), Statement(locking(_ID, "SHARE"))
#: Begins mutations of an image, as `lock` does.
CHANGING = Beginning(locking(_ID, "NO KEY UPDATE"))
#: What mutations of one write rely on that launch from an image, and that share it.
LAUNCHED, SHARED = Basis(_ID, "SHARE"), Basis(_ID, "NO KEY UPDATE")
#: How many copies are being made from an image.
COPIES = ImageRow.select(fn.COUNT(SQL("1"))).where(
    (ImageRow.source_image_id == arg("image_id")) & (ImageRow.state == literal("COPYING"))
)


async def get(connection: Connection, image_id: str, account_id: str) -> Image | None:
    """The image, and whether it is shared with the account; None if it never was or is deleted.

    Whether the account may see it, the rules say.
    """
    row = await connection.row(_GET, image_id=image_id, account_id=account_id)
    return Image._make(row) if row else None


async def get_shown(connection: Connection, image_id: str, account_id: str) -> ShownImage | None:
    """As `get`, if the image is only to be shown."""
    row = await connection.row(_GET_SHOWN, image_id=image_id, account_id=account_id)
    return ShownImage._make((*row, ())) if row else None


async def get_some(connection: Connection, image_ids: Sequence[str], account_id: str) -> dict[str, Image]:
    """Those of the images that exist, by id."""
    rows = await connection.rows(_GET_SOME, image_ids=image_ids, account_id=account_id)
    return {row[0]: Image._make(row) for row in rows}


async def resolve(connection: Connection, region_id: str, family: str, architecture: str) -> Image | None:
    """The newest public image of the family that can be launched. Source: PUB-4.

    Args:
        architecture: "" for any; of builds published at one moment, X86_64 comes before I386 and ARM64.
    """
    row = await connection.row(_RESOLVE, region_id=region_id, family=family, architecture=architecture)
    return Image._make(row) if row else None


async def public_by_name(connection: Connection, region_id: str, name: str) -> Image | None:
    """The public image of that name in the region, or None."""
    row = await connection.row(_BY_NAME, region_id=region_id, name=name)
    return Image._make(row) if row else None


async def lock(connection: Connection, image_id: str, *, shared: bool = False) -> None:
    """Keeps the image and its shares as they are until the transaction ends.

    Read the image and its shares in later statements: this one, if it had to wait, saw what was before.

    Args:
        shared: True for those who only rely on the image (a launch, a copy): they do not wait for each other.
    """
    await connection.rows(_LOCK_SHARED if shared else _LOCK, image_id=image_id)


async def locked(connection: Connection, image_id: str, account_id: str, *, shared: bool = False) -> Image | None:
    """The image as `get` gives it, locked first."""
    await lock(connection, image_id, shared=shared)
    return await get(connection, image_id, account_id)


# --- writes

_NEW = tuple(field for field in IMAGE_COLUMNS if field.name not in ("create_time", "update_time"))
#: A transaction has one time; what it adds has an order by a microsecond for each number.
_ADDED = SQL("now()") + arg("number", "int") * SQL("interval '1 microsecond'")
_ADD = Statement(
    ImageRow.insert(
        {field: arg(field.name) for field in _NEW} | {ImageRow.create_time: _ADDED, ImageRow.update_time: _ADDED}
    )
)
_CHANGED = {ImageRow.version: ImageRow.version + SQL("1"), ImageRow.update_time: SQL("now()")}
_THIS = ImageRow.image_id == arg("image_id")
_UPDATE = Statement(
    ImageRow.update(
        {
            ImageRow.name: arg("name"),
            ImageRow.description: arg("description"),
            ImageRow.family: arg("family"),
            ImageRow.labels: arg("labels"),
            ImageRow.min_disk_bytes: arg("min_disk_bytes"),
            ImageRow.min_memory_bytes: arg("min_memory_bytes"),
            **_CHANGED,
        }
    ).where(_THIS & _LIVE)
)
_REPUBLISH = Statement(
    ImageRow.update(
        {
            field: arg(field.name)
            for field in (
                ImageRow.description,
                ImageRow.family,
                ImageRow.min_disk_bytes,
                ImageRow.min_memory_bytes,
                ImageRow.support_kind,
                ImageRow.support_contact_uri,
                ImageRow.support_note,
            )
        }
        | _CHANGED
    ).where(_THIS & _LIVE & _PUBLIC)
)
_DEPRECATE = Statement(
    ImageRow.update(
        {
            ImageRow.deprecation_state: arg("deprecation_state"),
            ImageRow.replacement_image_id: arg("replacement_image_id"),
            ImageRow.deprecation_message: arg("deprecation_message"),
            **_CHANGED,
        }
    ).where(_THIS & (ImageRow.state == "AVAILABLE"))
)
_DELETE = Statement(
    ImageRow.update({ImageRow.state: "DELETED", ImageRow.delete_time: SQL("now()"), **_CHANGED})
    .where(_THIS & ImageRow.state.in_([ImageState.AVAILABLE, ImageState.FAILED]))
    .returning(ImageRow.delete_time)
)
_BEING_MADE = _THIS & ImageRow.state.in_(sorted(BEING_MADE))
_FINISH = Statement(ImageRow.update({ImageRow.state: "AVAILABLE", **_CHANGED}).where(_BEING_MADE))
_FAIL = Statement(
    ImageRow.update(
        {
            ImageRow.state: "FAILED",
            ImageRow.failure_reason: arg("failure_reason"),
            ImageRow.failure_message: arg("failure_message"),
            **_CHANGED,
        }
    ).where(_BEING_MADE)
)
_ABANDON = Statement(
    ImageRow.update({ImageRow.state: "DELETED", ImageRow.delete_time: SQL("now()"), **_CHANGED}).where(_BEING_MADE)
)


#: Whoever holds a row is not waited for: its message is kept another time.
_FREE = ImageRow.alias()
_KEPT = Select(
    [],
    [
        fn.UNNEST(arg("image_ids", "text[]")).alias("image_id"),
        fn.UNNEST(arg("versions", "bigint[]")).alias("version"),
        fn.UNNEST(arg("messages", "bytea[]")).alias("message"),
    ],
).alias("kept")
_KEEP = Statement(
    ImageRow.update({ImageRow.message: _KEPT.c.message})
    .from_(_KEPT)
    .where((ImageRow.image_id == _KEPT.c.image_id) & (ImageRow.version == _KEPT.c.version))
    .where(
        ImageRow.image_id.in_(
            locking(
                _FREE.select(_FREE.image_id).where(_FREE.image_id == any_of("image_ids")),
                "NO KEY UPDATE",
                skip_locked=True,
            )
        )
    )
)


async def keep(connection: Connection, messages: Mapping[tuple[str, int], bytes]) -> None:
    """Keeps the messages of images, by id and version, beside those rows that are still of the version."""
    await connection.run(
        _KEEP,
        image_ids=[image_id for image_id, _ in messages],
        versions=[version for _, version in messages],
        messages=[*messages.values()],
    )


async def add(connection: Connection, values: Mapping[str, Any], number: int = 0) -> None:
    """Adds an image of these column values; times are set here. Whose place it takes is counted by `accounts`.

    Args:
        number: among what the transaction adds: of two images the one of the higher number is the newer.
    """
    await connection.run(_ADD, **values, number=number)


async def update(connection: Connection, image: Image) -> None:
    """Stores what an owner may change of the image, as a new version."""
    await connection.run(_UPDATE, **image._asdict())


async def republish(connection: Connection, image: Image) -> None:
    """Stores what the catalogue may change of a public image, as a new version."""
    await connection.run(_REPUBLISH, **image._asdict())


async def deprecate(connection: Connection, image_id: str, state: str, replacement_image_id: str, message: str) -> None:
    """Stores how far the image is retired, as a new version."""
    await connection.run(
        _DEPRECATE,
        image_id=image_id,
        deprecation_state=state,
        replacement_image_id=replacement_image_id,
        deprecation_message=message,
    )


async def delete(connection: Connection, image_id: str) -> datetime:
    """Makes an AVAILABLE or FAILED image DELETED; the time of that."""
    delete_time = await connection.value(_DELETE, image_id=image_id)
    if delete_time is None:
        raise Conflict("image")
    return cast(datetime, delete_time)


async def finish(connection: Connection, image_id: str) -> None:
    """Makes an image AVAILABLE that is being made."""
    await connection.run(_FINISH, image_id=image_id)


async def fail(connection: Connection, image_id: str, reason: str, message: str) -> None:
    """Makes an image FAILED that is being made."""
    await connection.run(_FAIL, image_id=image_id, failure_reason=reason, failure_message=message)


async def abandon(connection: Connection, image_id: str) -> None:
    """Makes an image DELETED that is being made, as if it never was."""
    await connection.run(_ABANDON, image_id=image_id)


# --- pages

_BITS = Case(ImageRow.architecture, (("I386", SQL("32")),), SQL("64"))
_FILTERED: dict[str, ColumnBase | Compare] = {
    **{
        name: getattr(ImageRow, name)
        for name in (
            "image_id name description owner_account_id origin state family architecture cloud_init boot_mode"
            " size_bytes min_disk_bytes min_memory_bytes create_time update_time"
        ).split()
    },
    "bits": _BITS,
    "os.family": ImageRow.os_family,
    "os.platform": ImageRow.os_platform,
    "os.version": ImageRow.os_version,
    "deprecation.state": ImageRow.deprecation_state,
    "labels": label_of(ImageRow.labels),
    "software.name": some_element(ImageRow.software, "name"),
    "software.version": some_element(ImageRow.software, "version"),
}
_USABLE = (
    (ImageRow.state == literal("AVAILABLE"))
    & (ImageRow.deprecation_state != literal("OBSOLETE"))
    & (ImageRow.architecture == any_of("architectures"))
    & (ImageRow.min_memory_bytes <= arg("memory_bytes"))
    & (ImageRow.min_disk_bytes <= arg("disk_bytes"))
)


class Asked(NamedTuple):
    """What a page is of: the first `limit` images, in the order of `keys`, that an account sees and that match."""

    #: None for the operator, who sees all.
    account_id: str | None
    #: None for all regions.
    region_id: str | None
    expression: filters.Expression | None
    keys: Sequence[Key]
    #: The values of `keys` that the page comes after.
    cursor: Sequence[Any] | None
    limit: int
    #: Only images that can be launched as this type.
    usable_with: InstanceType | None


async def page(connection: Connection, asked: Asked) -> list[Image]:
    """The images of the page. One statement, so that all rows are of one moment."""
    return [Image._make(row) for row in await _rows(connection, asked, shown=False)]


async def shown_page(connection: Connection, asked: Asked) -> list[ShownImage]:
    """As `page`, if the images are only to be shown."""
    end = len(ShownImage._fields) - 1
    return [ShownImage._make((*row[:end], row[end:])) for row in await _rows(connection, asked, shown=True)]


async def _rows(connection: Connection, asked: Asked, *, shown: bool) -> Sequence[Any]:
    cursor, usable_with = asked.cursor, asked.usable_with
    statement = _page(
        asked.account_id is None,
        asked.region_id is not None,
        asked.expression,
        tuple(asked.keys),
        cursor is not None,
        usable_with is not None,
        shown,
    )
    arguments: dict[str, Any] = {
        "account_id": asked.account_id,
        "region_id": asked.region_id,
        "limit": asked.limit,
    }
    if cursor is not None:
        arguments |= {f"cursor_{index}": value for index, value in enumerate(cursor)}
    if usable_with is not None:
        arguments |= {
            "architectures": runnable(usable_with.architecture),
            "memory_bytes": usable_with.memory_bytes,
            "disk_bytes": usable_with.disk_bytes,
        }
    return await connection.rows(statement, **arguments)


@lru_cache(maxsize=1024)
def _page(
    everything: bool,
    one_region: bool,
    expression: filters.Expression | None,
    keys: tuple[Key, ...],
    continued: bool,
    usable: bool,
    shown: bool,
) -> Statement:
    """The statement of a page. Each kind is a branch of its own, served by indexes of its own."""
    key_columns = [getattr(ImageRow, key.field) for key in keys]
    read = [*dict.fromkeys((*_SHOWN, *key_columns))] if shown else IMAGE_COLUMNS

    def branch(kind: Kind, trust: str, of_kind: Any) -> Any:
        columns = {**_FILTERED, "kind": SQL(f"'{kind}'::text"), "trust": SQL(f"'{trust}'::text")}
        shared_with_caller = SQL("true" if kind is Kind.SHARED else "false").alias("shared_with_caller")
        query = ImageRow.select(*read, shared_with_caller).where(_LIVE & of_kind)
        if kind is Kind.SHARED:
            query = query.join(ImageShareRow, on=ImageShareRow.image_id == ImageRow.image_id)
        if usable:
            query = query.where(_USABLE)
        return pages.first_rows(query, columns, expression, keys, continued=continued)

    here = ImageRow.region_id == RegionRow.region_id
    branches = [branch(Kind.PUBLIC, "PROVIDER", here & _PUBLIC)]
    if everything:
        branches.append(branch(Kind.CUSTOM, "OWN", here & ~_PUBLIC))
    else:
        received = (ImageShareRow.recipient_account_id == arg("account_id")) & (
            ImageShareRow.region_id == RegionRow.region_id
        )
        branches.append(branch(Kind.CUSTOM, "OWN", here & (ImageRow.owner_account_id == arg("account_id"))))
        branches.append(branch(Kind.SHARED, "UNVERIFIED", received))
    rows = pages.union(branches).alias("found")
    columns = [rows.c[field.name] for field in (_SHOWN if shown else IMAGE_COLUMNS)]
    columns += [*_OF_REGION, rows.c.shared_with_caller]
    columns += [rows.c[key.field] for key in keys] if shown else []
    return Statement(pages.of_regions(rows, columns, keys, one_region=one_region))
