"""What applying a catalogue changes, and what it leaves as it was. What a file may say is tested elsewhere."""

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import world as worlds
from tests.end_to_end.steps import GIB, IMAGE_LOCKED, overtaken
from tests.world import CATALOG, FRANKFURT, GUANGZHOU, SHANGHAI, ZONES, Postgres, World

from cunho import v1
from cunho_server import opening
from cunho_server.apply import Applied
from cunho_server.settings import Settings

CURRENT, DEPRECATED, OBSOLETE = (
    v1.Deprecation.STATE_CURRENT,
    v1.Deprecation.STATE_DEPRECATED,
    v1.Deprecation.STATE_OBSOLETE,
)
X86_64, I386, ARM64 = "X86_64", "I386", "ARM64"

#: Regions and instance types: what every file here begins with.
PLACES = CATALOG.read_text().partition("[[image]]")[0]

RETIRED = """
deprecation.state = "DEPRECATED"
deprecation.message = "A newer one is out."
"""

Apply = Callable[..., Applied]


@pytest.fixture
def apply(world: World, tmp_path: Path) -> Apply:
    """Applies a file of the usual regions and what is given; what that did."""
    return lambda *parts: applied(world.settings, tmp_path, PLACES + "".join(parts))


def applied(settings: Settings, folder: Path, text: str) -> Applied:
    """What applying a file of that text does."""
    file = folder / "cloud.toml"
    file.write_text(text)
    return asyncio.run(opening.apply_catalog(settings, file))


def image(family: str, *builds: tuple[str, str], deprecation: str = "") -> str:
    """An [[image]] of these names and architectures, with lines about its retirement."""
    return f"""
[[image]]
family = "{family}"
os.family = "LINUX"
os.platform = "rolling"
min_disk_gib = 10
support.kind = "COMMUNITY"
support.contact_uri = "https://rolling.example"
{deprecation}
""" + "".join(build(name, architecture) for name, architecture in builds)


def build(name: str, architecture: str) -> str:
    return f"""
[[image.build]]
name = "{name}"
architecture = "{architecture}"
boot_mode = "UEFI"
content_uri = "store:rolling.qcow2"
size_bytes = 1
"""


def new_family() -> str:
    return f"rolling-{uuid.uuid4().hex[:8]}"


def resolved(world: World, family: str, region_id: str = GUANGZHOU, architecture: str = "UNSPECIFIED") -> str:
    """The name of what a family is in a region."""
    wanted = v1.Architecture.Value(f"ARCHITECTURE_{architecture}")
    return world.operator.resolve_image(region_id=region_id, family=family, architecture=wanted).name


# --- which is the newest


def test_of_builds_that_one_file_publishes_the_last_is_the_newest_in_every_region(world: World, apply: Apply) -> None:
    family = new_family()
    names = [f"{family} {number}" for number in range(6)]
    old = [image(family, (name, X86_64), deprecation=RETIRED) for name in names[:-1]]
    assert apply(*old, image(family, (names[-1], X86_64))) == Applied(18, 0, 0)
    for region_id in ZONES:
        assert resolved(world, family, region_id) == names[-1]
        newest_first = world.operator.list_images(region_id=region_id, filter=f"family = {family}")
        assert [each.name for each in newest_first] == names[::-1]


def test_of_builds_of_one_architecture_in_one_entry_the_last_is_the_newest(world: World, apply: Apply) -> None:
    family = new_family()
    apply(image(family, *((f"{family} {number}", X86_64) for number in range(6))))
    assert resolved(world, family) == f"{family} 5"


def test_a_family_is_the_64_bit_build_of_its_last_entry_unless_another_architecture_is_asked_for(
    world: World, apply: Apply
) -> None:
    family, architectures = new_family(), (X86_64, I386, ARM64)
    apply(*(image(family, *((f"{family} {number} {each}", each) for each in architectures)) for number in range(4)))
    assert resolved(world, family) == f"{family} 3 {X86_64}"
    for each in architectures:
        assert resolved(world, family, architecture=each) == f"{family} 3 {each}"


def test_a_region_that_is_added_later_has_the_same_newest_builds(postgres: Postgres, tmp_path: Path) -> None:
    family, added = new_family(), PLACES.partition("[[region]]")[2].partition("[[region]]")[0]
    images = [image(family, (f"{family} {number}", X86_64)) for number in range(6)]
    with worlds.world(postgres) as world:
        applied(world.settings, tmp_path, "".join((PLACES, *images)))
        north = f"[[region]]{added}".replace(GUANGZHOU, "north")
        assert applied(world.settings, tmp_path, "".join((PLACES, north, *images))) == Applied(6, 0, 18)
        assert resolved(world, family, "north") == resolved(world, family) == f"{family} 5"


def test_lists_show_families_in_the_order_of_the_file_and_of_each_the_newest_first(world: World, apply: Apply) -> None:
    one, other = new_family(), new_family()
    apply(
        image(one, (f"{one} old", X86_64)),
        image(other, (f"{other} 64bit", X86_64), (f"{other} ARM64", ARM64)),
        image(one, (f"{one} new", X86_64)),
    )
    listed = [each.name for each in world.operator.list_images(region_id=GUANGZHOU)]
    assert listed[:4] == [f"{one} new", f"{one} old", f"{other} 64bit", f"{other} ARM64"]


# --- what the file does not name


def test_labels_of_a_published_image_stay(world: World, apply: Apply) -> None:
    family = new_family()
    apply(image(family, (family, X86_64)))
    labelled = v1.Image(image_id=world.public_image(name=family).image_id, labels={"team": "linux"})
    world.operator.update_image(image=labelled, update_mask=["labels"])
    assert apply(image(family, (family, X86_64))) == Applied(0, 0, 3)
    assert apply(image(family, (family, X86_64)).replace("min_disk_gib = 10", "min_disk_gib = 11")) == Applied(0, 3, 0)
    changed = world.public_image(name=family)
    assert (dict(changed.labels), changed.min_disk_bytes) == ({"team": "linux"}, 11 << 30)


@pytest.mark.parametrize("state", [DEPRECATED, OBSOLETE])
def test_a_published_image_stays_retired_if_the_file_says_nothing_of_it(
    world: World, apply: Apply, state: v1.Deprecation.State.ValueType
) -> None:
    family = new_family()
    apply(image(family, (family, X86_64)))
    deprecation = v1.Deprecation(state=state, message="Unsafe.", replacement_image_id=world.public_image().image_id)
    world.operator.deprecate_image(image_id=world.public_image(name=family).image_id, deprecation=deprecation)
    assert apply(image(family, (family, X86_64))) == Applied(0, 0, 3)
    assert world.public_image(name=family).deprecation == deprecation


def test_what_calls_change_while_a_file_is_applied_stays(world: World, apply: Apply) -> None:
    family = new_family()
    text = image(family, (family, X86_64))
    apply(text)
    image_id = world.operator.resolve_image(region_id=GUANGZHOU, family=family).image_id
    change = "UPDATE image SET replacement_image_id = 'img-00000001' WHERE image_id = $1"
    changed = overtaken(
        world,
        lambda: apply(text.replace("min_disk_gib = 10", f"min_disk_gib = 20\n{RETIRED}")),
        IMAGE_LOCKED,
        change,
        image_id,
    )
    assert changed == Applied(0, 3, 0)
    now = world.operator.get_image(image_id=image_id)
    assert now.min_disk_bytes == 20 * GIB
    assert (now.deprecation.state, now.deprecation.replacement_image_id) == (DEPRECATED, "img-00000001")


def test_an_image_that_a_call_deletes_while_a_file_is_applied_is_published_anew(world: World, apply: Apply) -> None:
    family = new_family()
    text = image(family, (family, X86_64))
    apply(text)
    image_id = world.operator.resolve_image(region_id=GUANGZHOU, family=family).image_id
    changed = text.replace("min_disk_gib = 10", "min_disk_gib = 20")
    delete = "UPDATE image SET state = 'DELETED', delete_time = now() WHERE image_id = $1"
    assert overtaken(world, lambda: apply(changed), IMAGE_LOCKED, delete, image_id) == Applied(1, 2, 0)
    now = world.operator.resolve_image(region_id=GUANGZHOU, family=family)
    assert (now.image_id == image_id, now.min_disk_bytes) == (False, 20 * GIB)


def test_a_file_retires_an_image_and_brings_it_back_by_saying_so(world: World, apply: Apply) -> None:
    family = new_family()
    apply(image(family, (family, X86_64)))
    assert world.public_image(name=family).deprecation == v1.Deprecation(state=CURRENT)
    assert apply(image(family, (family, X86_64), deprecation=RETIRED)) == Applied(0, 3, 0)
    retired = v1.Deprecation(state=DEPRECATED, message="A newer one is out.")
    assert world.public_image(name=family).deprecation == retired
    assert apply(image(family, (family, X86_64), deprecation='deprecation.state = "CURRENT"')) == Applied(0, 3, 0)
    assert world.public_image(name=family).deprecation == v1.Deprecation(state=CURRENT)


# --- what is applied


def test_an_instance_type_is_launched_by_every_name_that_a_catalogue_may_give_it(world: World, apply: Apply) -> None:
    name = "m1_large-2.x"
    apply(PLACES[PLACES.index("[[instance_type]]") :].partition("\n\n")[0].replace("S5.MEDIUM4", name))
    tenant = world.tenant()
    assert world.launch(tenant, instance_type=name).instance_type == name
    assert [*tenant.list_images(region_id=GUANGZHOU, usable_with_instance_type=name)]


def test_an_empty_database_has_what_the_first_file_applied_declares_and_no_more(
    postgres: Postgres, tmp_path: Path
) -> None:
    settings = postgres.settings(postgres.empty_database(), catalog=None)
    assert applied(settings, tmp_path, CATALOG.read_text()) == Applied(12, 0, 0)
    assert regions_of(settings) == [GUANGZHOU, SHANGHAI, FRANKFURT]


def regions_of(settings: Settings) -> list[str]:
    """The regions of a database, once a server has started over it."""
    world = World(settings.database_url, settings, None)
    try:
        return [each.region_id for each in world.operator.list_regions()]
    finally:
        world.stop()
