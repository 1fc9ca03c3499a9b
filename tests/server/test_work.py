"""The workers of several servers over one database: who carries out what, how often, and what a lost lease cannot do.

A server that is only asked makes the operations; workers of the tests' own carry them out, each with a driver and
connections that can be held back.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from tests import world as worlds
from tests.end_to_end.soundness import unsound
from tests.end_to_end.steps import Held, import_image, to
from tests.storage.test_operations import EPOCH, NO_EPOCH, rewritten
from tests.world import FRANKFURT, GUANGZHOU, SHANGHAI, ZONES, Postgres, Tenant, World

from cunho import Operation
from cunho.v1 import CopyImageResponse, CreateInstanceResponse, Image
from cunho_rules import model
from cunho_rules.refusals import Reason, Refusal
from cunho_server import work
from cunho_server.work import Driver, Work
from cunho_storage import migrations, operations
from cunho_storage.database import Connection, Database

NOT_ENDED = r'\("operation"\."end_time" IS NULL\)'
TOO_LARGE = Refusal(Reason.IMAGE_TOO_LARGE, field="virtual size", size_bytes=2**40, limit_bytes=2**39)


@pytest.fixture(scope="module")
def asking(postgres: Postgres) -> Iterator[World]:
    """A server without workers, whose operations are the tests' to carry out."""
    with worlds.world(postgres, workers=0) as running:
        yield running


@pytest.fixture
def ruined(postgres: Postgres) -> Iterator[World]:
    """The same over a database of the test's own, which is left in disorder."""
    with worlds.world(postgres, workers=0) as running:
        yield running


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers look often for what nobody told them of."""
    monkeypatch.setattr(work, "_LOOK_SECONDS", 0.02)


@pytest.fixture
def tenant(asking: World) -> Iterator[Tenant]:
    """A new account, in a database where afterwards all is done and nothing half-made."""
    yield asking.tenant()
    assert asking.sql("SELECT operation_id FROM operation WHERE end_time IS NULL") == []
    assert unsound(asking.sql) == []


class Watched(Held):
    """A driver that can be held, and keeps what it was asked for, what it did, and what that failed by."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []
        self.done: list[tuple[str, str]] = []
        self.failed: list[BaseException] = []

    async def act(self, action: str, region_id: str, target_id: str) -> None:
        """Does nothing, once it is let."""
        self.asked.append((action, target_id))
        try:
            await super().act(action, region_id, target_id)
        except BaseException as error:
            self.failed.append(error)
            raise
        self.done.append((action, target_id))


class Frozen(Database):
    """The connections of a server that can be frozen, as a machine that hangs is: nothing is sent until it thaws."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, role=migrations.APP_ROLE)
        self._thawed = asyncio.Event()
        self._thawed.set()

    def freeze(self) -> None:
        """From now on nothing is sent."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Everything goes on."""
        self._thawed.set()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection, once it is let."""
        await self._thawed.wait()
        async with super().connection() as connection:
            yield connection


@asynccontextmanager
async def opened(world: World) -> AsyncIterator[Frozen]:
    """Connections of a server to the world's database."""
    database = Frozen(world.dsn)
    try:
        yield database
    finally:
        database.thaw()
        await database.close()


@asynccontextmanager
async def working(
    database: Database, driver: Driver, *, workers: int = 1, lease_seconds: float = 10
) -> AsyncIterator[Work]:
    """A server's workers, at work."""
    running = Work(database, driver, workers=workers, lease_seconds=lease_seconds)
    task = asyncio.create_task(running.run())
    try:
        yield running
    finally:
        await stopped(task)


async def stopped(task: asyncio.Task[None]) -> None:
    """Stops workers, which must end soon."""
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=5)
    assert done


async def until(condition: Callable[[], object]) -> None:
    """Waits for the condition, also on a busy machine."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


async def ended(database: Database, operation: Operation[Any]) -> model.Operation:
    """The operation once it has ended."""
    async with asyncio.timeout(60):
        while (found := await stored(database, operation)).end_time is None:
            await asyncio.sleep(0.005)
    return found


async def stored(database: Database, operation: Operation[Any]) -> model.Operation:
    """The operation as stored."""
    async with database.connection() as connection:
        found = await operations.get(connection, operation.name.removeprefix("operations/"))
    assert found is not None
    return found


async def rows(world: World, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    """The rows of a query, as the owner of the tables."""
    return await asyncio.to_thread(world.sql, query, *arguments)


def target(operation: Operation[Any]) -> str:
    """The one image that the operation makes."""
    (image_id,) = operation.metadata.target_ids
    return image_id


# --- sharing out


async def test_two_servers_never_do_one_thing_twice(asking: World, tenant: Tenant) -> None:
    tenants = [tenant, asking.tenant(), asking.tenant()]
    begun = [import_image(each, f"image {number}") for each in tenants for number in range(10)]
    one, other = Watched(), Watched()
    async with (
        opened(asking) as first,
        opened(asking) as second,
        working(first, one, workers=4),
        working(second, other, workers=4),
    ):
        with one.holding("import"), other.holding("import"):
            await until(lambda: one.asked and other.asked)
        for operation in begun:
            assert (await ended(first, operation)).attempts == 1
    assert sorted(one.asked + other.asked) == sorted(("import", target(operation)) for operation in begun)


async def test_the_oldest_operation_is_carried_out_first(asking: World, tenant: Tenant) -> None:
    begun = [import_image(tenant, f"image {number}") for number in range(5)]
    driver = Watched()
    async with opened(asking) as database, working(database, driver):
        await ended(database, begun[-1])
    assert driver.asked == [("import", target(operation)) for operation in begun]


async def test_an_account_with_many_operations_holds_up_no_other(asking: World, tenant: Tenant) -> None:
    many = [import_image(tenant, f"one of many {number}") for number in range(8)]
    one = import_image(asking.tenant(), "the only one")
    driver = Watched()
    async with opened(asking) as database, working(database, driver, workers=2):
        with driver.holding("import"):
            await until(lambda: len(driver.asked) == 2)
        await asyncio.gather(*(ended(database, operation) for operation in (*many, one)))
    assert ("import", target(many[0])) in driver.asked[:2], "the two workers ask at the same time"
    assert ("import", target(one)) in driver.asked[:3]


async def test_a_worker_hears_at_once_of_a_new_operation(
    asking: World, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Watched()
    with monkeypatch.context() as patched:
        patched.setattr(work, "_LOOK_SECONDS", 600)
        async with opened(asking) as database, working(database, driver) as workers:
            await asyncio.sleep(0.1)  # it has looked, found nothing, and looks again in ten minutes
            operation = import_image(tenant, "heard of")
            workers.wake()
            await until(lambda: driver.done)
            await ended(database, operation)
    asking.run(look(asking))


async def look(world: World) -> None:
    """Has its server look at once, whatever pause it is in."""
    world.service.work._ended.set()


async def test_an_operation_longer_than_its_lease_stays_with_its_worker(asking: World, tenant: Tenant) -> None:
    one, other = Watched(), Watched()
    operation = import_image(tenant, "long")
    async with opened(asking) as first, working(first, one, lease_seconds=2):
        with one.holding("import"):
            await until(lambda: one.asked)
            async with opened(asking) as second, working(second, other, lease_seconds=2):
                await asyncio.sleep(3)
        assert (await ended(first, operation)).epoch == 1
    assert (len(one.done), other.asked) == (1, [])


# --- workers that fall silent


async def test_the_operation_of_a_dead_worker_is_taken_over_when_its_lease_has_run_out(
    asking: World, tenant: Tenant
) -> None:
    operation = import_image(tenant, "orphan")
    driver = Watched()
    async with opened(asking) as database:
        async with database.connection() as connection:
            abandoned = await operations.claim(connection, 0.5)
        assert abandoned is not None
        assert abandoned.lease_until is not None
        async with working(database, driver):
            after = await ended(database, operation)
    assert (after.state, after.attempts, after.epoch) == ("SUCCEEDED", 2, 2)
    assert after.end_time is not None
    assert abandoned.lease_until <= after.end_time < abandoned.lease_until + timedelta(seconds=1)
    assert after.start_time == abandoned.start_time


class Overtaken(NamedTuple):
    """A worker that froze when the first action of its operation was done, and another that has taken that over."""

    frozen: Frozen
    #: Connections that are not frozen.
    database: Database
    #: Lets the other one, who is held, go on.
    let_other_go_on: Callable[[], None]


@asynccontextmanager
async def overtaken(
    world: World, operation: Operation[Any], one: Watched, other: Watched, *, held: str
) -> AsyncIterator[Overtaken]:
    """Two workers at one operation, the frozen one driving `one`; the other is held in that action."""
    first_action = operation.metadata.steps[0].name
    async with opened(world) as frozen, opened(world) as database, working(frozen, one):
        with one.holding(first_action):
            await until(lambda: one.asked)
            frozen.freeze()
        await until(lambda: one.done)
        await run_out(world, operation)
        with ExitStack() as holding:
            holding.enter_context(other.holding(held))
            async with working(database, other):
                await until(lambda: held in [action for action, _ in other.asked])
                yield Overtaken(frozen, database, holding.close)


async def run_out(world: World, operation: Operation[Any]) -> None:
    """Ends the operation's lease, as time would."""
    query = "UPDATE operation SET lease_until = clock_timestamp() WHERE operation_id = $1 AND end_time IS NULL"
    await rows(world, query, operation.name.removeprefix("operations/"))


def lost(caplog: pytest.LogCaptureFixture) -> bool:
    """Whether a worker has found out that it lost its lease."""
    return "another worker has taken it over" in caplog.text


async def test_a_worker_that_was_taken_over_does_not_end_the_operation(
    asking: World, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    operation = import_image(tenant, "ended once")
    one, other = Watched(), Watched()
    async with overtaken(asking, operation, one, other, held="import") as both:
        both.frozen.thaw()
        await until(lambda: lost(caplog))
        assert (await stored(both.database, operation)).end_time is None
        assert await rows(asking, "SELECT state FROM image WHERE image_id = $1", target(operation)) == [("IMPORTING",)]
        both.let_other_go_on()
        after = await ended(both.database, operation)
    assert (after.state, after.epoch) == ("SUCCEEDED", 2)
    assert (len(one.done), len(other.done)) == (1, 1)


async def test_without_the_fence_a_worker_that_was_taken_over_ends_the_operation(asking: World, tenant: Tenant) -> None:
    operation = import_image(tenant, "ended too soon")
    one, other = Watched(), Watched()
    with rewritten(EPOCH, NO_EPOCH, operations._END, operations._EXTEND):
        async with overtaken(asking, operation, one, other, held="import") as both:
            both.frozen.thaw()
            assert (await ended(both.database, operation)).state == "SUCCEEDED"
            assert other.done == []


async def test_a_worker_that_was_taken_over_does_not_set_steps_back(
    asking: World, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    operation = await imaging(asking, tenant)
    one, other = Watched(), Watched()
    async with overtaken(asking, operation, one, other, held="start") as both:
        both.frozen.thaw()
        await until(lambda: lost(caplog))
        assert states(await stored(both.database, operation)) == ["SUCCEEDED", "SUCCEEDED", "PENDING"]
        both.let_other_go_on()
        await ended(both.database, operation)
    assert [action for action, _ in one.asked] == ["stop"]
    assert [action for action, _ in other.asked] == ["stop", "capture", "start"]


async def test_without_the_fence_steps_are_set_back_and_done_again(asking: World, tenant: Tenant) -> None:
    operation = await imaging(asking, tenant)
    one, other = Watched(), Watched()
    with rewritten(EPOCH, NO_EPOCH, operations._SAVE, operations._EXTEND), one.holding("capture"):
        async with overtaken(asking, operation, one, other, held="start") as both:
            both.frozen.thaw()
            await until(lambda: "capture" in [action for action, _ in one.asked])
            assert states(await stored(both.database, operation)) == ["SUCCEEDED", "PENDING", "PENDING"]
            both.let_other_go_on()
            await ended(both.database, operation)


async def test_what_one_worker_has_undone_another_does_not_undo_again(
    asking: World, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    async with undone_by_another(asking, tenant) as frozen:
        frozen.thaw()
        await until(lambda: lost(caplog))
        assert await places_used(asking, tenant) == 1


async def test_without_the_fence_a_place_is_freed_twice(ruined: World) -> None:
    tenant = ruined.tenant()
    with (
        rewritten(EPOCH, NO_EPOCH, operations._END, operations._EXTEND),
        rewritten(NOT_ENDED, "(true)", operations._END, operations._EXTEND),
    ):
        async with undone_by_another(ruined, tenant) as frozen:
            frozen.thaw()
            async with asyncio.timeout(5):
                while await places_used(ruined, tenant):
                    await asyncio.sleep(0.005)
    assert await asyncio.to_thread(unsound, ruined.sql) == [
        f"{tenant.account_id} has 1 images in {GUANGZHOU}, counted are 0"
    ]


@asynccontextmanager
async def undone_by_another(world: World, tenant: Tenant) -> AsyncIterator[Frozen]:
    """An image was refused to two workers and undone by one; the other is frozen before it does so. One image stays."""
    one, other = Watched(), Watched()
    async with opened(world) as frozen, opened(world) as database:
        async with working(database, Watched()):
            await ended(database, import_image(tenant, "kept"))
        operation = import_image(tenant, "refused")
        with one.failing("import", TOO_LARGE), other.failing("import", TOO_LARGE):
            async with working(frozen, one):
                with one.holding("import"):
                    await until(lambda: one.asked)
                    frozen.freeze()
                await until(lambda: one.failed)
                await run_out(world, operation)
                async with working(database, other):
                    assert (await ended(database, operation)).state == "FAILED"
                yield frozen


async def places_used(world: World, tenant: Tenant) -> int:
    """How much of the tenant's quota is used."""
    query = "SELECT images_used FROM account_region WHERE account_id = $1 AND region_id = $2"
    ((used,),) = await rows(world, query, tenant.account_id, GUANGZHOU)
    return int(used)


async def imaging(world: World, tenant: Tenant) -> Operation[Image]:
    """A new operation that stops an instance, captures it, and starts it again."""
    async with opened(world) as database, working(database, Watched()):
        instance = await asyncio.to_thread(world.launch, tenant)
    return tenant.create_image(region_id=GUANGZHOU, instance_id=instance.instance_id, name="in three steps")


async def copying(world: World, tenant: Tenant) -> Operation[CopyImageResponse]:
    """A new operation that copies an image to Shanghai and to Frankfurt."""
    async with opened(world) as database, working(database, Watched()):
        image = await asyncio.to_thread(world.image, tenant)
    return tenant.copy_image(image_id=image.image_id, destinations=to(SHANGHAI, FRANKFURT))


def states(operation: model.Operation) -> list[str]:
    """The states of the steps."""
    return [step["state"] for step in operation.steps]


async def test_a_worker_that_was_taken_over_breaks_its_action_off(
    asking: World, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    operation = import_image(tenant, "done by another")
    one, other = Watched(), Watched()
    async with opened(asking) as frozen, opened(asking) as database:
        with one.holding("import"):
            async with working(frozen, one, lease_seconds=0.3):
                await until(lambda: one.asked)
                frozen.freeze()
                async with working(database, other):
                    assert (await ended(database, operation)).epoch == 2
                assert not one.failed
                frozen.thaw()
                await until(lambda: lost(caplog))
                assert [type(error) for error in one.failed] == [asyncio.CancelledError]
    assert (one.done, len(other.done)) == ([], 1)


async def test_a_reinstallation_that_a_server_of_0_1_0_began_is_finished(asking: World, tenant: Tenant) -> None:
    async with opened(asking) as database, working(database, Watched()):
        instance = await asyncio.to_thread(asking.launch, tenant)
        image = await asyncio.to_thread(asking.image, tenant, "new one")
    operation = tenant.reinstall_instance(instance_id=instance.instance_id, image_id=image.image_id)
    older = (
        "UPDATE operation SET input = input - '{name,min_disk_bytes,min_memory_bytes}'::text[] WHERE operation_id = $1"
    )
    await rows(asking, older, operation.name.removeprefix("operations/"))
    async with opened(asking) as database, working(database, Watched()):
        assert (await ended(database, operation)).state == "SUCCEEDED"
    remembered = "SELECT launch_name, launch_min_disk_bytes FROM instance WHERE instance_id = $1"
    assert await rows(asking, remembered, instance.instance_id) == [("new one", image.min_disk_bytes)]


# --- failures


async def test_pauses_between_attempts_double_and_after_five_there_is_no_other(
    asking: World, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(work, "_LOOK_SECONDS", 0.005)
    driver, times = Watched(), list[float]()
    operation = import_image(tenant, "failing")
    with driver.failing("import", RuntimeError("broken")):
        async with opened(asking) as database, working(database, driver):
            while len(times) < 5:
                await until(lambda: len(driver.asked) > len(times))
                times.append(time.monotonic())
            after = await ended(database, operation)
            times.append(time.monotonic())
    pauses = [after - before for before, after in pairwise(times)]
    assert all(pause > 0.9 * 0.02 * 2**attempt for attempt, pause in enumerate(pauses, 1)), pauses
    assert (after.state, after.attempts, len(driver.asked)) == ("FAILED", 6, 5)


async def test_an_operation_that_fails_holds_up_no_other(asking: World, tenant: Tenant) -> None:
    failing, younger = import_image(tenant, "failing"), import_image(tenant, "younger")
    driver = Breaking(target(failing))
    async with opened(asking) as database, working(database, driver):
        await ended(database, younger)
        assert (await stored(database, failing)).end_time is None
        driver.mended = True
        assert (await ended(database, failing)).state == "SUCCEEDED"


class Breaking(Watched):
    """A driver that fails for one target until it is mended."""

    def __init__(self, target_id: str, failure: BaseException | None = None) -> None:
        super().__init__()
        self.mended = False
        self._target_id, self._failure = target_id, failure or RuntimeError("broken")

    async def act(self, action: str, region_id: str, target_id: str) -> None:
        """Does nothing; fails for the one target."""
        await super().act(action, region_id, target_id)
        if target_id == self._target_id and not self.mended:
            raise self._failure


async def test_a_driver_that_cancels_itself_has_failed_and_costs_no_worker(asking: World, tenant: Tenant) -> None:
    operation = import_image(tenant, "cancels itself")
    driver = Breaking(target(operation), asyncio.CancelledError())
    async with opened(asking) as database, working(database, driver):
        await until(lambda: len(driver.asked) == 2)
        driver.mended = True
        after = await ended(database, operation)
    assert (after.state, after.attempts) == ("SUCCEEDED", 3)


async def test_nothing_is_undone_while_the_driver_is_still_at_it(asking: World, tenant: Tenant) -> None:
    operation = import_image(tenant, "cleared away")
    async with opened(asking) as database:
        driver = Clearing(lambda: stored(database, operation))
        with driver.holding("import"):
            async with working(database, driver, lease_seconds=0.3):
                await until(lambda: driver.asked)
                operation.cancel()
                after = await ended(database, operation)
    assert after.state == "CANCELLED"
    assert [seen.end_time for seen in driver.seen] == [None]


class Clearing(Watched):
    """A driver that clears away what it had begun when it is cancelled, and looks at the operation after that."""

    def __init__(self, look: Callable[[], Awaitable[model.Operation]]) -> None:
        super().__init__()
        self._look, self.seen = look, list[model.Operation]()

    async def act(self, action: str, region_id: str, target_id: str) -> None:
        """Does nothing, once it is let."""
        try:
            await super().act(action, region_id, target_id)
        finally:
            await asyncio.sleep(0.1)
            self.seen.append(await self._look())


class TooLate(Watched):
    """A driver that has done what it is at when it is told to break off."""

    async def act(self, action: str, region_id: str, target_id: str) -> None:
        """Does nothing, once it is let or told to break off."""
        with suppress(asyncio.CancelledError):
            await super().act(action, region_id, target_id)


class Stuck(Watched):
    """A driver that never ends what it does to one target, unless it refuses it."""

    def __init__(self, target_id: str, refusal: Refusal | None = None) -> None:
        super().__init__()
        self._target_id, self._refusal = target_id, refusal

    async def act(self, action: str, region_id: str, target_id: str) -> None:
        """Does nothing."""
        await super().act(action, region_id, target_id)
        if target_id == self._target_id:
            if self._refusal:
                raise self._refusal
            await asyncio.Event().wait()


async def launched(world: World, tenant: Tenant) -> str:
    """A RUNNING instance."""
    async with opened(world) as database, working(database, Watched()):
        return (await asyncio.to_thread(world.launch, tenant)).instance_id


async def state_of(world: World, instance_id: str) -> str:
    """The state of an instance."""
    ((state,),) = await rows(world, "SELECT state FROM instance WHERE instance_id = $1", instance_id)
    return str(state)


@pytest.mark.parametrize("stops", [False, True], ids=["cancelled", "cancelled when its server stops"])
async def test_what_the_driver_has_done_when_it_is_cancelled_has_succeeded(
    asking: World, tenant: Tenant, *, stops: bool
) -> None:
    instance_id = await launched(asking, tenant)
    operation = tenant.stop_instance(instance_id=instance_id)
    driver, other = TooLate(), Watched()
    async with opened(asking) as database:
        with driver.holding("stop"):
            async with working(database, driver, lease_seconds=600 if stops else 0.3):
                await until(lambda: driver.asked)
                if not stops:
                    operation.cancel()
                    await ended(database, operation)
        operation.cancel()
        async with working(database, other):
            after = await ended(database, operation)
    assert (after.state, states(after), other.asked) == ("SUCCEEDED", ["SUCCEEDED"], [])
    assert await state_of(asking, instance_id) == "STOPPED"


@pytest.mark.parametrize(("fails", "left"), [(False, "RUNNING"), (True, "STOPPED")])
async def test_an_instance_stopped_for_an_image_that_is_cancelled_is_started_or_told_as_stopped(
    asking: World, tenant: Tenant, *, fails: bool, left: str
) -> None:
    operation = await imaging(asking, tenant)
    driver = Watched()
    async with opened(asking) as database, working(database, driver, lease_seconds=0.3):
        with ExitStack() as failing:
            if fails:
                failing.enter_context(driver.failing("start", RuntimeError("broken")))
            with driver.holding("capture"):
                await until(lambda: len(driver.asked) == 2)
                operation.cancel()
                after = await ended(database, operation)
    assert [action for action, _ in driver.asked] == ["stop", "capture", "start"]
    assert (after.state, states(after)[0]) == ("CANCELLED", "SUCCEEDED" if fails else "CANCELLED")
    assert await state_of(asking, driver.asked[0][1]) == left


@pytest.mark.parametrize(("fails", "left"), [(False, "DELETED"), (True, "FAILED")])
async def test_instances_launched_before_the_cancellation_are_destroyed_or_stay_to_be_deleted(
    asking: World, tenant: Tenant, *, fails: bool, left: str
) -> None:
    operation, one, other = await two_launches(asking, tenant)
    driver = Stuck(other)
    async with opened(asking) as database, working(database, driver, lease_seconds=0.3):
        with ExitStack() as failing:
            if fails:
                failing.enter_context(driver.failing("destroy", RuntimeError("broken")))
            await until(lambda: len(driver.asked) == 2)
            operation.cancel()
            assert (await ended(database, operation)).state == "CANCELLED"
    assert driver.asked == [("launch", one), ("launch", other), ("destroy", one)]
    assert [await state_of(asking, each) for each in (one, other)] == [left, "DELETED"]


async def two_launches(world: World, tenant: Tenant) -> tuple[Operation[CreateInstanceResponse], str, str]:
    """An operation that launches two instances, with their ids."""
    operation = await asyncio.to_thread(
        tenant.create_instance,
        region_id=GUANGZHOU,
        zone_id=ZONES[GUANGZHOU],
        image_id=world.public_image().image_id,
        instance_type="S5.MEDIUM4",
        count=2,
    )
    one, other = operation.metadata.target_ids
    return operation, one, other


@pytest.mark.parametrize("was_done", [True, False])
async def test_what_a_worker_that_died_may_have_done_is_known_before_it_is_cancelled(
    asking: World, tenant: Tenant, *, was_done: bool
) -> None:
    operation, one, other = await two_launches(asking, tenant)
    driver = Watched()
    async with opened(asking) as database:
        async with database.connection() as connection:
            assert await operations.claim(connection, 0)
        operation.cancel()
        with nullcontext() if was_done else driver.failing("launch", RuntimeError("never begun")):
            async with working(database, driver):
                after = await ended(database, operation)
    assert driver.asked == [("launch", one), *([("destroy", one)] if was_done else [])]
    assert (after.state, states(after)) == ("CANCELLED", ["CANCELLED", "CANCELLED"])
    assert [await state_of(asking, each) for each in (one, other)] == ["DELETED", "DELETED"]


async def test_what_a_server_was_undoing_when_it_stopped_is_undone_by_the_next(
    asking: World, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation, one, other = await two_launches(asking, tenant)
    ending = asyncio.Event()

    async def hangs(*arguments: Any, **more: Any) -> bool:
        ending.set()
        await asyncio.Event().wait()
        return False

    driver, next_driver = Stuck(other), Watched()
    async with opened(asking) as database:
        with monkeypatch.context() as patch:
            patch.setattr(operations, "end", hangs)
            async with working(database, driver, lease_seconds=0.3):
                await until(lambda: len(driver.asked) == 2)
                operation.cancel()
                await ending.wait()
        async with working(database, next_driver):
            after = await ended(database, operation)
    assert (driver.asked[2:], next_driver.asked) == ([("destroy", one)], [])
    assert (after.state, states(after)) == ("CANCELLED", ["CANCELLED", "CANCELLED"])
    assert [await state_of(asking, each) for each in (one, other)] == ["DELETED", "DELETED"]


@pytest.mark.parametrize("refused", [False, True], ids=["cancelled", "refused"])
async def test_what_was_taken_back_when_the_database_failed_is_not_told_as_done(
    asking: World, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> None:
    operation, one, other = await two_launches(asking, tenant)
    failing, end = [Refusal(Reason.DATABASE_UNAVAILABLE)], operations.end

    async def fails(*arguments: Any, **more: Any) -> bool:
        if failing:
            raise failing.pop()
        return await end(*arguments, **more)

    monkeypatch.setattr(operations, "end", fails)
    driver = Stuck(other, TOO_LARGE if refused else None)
    async with opened(asking) as database, working(database, driver, lease_seconds=0.3):
        await until(lambda: len(driver.asked) >= 2)
        if not refused:
            operation.cancel()
        after = await ended(database, operation)
    assert driver.asked == [("launch", one), ("launch", other), ("destroy", one)]
    assert after.state == ("FAILED" if refused else "CANCELLED")
    assert states(after) == ["CANCELLED", "FAILED" if refused else "CANCELLED"]


async def test_what_was_done_when_the_database_failed_is_not_asked_for_again(
    asking: World, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation, one, other = await two_launches(asking, tenant)
    failing, save = [Refusal(Reason.DATABASE_UNAVAILABLE)], operations.save

    async def fails(*arguments: Any) -> bool:
        if failing:
            raise failing.pop()
        return await save(*arguments)

    monkeypatch.setattr(operations, "save", fails)
    driver = Watched()
    async with opened(asking) as database, working(database, driver):
        after = await ended(database, operation)
    assert driver.asked == [("launch", one), ("launch", other)]
    assert (after.state, after.attempts, after.epoch) == ("SUCCEEDED", 1, 2)


async def test_an_operation_outlives_the_loss_of_every_connection(asking: World, tenant: Tenant) -> None:
    operation, driver = import_image(tenant, "cut off"), Watched()
    cut = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'cunho-server'"
    )
    async with opened(asking) as database, opened(asking) as another, working(database, driver, lease_seconds=0.3):
        with driver.holding("import"):
            await until(lambda: driver.asked)
            assert await rows(asking, cut)
            for _ in range(5):  # before, while and after a worker extends its lease, which it does every 0.1 s
                await asyncio.sleep(0.03)
                await rows(asking, cut)
        assert (await ended(another, operation)).state == "SUCCEEDED"


# --- stopping


async def test_a_database_that_fails_counts_against_no_operation(
    asking: World, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation, failing = import_image(tenant, "patient"), [Refusal(Reason.DATABASE_UNAVAILABLE) for _ in range(8)]
    end = operations.end

    async def fails(*arguments: Any, **more: Any) -> bool:
        if failing:
            raise failing.pop()
        return await end(*arguments, **more)

    monkeypatch.setattr(operations, "end", fails)
    async with opened(asking) as database, working(database, Watched()):
        after = await ended(database, operation)
    assert (after.state, after.attempts, after.epoch) == ("SUCCEEDED", 1, 9)


async def test_a_server_that_stops_leaves_its_operation_to_others_at_once(asking: World, tenant: Tenant) -> None:
    operation = await imaging(asking, tenant)
    one, other = Watched(), Watched()
    async with opened(asking) as database:
        with one.holding("capture"):
            async with working(database, one, lease_seconds=600):
                await until(lambda: len(one.asked) == 2)
        async with working(database, other, lease_seconds=600):
            await until(lambda: other.asked)
            after = await ended(database, operation)
    assert [type(error) for error in one.failed] == [asyncio.CancelledError]
    assert [action for action, _ in other.asked] == ["capture", "start"]
    assert (after.state, after.attempts, after.epoch) == ("SUCCEEDED", 1, 2)


async def test_what_one_server_was_refused_the_next_does_not_ask_for_again(asking: World, tenant: Tenant) -> None:
    operation = await copying(asking, tenant)
    refused, made = operation.metadata.target_ids
    one, other = Watched(), Watched()
    async with opened(asking) as database:
        with one.failing("copy", TOO_LARGE, region_id=SHANGHAI), one.holding("copy", region_id=FRANKFURT):
            async with working(database, one, lease_seconds=600):
                await until(lambda: len(one.asked) == 2)
        # A server of 0.1.0 would make an image AVAILABLE whose step has FAILED, but asks again for one that is PENDING.
        assert states(await stored(database, operation)) == ["PENDING", "PENDING"]
        async with working(database, other, lease_seconds=600):
            after = await ended(database, operation)
    assert other.asked == [("copy", made)]
    assert (after.state, states(after)) == ("SUCCEEDED", ["FAILED", "SUCCEEDED"])
    query = "SELECT state FROM image WHERE image_id = $1"
    assert await rows(asking, query, refused) + await rows(asking, query, made) == [("FAILED",), ("AVAILABLE",)]


async def test_a_server_that_stops_while_it_claims_leaves_the_operation_to_others(
    asking: World, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation, claim = import_image(tenant, "claimed in vain"), operations.claim
    claimed, go_on = asyncio.Event(), asyncio.Event()

    async def claiming(connection: Connection, lease_seconds: float) -> model.Operation | None:
        found = await claim(connection, lease_seconds)
        claimed.set()
        await go_on.wait()
        return found

    async with opened(asking) as database:
        monkeypatch.setattr(operations, "claim", claiming)
        driver = Watched()
        task = asyncio.create_task(Work(database, driver, workers=1, lease_seconds=600).run())
        await claimed.wait()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        await stopped(task)
        monkeypatch.undo()
        left = await stored(database, operation)
        assert (left.attempts, driver.asked) == (0, [])
        async with working(database, driver):
            assert (await ended(database, operation)).attempts == 1


async def test_workers_stop_even_if_the_database_fails_on_the_way(
    asking: World, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation, script, ending = import_image(tenant, "rolled back"), Connection.script, asyncio.Event()

    async def end_never(*arguments: Any, **named: Any) -> None:
        ending.set()
        await asyncio.Event().wait()

    async def no_rollback(self: Connection, sql: str) -> None:
        if sql == "ROLLBACK":
            raise Refusal(Reason.DATABASE_UNAVAILABLE)
        await script(self, sql)

    async with opened(asking) as database:
        with monkeypatch.context() as patched:
            patched.setattr(operations, "end", end_never)
            patched.setattr(Connection, "script", no_rollback)
            task = asyncio.create_task(Work(database, Watched(), workers=1, lease_seconds=600).run())
            await ending.wait()
            await stopped(task)
        await run_out(asking, operation)
        async with working(database, Watched()):
            await ended(database, operation)


# --- waiting


async def test_a_waiter_hears_of_an_end_that_another_server_brought_about(asking: World, tenant: Tenant) -> None:
    operation = import_image(tenant, "ended elsewhere")
    operation_id = operation.name.removeprefix("operations/")
    async with opened(asking) as database, working(database, Watched(), workers=0) as here:
        waiting = asyncio.create_task(here.wait(operation_id, 10))
        async with working(database, Watched()):
            heard = await waiting
        assert heard == await stored(database, operation)
        assert here._waiting == {}


async def test_a_waiter_whose_time_is_up_is_told_nothing_and_forgotten(asking: World, tenant: Tenant) -> None:
    async with opened(asking) as database:
        idle = Work(database, Watched(), workers=0, lease_seconds=10)
        assert await idle.wait("op-00000000", 0.05) is None
        assert idle._waiting == {}


async def test_a_server_that_stops_lets_nobody_wait(asking: World, tenant: Tenant) -> None:
    async with opened(asking) as database:
        idle = Work(database, Watched(), workers=0, lease_seconds=10)
        waiting = [asyncio.create_task(idle.wait("op-00000000", 60)) for _ in range(3)]
        await until(lambda: idle._waiting)
        async with asyncio.timeout(20):
            idle.dismiss()
            assert await asyncio.gather(*waiting, idle.wait("op-00000000", 60)) == [None] * 4
        assert idle._waiting == {}


# --- request ids


async def test_answers_to_request_ids_are_forgotten_after_a_day(asking: World, tenant: Tenant) -> None:
    await rows(
        asking,
        "INSERT INTO request_log (account_id, method, request_id, fingerprint, create_time) "
        "SELECT $1, 'ShareImage', hours, '', now() - make_interval(hours => hours) FROM unnest($2::int[]) AS hours",
        tenant.account_id,
        [23, 25],
    )
    kept = "SELECT request_id FROM request_log WHERE account_id = $1 ORDER BY request_id"
    async with opened(asking) as database, working(database, Watched(), workers=0), asyncio.timeout(5):
        while len(found := await rows(asking, kept, tenant.account_id)) == 2:
            await asyncio.sleep(0.005)
    assert found == [("23",)]
