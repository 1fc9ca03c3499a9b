"""Carries out operations: leased, fenced, resumed after a crash, and undone if cancelled or given up.

What the driver has done is never told as undone: it takes it back, or the record says that it stands.
Every step is idempotent. An operation's end and its effect are one transaction, which only the holder of the newest
lease can commit. Locks are taken in the order of storage: account_region, image, instance, operation.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

from google.protobuf import any_pb2
from google.protobuf.message import Message

from cunho import v1 as pb
from cunho_rules.model import Caller, InstanceState, Operation, OperationState, Role
from cunho_rules.refusals import Reason, Refusal
from cunho_server import messages, status
from cunho_storage import accounts, images, instances, operations, requests
from cunho_storage.database import Conflict, Connection, Database

log = logging.getLogger(__name__)

#: Failures after which an operation is given up.
_ATTEMPTS_MAX = 5

#: How often a server looks for operations, and for the end of those waited for, that no wake-up told it of.
_LOOK_SECONDS = 0.5

#: Pause after the first failure of an operation, doubled with every one, and the longest pause.
_PAUSE_SECONDS, _PAUSE_SECONDS_MAX = 0.1, 60

_HOUR_SECONDS = 3600

_Steps: TypeAlias = Sequence[Mapping[str, Any]]

#: Methods each of whose steps stands for itself: one that fails keeps no other from being done.
_APART = ("CopyImage",)

#: By which action the driver takes back what it did. Of images, what is recorded is all there is to take back.
_BACK = {"stop": "start", "launch": "destroy"}


class Driver(Protocol):
    """What makes machines and images real. Actions are idempotent: after a crash they are asked for again."""

    async def act(self, action: str, region_id: str, target_id: str) -> None:
        """Does the action to the target: launch, start, stop, reboot, install or destroy an instance; capture, import
        or copy an image. A Refusal raised ends the operation, but of a copy only that to the region; anything else
        raised is tried again. What it returns from is done, what it raises from is not: once cancelled, it does either,
        when nothing of the action goes on any more."""


class _Lost(Exception):
    """Another worker has the lease: whatever this one did not commit is not done."""


def step(name: str, region_id: str, target_id: str = "", *, refusal: Refusal | None = None) -> dict[str, Any]:
    """A step of a new operation; with a refusal, one that failed before it began."""
    return {
        "name": name,
        "region_id": region_id,
        "target_id": target_id,
        "state": "FAILED" if refusal else "PENDING",
        "error": messages.refusal_as_json(refusal) if refusal else None,
    }


class Work:
    """The workers of one process, and those who wait for operations.

    Args:
        workers: operations carried out at once.
        lease_seconds: after which an operation whose worker fell silent is taken over.
    """

    def __init__(self, database: Database, driver: Driver, *, workers: int, lease_seconds: float) -> None:
        self._database = database
        self._driver = driver
        self._workers = workers
        self._lease_seconds = lease_seconds
        self._news = asyncio.Semaphore(0)
        self._waiting: dict[str, set[asyncio.Future[Operation | None]]] = {}
        self._dismissed = False
        self._ended = asyncio.Event()

    def wake(self) -> None:
        """Says that there is a new operation."""
        self._news.release()

    async def run(self) -> None:
        """Carries out operations until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._workers):
                tasks.create_task(self._lasting(self._take_up, _LOOK_SECONDS))
            tasks.create_task(self._lasting(self._tell_waiters, _LOOK_SECONDS))
            tasks.create_task(self._lasting(self._forget, _HOUR_SECONDS))

    async def wait(self, operation_id: str, timeout_seconds: float) -> Operation | None:
        """The operation once it has ended, or None when the time is up. A waiter costs a future, no query."""
        if self._dismissed:
            return None
        future: asyncio.Future[Operation | None] = asyncio.get_running_loop().create_future()
        waiters = self._waiting.setdefault(operation_id, set())
        waiters.add(future)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await future
        except TimeoutError:
            return None
        finally:
            waiters.discard(future)
            if not waiters:
                self._waiting.pop(operation_id, None)

    def dismiss(self) -> None:
        """Says that the time of everybody who waits, or will, is up."""
        self._dismissed = True
        for future in [future for waiters in self._waiting.values() for future in waiters if not future.done()]:
            future.set_result(None)

    # --- the loops

    async def _lasting(self, once: Callable[[], Awaitable[None]], pause_seconds: float) -> None:
        """Runs `once` until cancelled; a lost database is waited out, and so is a bug, which is logged."""
        task = asyncio.current_task()
        assert task is not None
        while not task.cancelling():  # an error on the way out can take the place of the cancellation
            try:
                await once()
            except (Refusal, Conflict):  # the database is away, which is logged where it is found, or busy
                await asyncio.sleep(_LOOK_SECONDS)
            except Exception:
                log.exception("bug in %s", once.__name__)
                await asyncio.sleep(pause_seconds)

    async def _take_up(self) -> None:
        claiming = asyncio.ensure_future(self._claim())
        try:
            operation = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            if claimed := await claiming:
                await self._give_back(claimed, messages.steps(claimed))
            raise
        if operation is not None:
            await self._carry_out(operation)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._news.acquire()

    async def _claim(self) -> Operation | None:
        async with self._database.connection() as connection:
            return await operations.claim(connection, self._lease_seconds)

    async def _tell_waiters(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._ended.wait()
        self._ended.clear()
        if not self._waiting:
            return
        async with self._database.connection() as connection:
            ended = await operations.ended(connection, self._waiting)
        for operation in ended:
            for future in self._waiting.get(operation.operation_id, ()):
                if not future.done():
                    future.set_result(operation)

    async def _forget(self) -> None:
        async with self._database.connection() as connection:
            await requests.forget(connection)
        await asyncio.sleep(_HOUR_SECONDS)

    # --- one operation

    async def _carry_out(self, operation: Operation) -> None:
        steps = messages.steps(operation)
        try:
            refusal = await self._refused(operation, steps)
            if refusal is None:
                await self._finish(operation, steps)
            else:
                await self._leased(operation, self._take_back(steps), to_the_end=True)
                await self._undo(operation, steps, refusal)
            self._ended.set()
        except _Lost:
            log.warning("operation %s: another worker has taken it over", operation.operation_id)
        except asyncio.CancelledError:
            await self._give_back(operation, steps)
            raise
        except (Refusal, Conflict):  # of the database: its fault, which counts against no operation
            await self._give_back(operation, steps, seconds=_LOOK_SECONDS)
        except Exception as error:
            log.warning("operation %s, attempt %d", operation.operation_id, operation.attempts, exc_info=error)
            await self._pause(operation, min(_PAUSE_SECONDS * 2**operation.attempts, _PAUSE_SECONDS_MAX))

    async def _refused(self, operation: Operation, steps: list[dict[str, Any]]) -> Refusal | None:
        """Does what is left of the operation; why it must be undone, or None once all of it is done."""
        cancelled = operation.cancel_requested
        if cancelled and operation.attempts > 1:
            await self._leased(operation, self._ask_again(steps))
        elif not cancelled and operation.attempts > _ATTEMPTS_MAX:
            _give_up(operation, steps)
        elif not cancelled:
            cancelled = await self._leased(operation, self._do(operation, steps))
        # An operation that is cancelled too late, when all of it is done, has succeeded.
        return _cancelled(operation) if cancelled and _left(steps) else _failure(operation, steps)

    async def _leased(self, operation: Operation, work: Coroutine[Any, Any, None], *, to_the_end: bool = False) -> bool:
        """Keeps the operation leased while something is done for it; whether that was broken off, to cancel it.

        Args:
            to_the_end: whether it goes on if the operation is to be cancelled.
        """
        doing = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({doing}, timeout=min(1, self._lease_seconds / 3)))[0]:
                async with self._database.connection() as connection:
                    cancelled = await operations.extend(connection, operation, self._lease_seconds)
                if cancelled is None:
                    raise _Lost
                if cancelled and not to_the_end:
                    return True
            if doing.cancelled():
                raise RuntimeError("the driver cancelled itself")  # which must not pass for the end of this worker
            doing.result()
            return False
        finally:
            doing.cancel()
            # Nothing is undone, nor left to others, while the driver is still at it.
            await asyncio.gather(doing, return_exceptions=True)

    async def _do(self, operation: Operation, steps: list[dict[str, Any]]) -> None:
        """Does what is left: up to a step that fails, or all that stand apart; raises why one is to be tried again."""
        if operation.method not in _APART and _failure(operation, steps):  # of a worker before
            return
        errors = []
        for each in _left(steps):
            # A driver that cancels itself has failed as well, and does not cancel this.
            (error,) = await asyncio.gather(self._act(each), return_exceptions=True)
            errors += [error] if error else []
            if each["state"] != "SUCCEEDED" and operation.method not in _APART:
                break
            if _left(steps):  # else it is stored with the end
                await self._save(operation, steps)
        if errors:
            raise errors[0]

    async def _ask_again(self, steps: list[dict[str, Any]]) -> None:
        """Makes known whether the step was done that a worker which died, or lost the database, may have done."""
        for each in _left(steps)[:1]:
            await asyncio.gather(self._act(each), return_exceptions=True)

    async def _act(self, step: dict[str, Any]) -> None:
        try:
            await self._driver.act(step["name"], step["region_id"], step["target_id"])
            step["state"] = "SUCCEEDED"
        except Refusal as refusal:
            _fail(step, refusal)

    async def _take_back(self, steps: list[dict[str, Any]]) -> None:
        """Has the driver take back what it did, the last first; what it cannot stays SUCCEEDED."""
        for each in reversed(steps):
            if each["state"] != "SUCCEEDED" or each["name"] not in _BACK:
                continue
            taking = self._driver.act(_BACK[each["name"]], each["region_id"], each["target_id"])
            (error,) = await asyncio.gather(taking, return_exceptions=True)
            if error:
                log.warning("%s of %s is not taken back", each["name"], each["target_id"], exc_info=error)
            else:
                each["state"] = "CANCELLED"

    async def _save(self, operation: Operation, steps: _Steps) -> None:
        async with self._database.connection() as connection:
            if not await operations.save(connection, operation, [messages.step_to_store(each) for each in steps]):
                raise _Lost

    async def _pause(self, operation: Operation, seconds: float) -> None:
        """Leaves the operation to be claimed after some seconds; if that fails, its lease runs out by itself."""
        with suppress(Refusal, Conflict):
            async with self._database.connection() as connection:
                await operations.extend(connection, operation, seconds)

    async def _give_back(self, operation: Operation, steps: _Steps, *, seconds: float = 0) -> None:
        """Leaves the operation to be claimed after some seconds; if that fails, its lease runs out by itself."""
        stored = [messages.step_to_store(each) for each in steps]
        with suppress(Refusal, Conflict):
            async with self._database.connection() as connection:
                await operations.give_back(connection, operation, stored, seconds=seconds)

    async def _finish(self, operation: Operation, steps: list[dict[str, Any]]) -> None:
        async with self._database.transaction() as connection:
            response = any_pb2.Any()
            response.Pack(await _FINISH[operation.method](connection, operation, steps))
            if not await operations.end(
                connection,
                operation,
                state=OperationState.SUCCEEDED,
                steps=steps,
                response=response.SerializeToString(),
            ):
                raise _Lost

    async def _undo(self, operation: Operation, steps: list[dict[str, Any]], refusal: Refusal) -> None:
        cancelled = refusal.reason is Reason.OPERATION_CANCELLED
        for each in _left(steps):
            each["state"] = "CANCELLED"
        async with self._database.transaction() as connection:
            await _UNDO[operation.method](connection, operation, steps, refusal)
            if not await operations.end(
                connection,
                operation,
                state=OperationState.CANCELLED if cancelled else OperationState.FAILED,
                steps=steps,
                error=status.status(refusal).SerializeToString(),
            ):
                raise _Lost


def _cancelled(operation: Operation) -> Refusal:
    return Refusal(Reason.OPERATION_CANCELLED, operation=messages.operation_name(operation.operation_id))


def _left(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in steps if each["state"] == "PENDING"]


def _give_up(operation: Operation, steps: Sequence[dict[str, Any]]) -> None:
    """Fails the step that was tried, or all that stand apart, which were tried as often."""
    name = messages.operation_name(operation.operation_id)
    refusal = Refusal(Reason.OPERATION_FAILED, operation=name, attempts=operation.attempts - 1)
    left = _left(steps)
    for each in left if operation.method in _APART else left[:1]:
        _fail(each, refusal)


def _fail(step: dict[str, Any], refusal: Refusal) -> None:
    step |= {"state": "FAILED", "error": messages.refusal_as_json(refusal)}


def _failure(operation: Operation, steps: _Steps) -> Refusal | None:
    """Why the operation has failed; None if it has not, nor if of steps that stand apart one was done."""
    if operation.method in _APART and any(each["state"] == "SUCCEEDED" for each in steps):
        return None
    return next((_error(each) for each in steps if each["target_id"] and each["state"] == "FAILED"), None)


def _error(step: Mapping[str, Any]) -> Refusal:
    return messages.refusal_of(step["error"])


# --- effects


async def _finished(connection: Connection, operation: Operation, image_id: str) -> pb.Image:
    await images.finish(connection, image_id)
    image = await images.get(connection, image_id, operation.account_id)
    assert image is not None
    return messages.image(Caller(operation.account_id, Role.ACCOUNT, operation.account_id), image)


async def _finish_image(connection: Connection, operation: Operation, steps: _Steps) -> Message:
    (image_id,) = operation.target_ids
    image = await _finished(connection, operation, image_id)
    if instance_id := operation.input.get("instance_id"):
        await instances.end(connection, [instance_id], operation.input["instance_state"], operation.operation_id)
    return image


async def _finish_copies(connection: Connection, operation: Operation, steps: _Steps) -> Message:
    made = _made(operation, steps)
    await _free_places(connection, operation, [each for each in made if each["state"] == "FAILED"])
    copies = {}
    for each in made:
        if each["state"] == "FAILED":
            await _fail_image(connection, each, _error(each))
        else:
            copies[each["target_id"]] = await _finished(connection, operation, each["target_id"])
    return pb.CopyImageResponse(
        results=[
            pb.CopyImageResponse.Result(region_id=each["region_id"], image=copies[each["target_id"]])
            if each["target_id"] in copies
            else pb.CopyImageResponse.Result(region_id=each["region_id"], error=status.status(_error(each)))
            for each in steps
        ]
    )


async def _finish_launch(connection: Connection, operation: Operation, steps: _Steps) -> Message:
    await instances.end(connection, operation.target_ids, InstanceState.RUNNING, operation.operation_id)
    launched = await instances.get_some(connection, operation.target_ids)
    return pb.CreateInstanceResponse(
        instances=map(messages.instance, launched), warnings=[pb.Warning(**each) for each in operation.warnings]
    )


async def _finish_instance(connection: Connection, operation: Operation, steps: _Steps) -> Message:
    (instance_id,) = operation.target_ids
    if "image_id" in operation.input:
        await instances.reinstall(connection, instance_id, operation.input)
    await instances.end(connection, [instance_id], operation.input["to_state"], operation.operation_id)
    (instance,) = await instances.get_some(connection, [instance_id])
    return messages.instance(instance)


async def _undo_images(connection: Connection, operation: Operation, steps: _Steps, refusal: Refusal) -> None:
    """Frees the places. A cancelled image is gone; a failed one stays, and says why."""
    made = _made(operation, steps)
    await _free_places(connection, operation, made)
    for each in made:
        if refusal.reason is Reason.OPERATION_CANCELLED:
            await images.abandon(connection, each["target_id"])
        else:
            await _fail_image(connection, each, _error(each) if each["state"] == "FAILED" else refusal)
    if instance_id := operation.input.get("instance_id"):
        state = InstanceState.STOPPED if _standing(steps, "stop") else operation.input["instance_state"]
        await instances.end(connection, [instance_id], state, operation.operation_id)


def _standing(steps: _Steps, name: str) -> list[str]:
    """The targets of steps that were done and could not be taken back."""
    return [each["target_id"] for each in steps if each["name"] == name and each["state"] == "SUCCEEDED"]


def _made(operation: Operation, steps: _Steps) -> _Steps:
    """The steps that make images, in the order in which those are locked."""
    made = [each for each in steps if each["target_id"] in operation.target_ids]
    return sorted(made, key=lambda each: each["target_id"])


async def _free_places(connection: Connection, operation: Operation, made: _Steps) -> None:
    for region_id in sorted(each["region_id"] for each in made):
        await accounts.free_place(connection, operation.account_id, region_id)


async def _fail_image(connection: Connection, step: Mapping[str, Any], why: Refusal) -> None:
    await images.fail(connection, step["target_id"], why.reason, str(why))


async def _undo_launch(connection: Connection, operation: Operation, steps: _Steps, refusal: Refusal) -> None:
    """A cancelled instance is gone, unless it was launched and could not be destroyed: as one that failed it stays."""
    left, why = operation.target_ids, str(refusal)
    if refusal.reason is Reason.OPERATION_CANCELLED:
        left, why = _standing(steps, "launch"), "its launch was cancelled, but it could not be destroyed"
        gone = [instance_id for instance_id in operation.target_ids if instance_id not in left]
        await instances.end(connection, gone, InstanceState.DELETED, operation.operation_id)
    await instances.fail(connection, left, why, operation.operation_id)


async def _undo_instance(connection: Connection, operation: Operation, steps: _Steps, refusal: Refusal) -> None:
    await instances.end(connection, operation.target_ids, operation.input["from_state"], operation.operation_id)


_INSTANCE_METHODS = ("StartInstance", "StopInstance", "RebootInstance", "ReinstallInstance", "DeleteInstance")

_FINISH = {
    "CreateImage": _finish_image,
    "ImportImage": _finish_image,
    "CopyImage": _finish_copies,
    "CreateInstance": _finish_launch,
    **dict.fromkeys(_INSTANCE_METHODS, _finish_instance),
}

_UNDO = {
    "CreateImage": _undo_images,
    "ImportImage": _undo_images,
    "CopyImage": _undo_images,
    "CreateInstance": _undo_launch,
    **dict.fromkeys(_INSTANCE_METHODS, _undo_instance),
}
