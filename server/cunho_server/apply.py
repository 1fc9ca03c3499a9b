"""Applies a catalogue to the database: declarative and idempotent. What the file does not name stays as it is."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cunho_rules.model import Image, InstanceType, Region
from cunho_server import ids, making
from cunho_server.catalog import Catalog, CatalogError, CatalogImage
from cunho_storage import images, regions
from cunho_storage.database import Connection, Database

#: What the file may change of an image that is published. The rest is what the image is: another is another image.
_CHANGEABLE = (
    "description family min_disk_bytes min_memory_bytes support_kind support_contact_uri support_note"
).split()
_FIXED = (
    "os_family os_platform os_version architecture size_bytes content_uri checksum_algorithm checksum_value"
    " software cloud_init boot_mode"
).split()


class Applied(NamedTuple):
    """What applying a catalogue did to the public images, counted in every region."""

    published: int
    changed: int
    unchanged: int


async def apply(database: Database, catalog: Catalog) -> Applied:
    """Makes regions, instance types and public images as the catalogue says, all or nothing. Raises CatalogError."""
    done: list[str] = []
    problems: list[str] = []
    async with database.transaction() as connection:
        for each in catalog.regions:
            await regions.put(connection, Region(*(getattr(each, field) for field in _REGION)))
        await regions.put_types(
            connection, [InstanceType(*(getattr(each, field) for field in _TYPE)) for each in catalog.instance_types]
        )
        for number, image in enumerate(_oldest_first(catalog.images)):
            for region_id in image.region_ids:
                done.append(await _apply_image(connection, region_id, image, number, problems))
        if problems:
            raise CatalogError("\n".join(problems))
    return Applied(done.count("published"), done.count("changed"), done.count("unchanged"))


def _oldest_first(images: Sequence[CatalogImage]) -> list[CatalogImage]:
    """The images as they are published, so that lists, which are newest first, have the families in the file's order.

    Of each family the image that is last in the file comes last: it is what the family resolves to. Source: PUB-4.
    """
    families = [*dict.fromkeys(image.request.family for image in images)]
    return sorted(images, key=lambda image: -families.index(image.request.family))


async def _apply_image(
    connection: Connection, region_id: str, wanted: CatalogImage, number: int, problems: list[str]
) -> str:
    values = making.public(ids.new("img"), wanted.request) | {"region_id": region_id}
    stored = await images.public_by_name(connection, region_id, wanted.request.name)
    if stored and (differing := [field for field in _FIXED if getattr(stored, field) != values[field]]):
        problems.append(
            f'image "{stored.name}" in {region_id} is published with another {", ".join(differing)}: contents never '
            "change under a name; publish the new build under a new name and make this one OBSOLETE"
        )
    changeable = {field: values[field] for field in _CHANGEABLE}
    done = await _change(connection, stored, changeable, _deprecation(wanted)) if stored else None
    if done is None:
        await images.add(connection, values | _deprecation(wanted), number)
    return done or "published"


async def _change(connection: Connection, image: Image, values: dict[str, Any], retired: dict[str, str]) -> str | None:
    """What it took to make the image so; None if a call has deleted it meanwhile."""
    republished = any(getattr(image, field) != value for field, value in values.items())
    deprecated = any(getattr(image, field) != value for field, value in retired.items())
    if not republished and not deprecated:
        return "unchanged"
    stored = await images.locked(connection, image.image_id, "")  # what calls that are waited for change stays
    if stored is None:
        return None
    if republished:
        await images.republish(connection, stored._replace(**values))
    if deprecated:
        state, message = retired["deprecation_state"], retired["deprecation_message"]
        await images.deprecate(connection, stored.image_id, state, stored.replacement_image_id, message)
    return "changed"


def _deprecation(image: CatalogImage) -> dict[str, str]:
    """What the file says of it; nothing if it leaves the image as retired as it is."""
    if image.deprecation is None:
        return {}
    return {"deprecation_state": image.deprecation, "deprecation_message": image.deprecation_message}


#: The fields of a catalogue's entries, in the order of the stored values.
_REGION = (
    "region_id display_name jurisdiction currency image_storage_nanos_per_gib_month image_storage_free_bytes"
    " windows_license_nanos_per_hour zone_ids"
).split()
_TYPE = "instance_type architecture vcpu_count memory_bytes disk_bytes".split()
