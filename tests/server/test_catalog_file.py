"""The built-in catalogue offers what the product promises, and a catalogue file with mistakes names all of them."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cunho.v1.image_pb2 import Checksum, ImageContent, Software, Support
from cunho.v1.image_service_pb2 import PublishImageRequest
from cunho.v1.operating_system_pb2 import Architecture, BootMode, OperatingSystem, OsFamily
from cunho_server.catalog import (
    Catalog,
    CatalogError,
    CatalogImage,
    CatalogInstanceType,
    CatalogRegion,
    read,
)
from cunho_server.shape import violations

GIB = 2**30

BUILT_IN = read()

VALID = """
[[region]]
region_id = "north"
display_name = "North"
zones = ["north-1", "north-2"]
jurisdiction = "MAINLAND_CHINA"
currency = "CNY"
image_storage_per_gib_month = "0.12"
image_storage_free_gib = 50
windows_license_per_hour = "0"

[[region]]
region_id = "south"
display_name = "South"
zones = ["south-1"]
jurisdiction = "INTERNATIONAL"
currency = "USD"
image_storage_per_gib_month = "1"
image_storage_free_gib = 0
windows_license_per_hour = "0.046000001"

[[instance_type]]
instance_type = "S5.SMALL1"
architecture = "X86_64"
vcpu_count = 1
memory_gib = 2
disk_gib = 20

[[image]]
family = "debian-13"
description = "Debian 13"
os.family = "LINUX"
os.platform = "debian"
os.version = "13"
min_disk_gib = 10
min_memory_mib = 512
cloud_init = true
software = [{ name = "Java", version = "21" }, { name = "Java", version = "17" }]
support.kind = "COMMUNITY"
support.contact_uri = "https://www.debian.org/support"
support.note = "Ask the list first."

[[image.build]]
name = "Debian 13 64bit"
architecture = "X86_64"
boot_mode = "UEFI"
content_uri = "https://images.example/debian-13-amd64.qcow2"
size_bytes = 400_000_001
checksum = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"

[[image.build]]
name = "Debian 13 32bit"
architecture = "I386"
boot_mode = "BIOS"
content_uri = "store:debian-13-i386.qcow2"
size_bytes = 400_000_000

[[image]]
family = "windows-server-2008"
os.family = "WINDOWS"
os.platform = "windows-server"
min_disk_gib = 50
support.kind = "VENDOR"
support.contact_uri = "mailto:support@vendor.example"
deprecation.state = "OBSOLETE"
deprecation.message = "No longer supported."
regions = ["south"]

[[image.build]]
name = "Windows Server 2008"
architecture = "I386"
boot_mode = "BIOS"
content_uri = "store:windows-server-2008.vhd"
size_bytes = 1
"""


def read_text(folder: Path, text: str) -> Catalog:
    file = folder / "cloud.toml"
    file.write_text(text, encoding="utf-8")
    return read(file)


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(CatalogError) as refused:
        read_text(folder, text)
    first, *told = str(refused.value).splitlines()
    assert first == f"{folder / 'cloud.toml'}: {len(told)} problem{'s' if len(told) > 1 else ''}"
    return [line.removeprefix("  ") for line in told]


def changed(old: str, new: str) -> str:
    assert old in VALID
    return VALID.replace(old, new, 1)


def test_every_region_has_zones_of_its_own() -> None:
    for region in BUILT_IN.regions:
        assert region.zone_ids
        assert all(re.fullmatch(rf"{region.region_id}-\d", zone_id) for zone_id in region.zone_ids)


def test_windows_costs_a_fee_outside_mainland_china_only() -> None:
    fees = {
        jurisdiction: {r.windows_license_nanos_per_hour for r in BUILT_IN.regions if r.jurisdiction == jurisdiction}
        for jurisdiction in ("MAINLAND_CHINA", "INTERNATIONAL")
    }
    assert fees["MAINLAND_CHINA"] == {0}
    assert min(fees["INTERNATIONAL"]) > 0


def test_storing_a_custom_image_has_a_price_in_every_region() -> None:
    assert all(region.image_storage_nanos_per_gib_month > 0 for region in BUILT_IN.regions)
    assert {(region.jurisdiction, region.currency) for region in BUILT_IN.regions} == {
        ("MAINLAND_CHINA", "CNY"),
        ("INTERNATIONAL", "USD"),
    }


@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        (OsFamily.OS_FAMILY_LINUX, Architecture.ARCHITECTURE_I386),
        (OsFamily.OS_FAMILY_LINUX, Architecture.ARCHITECTURE_X86_64),
        (OsFamily.OS_FAMILY_LINUX, Architecture.ARCHITECTURE_ARM64),
        (OsFamily.OS_FAMILY_WINDOWS, Architecture.ARCHITECTURE_I386),
        (OsFamily.OS_FAMILY_WINDOWS, Architecture.ARCHITECTURE_X86_64),
    ],
)
def test_linux_and_windows_launch_everywhere_in_32_and_64_bits(
    family: OsFamily.ValueType, architecture: Architecture.ValueType
) -> None:
    launchable_in = {
        region_id
        for image in BUILT_IN.images
        if (image.request.os.family, image.request.architecture) == (family, architecture)
        and image.deprecation != "OBSOLETE"
        for region_id in image.region_ids
    }
    assert launchable_in == {region.region_id for region in BUILT_IN.regions}


@pytest.mark.parametrize("name", ["Java", "MySQL", "SQL Server", "Python", "Ruby", "Tomcat"])
def test_common_software_comes_in_several_versions(name: str) -> None:
    versions = {item.version for image in BUILT_IN.images for item in image.request.software if item.name == name}
    assert len(versions) > 1


def test_the_operator_supports_its_own_linux_and_vendors_support_windows() -> None:
    supporters = {(image.request.os.family, image.request.support.kind) for image in BUILT_IN.images}
    assert supporters == {
        (OsFamily.OS_FAMILY_LINUX, Support.KIND_OPERATOR),
        (OsFamily.OS_FAMILY_LINUX, Support.KIND_COMMUNITY),
        (OsFamily.OS_FAMILY_WINDOWS, Support.KIND_VENDOR),
    }


def test_a_retired_image_says_what_to_use_instead() -> None:
    retired = [image for image in BUILT_IN.images if image.deprecation]
    assert {image.deprecation for image in retired} == {"DEPRECATED", "OBSOLETE"}
    assert all("; use " in image.deprecation_message for image in retired)


@pytest.mark.parametrize("image", BUILT_IN.images, ids=lambda image: image.request.name)
def test_contents_come_from_a_publisher_or_the_store(image: CatalogImage) -> None:
    uri = urlsplit(image.request.content.uri)
    assert re.search(r"\.(qcow2|img|vhdx?)$", uri.path)
    if uri.scheme == "https":
        assert "." in uri.netloc
        assert image.request.os.family == OsFamily.OS_FAMILY_LINUX, "Windows may not be downloaded by everybody"
        assert not image.request.software, "no distribution publishes an image with this software"
    else:
        assert (uri.scheme, uri.netloc) == ("store", "")


@pytest.mark.parametrize("image", BUILT_IN.images, ids=lambda image: image.request.name)
def test_every_image_runs_on_an_instance_type(image: CatalogImage) -> None:
    runs_on = "ARM64" if image.request.architecture == Architecture.ARCHITECTURE_ARM64 else "X86_64"
    assert any(
        size.architecture == runs_on
        and size.memory_bytes >= image.request.min_memory_bytes
        and size.disk_bytes >= image.request.min_disk_bytes
        for size in BUILT_IN.instance_types
    )


@pytest.mark.parametrize("image", BUILT_IN.images, ids=lambda image: image.request.name)
def test_every_image_is_within_the_bounds_of_publish_image(image: CatalogImage) -> None:
    assert [problem.field for problem in violations(image.request)] == ["region_id"]


def test_a_family_has_one_image_for_each_architecture() -> None:
    offered = [(image.request.family, image.request.architecture) for image in BUILT_IN.images]
    assert len(set(offered)) == len(offered)


def test_regions_and_instance_types_come_in_exact_units(tmp_path: Path) -> None:
    catalog = read_text(tmp_path, VALID)
    assert catalog.regions == (
        CatalogRegion(
            region_id="north",
            display_name="North",
            zone_ids=("north-1", "north-2"),
            jurisdiction="MAINLAND_CHINA",
            currency="CNY",
            image_storage_nanos_per_gib_month=120_000_000,
            image_storage_free_bytes=50 * GIB,
            windows_license_nanos_per_hour=0,
        ),
        CatalogRegion(
            region_id="south",
            display_name="South",
            zone_ids=("south-1",),
            jurisdiction="INTERNATIONAL",
            currency="USD",
            image_storage_nanos_per_gib_month=1_000_000_000,
            image_storage_free_bytes=0,
            windows_license_nanos_per_hour=46_000_001,
        ),
    )
    assert catalog.instance_types == (CatalogInstanceType("S5.SMALL1", "X86_64", 1, 2 * GIB, 20 * GIB),)


def test_each_build_is_an_image_to_publish(tmp_path: Path) -> None:
    second, first, _ = read_text(tmp_path, VALID).images
    assert first == CatalogImage(
        region_ids=("north", "south"),
        request=PublishImageRequest(
            name="Debian 13 64bit",
            description="Debian 13",
            family="debian-13",
            os=OperatingSystem(family=OsFamily.OS_FAMILY_LINUX, platform="debian", version="13"),
            architecture=Architecture.ARCHITECTURE_X86_64,
            content=ImageContent(
                uri="https://images.example/debian-13-amd64.qcow2",
                checksum=Checksum(
                    algorithm=Checksum.ALGORITHM_SHA256,
                    value="5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
                ),
            ),
            size_bytes=400_000_001,
            min_disk_bytes=10 * GIB,
            min_memory_bytes=GIB // 2,
            boot_mode=BootMode.BOOT_MODE_UEFI,
            cloud_init=True,
            software=[Software(name="Java", version="21"), Software(name="Java", version="17")],
            support=Support(
                kind=Support.KIND_COMMUNITY,
                contact_uri="https://www.debian.org/support",
                note="Ask the list first.",
            ),
        ),
        deprecation=None,
        deprecation_message="",
    )
    assert second.request.name == "Debian 13 32bit"
    assert second.request.architecture == Architecture.ARCHITECTURE_I386
    assert not second.request.content.HasField("checksum")


def test_an_image_can_be_retired_and_kept_to_some_regions(tmp_path: Path) -> None:
    *_, last = read_text(tmp_path, VALID).images
    assert last.region_ids == ("south",)
    assert (last.deprecation, last.deprecation_message) == ("OBSOLETE", "No longer supported.")


def test_one_name_can_be_used_in_different_regions(tmp_path: Path) -> None:
    text = changed("min_disk_gib = 10\n", 'min_disk_gib = 10\nregions = ["north"]\n')
    images = read_text(tmp_path, text.replace("Windows Server 2008", "Debian 13 64bit")).images
    assert [image.request.name for image in images].count("Debian 13 64bit") == 2


@pytest.mark.parametrize(
    ("old", "new", "place", "wrong"),
    [
        ('currency = "CNY"\n', "", 'region 1 "north", currency', "is missing"),
        ('"CNY"', '"yuan"', 'region 1 "north", currency', "String should match pattern '^[A-Z]{3}$', not 'yuan'"),
        (
            '"INTERNATIONAL"',
            '"ELSEWHERE"',
            'region 2 "south", jurisdiction',
            "should be 'MAINLAND_CHINA' or 'INTERNATIONAL', not 'ELSEWHERE'",
        ),
        (
            'region_id = "north"',
            'region_id = "-"',
            'region 1 "-", region_id',
            "must be one region, not all of them: '-'",
        ),
        ('"North"', '" North"', 'region 1 "north", display_name', "must not begin or end with a blank: ' North'"),
        ('"north-1", "north-2"', "", 'region 1 "north", zones', "should have at least one entry"),
        ('["south-1"]', '"south-1"', 'region 2 "south", zones', "should be a list, not 'south-1'"),
        ('"south-1"', "1", 'region 2 "south", zones 1', "should be a valid string, not 1"),
        ('"north-2"', '"north-1"', 'region 1 "north", zones 2 "north-1"', "'north-1' is given twice"),
        (
            '"north-2"',
            '"south-2"',
            'region 1 "north", zones 2 "south-2"',
            "should start with the id of its region, \"north-\", not 'south-2'",
        ),
        (
            '"0.12"',
            "0.12",
            'region 1 "north", image_storage_per_gib_month',
            'should be a decimal number in quotes, with at most 9 decimals, as in "0.12", not 0.12',
        ),
        (
            'windows_license_per_hour = "0"',
            'windows_license_per_hour = "0.1"',
            'region 1 "north", windows_license_per_hour',
            "should be \"0\": in mainland China no licence fee is charged for Windows, not '0.1'",
        ),
        (
            "image_storage_free_gib = 50",
            "image_storage_free_gib = -1",
            'region 1 "north", image_storage_free_gib',
            "should be greater than or equal to 0, not -1",
        ),
        (
            'architecture = "X86_64"',
            'architecture = "I386"',
            'instance_type 1 "S5.SMALL1", architecture',
            "should be 'X86_64' or 'ARM64', not 'I386'",
        ),
        (
            '"S5.SMALL1"',
            '"S5 SMALL1"',
            'instance_type 1 "S5 SMALL1", instance_type',
            "must be 1 to 60 characters of [A-Za-z0-9._-]: 'S5 SMALL1'",
        ),
        (
            "memory_gib = 2",
            'memory_gib = "2"',
            'instance_type 1 "S5.SMALL1", memory_gib',
            "should be a valid integer, not '2'",
        ),
        (
            "vcpu_count = 1",
            "vcpu_count = 1\ncpu_count = 1",
            'instance_type 1 "S5.SMALL1", cpu_count',
            "is not a key here; the keys are instance_type, architecture, vcpu_count, memory_gib, disk_gib",
        ),
        (
            "[[instance_type]]",
            "[instance_type]",
            "instance_type",
            "should be a list: head each of its tables [[instance_type]]",
        ),
        (
            "[[instance_type]]",
            "[[instance_types]]",
            "instance_types",
            "is not a key here; the keys are region, instance_type, image",
        ),
        (
            '"debian-13"',
            '"Debian 13"',
            'image 1 "Debian 13", family',
            "must be 1 to 60 characters of [a-z0-9.-]: 'Debian 13'",
        ),
        ('"LINUX"', '"linux"', 'image 1 "debian-13", os.family', "should be 'LINUX' or 'WINDOWS', not 'linux'"),
        (
            "min_disk_gib = 10",
            "min_disk_gib = 501",
            'image 1 "debian-13", min_disk_gib',
            "should be less than or equal to 500, not 501",
        ),
        (', version = "17"', "", 'image 1 "debian-13", software 2 "Java", version', "is missing"),
        (
            '"https://www.debian.org/support"',
            '"the list"',
            'image 1 "debian-13", support.contact_uri',
            "must be an https or mailto URI of up to 2048 characters: 'the list'",
        ),
        (
            '"OBSOLETE"',
            '"OLD"',
            'image 2 "windows-server-2008", deprecation.state',
            "should be 'CURRENT', 'DEPRECATED' or 'OBSOLETE', not 'OLD'",
        ),
        ('deprecation.state = "OBSOLETE"\n', "", 'image 2 "windows-server-2008", deprecation.state', "is missing"),
        (
            "deprecation.message",
            "deprecation.reason",
            'image 2 "windows-server-2008", deprecation.reason',
            "is not a key here; the keys are state, message",
        ),
        (
            'regions = ["south"]',
            'regions = ["west"]',
            'image 2 "windows-server-2008", regions 1 "west"',
            "is not among the regions of this file: north, south",
        ),
        (
            'regions = ["south"]',
            'regions = ["south", "south"]',
            'image 2 "windows-server-2008", regions 2 "south"',
            "'south' is given twice",
        ),
        (
            '"UEFI"',
            '"EFI"',
            'image 1 "debian-13", build 1 "Debian 13 64bit", boot_mode',
            "should be 'BIOS' or 'UEFI', not 'EFI'",
        ),
        (
            "store:debian-13-i386.qcow2",
            "debian-13-i386.qcow2",
            'image 1 "debian-13", build 2 "Debian 13 32bit", content_uri',
            r"String should match pattern '^[a-z][a-z0-9+.-]*:\S+$', not 'debian-13-i386.qcow2'",
        ),
        (
            "size_bytes = 400_000_000",
            "size_bytes = 0",
            'image 1 "debian-13", build 2 "Debian 13 32bit", size_bytes',
            "must be 1 to 4611686018427387904, is 0",
        ),
        (
            "size_bytes = 400_000_000",
            f"size_bytes = {2**62 + 1}",
            'image 1 "debian-13", build 2 "Debian 13 32bit", size_bytes',
            "must be 1 to 4611686018427387904, is 4611686018427387905",
        ),
        ('"Debian 13 32bit"', '""', 'image 1 "debian-13", build 2 "", name', "must not be empty"),
        (
            '"Debian 13 32bit"',
            '"Debian\u200b13"',
            'image 1 "debian-13", build 2 "Debian\u200b13", name',
            "must not contain control or invisible characters, has U+200B: 'Debian\\u200b13'",
        ),
        (
            '"Debian 13 32bit"',
            f'"{"x" * 61}"',
            f'image 1 "debian-13", build 2 "{"x" * 61}", name',
            "must have at most 60 characters, has 61: 'xxxxxxxxxxxx...xxxxxxxxxxxxx'",
        ),
        (
            '"Windows Server 2008"',
            '"Debian 13 64bit"',
            'image 2 "windows-server-2008", build 1 "Debian 13 64bit", name',
            "is the name of another image in south",
        ),
    ],
)
def test_a_mistake_is_named_by_its_place(tmp_path: Path, old: str, new: str, place: str, wrong: str) -> None:
    assert problems(tmp_path, changed(old, new)) == [f"{place}: {wrong}"]


@pytest.mark.parametrize("checksum", ["sha256:1234", "md5:" + "0" * 32, "SHA256:" + "0" * 64])
def test_a_checksum_names_its_algorithm_and_is_whole(tmp_path: Path, checksum: str) -> None:
    text = re.sub('checksum = ".*"', f'checksum = "{checksum}"', VALID)
    (problem,) = problems(tmp_path, text)
    assert problem.startswith('image 1 "debian-13", build 1 "Debian 13 64bit", checksum: String should match')


def test_an_id_given_twice_is_refused(tmp_path: Path) -> None:
    region, instance_type = re.findall(r"(\[\[(?:region|instance_type)\]\].*?\n\n)", VALID, re.DOTALL)[1:3]
    assert problems(tmp_path, VALID + instance_type + region) == [
        "region 3 \"south\", region_id: 'south' is given twice",
        'region 3 "south", zones 1 "south-1": \'south-1\' is given twice',
        "instance_type 2 \"S5.SMALL1\", instance_type: 'S5.SMALL1' is given twice",
    ]


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = VALID
    for old, new in [
        ('display_name = "North"\n', ""),
        ('["south-1"]', '["south-1", "south-1"]'),
        ("vcpu_count = 1", "vcpu_count = 0"),
        ('os.platform = "debian"', 'os.distribution = "debian"'),
        ('regions = ["south"]', 'regions = ["west"]'),
        ('name = "Debian 13 32bit"', 'name = "Debian 13 64bit"'),
    ]:
        assert old in text
        text = text.replace(old, new, 1)
    assert problems(tmp_path, text) == [
        'region 1 "north", display_name: is missing',
        'instance_type 1 "S5.SMALL1", vcpu_count: should be greater than or equal to 1, not 0',
        'image 1 "debian-13", os.platform: is missing',
        'image 1 "debian-13", os.distribution: is not a key here; the keys are family, platform, version',
        'region 2 "south", zones 2 "south-1": \'south-1\' is given twice',
        'image 1 "debian-13", build 2 "Debian 13 64bit", name: is the name of another image in north, south',
        'image 2 "windows-server-2008", regions 1 "west": is not among the regions of this file: north, south',
    ]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert problems(tmp_path, "") == ["region: is missing"]


def test_a_syntax_error_is_named_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"cloud\.toml: is not TOML in UTF-8: .*at line 3, column"):
        read_text(tmp_path, '[[region]]\nregion_id = "north"\ndisplay_name = North\n')


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"none\.toml: cannot be read: No such file"):
        read(tmp_path / "none.toml")


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cloud.toml"
    file.write_bytes('[[region]]\ndisplay_name = "São Paulo"\n'.encode("latin-1"))
    with pytest.raises(CatalogError, match=r"cloud\.toml: is not TOML in UTF-8: 'utf-8' codec can't decode"):
        read(file)
