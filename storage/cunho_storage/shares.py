"""Reads and writes of image shares. Whoever writes them holds the lock of the image, and keeps its counter true."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from peewee import CTE, JOIN, Select, fn

from cunho_rules.model import Recipient
from cunho_storage import images
from cunho_storage.database import Connection
from cunho_storage.requests import MAY, OneWrite, Write
from cunho_storage.statements import Statement, any_of, arg, delete_from
from cunho_storage.tables import AccountRegionRow, AccountRow, ImageRow, ImageShareRow

_OF_IMAGE = ImageShareRow.image_id == arg("image_id")
#: The first shares of an image with accounts that come after one.
PAGE = (
    ImageShareRow.select(ImageShareRow.recipient_account_id, ImageShareRow.create_time)
    .where(_OF_IMAGE & (ImageShareRow.recipient_account_id > arg("after")))
    .order_by(ImageShareRow.recipient_account_id)
    .limit(arg("limit"))
)
#: Every account that an image is shared with, sorted.
ACCOUNT_IDS = (
    ImageShareRow.select(ImageShareRow.recipient_account_id)
    .where(_OF_IMAGE)
    .order_by(ImageShareRow.recipient_account_id)
)
_ACCOUNT_IDS = Statement(ACCOUNT_IDS)
#: Those of some accounts that are known, whether active in the image's region, and since when it is shared with them.
RECIPIENTS = (
    AccountRow.select(AccountRow.account_id, AccountRegionRow.region_id.is_null(False), ImageShareRow.create_time)
    .join(
        AccountRegionRow,
        JOIN.LEFT_OUTER,
        on=(AccountRegionRow.account_id == AccountRow.account_id)
        & (
            AccountRegionRow.region_id
            == ImageRow.select(ImageRow.region_id).where(ImageRow.image_id == arg("image_id"))
        ),
    )
    .join(
        ImageShareRow,
        JOIN.LEFT_OUTER,
        on=(ImageShareRow.recipient_account_id == AccountRow.account_id) & _OF_IMAGE,
    )
    .where(AccountRow.account_id == any_of("account_ids"))
)
_RECIPIENTS = Statement(RECIPIENTS)
_COUNTED = ImageRow.update({ImageRow.share_count: ImageRow.share_count + arg("added", "int")}).where(
    ImageRow.image_id == arg("image_id")
)
_COUNT = Statement(_COUNTED)
_IMAGE = CTE("image", _COUNTED.where(MAY).returning(ImageRow.image_id, ImageRow.owner_account_id, ImageRow.region_id))
_ADDING = OneWrite(
    images.SHARED,
    ImageShareRow.insert_from(
        Select(
            [_IMAGE],
            [
                _IMAGE.c.image_id,
                fn.UNNEST(arg("account_ids", "text[]")),
                _IMAGE.c.owner_account_id,
                _IMAGE.c.region_id,
                _IMAGE.c.owner_account_id,
                arg("time", "timestamptz"),
            ],
        ),
        fields=ImageShareRow._meta.sorted_fields,
    ),
    _IMAGE,
)
_REMOVE = Statement(
    delete_from(ImageShareRow)
    .where(_OF_IMAGE & (ImageShareRow.recipient_account_id == any_of("account_ids")))
    .returning(ImageShareRow.recipient_account_id)
)
_SET_LIMIT = Statement(
    ImageRow.update({ImageRow.share_limit: arg("share_limit")}).where(ImageRow.image_id == arg("image_id"))
)


class Share(NamedTuple):
    """One account that an image is shared with."""

    account_id: str
    create_time: datetime


async def account_ids(connection: Connection, image_id: str) -> list[str]:
    """Every account that the image is shared with, sorted."""
    return [row[0] for row in await connection.rows(_ACCOUNT_IDS, image_id=image_id)]


async def recipients(connection: Connection, image_id: str, account_ids: Sequence[str]) -> tuple[Recipient, ...]:
    """What the rules want to know of the accounts that the image would be shared with, in their order."""
    return as_recipients(account_ids, await connection.rows(_RECIPIENTS, image_id=image_id, account_ids=account_ids))


def as_recipients(account_ids: Sequence[str], rows: Iterable[Any]) -> tuple[Recipient, ...]:
    """The accounts, in their order, as rows of RECIPIENTS describe them."""
    known = {row[0]: Recipient(row[0], True, row[1], row[2]) for row in rows}
    return tuple(known.get(account_id, Recipient(account_id, False, False, None)) for account_id in account_ids)


def adding(image_id: str, account_ids: Sequence[str], time: datetime) -> Write | None:
    """The write that shares the image, from `time` on, with accounts that do not have it; None if there are none."""
    if not account_ids:
        return None
    arguments = {"image_id": image_id, "account_ids": account_ids, "added": len(account_ids), "time": time}
    return Write(_ADDING, arguments, rows=len(account_ids))


async def remove(connection: Connection, image_id: str, account_ids: Sequence[str]) -> list[str]:
    """Takes the image back from the accounts; those that had it, sorted."""
    if not account_ids:
        return []
    removed = [row[0] for row in await connection.rows(_REMOVE, image_id=image_id, account_ids=account_ids)]
    await connection.run(_COUNT, image_id=image_id, added=-len(removed))
    return sorted(removed)


async def set_limit(connection: Connection, image_id: str, share_limit: int) -> None:
    """Sets how many accounts the image may be shared with."""
    await connection.run(_SET_LIMIT, image_id=image_id, share_limit=share_limit)
