"""Reads and writes of instances."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from peewee import SQL, fn

from cunho_rules import filters
from cunho_rules.model import Instance, InstanceState
from cunho_rules.orders import Key
from cunho_storage import images, operations, pages
from cunho_storage.conditions import label_of
from cunho_storage.database import Connection
from cunho_storage.requests import MAY, Basis, Beginning, Write
from cunho_storage.statements import Statement, any_of, arg, literal, locking
from cunho_storage.tables import ImageRow, ImageShareRow, InstanceRow, RegionRow

_LIVE = InstanceRow.state != literal("DELETED")
_THIS = InstanceRow.instance_id == arg("instance_id")


def _available_to(account_id: Any) -> Any:
    """Whether the account could launch from the image now."""
    shared = fn.EXISTS(
        ImageShareRow.select(SQL("1")).where(
            (ImageShareRow.image_id == ImageRow.image_id) & (ImageShareRow.recipient_account_id == account_id)
        )
    )
    visible = ImageRow.owner_account_id.is_null() | (ImageRow.owner_account_id == account_id) | shared
    return (ImageRow.state == "AVAILABLE") & (ImageRow.deprecation_state != "OBSOLETE") & visible


#: Also deleted ones: the answer of an operation shows them.
_INSTANCES = InstanceRow.select(*InstanceRow._meta.sorted_fields, _available_to(InstanceRow.account_id)).join(
    ImageRow, on=ImageRow.image_id == InstanceRow.image_id
)
ONE = _INSTANCES.where(_THIS & _LIVE)
#: The software bundled with the image of an instance, which never changes, also if the image is deleted.
SOFTWARE = (
    ImageRow.select(ImageRow.software).join(InstanceRow, on=InstanceRow.image_id == ImageRow.image_id).where(_THIS)
)
_GET = Statement(ONE)
_GET_SOME = Statement(_INSTANCES.where(InstanceRow.instance_id == any_of("instance_ids")))
_ID = InstanceRow.select(InstanceRow.instance_id).where(_THIS)
_LOCKED = locking(_ID, "NO KEY UPDATE")
_LOCK = Statement(_LOCKED)
#: Begins mutations of an instance, as `lock` does.
CHANGING = Beginning(_LOCKED)
#: What mutations of one write rely on that move an instance.
MOVED = Basis(_ID, "NO KEY UPDATE")


async def get(connection: Connection, instance_id: str) -> Instance | None:
    """The instance, or None if it never was or is deleted. Whether a caller may see it, the rules say."""
    row = await connection.row(_GET, instance_id=instance_id)
    return Instance._make(row) if row else None


async def get_some(connection: Connection, instance_ids: Sequence[str]) -> list[Instance]:
    """The instances, deleted ones too, in the order of the ids."""
    rows = await connection.rows(_GET_SOME, instance_ids=instance_ids)
    found = {row[0]: Instance._make(row) for row in rows}
    return [found[instance_id] for instance_id in instance_ids if instance_id in found]


async def lock(connection: Connection, instance_id: str) -> None:
    """Keeps the instance as it is until the transaction ends; read it in later statements."""
    await connection.rows(_LOCK, instance_id=instance_id)


async def locked(connection: Connection, instance_id: str) -> Instance | None:
    """The instance as `get` gives it, locked first."""
    await lock(connection, instance_id)
    return await get(connection, instance_id)


# --- writes

#: What an instance remembers of the image that its disk was made from. Source: INS-4.
_LAUNCH = {
    InstanceRow.image_id: ImageRow.image_id,
    InstanceRow.launch_name: ImageRow.name,
    InstanceRow.launch_owner_account_id: ImageRow.owner_account_id,
    InstanceRow.launch_kind: arg("launch_kind", "text"),
    InstanceRow.launch_trust: arg("launch_trust", "text"),
    InstanceRow.launch_checksum_algorithm: ImageRow.checksum_algorithm,
    InstanceRow.launch_checksum_value: ImageRow.checksum_value,
    InstanceRow.launch_content_uri: ImageRow.content_uri,
    InstanceRow.launch_size_bytes: ImageRow.size_bytes,
    InstanceRow.launch_min_disk_bytes: ImageRow.min_disk_bytes,
    InstanceRow.launch_min_memory_bytes: ImageRow.min_memory_bytes,
    InstanceRow.launch_os_family: ImageRow.os_family,
    InstanceRow.launch_os_platform: ImageRow.os_platform,
    InstanceRow.launch_os_version: ImageRow.os_version,
    InstanceRow.launch_architecture: ImageRow.architecture,
    InstanceRow.launch_boot_mode: ImageRow.boot_mode,
    InstanceRow.launch_cloud_init: ImageRow.cloud_init,
}
_NEW = {
    InstanceRow.instance_id: fn.UNNEST(arg("instance_ids", "text[]")),
    InstanceRow.name: fn.UNNEST(arg("names", "text[]")),
    InstanceRow.description: arg("description", "text"),
    InstanceRow.region_id: ImageRow.region_id,
    InstanceRow.zone_id: arg("zone_id", "text"),
    InstanceRow.account_id: arg("account_id", "text"),
    InstanceRow.instance_type: arg("instance_type", "text"),
    InstanceRow.state: SQL("'PROVISIONING'"),
    InstanceRow.failure: SQL("''"),
    InstanceRow.labels: arg("labels", "jsonb"),
    InstanceRow.operation_id: arg("operation_id", "text"),
    InstanceRow.version: SQL("1"),
    InstanceRow.create_time: SQL("now()"),
    InstanceRow.update_time: SQL("now()"),
    **_LAUNCH,
}
_LAUNCHING = operations.beginning_with(
    images.LAUNCHED,
    InstanceRow.insert_from(
        ImageRow.select(*_NEW.values()).where((ImageRow.image_id == arg("image_id")) & MAY), fields=[*_NEW]
    ),
)
_CHANGED = {InstanceRow.version: InstanceRow.version + SQL("1"), InstanceRow.update_time: SQL("now()")}
_UPDATE = Statement(
    InstanceRow.update(
        {
            InstanceRow.name: arg("name"),
            InstanceRow.description: arg("description"),
            InstanceRow.labels: arg("labels"),
            **_CHANGED,
        }
    ).where(_THIS & _LIVE)
)
_MOVING = operations.beginning_with(
    MOVED,
    InstanceRow.update(
        {InstanceRow.state: arg("through_state"), InstanceRow.operation_id: arg("operation_id"), **_CHANGED}
    ).where(_THIS & (InstanceRow.state == arg("from_state")) & MAY),
)
_OF_OPERATION = (InstanceRow.instance_id == any_of("instance_ids")) & (InstanceRow.operation_id == arg("operation_id"))
_ENDED = {InstanceRow.operation_id: SQL("NULL"), **_CHANGED}
# A failure stays stored: an instance that failed comes back to it if its deletion is undone.
_END = Statement(InstanceRow.update({InstanceRow.state: arg("state"), **_ENDED}).where(_OF_OPERATION))
_FAIL = Statement(
    InstanceRow.update({InstanceRow.state: "FAILED", InstanceRow.failure: arg("failure"), **_ENDED}).where(
        _OF_OPERATION
    )
)
_DELETE = Statement(
    InstanceRow.update({InstanceRow.state: "DELETED", InstanceRow.delete_time: SQL("now()"), **_ENDED}).where(
        _OF_OPERATION
    )
)
#: What of an image may change while an instance is reinstalled from it.
CHANGEABLE = ("name", "min_disk_bytes", "min_memory_bytes")
_AT_THE_CALL = {
    InstanceRow.launch_name: fn.COALESCE(arg("name", "text"), ImageRow.name),
    InstanceRow.launch_min_disk_bytes: fn.COALESCE(arg("min_disk_bytes", "bigint"), ImageRow.min_disk_bytes),
    InstanceRow.launch_min_memory_bytes: fn.COALESCE(arg("min_memory_bytes", "bigint"), ImageRow.min_memory_bytes),
}
_REINSTALL = Statement(
    InstanceRow.update({**_LAUNCH, **_AT_THE_CALL, **_CHANGED})
    .from_(ImageRow)
    .where((ImageRow.image_id == arg("image_id")) & (InstanceRow.instance_id == arg("instance_id")))
)


def launching(
    *,
    instance_ids: Sequence[str],
    names: Sequence[str],
    description: str,
    zone_id: str,
    account_id: str,
    instance_type: str,
    labels: Mapping[str, str],
    operation_id: str,
    image_id: str,
    kind: str,
    trust: str,
) -> Write:
    """The write by which an operation begins to launch instances of an image, in its region: they are PROVISIONING."""
    arguments = {
        "instance_ids": instance_ids,
        "names": names,
        "description": description,
        "zone_id": zone_id,
        "account_id": account_id,
        "instance_type": instance_type,
        "labels": labels,
        "operation_id": operation_id,
        "image_id": image_id,
        "launch_kind": kind,
        "launch_trust": trust,
    }
    return Write(_LAUNCHING, arguments, rows=len(instance_ids))


def moving(instance: Instance, through: str, operation_id: str) -> Write:
    """The write by which an operation begins to move an idle instance through a state; nothing if it is not idle."""
    arguments = {
        "instance_id": instance.instance_id,
        "from_state": instance.state,
        "through_state": through,
        "operation_id": operation_id,
    }
    return Write(_MOVING, arguments)


async def update(connection: Connection, instance: Instance) -> None:
    """Stores name, description and labels, as a new version."""
    await connection.run(
        _UPDATE,
        instance_id=instance.instance_id,
        name=instance.name,
        description=instance.description,
        labels=instance.labels,
    )


async def end(connection: Connection, instance_ids: Sequence[str], state: str, operation_id: str) -> None:
    """Moves the instances that are still the operation's to where it leaves them."""
    if state == InstanceState.DELETED:
        await connection.run(_DELETE, instance_ids=instance_ids, operation_id=operation_id)
    else:
        await connection.run(_END, instance_ids=instance_ids, operation_id=operation_id, state=state)


async def fail(connection: Connection, instance_ids: Sequence[str], failure: str, operation_id: str) -> None:
    """Leaves the instances that are still the operation's FAILED, and says why."""
    await connection.run(_FAIL, instance_ids=instance_ids, operation_id=operation_id, failure=failure)


async def reinstall(connection: Connection, instance_id: str, image: Mapping[str, Any]) -> None:
    """Makes the instance remember the image as the one that its disk was made from.

    Args:
        image: its image_id, kind, trust and what is CHANGEABLE of it, as they were at the call. What is not there,
            since a server of 0.1.0 took the call, is remembered as it is now.
    """
    await connection.run(
        _REINSTALL,
        instance_id=instance_id,
        image_id=image["image_id"],
        launch_kind=image["kind"],
        launch_trust=image["trust"],
        **{field: image.get(field) for field in CHANGEABLE},
    )


# --- pages

_COLUMNS = {
    **{
        name: getattr(InstanceRow, name)
        for name in (
            "instance_id name description account_id zone_id instance_type image_id state create_time update_time"
        ).split()
    },
    "labels": label_of(InstanceRow.labels),
}


async def page(
    connection: Connection,
    *,
    account_id: str | None,
    region_id: str | None,
    expression: filters.Expression | None,
    keys: Sequence[Key],
    cursor: Sequence[Any] | None,
    limit: int,
) -> list[Instance]:
    """The first `limit` instances of the account, in the order of `keys`, that match.

    Args:
        account_id: None for the operator, who sees all.
        region_id: None for all regions.
        cursor: the values of `keys` that the page comes after.
    """
    statement = _page(account_id is not None, region_id is not None, expression, tuple(keys), cursor is not None)
    arguments = {f"cursor_{index}": value for index, value in enumerate(cursor or ())}
    rows = await connection.rows(statement, account_id=account_id, region_id=region_id, limit=limit, **arguments)
    return [Instance._make(row) for row in rows]


@lru_cache(maxsize=1024)
def _page(
    one_account: bool, one_region: bool, expression: filters.Expression | None, keys: tuple[Key, ...], continued: bool
) -> Statement:
    query = InstanceRow.select().where(_LIVE & (InstanceRow.region_id == RegionRow.region_id))
    if one_account:
        query = query.where(InstanceRow.account_id == arg("account_id"))
    rows = pages.first_rows(query, _COLUMNS, expression, keys, continued=continued).alias("found")
    columns = [rows.c[field.name] for field in InstanceRow._meta.sorted_fields]
    page = pages.of_regions(rows, [*columns, _available_to(rows.c.account_id)], keys, one_region=one_region)
    return Statement(page.join(ImageRow, on=ImageRow.image_id == rows.c.image_id))
