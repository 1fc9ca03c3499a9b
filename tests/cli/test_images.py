"""The commands about images, each against a real service."""

import pytest
from tests.cli.conftest import IMPORT, Run
from tests.end_to_end.steps import Held
from tests.world import FRANKFURT, GUANGZHOU, SHANGHAI, Tenant, World

from cunho import v1


def names(run: Run, *words: str) -> set[str]:
    """The names of the images that a list finds."""
    return {image["name"] for image in run("images", "list", "--json", *words).json}


def test_images_are_chosen_by_region_operating_system_and_architecture(run: Run) -> None:
    found = run("images", "list", "--region", GUANGZHOU, "--os", "linux", "--arch", "x86_64", "--json").json
    assert found
    said = {(image["region_id"], image["os"]["family"], image["architecture"]) for image in found}
    assert said == {(GUANGZHOU, "OS_FAMILY_LINUX", "ARCHITECTURE_X86_64")}


def test_an_operating_system_may_be_a_distribution(run: Run) -> None:
    found = run("images", "list", "--region", GUANGZHOU, "--os", "Debian", "--os-version", "12", "--json").json
    assert found
    assert {(image["os"]["platform"], image["os"]["version"]) for image in found} == {("debian", "12")}


def test_any_limit_may_be_over_what_is_there(run: Run) -> None:
    for noun in ("images", "instances", "operations"):
        shown = run(noun, "list", "--json", "--limit", "9999999999").json
        assert shown == run(noun, "list", "--json").json


def test_every_region_is_listed_by_a_hyphen(run: Run) -> None:
    for noun in ("images", "instances"):
        assert run(noun, "list", "--region", "-", "--json").json == run(noun, "list", "--json").json


def test_without_a_region_every_region_is_listed(run: Run) -> None:
    assert {image["region_id"] for image in run("images", "list", "--json").json} == {GUANGZHOU, SHANGHAI, FRANKFURT}


def test_every_flag_that_chooses_narrows_the_list(world: World, tenant: Tenant, run: Run) -> None:
    world.image(tenant, name="one", labels={"env": "prod"}, family="fam")
    world.image(tenant, name="two", labels={"env": "test"})
    custom = ("--kind", "custom")
    assert names(run, *custom) == {"one", "two"}
    assert names(run, *custom, "--name", "o") == {"one"}
    assert names(run, *custom, "--family", "fam") == {"one"}
    assert names(run, *custom, "--label", "env=prod") == {"one"}
    assert names(run, *custom, "--label", "env") == {"one", "two"}
    assert names(run, *custom, "--label", "other") == set()
    assert names(run, *custom, "--state", "available", "--filter", 'name = "two" OR name = "three"') == {"two"}
    assert names(run, *custom, "--region", SHANGHAI) == set()
    assert names(run, *custom, "--instance-type", "SR1.MEDIUM4") == set()
    assert "Debian 12 64bit" in names(run, "--software", "Python")
    assert len(run("images", "list", "--json", "--limit", "2", "--order-by", "name").json) == 2


@pytest.mark.parametrize(
    "name", ['a"b', "a\\b", "a*b", "a' OR name:", "[red]a", "ä 图", '" OR kind = PUBLIC OR name = "']
)
def test_any_name_is_only_a_name_in_the_filter(world: World, tenant: Tenant, run: Run, name: str) -> None:
    instance_id = world.launch(tenant).instance_id
    world.image(tenant, name="another", instance_id=instance_id)
    world.image(tenant, name=name, instance_id=instance_id)
    assert names(run, "--name", name) == {name}
    assert name in run("images", "list", "--name", name).out


def test_an_image_is_shown_with_all_that_is_known(world: World, tenant: Tenant, run: Run) -> None:
    image = world.image(tenant, name="web", labels={"env": "prod"}, description="of the web")
    shown = run("images", "show", image.image_id).out
    for told in (image.image_id, "web", "of the web", "env=prod", "CUSTOM", "AVAILABLE", "CNY a month", "0 of 50"):
        assert told in shown
    assert run("images", "show", image.image_id, "--json").json["size_bytes"] == str(image.size_bytes)


def test_the_newest_image_of_a_family_is_resolved(world: World, run: Run) -> None:
    words = ("images", "resolve", "debian-12", "--region", GUANGZHOU, "--arch", "i386", "--json")
    assert run(*words).json["name"] == "Debian 12 32bit"


def test_the_price_is_shown_before_an_image_is_made(world: World, tenant: Tenant, run: Run) -> None:
    instance_id = world.launch(tenant).instance_id
    words = ("images", "create", instance_id, "--name", "web")
    rehearsed = run(*words, "--dry-run")
    assert "nothing was done" in rehearsed.err
    assert rehearsed.rows[1][5:7] == ["0.12", "CNY"]
    assert not names(run, "--kind", "custom")
    made = run(*words, "--description", "d", "--family", "f", "--label", "a=b=c", "--consistency", "crash-consistent")
    assert made.rows[1][1] == "web"
    assert made.rows[1][0] == run("images", "list", "--label", "a=b=c", "--json").json[0]["image_id"]


def test_an_image_is_imported_in_the_format_of_its_name(run: Run) -> None:
    made = run(
        *IMPORT, "--name", "imported", "--sha256", "0" * 64, "--cloud-init", "--boot-mode", "bios", "--json"
    ).json
    image = made["response"]
    assert (image["size_bytes"], image["min_disk_bytes"]) == (str(3 << 29), str(10 << 30))
    assert (image["boot_mode"], image["cloud_init"]) == ("BOOT_MODE_BIOS", True)
    run(*IMPORT, "--name", "other", "--format", "vhd", code=5)


@pytest.mark.parametrize("ending", [".zip", ".img"])
def test_a_file_without_a_known_ending_needs_its_format(run: Run, ending: str) -> None:
    assert "--format" in run(*(word.replace(".qcow2", ending) for word in IMPORT), "--name", "x", code=2).err


def test_what_is_no_uri_is_refused_by_the_service(run: Run) -> None:
    words = [word.replace("://", "://[") for word in IMPORT]
    assert "IMPORT_URI_NOT_ALLOWED" in run(*words, "--name", "x", code=2).err


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        ("images check", "IMAGE_ID [ACTIONS...]"),
        ("images set-shares", "IMAGE_ID [ACCOUNT_IDS...]"),
        ("instances check", "INSTANCE_ID [ACTIONS...]"),
        ("quotas", "[ACCOUNT_ID]"),
    ],
)
def test_the_usage_calls_words_what_the_help_calls_them(run: Run, words: str, usage: str) -> None:
    assert run(*words.split(), "--help").out.splitlines()[0] == f"Usage: cunho {words} [OPTIONS] {usage}"


def test_the_usage_of_a_copy_has_the_image_before_the_regions_which_take_all_words_that_follow(run: Run) -> None:
    assert run("images", "copy", "--help").out.startswith("Usage: cunho images copy [OPTIONS] IMAGE_ID --to STR...\n")


def test_a_copy_that_is_refused_in_one_region_is_made_in_the_others(world: World, tenant: Tenant, run: Run) -> None:
    image = world.image(tenant, name="web")
    assert len(run("images", "copy", image.image_id, "--to", SHANGHAI, "--dry-run").rows) == 2
    run("images", "copy", image.image_id, "--to", SHANGHAI)
    ran = run("images", "copy", image.image_id, "--to", SHANGHAI, FRANKFURT, code=6)
    assert [row[1:2] + row[5:6] for row in ran.rows[1:]] == [["web", FRANKFURT]]
    assert "IMAGE_NAME_TAKEN" in ran.err


def test_an_image_is_renamed_and_changed(world: World, tenant: Tenant, run: Run) -> None:
    image_id = world.image(tenant, name="web").image_id
    assert "nothing was done" in run("images", "rename", image_id, "web 2", "--dry-run").err
    run("images", "rename", image_id, "web 2")
    run("images", "update", image_id, "--description", "d", "--label", "a=1", "--label", "b=", "--min-memory", "1GiB")
    image = tenant.get_image(image_id=image_id)
    assert (image.name, image.description, dict(image.labels)) == ("web 2", "d", {"a": "1", "b": ""})
    assert image.min_memory_bytes == 1 << 30
    run("images", "update", image_id, "--no-labels", "--description", "")
    image = tenant.get_image(image_id=image_id)
    assert (image.name, image.description, dict(image.labels)) == ("web 2", "", {})
    assert "--name" in run("images", "update", image_id, code=2).err


def test_a_filter_may_begin_with_a_hyphen(world: World, tenant: Tenant, run: Run) -> None:
    world.image(tenant, name="one")
    world.image(tenant, name="two")
    assert names(run, "--kind", "custom", "--filter", "-name:one") == {"two"}


@pytest.mark.parametrize("change", ["rename IMAGE new", "update IMAGE --name new", "deprecate IMAGE", "delete IMAGE"])
def test_one_image_is_an_object_in_json(world: World, tenant: Tenant, run: Run, change: str) -> None:
    image_id = world.image(tenant).image_id
    assert run("images", *change.replace("IMAGE", image_id).split(), "--json").json["image_id"] == image_id


def test_an_image_is_shared_seen_left_and_taken_back(world: World, tenant: Tenant, run: Run) -> None:
    image_id = world.image(tenant).image_id
    friend, other = world.tenant(GUANGZHOU), world.tenant(GUANGZHOU)
    run("images", "share", image_id, friend.account_id, other.account_id, "--dry-run")
    assert run("images", "shares", image_id).out == "shared with nobody\n"
    run("images", "share", image_id, friend.account_id, other.account_id)
    shared = [share["account_id"] for share in run("images", "shares", image_id, "--json").json]
    assert shared == sorted([friend.account_id, other.account_id])
    assert run("images", "list", "--kind", "shared", "--json", caller=friend).json[0]["image_id"] == image_id
    assert run("images", "leave", image_id, "--json", caller=friend).json == {}
    ended = run("images", "unshare", image_id, friend.account_id, other.account_id, "--json").json
    assert ended == [other.account_id]
    run("images", "set-shares", image_id, friend.account_id)
    assert run("images", "set-shares", image_id, "--json").json == []


def test_an_image_is_retired_and_deleted(world: World, tenant: Tenant, run: Run) -> None:
    image_id, friend = world.image(tenant).image_id, world.tenant(GUANGZHOU)
    assert "OBSOLETE" in run("images", "deprecate", image_id, "--state", "obsolete", "--message", "old").out
    assert "OBSOLETE, old" in run("images", "show", image_id).out
    run("images", "deprecate", image_id, "--state", "current")
    run("images", "share", image_id, friend.account_id)
    run("images", "delete", image_id, code=5)
    run("images", "delete", image_id, "--force", "--dry-run")
    assert "DELETED" in run("images", "delete", image_id, "--force").out
    run("images", "show", image_id, code=3)


def test_a_check_tells_each_action_in_a_line(world: World, run: Run) -> None:
    checked = run("images", "check", world.public_image().image_id)
    assert len(checked.rows) == 1 + 10
    assert checked.rows[1][:2] == ["launch", "allowed"]
    assert checked.rows[2][:3] == ["copy", "denied", "PUB-8"]


def test_a_check_of_one_action_tells_every_rule_numbers_and_the_remedy(world: World, tenant: Tenant, run: Run) -> None:
    image_id, friend = world.image(tenant).image_id, world.tenant(GUANGZHOU)
    tenant.share_image(image_id=image_id, account_ids=[friend.account_id])
    denied = run("images", "check", image_id, "delete", code=5).out
    for told in ("denied", "passed", "CUS-11", "IMAGE_SHARED", "account_count = 1", "Unshare it from them first"):
        assert told in denied
    assert "allowed" in run("images", "check", image_id, "delete", "--force").out
    answer = run("images", "check", image_id, "delete", "--json", code=5).json
    assert answer["decisions"][0]["action"] == "DeleteImage"
    words = ("--to", SHANGHAI, "--with", "nobody-there", "--zone", "nowhere", "--instance-type", "S5.MEDIUM4")
    run("images", "check", image_id, "copy", *words)
    run("images", "check", image_id, "share", *words, code=5)
    run("images", "check", image_id, "launch", *words, code=5)
    assert "UNVERIFIED" in run("images", "check", image_id, caller=friend).out


def test_no_wait_prints_the_operation_which_can_be_waited_for(
    world: World, tenant: Tenant, run: Run, driver: Held
) -> None:
    instance_id = world.launch(tenant).instance_id
    with driver.holding("capture"):
        name = run("images", "create", instance_id, "--name", "web", "--no-wait").out.strip()
        assert run("operations", "show", name, "--json").json["done"] is False
    assert run("operations", "wait", name).rows[1][1] == "web"
    assert tenant.get_operation(name=name).metadata.method == "CreateImage"
    assert (
        tenant.get_image(image_id=run("images", "list", "--name", "web", "--json").json[0]["image_id"]).state
        == v1.Image.STATE_AVAILABLE
    )
