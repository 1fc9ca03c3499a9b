"""Reads and writes of accounts, the regions that they are active in, and their quotas there."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from peewee import SQL, Function, fn

from cunho_rules.limits import CUSTOM_IMAGES_PER_REGION
from cunho_rules.model import BEING_MADE, Account, AccountState, Place
from cunho_storage.database import Connection
from cunho_storage.requests import Beginning
from cunho_storage.statements import Statement, any_of, arg, delete_from, first_row, literal, locking, together
from cunho_storage.tables import AccountRegionRow, AccountRow, ImageRow, ImageShareRow, InstanceRow

_REGION_IDS = AccountRegionRow.select(
    fn.COALESCE(fn.ARRAY_AGG(AccountRegionRow.region_id).order_by(AccountRegionRow.region_id), SQL("'{}'::text[]"))
).where(AccountRegionRow.account_id == AccountRow.account_id)
_ACCOUNTS = AccountRow.select(*AccountRow._meta.sorted_fields, _REGION_IDS.alias("region_ids"))
ONE = _ACCOUNTS.where(AccountRow.account_id == arg("account_id"))
_GET = Statement(ONE)
_LIST = Statement(
    _ACCOUNTS.where(AccountRow.account_id > arg("after")).order_by(AccountRow.account_id).limit(arg("limit"))
)
_LOCK = Statement(
    locking(
        AccountRow.select(AccountRow.account_id).where(AccountRow.account_id == arg("account_id")),
        "NO KEY UPDATE",
    )
)
_ADD = Statement(
    AccountRow.insert(
        {
            AccountRow.account_id: arg("account_id"),
            AccountRow.display_name: arg("display_name"),
            AccountRow.state: AccountState.ACTIVE,
            AccountRow.version: SQL("1"),
            AccountRow.create_time: SQL("now()"),
            AccountRow.update_time: SQL("now()"),
        }
    )
)
_UPDATE = Statement(
    AccountRow.update(
        {
            AccountRow.display_name: arg("display_name"),
            AccountRow.state: arg("state"),
            AccountRow.version: AccountRow.version + SQL("1"),
            AccountRow.update_time: SQL("now()"),
        }
    ).where(AccountRow.account_id == arg("account_id"))
)

_ENTER = Statement(
    AccountRegionRow.insert(
        {
            AccountRegionRow.account_id: arg("account_id"),
            AccountRegionRow.region_id: arg("region_id"),
            AccountRegionRow.images_used: SQL("0"),
            AccountRegionRow.images_limit: arg("images_limit"),
        }
    )
)
_LEAVE = Statement(
    delete_from(AccountRegionRow).where(
        (AccountRegionRow.account_id == arg("account_id")) & (AccountRegionRow.region_id == any_of("region_ids"))
    )
)
_LOCK_REGIONS = Statement(
    locking(
        AccountRegionRow.select(AccountRegionRow.region_id)
        .where(
            (AccountRegionRow.account_id == arg("account_id")) & (AccountRegionRow.region_id == any_of("region_ids"))
        )
        .order_by(AccountRegionRow.region_id),
        "UPDATE",
    )
)


def _holds(table: type[ImageRow] | type[ImageShareRow] | type[InstanceRow], column: str) -> Function:
    """True if the table has a row of the account's in the region, tombstones too: they name the region for ever."""
    return fn.EXISTS(
        table.select(SQL("1")).where(
            (getattr(table, column) == AccountRegionRow.account_id) & (table.region_id == AccountRegionRow.region_id)
        )
    )


_IN_USE = Statement(
    AccountRegionRow.select(AccountRegionRow.region_id)
    .where((AccountRegionRow.account_id == arg("account_id")) & (AccountRegionRow.region_id == any_of("region_ids")))
    .where(
        _holds(ImageRow, "owner_account_id")
        | _holds(ImageShareRow, "recipient_account_id")
        | _holds(InstanceRow, "account_id")
    )
    .order_by(AccountRegionRow.region_id)
)

#: The counter of an account's quota in a region.
COUNTER = AccountRegionRow.select(AccountRegionRow.images_used, AccountRegionRow.images_limit).where(
    (AccountRegionRow.account_id == arg("account_id")) & (AccountRegionRow.region_id == arg("region_id"))
)
_LOCK_PLACE = Statement(locking(COUNTER, "NO KEY UPDATE"))
#: Begins mutations of what an account has in a region, as `lock_place` does.
CHANGING_PLACE = Beginning(
    locking(
        AccountRegionRow.select(AccountRegionRow.region_id).where(
            (AccountRegionRow.account_id == arg("owner_account_id")) & (AccountRegionRow.region_id == arg("region_id"))
        ),
        "NO KEY UPDATE",
    )
)
_LIVE_IMAGES = (ImageRow.owner_account_id == arg("account_id")) & (ImageRow.state != literal("DELETED"))
#: As much as a bigint holds: of two images of the largest size, the sum is more.
_MOST = SQL("9223372036854775807")
#: The bytes that an account stores in a region, and whether it has another image of the name there.
HELD = ImageRow.select(
    fn.LEAST(fn.COALESCE(fn.SUM(ImageRow.size_bytes).filter(ImageRow.state != "FAILED"), SQL("0")), _MOST).cast(
        "bigint"
    ),
    fn.COALESCE(fn.BOOL_OR((ImageRow.name == arg("name")) & (ImageRow.image_id != arg("except_id"))), SQL("false")),
).where(_LIVE_IMAGES & (ImageRow.region_id == arg("region_id")))
_SEE_PLACE = Statement(together(first_row(COUNTER), first_row(HELD)))
_TAKE_PLACE = Statement(
    AccountRegionRow.update({AccountRegionRow.images_used: AccountRegionRow.images_used + SQL("1")}).where(
        (AccountRegionRow.account_id == arg("account_id"))
        & (AccountRegionRow.region_id == arg("region_id"))
        & (AccountRegionRow.images_used < AccountRegionRow.images_limit)
    )
)
_FREE_PLACE = Statement(
    AccountRegionRow.update({AccountRegionRow.images_used: AccountRegionRow.images_used - SQL("1")}).where(
        (AccountRegionRow.account_id == arg("account_id")) & (AccountRegionRow.region_id == arg("region_id"))
    )
)

_RESERVED = ImageRow.select(fn.COUNT(SQL("1"))).where(
    (ImageRow.owner_account_id == AccountRegionRow.account_id)
    & (ImageRow.region_id == AccountRegionRow.region_id)
    & ImageRow.state.in_(sorted(BEING_MADE))
    & (ImageRow.state != literal("DELETED"))
)
_QUOTAS = AccountRegionRow.select(
    AccountRegionRow.region_id,
    AccountRegionRow.images_limit,
    AccountRegionRow.images_used,
    _RESERVED.alias("reserved"),
).where(AccountRegionRow.account_id == arg("account_id"))
_GET_QUOTA = Statement(_QUOTAS.where(AccountRegionRow.region_id == arg("region_id")))
_LIST_QUOTAS = Statement(
    _QUOTAS.where(AccountRegionRow.region_id > arg("after")).order_by(AccountRegionRow.region_id).limit(arg("limit"))
)
_SET_LIMIT = Statement(
    AccountRegionRow.update({AccountRegionRow.images_limit: arg("images_limit")}).where(
        (AccountRegionRow.account_id == arg("account_id")) & (AccountRegionRow.region_id == arg("region_id"))
    )
)


class ImageQuota(NamedTuple):
    """The custom-image quota of an account in a region; `used` includes `reserved`."""

    region_id: str
    limit: int
    used: int
    reserved: int


async def get(connection: Connection, account_id: str) -> Account | None:
    """The account, or None."""
    row = await connection.row(_GET, account_id=account_id)
    return Account._make(row) if row else None


async def list_(connection: Connection, *, after: str, limit: int) -> list[Account]:
    """The first `limit` accounts whose ids come after `after`, by id."""
    return [Account._make(row) for row in await connection.rows(_LIST, after=after, limit=limit)]


async def locked(connection: Connection, account_id: str) -> Account | None:
    """The account as `get` gives it, kept as it is until the transaction ends."""
    await connection.rows(_LOCK, account_id=account_id)
    return await get(connection, account_id)


async def add(connection: Connection, account_id: str, display_name: str, region_ids: Iterable[str]) -> None:
    """Adds an ACTIVE account, active in the regions."""
    await connection.run(_ADD, account_id=account_id, display_name=display_name)
    await enter(connection, account_id, region_ids)


async def update(connection: Connection, account: Account) -> None:
    """Stores display name and state, as a new version."""
    await connection.run(_UPDATE, account_id=account.account_id, display_name=account.display_name, state=account.state)


async def enter(connection: Connection, account_id: str, region_ids: Iterable[str]) -> None:
    """Makes the account active in the regions."""
    for region_id in sorted(region_ids):
        await connection.run(_ENTER, account_id=account_id, region_id=region_id, images_limit=CUSTOM_IMAGES_PER_REGION)


async def leave(connection: Connection, account_id: str, region_ids: Sequence[str]) -> None:
    """Takes the account out of the regions."""
    await connection.run(_LEAVE, account_id=account_id, region_ids=region_ids)


async def in_use(connection: Connection, account_id: str, region_ids: Sequence[str]) -> list[str]:
    """Those of the regions that the account cannot leave: it has shares there, or ever had images or instances.

    Locks them first.
    """
    await connection.rows(_LOCK_REGIONS, account_id=account_id, region_ids=region_ids)
    return [row[0] for row in await connection.rows(_IN_USE, account_id=account_id, region_ids=region_ids)]


async def place(
    connection: Connection,
    account_id: str,
    region_id: str,
    name: str | None,
    *,
    except_id: str = "",
    lock: bool = True,
) -> Place:
    """Where an image named `name` of the account's would go; None: its name is not known.

    Locks the account's row of the region, so that nobody can count without it: the count and the insert that follows
    are one step to all others.

    Args:
        except_id: an image whose name does not count as taken.
        lock: False to look only, for an explanation.
    """
    if lock:
        await lock_place(connection, account_id, region_id)
    row = await connection.row(
        _SEE_PLACE, account_id=account_id, region_id=region_id, name=name or "", except_id=except_id
    )
    assert row is not None
    return as_place(region_id, name, *row)


def as_place(region_id: str, name: str | None, counter: tuple[int, int] | None, held: tuple[int, bool]) -> Place:
    """The place that rows of COUNTER and HELD describe."""
    return Place(region_id, counter is not None, *(counter or (0, 0)), held[0], name, held[1])


async def lock_place(connection: Connection, account_id: str, region_id: str) -> None:
    """Keeps the account's quota of the region as it is until the transaction ends."""
    await connection.rows(_LOCK_PLACE, account_id=account_id, region_id=region_id)


async def take_place(connection: Connection, account_id: str, region_id: str) -> bool:
    """Counts one more custom image; False, with nothing done, if the quota has no room."""
    return await connection.run(_TAKE_PLACE, account_id=account_id, region_id=region_id) == 1


async def free_place(connection: Connection, account_id: str, region_id: str) -> None:
    """Counts one custom image less."""
    await connection.run(_FREE_PLACE, account_id=account_id, region_id=region_id)


async def get_quota(connection: Connection, account_id: str, region_id: str) -> ImageQuota | None:
    """The custom-image quota of the account in the region, or None if it is not active there."""
    row = await connection.row(_GET_QUOTA, account_id=account_id, region_id=region_id)
    return ImageQuota._make(row) if row else None


async def list_quotas(connection: Connection, account_id: str, *, after: str, limit: int) -> list[ImageQuota]:
    """The first `limit` custom-image quotas of the account in regions after `after`, by region."""
    rows = await connection.rows(_LIST_QUOTAS, account_id=account_id, after=after, limit=limit)
    return [ImageQuota._make(row) for row in rows]


async def set_limit(connection: Connection, account_id: str, region_id: str, images_limit: int) -> None:
    """Sets how many custom images the account may hold in the region."""
    await connection.run(_SET_LIMIT, account_id=account_id, region_id=region_id, images_limit=images_limit)
