"""The commands about instances and operations, and those about what the cloud has."""

from google.longrunning import operations_pb2
from google.protobuf.any_pb2 import Any
from tests.cli.conftest import IMPORT, Run
from tests.client.conftest import FakeService, serving
from tests.end_to_end.steps import Held
from tests.world import GUANGZHOU, Tenant, World

from cunho_rules.refusals import Reason, Refusal

LAUNCH = ("--zone", "ap-guangzhou-3", "--instance-type", "S5.MEDIUM4")


def test_instances_are_launched_in_the_region_of_the_image(world: World, tenant: Tenant, run: Run) -> None:
    image_id = world.public_image().image_id
    assert "nothing was done" in run("instances", "create", image_id, *LAUNCH, "--dry-run").err
    words = ("--name", "web", "--count", "2", "--label", "env=prod", "--description", "d")
    made = run("instances", "create", image_id, *LAUNCH, *words)
    assert {row[1] for row in made.rows[1:]} == {"web-1", "web-2"}
    listed = run("instances", "list", "--image", image_id, "--name", "web", "--state", "running", "--label", "env")
    assert {row[1] for row in listed.rows[1:]} == {"web-1", "web-2"}
    assert run("instances", "list", "--label", "env=test").out == "no instances\n"
    assert len(run("instances", "list", "--limit", "1", "--region", GUANGZHOU, "--json").json) == 1


def test_an_instance_goes_through_its_life(world: World, tenant: Tenant, run: Run) -> None:
    instance_id = world.launch(tenant, name="web").instance_id
    for action, state in {
        "stop": "STOPPED",
        "start": "RUNNING",
        "reboot": "RUNNING",
        "reinstall": "RUNNING",
        "delete": "DELETED",
    }.items():
        assert "nothing was done" in run("instances", action, instance_id, "--dry-run").err
        assert state in run("instances", action, instance_id).out
    run("instances", "show", instance_id, code=3)


def test_an_instance_is_shown_and_changed(world: World, tenant: Tenant, run: Run) -> None:
    instance_id = world.launch(tenant, name="web").instance_id
    updated = run("instances", "update", instance_id, "--name", "db", "--label", "a=b", "--json").json
    assert (updated["instance_id"], updated["name"]) == (instance_id, "db")
    shown = run("instances", "show", instance_id).out
    for told in (instance_id, "db", "a=b", "S5.MEDIUM4", "Debian 12 64bit, which is still there to launch from"):
        assert told in shown
    assert run("instances", "show", instance_id, "--json").json["name"] == "db"


def test_a_check_of_an_instance_tells_what_it_may_do_now(world: World, tenant: Tenant, run: Run) -> None:
    instance_id = world.launch(tenant).instance_id
    assert len(run("instances", "check", instance_id).rows) == 1 + 7
    assert "INSTANCE_STATE_INVALID" in run("instances", "check", instance_id, "start", code=5).out
    run("instances", "check", instance_id, "image", "reinstall", "--name", "free")


def test_operations_are_listed_shown_and_waited_for(world: World, tenant: Tenant, run: Run) -> None:
    instance_id = world.launch(tenant).instance_id
    found = run("operations", "list", "--method", "CreateInstance", "--target", instance_id, "--json").json
    assert [operation["response"]["instances"][0]["instance_id"] for operation in found] == [instance_id]
    name = found[0]["name"]
    assert run("operations", "list").rows[1][:3] == [name.removeprefix("operations/"), "CreateInstance", "SUCCEEDED"]
    assert run("operations", "list", "--running").out == "no operations\n"
    assert run("operations", "show", name.removeprefix("operations/")).rows[0] == ["name", name]
    assert run("operations", "wait", name).rows[1][0] == instance_id


def test_what_an_operation_of_a_newer_service_made_is_told_by_its_type(run: Run) -> None:
    service, thing = FakeService(), Any(type_url="type.googleapis.com/cunho.v1.Thing", value=b"\xff")
    made = operations_pb2.Operation(name="operations/op-00000001", done=True, response=thing)
    service.answers["ListOperations"] = lambda *_: operations_pb2.ListOperationsResponse(operations=[made])
    service.answers["GetOperation"] = lambda *_: made
    with serving(service):
        there = ("--address", service.address)
        (listed,) = run("operations", "list", "--json", *there).json
        assert listed["response"] == {"@type": thing.type_url, "value": "/w=="}
        assert "SUCCEEDED" in run("operations", "list", *there).out
        assert thing.type_url in run("operations", "wait", "op-00000001", *there).out


def test_a_cancelled_operation_has_an_exit_code_of_its_own(
    world: World, tenant: Tenant, run: Run, driver: Held
) -> None:
    instance_id = world.launch(tenant).instance_id
    with driver.holding("stop"):
        name = run("instances", "stop", instance_id, "--no-wait").out.strip()
        assert "CANCELLING" in run("operations", "cancel", name).out
        assert "OPERATION_CANCELLED" in run("operations", "wait", name, code=8).err
    assert "CANCELLED" in run("operations", "show", name).out
    assert run("operations", "show", name, "--json").json["error"]["exit_code"] == 8


def test_an_operation_that_fails_says_why(world: World, tenant: Tenant, run: Run, driver: Held) -> None:
    with driver.failing("import", Refusal(Reason.IMAGE_FORMAT_MISMATCH, format="QCOW2", found="VMDK")):
        assert "IMAGE_FORMAT_MISMATCH" in run(*IMPORT, "--name", "broken", code=5).err
    (failed,) = tenant.list_images(region_id=GUANGZHOU, filter="state = FAILED")
    assert "VMDK" in run("images", "show", failed.image_id).out
    assert "FAILED" in run("operations", "list").out


def test_regions_instance_types_and_quotas_are_listed(world: World, tenant: Tenant, run: Run) -> None:
    regions = run("regions").out
    assert "0.12 CNY" in regions
    assert "0.046 USD" in regions
    assert "eu-frankfurt-1 eu-frankfurt-2" in regions
    assert ["S5.MEDIUM4", "x86_64", "2", "4", "GiB", "50", "GiB"] in run("instance-types").rows
    image = world.image(tenant)
    assert ["CUSTOM_IMAGES", GUANGZHOU, "1", "0", "10", "(default)"] in [row[:6] for row in run("quotas").rows]
    assert run("quotas", "--image", image.image_id, "--json").json[0]["limit"] == "50"
    operator = world.token("operator", role="operator")
    seen = run("quotas", tenant.account_id, "--token", operator, "--json").json
    assert {quota["account_id"] for quota in seen} == {tenant.account_id}
