"""Operations as their callers see them: what they tell, waiting, cancelling, and what is left when the work fails."""

import asyncio
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast
from uuid import uuid4

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from tests import world as worlds
from tests.end_to_end.soundness import unsound
from tests.end_to_end.steps import Held, assert_told, import_image, refused, rename, to, until
from tests.world import FRANKFURT, GUANGZHOU, SHANGHAI, ZONES, Postgres, Tenant, World

from cunho import Client, Operation, Refused
from cunho.v1 import CopyImageResponse, CreateImageRequest, CreateInstanceResponse, Image, Instance, OperationMetadata
from cunho_rules.refusals import Reason, Refusal
from cunho_server import work
from cunho_storage import operations
from cunho_storage.database import Connection
from cunho_storage.statements import Statement

STOPPING_IT = CreateImageRequest.CONSISTENCY_STOP_INSTANCE
CRASH_CONSISTENT = CreateImageRequest.CONSISTENCY_CRASH_CONSISTENT
Step = OperationMetadata.Step


@pytest.fixture(scope="module")
def world(postgres: Postgres, driver: Held) -> Iterator[World]:
    """A service with as many workers as a test holds back operations."""
    with worlds.world(postgres, driver=driver, workers=8) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left_half_made(world: World) -> Iterator[None]:
    """After each test, whatever it broke off, the database is sound."""
    yield
    assert unsound(world.sql) == []


Asked: TypeAlias = list[tuple[str, str]]


@pytest.fixture
def asked(driver: Held, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the driver is asked for: action and target."""
    calls: Asked = []
    act = driver.act

    async def acting(action: str, region_id: str, target_id: str) -> None:
        calls.append((action, target_id))
        await act(action, region_id, target_id)

    monkeypatch.setattr(driver, "act", acting)
    return calls


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed operations are tried again almost at once."""
    monkeypatch.setattr(work, "_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(work, "_LOOK_SECONDS", 0.01)


class Method(NamedTuple):
    """A method that begins an operation."""

    #: What its driver does, and what its images or instances are while it does so.
    action: str
    meanwhile: str
    response_type: type[Any]


METHODS = {
    "CreateImage": Method("capture", "CREATING", Image),
    "ImportImage": Method("import", "IMPORTING", Image),
    "CopyImage": Method("copy", "COPYING", CopyImageResponse),
    "CreateInstance": Method("launch", "PROVISIONING", CreateInstanceResponse),
    "StartInstance": Method("start", "STARTING", Instance),
    "StopInstance": Method("stop", "STOPPING", Instance),
    "RebootInstance": Method("reboot", "REBOOTING", Instance),
    "ReinstallInstance": Method("install", "REINSTALLING", Instance),
    "DeleteInstance": Method("destroy", "DELETING", Instance),
}
MAKING = ("CreateImage", "ImportImage", "CopyImage")
MOVING = ("StartInstance", "StopInstance", "RebootInstance", "ReinstallInstance", "DeleteInstance")


def prepared(world: World, tenant: Tenant, method: str) -> Callable[[], Operation[Any]]:
    """Everything that the method needs; what is returned begins the operation."""
    if method == "ImportImage":
        return lambda: import_image(tenant, "made")
    if method == "CreateInstance":
        image_id = world.public_image().image_id
        place: dict[str, Any] = {"region_id": GUANGZHOU, "zone_id": ZONES[GUANGZHOU], "instance_type": "S5.MEDIUM4"}
        return lambda: tenant.create_instance(image_id=image_id, count=2, **place)
    instance_id = world.launch(tenant).instance_id
    if method == "CreateImage":
        return lambda: tenant.create_image(
            region_id=GUANGZHOU, instance_id=instance_id, name="made", consistency=CRASH_CONSISTENT
        )
    if method == "CopyImage":
        image_id = world.image(tenant, instance_id=instance_id).image_id
        return lambda: tenant.copy_image(image_id=image_id, destinations=to(SHANGHAI, FRANKFURT))
    if method == "StartInstance":
        tenant.stop_instance(instance_id=instance_id).result(20)
    call = getattr(tenant, f"{method.removesuffix('Instance').lower()}_instance")
    return lambda: cast(Operation[Any], call(instance_id=instance_id))


@contextmanager
def stuck(world: World, driver: Held, tenant: Tenant, method: str = "ImportImage") -> Iterator[Operation[Any]]:
    """An operation that a worker has taken up and that does not end within the block."""
    begin = prepared(world, tenant, method)
    with driver.holding(METHODS[method].action):
        operation = begin()
        until(lambda: refreshed(operation).metadata.HasField("start_time"))
        yield operation


def refreshed(operation: Operation[Any]) -> Operation[Any]:
    """The operation as it is now."""
    operation.refresh()
    return operation


def steps(operation: Operation[Any]) -> list[tuple[str, str]]:
    """Name and state of each step."""
    return [(step.name, Step.State.Name(step.state).removeprefix("STATE_")) for step in operation.metadata.steps]


def state(world: World, target_id: str) -> str:
    """The state of an image or instance, DELETED too, which no call shows."""
    query = "SELECT state FROM image WHERE image_id = $1 UNION ALL SELECT state FROM instance WHERE instance_id = $1"
    ((found,),) = world.sql(query, target_id)
    return str(found)


def states(world: World, operation: Operation[Any]) -> set[str]:
    """The states of what the operation makes or changes."""
    return {state(world, target_id) for target_id in operation.metadata.target_ids}


def used(tenant: Tenant, region_id: str = GUANGZHOU) -> int:
    """How much of the quota of custom images is used."""
    quotas = {quota.region_id: quota.usage + quota.reserved for quota in tenant.list_quotas()}
    return quotas[region_id]


def error_of(operation: Operation[Any]) -> Refused:
    """Why the operation did not succeed."""
    with pytest.raises(Refused) as caught:
        operation.result(timeout_seconds=20)
    return caught.value


# --- what an operation tells


def test_an_operation_tells_what_it_does_to_what_for_whom_and_when(world: World) -> None:
    tenant, request_id = world.tenant(), str(uuid4())
    instance = world.launch(tenant)
    operation = tenant.create_image(
        region_id=GUANGZHOU, instance_id=instance.instance_id, name="told", request_id=request_id
    )
    image = operation.result(20)
    told = operation.metadata
    assert (told.method, list(told.target_ids)) == ("CreateImage", [image.image_id])
    assert (told.account_id, told.created_by) == (tenant.account_id, tenant.account_id)
    assert told.request_id == request_id
    assert told.create_time.ToNanoseconds() <= told.start_time.ToNanoseconds() <= told.end_time.ToNanoseconds()
    assert [(step.name, step.target_id) for step in told.steps] == [
        ("stop", instance.instance_id),
        ("capture", image.image_id),
        ("start", instance.instance_id),
    ]
    assert {(step.region_id, step.state) for step in told.steps} == {(GUANGZHOU, Step.STATE_SUCCEEDED)}
    assert told.progress_percent == 100
    assert list(told.quotes) == [image.quote]
    assert not told.cancel_requested


def test_times_are_told_once_they_have_come(world: World, driver: Held) -> None:
    tenant = world.tenant()
    with stuck(world, driver, tenant) as operation:
        assert not operation.metadata.HasField("end_time")
    assert operation.result(20).state == Image.STATE_AVAILABLE
    assert operation.metadata.HasField("end_time")


def test_progress_is_the_share_of_the_steps_that_have_ended_and_never_goes_back(world: World, driver: Held) -> None:
    tenant = world.tenant()
    instance_id = world.launch(tenant).instance_id
    seen = []
    with driver.holding("start"):
        with driver.holding("capture"):
            with driver.holding("stop"):
                operation = tenant.create_image(region_id=GUANGZHOU, instance_id=instance_id, name="progress")
                seen.append(operation.metadata.progress_percent)
            until(lambda: refreshed(operation).metadata.progress_percent > seen[-1])
            seen.append(operation.metadata.progress_percent)
            assert steps(operation) == [("stop", "SUCCEEDED"), ("capture", "RUNNING"), ("start", "PENDING")]
        until(lambda: refreshed(operation).metadata.progress_percent > seen[-1])
        seen.append(operation.metadata.progress_percent)
    operation.result(20)
    assert [*seen, operation.metadata.progress_percent] == [0, 33, 66, 100]


def test_an_operation_that_a_service_began_belongs_to_the_account_and_names_the_service(world: World) -> None:
    tenant = world.tenant()
    token = world.token("provisioner", role="service", acts_for=[tenant.account_id])
    with Client(world.address, token=token, account=tenant.account_id) as service:
        operation = import_image(service, "made by a service")
        operation.result(20)
    (own,) = tenant.list_operations(filter='method = "ImportImage"')
    assert own.name == operation.name
    assert own.metadata.account_id == tenant.account_id
    assert own.metadata.created_by == "service:provisioner"


def test_the_warnings_of_a_launch_are_told_by_the_operation_and_by_its_result(world: World) -> None:
    owner, tenant = world.tenant(), world.tenant()
    image_id = world.image(owner).image_id
    owner.share_image(image_id=image_id, account_ids=[tenant.account_id])
    operation = tenant.create_instance(
        region_id=GUANGZHOU, zone_id=ZONES[GUANGZHOU], image_id=image_id, instance_type="S5.MEDIUM4"
    )
    assert [warning.reason for warning in operation.warnings] == ["UNVERIFIED_SHARED_IMAGE"]
    assert list(operation.result(20).warnings) == operation.warnings


def test_a_copy_quotes_each_destination_with_a_free_transfer(world: World) -> None:
    tenant = world.tenant()
    image_id = world.image(tenant).image_id
    operation = tenant.copy_image(image_id=image_id, destinations=to(SHANGHAI, FRANKFURT))
    copies = [result.image for result in operation.result(20).results]
    assert operation.quotes == [copy.quote for copy in copies]
    assert [quote.region_id for quote in operation.quotes] == [SHANGHAI, FRANKFURT]
    assert {(quote.transfer.units, quote.transfer.nanos) for quote in operation.quotes} == {(0, 0)}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_tells_itself_and_answers_with_its_own_type(world: World, method: str) -> None:
    operation = prepared(world, world.tenant(), method)()
    result = operation.result(20)
    assert type(result) is METHODS[method].response_type
    assert operation.metadata.method == method
    assert {name for name, _ in steps(operation)} == {METHODS[method].action}


# --- looking at operations


def test_operations_are_found_by_what_they_are_and_what_they_do(world: World, driver: Held) -> None:
    tenant = world.tenant()
    instance_id = world.launch(tenant).instance_id
    with stuck(world, driver, tenant) as running:
        (image_id,) = running.metadata.target_ids

        def found(filter: str) -> list[str]:
            return sorted(each.metadata.method for each in tenant.list_operations(filter=filter))

        assert found("") == ["CreateInstance", "ImportImage"]
        assert found("done = false") == ["ImportImage"]
        assert found("done = true") == ["CreateInstance"]
        assert found('method = "CreateInstance"') == ["CreateInstance"]
        assert found(f'target_id = "{image_id}"') == ["ImportImage"]
        assert found(f'target_id = "{instance_id}" AND NOT done = false') == ["CreateInstance"]
        assert found('target_id = "ins-00000000"') == []
        with pytest.raises(Refused) as caught:
            found('methods = "CreateInstance"')
        assert caught.value.reason == "INVALID_FILTER"


def test_operations_are_listed_in_pages_the_newest_first(world: World) -> None:
    tenant = world.tenant()
    begun = [import_image(tenant, f"page {number}").name for number in range(5)]
    assert [each.name for each in tenant.list_operations(page_size=2)] == begun[::-1]
    assert [each.name for each in tenant.list_operations()] == begun[::-1]


def test_the_operations_of_others_do_not_exist(world: World, driver: Held) -> None:
    owner, stranger = world.tenant(), world.tenant()
    absent = "operations/op-00000000"
    with stuck(world, driver, owner) as operation:
        assert list(stranger.list_operations()) == []
        for call in (
            stranger.get_operation,
            stranger.wait_operation,
            stranger.cancel_operation,
            stranger.delete_operation,
        ):
            told = []
            for name in (operation.name, absent):
                with refused("NOT_FOUND", "OPERATION_NOT_FOUND", "INS-6", operation=name) as caught:
                    call(name=name)
                told.append(str(caught.value).replace(name, "NAME"))
            assert told[0] == told[1]
    assert operation.result(20)
    assert not operation.metadata.cancel_requested


def test_the_operator_sees_the_operations_of_every_account(world: World) -> None:
    operation = import_image(world.tenant(), "seen")
    operation.result(20)
    assert world.operator.get_operation(name=operation.name).done
    (image_id,) = operation.metadata.target_ids
    (listed,) = world.operator.list_operations(filter=f'target_id = "{image_id}"')
    assert listed.name == operation.name


# --- waiting


def test_waiting_ends_with_the_operation(world: World, driver: Held) -> None:
    tenant = world.tenant()
    with ThreadPoolExecutor(1) as threads:
        with stuck(world, driver, tenant) as operation:
            waiting = threads.submit(tenant.wait_operation, name=operation.name, timeout_seconds=60)
            until(lambda: waiters(world, operation) == 1)
        waited = waiting.result(20)
    assert waited.done
    assert isinstance(waited.result(), Image)


def test_an_operation_that_has_ended_is_not_waited_for(world: World) -> None:
    tenant = world.tenant()
    operation = import_image(tenant, "ended")
    operation.result(20)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(tenant.wait_operation, name=operation.name, timeout_seconds=60).result(20).done


@pytest.mark.parametrize("seconds", [0, 0.3])
def test_a_wait_ends_at_its_timeout_with_the_operation_unfinished(world: World, driver: Held, seconds: float) -> None:
    tenant = world.tenant()
    with stuck(world, driver, tenant) as operation, ThreadPoolExecutor(1) as threads:
        start = time.monotonic()
        waited = threads.submit(tenant.wait_operation, name=operation.name, timeout_seconds=seconds).result(20)
        assert time.monotonic() - start >= seconds
        assert not waited.done
        assert waiters(world, operation) == 0


def test_a_wait_that_times_out_tells_how_far_the_operation_is_by_then(world: World, driver: Held) -> None:
    tenant = world.tenant()
    instance_id = world.launch(tenant).instance_id
    with driver.holding("capture"), ThreadPoolExecutor(1) as threads:
        with driver.holding("stop"):
            operation = tenant.create_image(region_id=GUANGZHOU, instance_id=instance_id, name="waited for")
            waiting = threads.submit(tenant.wait_operation, name=operation.name, timeout_seconds=0.5)
            until(lambda: waiters(world, operation) == 1)
        assert waiting.result(20).metadata.progress_percent == 33


def test_a_wait_without_a_timeout_ends_before_the_deadline_of_its_call(world: World, driver: Held) -> None:
    tenant = world.tenant()
    with stuck(world, driver, tenant) as operation, grpc.insecure_channel(world.address) as channel:
        stub = operations_pb2_grpc.OperationsStub(channel)
        request = operations_pb2.WaitOperationRequest(name=operation.name)
        start = time.monotonic()
        waited = stub.WaitOperation(request, timeout=2, metadata=credentials(world, tenant))
        assert time.monotonic() - start > 1
        assert not waited.done


def test_whoever_gives_up_waiting_is_forgotten(world: World, driver: Held) -> None:
    tenant = world.tenant()
    with stuck(world, driver, tenant) as operation, grpc.insecure_channel(world.address) as channel:
        stub = operations_pb2_grpc.OperationsStub(channel)
        request = operations_pb2.WaitOperationRequest(name=operation.name)
        call = stub.WaitOperation.future(request, metadata=credentials(world, tenant))
        until(lambda: waiters(world, operation) == 1)
        call.cancel()
        until(lambda: waiters(world, operation) == 0)


async def test_2000_waiters_are_all_answered_at_the_end_and_cost_no_queries(
    world: World, driver: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, count = world.tenant(), 2000
    queries = counted_queries(monkeypatch)
    async with waiting_stubs(world, count) as stubs:
        held = ExitStack()
        operation = held.enter_context(stuck(world, driver, tenant))
        request = operations_pb2.WaitOperationRequest(name=operation.name)
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        calls: list[Any] = []
        for start in range(0, count, 200):  # gRPC cancels calls beyond what a new connection takes
            some, metadata = stubs[start : start + 200], credentials(world, tenant)
            calls += [stub.WaitOperation(request, timeout=240, metadata=metadata) for stub in some]
            await asyncio.to_thread(until, partial(wait, world, operation, len(calls)))
        queries.clear()
        await asyncio.sleep(3 * work._LOOK_SECONDS)
        assert queries[operations._ENDED.text] <= 4
        held.close()
        assert all(answer.done for answer in await asyncio.gather(*calls))
        assert queries.total() < count / 10  # each worker looks twice a second
    assert waiters(world, operation) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < 200 << 10


def wait(world: World, operation: Operation[Any], count: int) -> bool:
    """Whether so many calls wait for the operation."""
    return waiters(world, operation) == count


def waiters(world: World, operation: Operation[Any]) -> int:
    """How many calls wait for the operation."""
    return len(world.service.work._waiting.get(operation.name.removeprefix("operations/"), ()))


def credentials(world: World, tenant: Tenant) -> tuple[tuple[str, str], ...]:
    """Metadata of a call of the tenant's."""
    return (("authorization", f"Bearer {world.token(tenant.account_id)}"),)


def counted_queries(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each statement is run from now on, by its text."""
    counter: Counter[str] = Counter()
    for name in ("rows", "row", "value", "run"):
        monkeypatch.setattr(Connection, name, _counting(getattr(Connection, name), counter))
    return counter


def _counting(original: Callable[..., Any], counter: Counter[str]) -> Callable[..., Any]:
    async def counting(self: Connection, statement: Statement, **arguments: Any) -> Any:
        counter[statement.text] += 1
        return await original(self, statement, **arguments)

    return counting


@asynccontextmanager
async def waiting_stubs(world: World, count: int) -> AsyncIterator[list[Any]]:
    """A stub for each waiter; a hundred share a channel, which carries no more calls at once."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with AsyncExitStack() as stack:
        opened = [grpc.aio.insecure_channel(world.address, options) for _ in range(count // 100)]
        channels = [await stack.enter_async_context(channel) for channel in opened]
        yield [operations_pb2_grpc.OperationsStub(channel) for channel in channels for _ in range(100)]


# --- deleting


def test_a_running_operation_cannot_be_deleted(world: World, driver: Held) -> None:
    tenant = world.tenant()
    with stuck(world, driver, tenant) as operation:
        running = {"operation": operation.name}
        with refused("FAILED_PRECONDITION", "OPERATION_RUNNING", "INS-5", **running):
            tenant.delete_operation(name=operation.name)
    assert operation.result(20)


def test_deleting_an_operation_leaves_its_result(world: World) -> None:
    tenant = world.tenant()
    operation = import_image(tenant, "kept")
    image = operation.result(20)
    tenant.delete_operation(name=operation.name)
    assert tenant.get_image(image_id=image.image_id) == image
    assert list(tenant.list_operations()) == []
    for call in (tenant.get_operation, tenant.wait_operation, tenant.delete_operation):
        with refused("NOT_FOUND", "OPERATION_NOT_FOUND", "INS-6", operation=operation.name):
            call(name=operation.name)


# --- meanwhile


@pytest.mark.parametrize("method", METHODS)
def test_whatever_is_made_or_changed_shows_so_meanwhile(world: World, driver: Held, method: str) -> None:
    tenant = world.tenant()
    with stuck(world, driver, tenant, method) as operation:
        assert states(world, operation) == {METHODS[method].meanwhile}
        if method not in MAKING:
            for instance_id in operation.metadata.target_ids:
                assert tenant.get_instance(instance_id=instance_id).operation == operation.name
    operation.result(20)
    if method not in (*MAKING, "DeleteInstance"):
        for instance_id in operation.metadata.target_ids:
            assert tenant.get_instance(instance_id=instance_id).operation == ""


@pytest.mark.parametrize("method", MOVING)
def test_an_instance_that_an_operation_moves_takes_no_other(world: World, driver: Held, method: str) -> None:
    tenant = world.tenant()
    with stuck(world, driver, tenant, method) as operation:
        (instance_id,) = operation.metadata.target_ids
        for call in (
            tenant.start_instance,
            tenant.stop_instance,
            tenant.reboot_instance,
            tenant.reinstall_instance,
            tenant.delete_instance,
        ):
            assert reason(call, instance_id=instance_id) == "INSTANCE_BUSY"
        image = {"region_id": GUANGZHOU, "name": "meanwhile", "instance_id": instance_id}
        assert reason(tenant.create_image, **image) == "INSTANCE_BUSY"
    operation.result(20)


@pytest.mark.parametrize("method", MAKING)
def test_an_image_that_is_being_made_can_be_neither_used_nor_deleted(world: World, driver: Held, method: str) -> None:
    tenant, other = world.tenant(), world.tenant()
    with stuck(world, driver, tenant, method) as operation:
        image_id = operation.metadata.target_ids[0]
        region_id = tenant.get_image(image_id=image_id).region_id
        elsewhere = to(FRANKFURT if region_id != FRANKFURT else GUANGZHOU)
        place = {"region_id": region_id, "zone_id": ZONES[region_id], "instance_type": "S5.MEDIUM4"}
        assert reason(tenant.delete_image, image_id=image_id) == "IMAGE_BUSY"
        assert reason(tenant.delete_image, image_id=image_id, force=True) == "IMAGE_BUSY"
        for use, given in (
            (tenant.copy_image, {"destinations": elsewhere}),
            (tenant.share_image, {"account_ids": [other.account_id]}),
            (tenant.create_instance, place),
        ):
            assert reason(use, image_id=image_id, **given) == "IMAGE_STATE_INVALID"
    operation.result(20)
    tenant.delete_image(image_id=image_id)


def test_the_source_of_a_copy_stays_until_it_is_copied(world: World, driver: Held) -> None:
    tenant = world.tenant()
    with stuck(world, driver, tenant, "CopyImage") as operation:
        source_id = tenant.get_image(image_id=operation.metadata.target_ids[0]).source.image_id
        assert reason(tenant.delete_image, image_id=source_id) == "IMAGE_BUSY"
    operation.result(20)
    tenant.delete_image(image_id=source_id)


def reason(call: Callable[..., object], *arguments: object, **named: object) -> str:
    """Why the call with these arguments is refused."""
    with pytest.raises(Refused) as caught:
        call(*arguments, **named)
    return caught.value.reason


# --- images of instances


def test_a_running_instance_is_stopped_and_started_again_around_its_image(
    world: World, driver: Held, asked: Asked
) -> None:
    tenant = world.tenant()
    instance_id = world.launch(tenant).instance_id
    asked.clear()
    with driver.holding("capture"):
        operation = tenant.create_image(region_id=GUANGZHOU, instance_id=instance_id, name="stopped around")
        until(lambda: refreshed(operation).metadata.progress_percent)
        assert tenant.get_instance(instance_id=instance_id).state == Instance.STATE_IMAGING
    image_id = operation.result(20).image_id
    assert asked == [("stop", instance_id), ("capture", image_id), ("start", instance_id)]
    assert tenant.get_instance(instance_id=instance_id).state == Instance.STATE_RUNNING


@pytest.mark.parametrize("consistency", [STOPPING_IT, CRASH_CONSISTENT])
def test_a_stopped_instance_stays_stopped_while_it_is_imaged(
    world: World, driver: Held, asked: Asked, consistency: CreateImageRequest.Consistency.ValueType
) -> None:
    tenant = world.tenant()
    instance_id = world.launch(tenant).instance_id
    tenant.stop_instance(instance_id=instance_id).result(20)
    asked.clear()
    with driver.holding("capture"):
        operation = tenant.create_image(
            region_id=GUANGZHOU, instance_id=instance_id, name="of a stopped one", consistency=consistency
        )
        assert tenant.get_instance(instance_id=instance_id).state == Instance.STATE_IMAGING
    image_id = operation.result(20).image_id
    assert asked == [("capture", image_id)]
    assert tenant.get_instance(instance_id=instance_id).state == Instance.STATE_STOPPED


def test_a_crash_consistent_image_leaves_the_instance_running(world: World, driver: Held, asked: Asked) -> None:
    tenant = world.tenant()
    instance_id = world.launch(tenant).instance_id
    asked.clear()
    with driver.holding("capture"):
        operation = tenant.create_image(
            region_id=GUANGZHOU, instance_id=instance_id, name="crash consistent", consistency=CRASH_CONSISTENT
        )
        assert tenant.get_instance(instance_id=instance_id).state == Instance.STATE_IMAGING
    image_id = operation.result(20).image_id
    assert asked == [("capture", image_id)]
    assert tenant.get_instance(instance_id=instance_id).state == Instance.STATE_RUNNING


# --- cancelling

#: What the targets of a cancelled operation are afterwards.
UNDONE = {
    **dict.fromkeys((*MAKING, "CreateInstance"), "DELETED"),
    **dict.fromkeys(MOVING, "RUNNING"),
    "StartInstance": "STOPPED",
}


@pytest.mark.parametrize("method", METHODS)
def test_a_cancelled_operation_is_undone(world: World, driver: Held, method: str) -> None:
    tenant = world.tenant()
    with stuck(world, driver, tenant, method) as operation:
        operation.cancel()
        cancelled = error_of(operation)
    assert (cancelled.code.name, cancelled.reason) == ("CANCELLED", "OPERATION_CANCELLED")
    assert cancelled.metadata == {"operation": operation.name}
    assert operation.metadata.cancel_requested
    assert {told for _, told in steps(operation)} == {"CANCELLED"}
    assert states(world, operation) == {UNDONE[method]}
    for target_id in operation.metadata.target_ids:
        if method in MAKING:
            assert reason(tenant.get_image, image_id=target_id) == "IMAGE_NOT_FOUND"
        elif method == "CreateInstance":
            assert reason(tenant.get_instance, instance_id=target_id) == "INSTANCE_NOT_FOUND"
        else:
            assert not tenant.get_instance(instance_id=target_id).operation
    assert used(tenant, SHANGHAI) == used(tenant, FRANKFURT) == 0


def test_a_cancelled_image_frees_its_place_and_its_name(world: World, driver: Held) -> None:
    tenant = world.tenant()
    with stuck(world, driver, tenant) as operation:
        assert used(tenant) == 1
        operation.cancel()
        error_of(operation)
        assert used(tenant) == 0
    assert import_image(tenant, "made").result(20).state == Image.STATE_AVAILABLE


@pytest.mark.parametrize("held", ["stop", "capture", "start"])
def test_an_image_cancelled_at_any_step_leaves_its_instance_as_it_was(
    world: World, driver: Held, asked: Asked, held: str
) -> None:
    tenant = world.tenant()
    instance_id = world.launch(tenant).instance_id
    with driver.holding(held):
        operation = tenant.create_image(region_id=GUANGZHOU, instance_id=instance_id, name="cancelled")
        until(lambda: (held, "RUNNING") in steps(refreshed(operation)))
        operation.cancel()
        if held == "start":  # it is asked for again, since the instance was stopped
            until(lambda: asked.count(("start", instance_id)) == 2)
        else:
            error_of(operation)
    assert error_of(operation).reason == "OPERATION_CANCELLED"
    instance = tenant.get_instance(instance_id=instance_id)
    assert (instance.state, instance.operation) == (Instance.STATE_RUNNING, "")
    assert used(tenant) == 0
    tenant.delete_instance(instance_id=instance_id).result(20)


def test_an_operation_is_cancelled_before_it_begins(postgres: Postgres) -> None:
    with worlds.world(postgres, workers=0) as idle:
        tenant = idle.tenant()
        operation = import_image(tenant, "never begun")
        operation.cancel()
        operation.cancel()
        assert refreshed(operation).metadata.cancel_requested
        assert states(idle, operation) == {"IMPORTING"}
        busy = World(idle.dsn, postgres.settings(idle.dsn), None)
        try:
            assert error_of(operation).reason == "OPERATION_CANCELLED"
            assert unsound(idle.sql) == []
        finally:
            busy.stop()


def test_cancelling_an_ended_operation_changes_nothing(world: World) -> None:
    tenant = world.tenant()
    operation = import_image(tenant, "too late")
    image = operation.result(20)
    operation.cancel()
    assert not refreshed(operation).metadata.cancel_requested
    assert operation.result() == tenant.get_image(image_id=image.image_id)


# --- a driver that fails

TOO_LARGE = Refusal(Reason.IMAGE_TOO_LARGE, field="virtual size", size_bytes=2**40, limit_bytes=2**39)


@pytest.mark.usefixtures("impatient")
def test_work_that_fails_five_times_is_given_up(world: World, driver: Held, asked: Asked) -> None:
    tenant = world.tenant()
    with driver.failing("import", RuntimeError("no space left on /srv/images")):
        operation = import_image(tenant, "given up")
        told = error_of(operation)
    (image_id,) = operation.metadata.target_ids
    assert asked == [("import", image_id)] * 5
    assert (told.code.name, told.reason) == ("INTERNAL", "OPERATION_FAILED")
    assert told.metadata == {"operation": operation.name, "attempts": "5"}
    assert steps(operation) == [("import", "FAILED")]
    failure = tenant.get_image(image_id=image_id).failure
    assert (failure.reason, failure.message) == ("OPERATION_FAILED", told.message)
    assert "/srv" not in str(told)


@pytest.mark.usefixtures("impatient")
def test_a_failed_image_holds_its_name_and_no_place_until_it_is_deleted(world: World, driver: Held) -> None:
    tenant = world.tenant()
    other = import_image(tenant, "another").result(20)
    with driver.failing("import", RuntimeError("broken")):
        operation = import_image(tenant, "failed")
        assert error_of(operation).remedy.startswith("Delete what is FAILED")
    (image_id,) = operation.metadata.target_ids
    assert tenant.get_image(image_id=image_id).state == Image.STATE_FAILED
    assert used(tenant) == 1
    assert reason(import_image, tenant, "failed") == "IMAGE_NAME_TAKEN"
    assert reason(rename, tenant, other.image_id, "failed") == "IMAGE_NAME_TAKEN"
    assert tenant.delete_image(image_id=image_id).state == Image.STATE_DELETED
    assert used(tenant) == 1
    import_image(tenant, "failed").result(20)
    assert used(tenant) == 2


#: What the targets of an operation that was given up are afterwards.
GIVEN_UP = UNDONE | dict.fromkeys((*MAKING, "CreateInstance"), "FAILED")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("method", METHODS)
def test_an_operation_that_is_given_up_is_undone(world: World, driver: Held, method: str) -> None:
    tenant = world.tenant()
    begin = prepared(world, tenant, method)
    before = used(tenant)
    with driver.failing(METHODS[method].action, RuntimeError("broken")):
        operation = begin()
        assert error_of(operation).reason == "OPERATION_FAILED"
    assert states(world, operation) == {GIVEN_UP[method]}
    assert (used(tenant), used(tenant, SHANGHAI), used(tenant, FRANKFURT)) == (before, 0, 0)


@pytest.mark.usefixtures("impatient")
def test_a_failed_launch_leaves_instances_that_say_why_and_can_be_deleted(world: World, driver: Held) -> None:
    tenant = world.tenant()
    begin = prepared(world, tenant, "CreateInstance")
    with driver.failing("launch", RuntimeError("broken")):
        operation = begin()
        told = error_of(operation)
    for instance_id in operation.metadata.target_ids:
        assert tenant.get_instance(instance_id=instance_id).failure == told.message
        assert reason(tenant.start_instance, instance_id=instance_id) == "INSTANCE_STATE_INVALID"
        tenant.delete_instance(instance_id=instance_id).result(20)
    assert states(world, operation) == {"DELETED"}


def test_a_failed_instance_says_why_again_when_its_deletion_is_cancelled(world: World, driver: Held) -> None:
    tenant = world.tenant()
    begin = prepared(world, tenant, "CreateInstance")
    with driver.failing("launch", TOO_LARGE):
        launch = begin()
        told = error_of(launch)
    kept, deleted = launch.metadata.target_ids
    with driver.holding("destroy"):
        deletion = tenant.delete_instance(instance_id=kept)
        assert tenant.get_instance(instance_id=kept).failure == ""  # it is DELETING
        deletion.cancel()
        assert error_of(deletion).reason == "OPERATION_CANCELLED"
    instance = tenant.get_instance(instance_id=kept)
    assert (instance.state, instance.failure) == (Instance.STATE_FAILED, told.message)
    assert tenant.delete_instance(instance_id=deleted).result(20).failure == ""


@pytest.mark.usefixtures("impatient")
def test_work_that_fails_a_few_times_succeeds_all_the_same(world: World, driver: Held, asked: Asked) -> None:
    tenant = world.tenant()
    with driver.failing("import", RuntimeError("not yet")):
        operation = import_image(tenant, "at last")
        until(lambda: len(asked) == 3)
    assert operation.result(20).state == Image.STATE_AVAILABLE
    assert len(asked) in (4, 5)


# --- a driver that refuses


def test_what_the_driver_refuses_is_not_tried_again_and_told_as_it_is(world: World, driver: Held, asked: Asked) -> None:
    tenant = world.tenant()
    with driver.failing("import", TOO_LARGE):
        operation = import_image(tenant, "too large")
        told = error_of(operation)
    (image_id,) = operation.metadata.target_ids
    assert asked == [("import", image_id)]
    assert_told(told, "FAILED_PRECONDITION", "IMAGE_TOO_LARGE", "CUS-10", **TOO_LARGE.metadata)
    image = tenant.get_image(image_id=image_id)
    assert (image.state, image.failure.reason) == (Image.STATE_FAILED, "IMAGE_TOO_LARGE")
    assert image.failure.message == told.message
    (step,) = operation.metadata.steps
    assert step.state == Step.STATE_FAILED
    assert Refused.from_status(step.error).metadata == told.metadata
    assert used(tenant) == 0


def test_steps_after_one_that_was_refused_are_not_done_and_what_was_stopped_is_started_again(
    world: World, driver: Held, asked: Asked
) -> None:
    tenant = world.tenant()
    instance_id = world.launch(tenant).instance_id
    asked.clear()
    with driver.failing("capture", TOO_LARGE):
        operation = tenant.create_image(region_id=GUANGZHOU, instance_id=instance_id, name="refused")
        assert error_of(operation).reason == "IMAGE_TOO_LARGE"
    assert [action for action, _ in asked] == ["stop", "capture", "start"]
    assert steps(operation) == [("stop", "CANCELLED"), ("capture", "FAILED"), ("start", "CANCELLED")]
    assert tenant.get_instance(instance_id=instance_id).state == Instance.STATE_RUNNING


# --- copies


def test_a_copy_goes_where_it_may_and_tells_why_not_elsewhere(world: World, asked: Asked) -> None:
    tenant = world.tenant(GUANGZHOU, SHANGHAI)
    image_id = world.image(tenant, name="copied").image_id
    asked.clear()
    operation = tenant.copy_image(image_id=image_id, destinations=to(FRANKFURT, SHANGHAI))
    assert steps(operation)[0] == ("copy", "FAILED")
    failed, made = operation.result(20).results
    assert (failed.region_id, Refused.from_status(failed.error).reason) == (FRANKFURT, "ACCOUNT_NOT_IN_REGION")
    assert (made.region_id, made.image.state) == (SHANGHAI, Image.STATE_AVAILABLE)
    assert list(operation.metadata.target_ids) == [made.image.image_id]
    assert asked == [("copy", made.image.image_id)]
    assert steps(operation) == [("copy", "FAILED"), ("copy", "SUCCEEDED")]


def test_a_cancelled_copy_leaves_no_copy_anywhere_and_its_source_as_it_was(world: World, driver: Held) -> None:
    tenant = world.tenant(GUANGZHOU, SHANGHAI)
    source = world.image(tenant)
    with driver.holding("copy"):
        operation = tenant.copy_image(image_id=source.image_id, destinations=to(FRANKFURT, SHANGHAI))
        operation.cancel()
        assert error_of(operation).reason == "OPERATION_CANCELLED"
    assert steps(operation) == [("copy", "FAILED"), ("copy", "CANCELLED")]
    assert (used(tenant), used(tenant, SHANGHAI)) == (1, 0)
    assert tenant.get_image(image_id=source.image_id) == source


@pytest.mark.usefixtures("impatient")
def test_a_copy_that_is_given_up_in_one_region_holds_up_no_other(world: World, driver: Held, asked: Asked) -> None:
    tenant = world.tenant()
    image_id = world.image(tenant).image_id
    asked.clear()
    with driver.failing("copy", RuntimeError("broken"), region_id=SHANGHAI):
        operation = tenant.copy_image(image_id=image_id, destinations=to(SHANGHAI, FRANKFURT))
        failed, made = operation.result(20).results
    told = Refused.from_status(failed.error)
    assert (told.reason, told.metadata) == ("OPERATION_FAILED", {"operation": operation.name, "attempts": "5"})
    assert told.message.startswith(f"a step of {operation.name} failed 5 times"), told.message  # the others were done
    failed_id, made_id = operation.metadata.target_ids
    assert made.image.image_id == made_id
    assert asked == [("copy", failed_id), ("copy", made_id), *[("copy", failed_id)] * 4]
    assert tenant.get_image(image_id=failed_id).failure.message == told.message
    assert (used(tenant, SHANGHAI), used(tenant, FRANKFURT)) == (0, 1)


def test_a_copy_that_fails_everywhere_has_failed_and_each_image_says_why(world: World, driver: Held) -> None:
    tenant = world.tenant(GUANGZHOU, SHANGHAI, FRANKFURT)
    image_id = world.image(tenant).image_id
    other = Refusal(Reason.IMAGE_FORMAT_MISMATCH, format="QCOW2", found="VMDK")
    with driver.failing("copy", TOO_LARGE, region_id=SHANGHAI), driver.failing("copy", other, region_id=FRANKFURT):
        operation = tenant.copy_image(image_id=image_id, destinations=to(SHANGHAI, FRANKFURT))
        assert error_of(operation).reason == "IMAGE_TOO_LARGE"
    assert steps(operation) == [("copy", "FAILED"), ("copy", "FAILED")]
    failures = [tenant.get_image(image_id=each).failure.reason for each in operation.metadata.target_ids]
    assert failures == ["IMAGE_TOO_LARGE", "IMAGE_FORMAT_MISMATCH"]
    assert (used(tenant, SHANGHAI), used(tenant, FRANKFURT)) == (0, 0)


def test_a_copy_that_failed_in_one_region_can_be_cancelled_in_the_others(world: World, driver: Held) -> None:
    tenant = world.tenant()
    image_id = world.image(tenant).image_id
    with driver.failing("copy", TOO_LARGE, region_id=SHANGHAI), driver.holding("copy", region_id=FRANKFURT):
        operation = tenant.copy_image(image_id=image_id, destinations=to(SHANGHAI, FRANKFURT))
        until(lambda: steps(refreshed(operation)) == [("copy", "FAILED"), ("copy", "RUNNING")])
        assert operation.metadata.progress_percent == 50
        assert Refused.from_status(operation.metadata.steps[0].error).reason == "IMAGE_TOO_LARGE"
        operation.cancel()
        assert error_of(operation).reason == "OPERATION_CANCELLED"
    assert steps(operation) == [("copy", "FAILED"), ("copy", "CANCELLED")]
    assert states(world, operation) == {"DELETED"}
    assert (used(tenant, SHANGHAI), used(tenant, FRANKFURT)) == (0, 0)
