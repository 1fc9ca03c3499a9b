"""The catalogue that an operator declares: the regions, instance types and public images of a cloud, read from TOML.

The built-in catalogue, `catalog.toml` beside this file, explains every key. What requests have, too, is held to
the bounds of the API. Everything wrong with a file is told at once, each thing by its path. What applying a catalogue
changes is not decided here.
"""

import re
import reprlib
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    with_config,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from cunho.v1.image_pb2 import Checksum, ImageContent, Software, Support
from cunho.v1.image_service_pb2 import PublishImageRequest
from cunho.v1.operating_system_pb2 import Architecture, BootMode, OperatingSystem, OsFamily
from cunho_rules import limits, shapes

_MIB, _GIB = 2**20, limits.GIB
_MAX_INT32 = 2**31 - 1

_no_other_keys = with_config(ConfigDict(extra="forbid"))


class CatalogError(Exception):
    """A catalogue that cannot be used; the message lists every problem by its path in the file."""


def _gib(size: int) -> int:
    return size * _GIB


def _nanos(price: object) -> int:
    if not (isinstance(price, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", price)):
        raise ValueError('should be a decimal number in quotes, with at most 9 decimals, as in "0.12"')
    return int(Decimal(price).scaleb(9))


def _of_its_region(zone_id: str, region: ValidationInfo) -> str:
    region_id = region.data.get("region_id")
    if region_id and not zone_id.startswith(f"{region_id}-"):
        raise ValueError(f'should start with the id of its region, "{region_id}-"')
    return zone_id


def _free_in_mainland_china(fee_nanos: int, region: ValidationInfo) -> int:
    if fee_nanos and region.data.get("jurisdiction") == "MAINLAND_CHINA":
        raise ValueError('should be "0": in mainland China no licence fee is charged for Windows')
    return fee_nanos


def _one_region(region_id: str) -> str | None:
    return "must be one region, not all of them" if region_id == "-" else None


def _shaped(problem: shapes.Problem) -> AfterValidator:
    """Refuses what the shape does, in its words."""

    def check(value: Any) -> Any:
        if wrong := problem(value):
            raise PydanticCustomError("shape", "{wrong}", {"wrong": wrong})
        return value

    return AfterValidator(check)


_Name = Annotated[str, _shaped(shapes.name)]
_Text = Annotated[str, _shaped(shapes.description)]
_ContentUri = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*:\S+$"), _shaped(shapes.uri)]
_Nanos = Annotated[int, BeforeValidator(_nanos)]


@_no_other_keys
@dataclass(frozen=True, slots=True)
class CatalogRegion:
    """A region with its zones, its jurisdiction and its prices."""

    region_id: Annotated[str, _shaped(shapes.region_id), _shaped(_one_region)]
    display_name: _Name
    zone_ids: Annotated[
        tuple[Annotated[str, _shaped(shapes.zone_id), AfterValidator(_of_its_region)], ...],
        Field(validation_alias="zones", min_length=1),
    ]
    jurisdiction: Literal["MAINLAND_CHINA", "INTERNATIONAL"]
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    image_storage_nanos_per_gib_month: Annotated[_Nanos, Field(validation_alias="image_storage_per_gib_month")]
    image_storage_free_bytes: Annotated[
        StrictInt, Field(validation_alias="image_storage_free_gib", ge=0, le=_MAX_INT32), AfterValidator(_gib)
    ]
    windows_license_nanos_per_hour: Annotated[
        _Nanos, Field(validation_alias="windows_license_per_hour"), AfterValidator(_free_in_mainland_china)
    ]


@_no_other_keys
@dataclass(frozen=True, slots=True)
class CatalogInstanceType:
    """A size of machine, the same in every region."""

    instance_type: Annotated[str, _shaped(shapes.instance_type)]
    architecture: Literal["X86_64", "ARM64"]
    vcpu_count: Annotated[StrictInt, Field(ge=1, le=_MAX_INT32)]
    memory_bytes: Annotated[
        StrictInt,
        Field(validation_alias="memory_gib", ge=1, le=limits.MIN_MEMORY_BYTES_MAX // _GIB),
        AfterValidator(_gib),
    ]
    disk_bytes: Annotated[StrictInt, Field(validation_alias="disk_gib", ge=1, le=_MAX_INT32), AfterValidator(_gib)]


@dataclass(frozen=True, slots=True)
class CatalogImage:
    """A public image: the request that publishes it, without a region, and the regions to publish it in."""

    region_ids: tuple[str, ...]
    request: PublishImageRequest
    #: None if the file says nothing of it.
    deprecation: Literal["CURRENT", "DEPRECATED", "OBSOLETE"] | None
    deprecation_message: str


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything that a file declares, in its order; of the builds of one [[image]] X86_64 comes last."""

    regions: tuple[CatalogRegion, ...]
    instance_types: tuple[CatalogInstanceType, ...]
    images: tuple[CatalogImage, ...]


# An [[image]] as the file has it: one operating system, each build of it a CatalogImage.


@_no_other_keys
@dataclass(frozen=True, slots=True)
class _OperatingSystem:
    family: Literal["LINUX", "WINDOWS"]
    platform: _Name
    version: Annotated[str, _shaped(shapes.name_or_none)] = ""


@_no_other_keys
@dataclass(frozen=True, slots=True)
class _Software:
    name: _Name
    version: _Name


@_no_other_keys
@dataclass(frozen=True, slots=True)
class _Support:
    kind: Literal["OPERATOR", "COMMUNITY", "VENDOR"]
    contact_uri: Annotated[str, _shaped(shapes.contact_uri)]
    note: _Text = ""


@_no_other_keys
@dataclass(frozen=True, slots=True)
class _Deprecation:
    state: Literal["CURRENT", "DEPRECATED", "OBSOLETE"]
    message: _Text = ""


@_no_other_keys
@dataclass(frozen=True, slots=True)
class _Build:
    name: _Name
    architecture: Literal["I386", "X86_64", "ARM64"]
    boot_mode: Literal["BIOS", "UEFI"]
    content_uri: _ContentUri
    size_bytes: Annotated[StrictInt, _shaped(shapes.file_size)]
    checksum: Annotated[str, Field(pattern="^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$")] | None = None


@_no_other_keys
@dataclass(frozen=True, slots=True)
class _Image:
    family: Annotated[str, _shaped(shapes.family_required)]
    os: _OperatingSystem
    min_disk_gib: Annotated[StrictInt, Field(ge=1, le=limits.MIN_DISK_BYTES_MAX // _GIB)]
    support: _Support
    build: Annotated[tuple[_Build, ...], Field(min_length=1)]
    description: _Text = ""
    min_memory_mib: Annotated[StrictInt, Field(ge=0, le=limits.MIN_MEMORY_BYTES_MAX // _MIB)] = 0
    cloud_init: StrictBool = False
    software: Annotated[tuple[_Software, ...], Field(max_length=limits.SOFTWARE)] = ()
    deprecation: _Deprecation | None = None
    regions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    def images(self, every_region_id: tuple[str, ...]) -> Iterator[CatalogImage]:
        state, message = (self.deprecation.state, self.deprecation.message) if self.deprecation else (None, "")
        # A family resolves to the build that is published last, so X86_64 comes after I386, and that after ARM64.
        for build in sorted(self.build, key=lambda build: build.architecture):
            request = PublishImageRequest(
                name=build.name,
                description=self.description,
                family=self.family,
                os=OperatingSystem(
                    family=OsFamily.Value(f"OS_FAMILY_{self.os.family}"),
                    platform=self.os.platform,
                    version=self.os.version,
                ),
                architecture=Architecture.Value(f"ARCHITECTURE_{build.architecture}"),
                content=ImageContent(uri=build.content_uri, checksum=_checksum(build.checksum)),
                size_bytes=build.size_bytes,
                min_disk_bytes=self.min_disk_gib * _GIB,
                min_memory_bytes=self.min_memory_mib * _MIB,
                boot_mode=BootMode.Value(f"BOOT_MODE_{build.boot_mode}"),
                cloud_init=self.cloud_init,
                software=[Software(name=item.name, version=item.version) for item in self.software],
                support=Support(
                    kind=Support.Kind.Value(f"KIND_{self.support.kind}"),
                    contact_uri=self.support.contact_uri,
                    note=self.support.note,
                ),
            )
            yield CatalogImage(self.regions or every_region_id, request, state, message)


def _checksum(written: str | None) -> Checksum | None:
    if written is None:
        return None
    algorithm, _, value = written.partition(":")
    return Checksum(algorithm=Checksum.Algorithm.Value(f"ALGORITHM_{algorithm.upper()}"), value=value)


@_no_other_keys
@dataclass(frozen=True, slots=True)
class _File:
    region: Annotated[tuple[CatalogRegion, ...], Field(min_length=1)]
    instance_type: tuple[CatalogInstanceType, ...] = ()
    image: tuple[_Image, ...] = ()


_FILE = TypeAdapter(_File)


def read(path: Path | None = None) -> Catalog:
    """Everything that a catalogue file declares.

    path: the file; the built-in catalogue if not given.
    Raises CatalogError, which lists all that is wrong, if the file cannot be read or used.
    """
    source = path or files("cunho_server") / "catalog.toml"
    try:
        document = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise CatalogError(f"{source}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # what tomllib and the decoding raise both derive from it
        raise CatalogError(f"{source}: is not TOML in UTF-8: {error}") from error
    problems = list(_contradictions(document))
    declared = None
    try:
        declared = _FILE.validate_python(document)
    except ValidationError as error:
        problems = [*_mistakes(error), *problems]
    if declared is None or problems:
        told = "\n  ".join(f"{_address(document, path)}: {wrong}" for path, wrong in problems)
        raise CatalogError(f"{source}: {len(problems)} problem{'s' * (len(problems) > 1)}\n  {told}")
    every_region_id = tuple(region.region_id for region in declared.region)
    images = tuple(image for entry in declared.image for image in entry.images(every_region_id))
    return Catalog(declared.region, declared.instance_type, images)


# Problems. They are looked for in the document as written, so that one mistake hides no other.

_Path = tuple[str | int, ...]  # the keys and indices that lead there from the top of the document
_Problem = tuple[_Path, str]


def _mistakes(refusal: ValidationError) -> Iterator[_Problem]:
    """What is wrong with single values."""
    for error in refusal.errors():
        # A list of which no entry is right counts as empty too; its entries have been told already.
        if not (error["type"] == "too_short" and error["input"]):
            yield error["loc"], _wrong(error)


def _wrong(error: ErrorDetails) -> str:
    path, value = error["loc"], error["input"]
    match error["type"]:
        case "missing":
            return "is missing"
        case "unexpected_keyword_argument":
            return f"is not a key here; the keys are {', '.join(_keys(path[:-1]))}"
        case "tuple_type" if isinstance(value, dict):
            header = ".".join(step for step in path if isinstance(step, str))
            return f"should be a list: head each of its tables [[{header}]]"
        case "tuple_type":
            wrong = "should be a list"
        case "too_short":
            return "should have at least one entry"
        case "dataclass_type":
            wrong = "should be a table"
        case "shape":
            told = value and isinstance(value, str)  # of a number the shape tells it
            return f"{error['msg']}: {reprlib.repr(value)}" if told else error["msg"]
        case "value_error" if "ctx" in error:
            wrong = str(error["ctx"]["error"])
        case _:
            wrong = error["msg"].removeprefix("Input ")
    return f"{wrong}, not {reprlib.repr(value)}"


def _keys(path: _Path) -> list[str]:
    """The keys that the table at a path may have."""
    schema = table = _FILE.json_schema()
    for step in path:
        table = table["items"] if isinstance(step, int) else table["properties"][step]
        table = table.get("anyOf", [table])[0]  # what may be left out is the table, or nothing
        if "$ref" in table:
            table = schema["$defs"][table["$ref"].rpartition("/")[2]]
    return list(table["properties"])


def _contradictions(document: dict[str, Any]) -> Iterator[_Problem]:
    """What is wrong between entries: ids and names given twice, regions that are not declared."""
    yield from _repeats(_find(document, "region", "*", "region_id"))
    yield from _repeats(_find(document, "region", "*", "zones", "*"))
    yield from _repeats(_find(document, "instance_type", "*", "instance_type"))
    declared = list(dict.fromkeys(str(region_id) for _, region_id in _find(document, "region", "*", "region_id")))
    published: list[tuple[object, list[str]]] = []
    for path, image in _find(document, "image", "*"):
        wanted = list(_find(image, "regions", "*", path=path))
        yield from _repeats(wanted)
        for region_path, region_id in wanted:
            if region_id not in declared:
                yield region_path, f"is not among the regions of this file: {', '.join(declared)}"
        regions = [str(region_id) for _, region_id in wanted] or declared
        for name_path, name in _find(image, "build", "*", "name", path=path):
            taken = [other for other_name, others in published if other_name == name for other in others]
            if shared := [region_id for region_id in regions if region_id in taken]:
                yield name_path, f"is the name of another image in {', '.join(shared)}"
            published.append((name, regions))


def _find(node: Any, *keys: str, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Every value that the keys lead to, "*" being each entry of a list, with its path; none where they end early."""
    if not keys:
        yield path, node
    elif keys[0] == "*" and isinstance(node, list):
        for index, entry in enumerate(node):
            yield from _find(entry, *keys[1:], path=(*path, index))
    elif isinstance(node, dict) and keys[0] in node:
        yield from _find(node[keys[0]], *keys[1:], path=(*path, keys[0]))


def _repeats(values: Iterable[tuple[_Path, object]]) -> Iterator[_Problem]:
    seen: list[object] = []
    for path, value in values:
        if value in seen:
            yield path, f"{reprlib.repr(value)} is given twice"
        seen.append(value)


def _address(document: Any, path: _Path) -> str:
    """A path in words: each entry by its number, from 1, and by what it is called."""
    words = ""
    node = document
    for step in path:
        if isinstance(step, int):
            node = node[step]
            words += f" {step + 1}{_called(node)},"
        else:
            node = node.get(step)
            words += f".{step}" if words and not words.endswith(",") else f" {step}"
    return words.strip(" ,")


def _called(entry: object) -> str:
    """What an entry is called, in quotes; empty if nothing."""
    if isinstance(entry, dict):
        entry = next((entry[key] for key in ("region_id", "instance_type", "family", "name") if key in entry), None)
    return f' "{entry}"' if isinstance(entry, str) else ""
