"""What the rules want to know of several nouns at one moment, in one statement each.

Nothing is locked here: what must stay as it is has been locked by an earlier statement, or is the basis of a look.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from peewee import fn

from cunho_rules.limits import QUOTA_LIMIT_MAX
from cunho_rules.model import Account, Image, Instance, InstanceType, JudgedImage, Place, Recipient, Region
from cunho_storage import accounts, images, instances, regions, shares
from cunho_storage.database import Connection
from cunho_storage.requests import Look
from cunho_storage.shares import Share
from cunho_storage.statements import Statement, every_row, first_row, together

#: What `launch`, `move` and `share` make facts of.
LAUNCH = Look(
    images.LAUNCHED,
    first_row(images.JUDGED),
    first_row(accounts.ONE),
    first_row(regions.ONE),
    first_row(regions.ONE_TYPE),
)
MOVE = Look(instances.MOVED, first_row(instances.ONE))
_SHARING = (first_row(images.JUDGED), first_row(accounts.ONE), every_row(shares.RECIPIENTS))
SHARE = Look(images.SHARED, *_SHARING)
_CREATION = Statement(
    together(
        first_row(accounts.ONE),
        first_row(regions.ONE),
        first_row(accounts.COUNTER),
        first_row(accounts.HELD),
        first_row(instances.ONE),
        instances.SOFTWARE,
    )
)
_SHARE = Statement(together(*_SHARING))
_IMAGE = Statement(
    together(
        first_row(images.ONE),
        first_row(accounts.ONE),
        first_row(regions.OF_IMAGE),
        images.COPIES,
        fn.ARRAY(shares.ACCOUNT_IDS),
    )
)
_SHARES = Statement(together(first_row(images.ONE), every_row(shares.PAGE)))

Value = TypeVar("Value")

Software: TypeAlias = Sequence[Mapping[str, str]]


async def _row(connection: Connection, statement: Statement, **arguments: Any) -> Sequence[Any]:
    row = await connection.row(statement, **arguments)
    assert row is not None, "it is a row of columns that are NULL where nothing is found"
    return tuple(row)


def _made(make: Callable[[Sequence[Any]], Value], row: Sequence[Any] | None) -> Value | None:
    return None if row is None else make(row)


def launch(read: Sequence[Any]) -> tuple[JudgedImage | None, Account | None, Region | None, InstanceType | None]:
    """What an instance is launched from, by whom, where and as what."""
    image, account, region, type_ = read
    return (
        _made(JudgedImage._make, image),
        _made(Account._make, account),
        _made(Region._make, region),
        _made(InstanceType._make, type_),
    )


async def creation(
    connection: Connection, *, account_id: str, region_id: str, name: str | None, instance_id: str
) -> tuple[Account | None, Region | None, Place, Instance | None, Software]:
    """Who makes an image, where, in which place, from what, and with which software; None: its name is not known."""
    row = await _row(
        connection,
        _CREATION,
        account_id=account_id,
        region_id=region_id,
        name=name or "",
        except_id="",
        instance_id=instance_id,
    )
    account, region, counter, held, instance, software = row
    return (
        _made(Account._make, account),
        _made(Region._make, region),
        accounts.as_place(region_id, name, counter, held),
        _made(Instance._make, instance),
        software or (),
    )


async def image(
    connection: Connection, image_id: str, account_id: str
) -> tuple[Image | None, Account | None, Region | None, int, Sequence[str]]:
    """The image, who asks, its region, how many copies are being made from it, and with whom it is shared."""
    image, account, region, copies, shared_with = await _row(
        connection, _IMAGE, image_id=image_id, account_id=account_id
    )
    return (
        _made(Image._make, image),
        _made(Account._make, account),
        _made(Region._make, region),
        copies,
        shared_with,
    )


def move(read: Sequence[Any]) -> Instance | None:
    """What is moved."""
    (instance,) = read
    return _made(Instance._make, instance)


async def sharing(connection: Connection, **arguments: Any) -> Sequence[Any]:
    """What `share` makes facts of, read in a transaction."""
    return await _row(connection, _SHARE, **arguments)


def share(
    read: Sequence[Any], account_ids: Sequence[str]
) -> tuple[JudgedImage | None, Account | None, tuple[Recipient, ...]]:
    """What is shared, by whom, and with whom."""
    image, account, recipients = read
    return (
        _made(JudgedImage._make, image),
        _made(Account._make, account),
        shares.as_recipients(account_ids, recipients),
    )


async def shares_of(
    connection: Connection, image_id: str, account_id: str, *, after: str, limit: int
) -> tuple[Image | None, list[Share]]:
    """The image, and the first `limit` of its shares with accounts that come after `after`."""
    row = await _row(connection, _SHARES, image_id=image_id, account_id=account_id, after=after, limit=limit)
    image, found = row
    return _made(Image._make, image), [Share._make(each) for each in found]


async def place_of_name(connection: Connection, image: Image, name: str) -> Place:
    """Where the image would be under a new name; a name of "" is nobody's."""
    if image.owner_account_id is None:
        return await public_place(connection, image.region_id, name, except_id=image.image_id)
    return await accounts.place(
        connection, image.owner_account_id, image.region_id, name, except_id=image.image_id, lock=False
    )


async def public_place(connection: Connection, region_id: str, name: str, *, except_id: str = "") -> Place:
    """Where a public image would go: no quota applies, but its name must be free. Source: PUB-1, SEL-4."""
    other = await images.public_by_name(connection, region_id, name)
    taken = other is not None and other.image_id != except_id
    return Place(region_id, True, 0, QUOTA_LIMIT_MAX, 0, name, taken)
