"""Reads and writes of regions, their zones and prices, and of instance types."""

from collections.abc import Iterable, Sequence

from peewee import SQL, fn

from cunho_rules.model import InstanceType, Region
from cunho_storage.database import Connection
from cunho_storage.statements import Statement, any_of, arg
from cunho_storage.tables import ImageRow, InstanceTypeRow, RegionRow, ZoneRow

_ZONES = ZoneRow.select(
    fn.COALESCE(fn.ARRAY_AGG(ZoneRow.zone_id).order_by(ZoneRow.zone_id), SQL("'{}'::text[]"))
).where(ZoneRow.region_id == RegionRow.region_id)
_REGIONS = RegionRow.select(*RegionRow._meta.sorted_fields, _ZONES.alias("zone_ids"))
ONE = _REGIONS.where(RegionRow.region_id == arg("region_id"))
#: That of an image.
OF_IMAGE = _REGIONS.join(ImageRow, on=ImageRow.region_id == RegionRow.region_id).where(
    ImageRow.image_id == arg("image_id")
)
_GET = Statement(ONE)
_LIST = Statement(_REGIONS.where(RegionRow.region_id > arg("after")).order_by(RegionRow.region_id).limit(arg("limit")))
_EXISTING = Statement(RegionRow.select(RegionRow.region_id).where(RegionRow.region_id == any_of("region_ids")))
_PUT_REGION = Statement(
    RegionRow.insert({field: arg(field.name) for field in RegionRow._meta.sorted_fields}).on_conflict(
        conflict_target=[RegionRow.region_id],
        update={field: arg(field.name) for field in RegionRow._meta.sorted_fields[1:]},
    )
)
_PUT_ZONE = Statement(
    ZoneRow.insert({ZoneRow.zone_id: arg("zone_id"), ZoneRow.region_id: arg("region_id")}).on_conflict_ignore()
)

ONE_TYPE = InstanceTypeRow.select().where(InstanceTypeRow.instance_type == arg("instance_type"))
_GET_TYPE = Statement(ONE_TYPE)
_LIST_TYPES = Statement(
    InstanceTypeRow.select()
    .where(InstanceTypeRow.instance_type > arg("after"))
    .order_by(InstanceTypeRow.instance_type)
    .limit(arg("limit"))
)
_PUT_TYPE = Statement(
    InstanceTypeRow.insert({field: arg(field.name) for field in InstanceTypeRow._meta.sorted_fields}).on_conflict(
        conflict_target=[InstanceTypeRow.instance_type],
        update={field: arg(field.name) for field in InstanceTypeRow._meta.sorted_fields[1:]},
    )
)


async def get(connection: Connection, region_id: str) -> Region | None:
    """The region, or None."""
    row = await connection.row(_GET, region_id=region_id)
    return Region._make(row) if row else None


async def list_(connection: Connection, *, after: str, limit: int) -> list[Region]:
    """The first `limit` regions whose ids come after `after`, by id."""
    return [Region._make(row) for row in await connection.rows(_LIST, after=after, limit=limit)]


async def unknown(connection: Connection, region_ids: Sequence[str]) -> list[str]:
    """Those of the region ids that name no region."""
    known = {row[0] for row in await connection.rows(_EXISTING, region_ids=region_ids)}
    return [region_id for region_id in region_ids if region_id not in known]


async def put(connection: Connection, region: Region) -> None:
    """Stores the region as given. Zones are added, never taken away: instances may be in them."""
    await connection.run(_PUT_REGION, **{key: value for key, value in region._asdict().items() if key != "zone_ids"})
    for zone_id in region.zone_ids:
        await connection.run(_PUT_ZONE, zone_id=zone_id, region_id=region.region_id)


async def get_type(connection: Connection, instance_type: str) -> InstanceType | None:
    """The instance type, or None."""
    row = await connection.row(_GET_TYPE, instance_type=instance_type)
    return InstanceType._make(row) if row else None


async def list_types(connection: Connection, *, after: str, limit: int) -> list[InstanceType]:
    """The first `limit` instance types whose names come after `after`, by name."""
    return [InstanceType._make(row) for row in await connection.rows(_LIST_TYPES, after=after, limit=limit)]


async def put_types(connection: Connection, instance_types: Iterable[InstanceType]) -> None:
    """Stores the instance types as given."""
    for instance_type in instance_types:
        await connection.run(_PUT_TYPE, **instance_type._asdict())
