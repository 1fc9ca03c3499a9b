"""No call takes longer than it may, and what it had begun in the database ends with it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import grpc
import pytest
from google.longrunning import operations_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode
from tests import world as worlds
from tests.end_to_end.requests_of import BY_NAME, Answer, call
from tests.end_to_end.steps import Held, import_image, until
from tests.world import Postgres, World

from cunho import v1 as pb

GET, UPDATE, WAIT = (BY_NAME[name].path for name in ("GetImage", "UpdateImage", "WaitOperation"))
RUNNING = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND pid <> "
RUNNING += "pg_backend_pid() AND backend_type = 'client backend'"


@pytest.fixture(scope="module")
def driver() -> Held:
    return Held()


@pytest.fixture(scope="module")
def world(postgres: Postgres, driver: Held) -> Iterator[World]:
    with worlds.world(postgres, driver, call_seconds_max=1, workers=1) as running:
        yield running


def send(world: World, path: str, request: Any, account_id: str, timeout: float = 10) -> Answer:
    with grpc.insecure_channel(world.address, [("grpc.enable_retries", 0)]) as channel:
        return call(channel, path, request.SerializeToString(), world.token(account_id), timeout=timeout)


@contextmanager
def locked(world: World, table: str) -> Iterator[None]:
    """Nobody reads or writes the table."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(world.dsn))
        try:
            runner.run(connection.execute(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
            yield
        finally:
            runner.run(connection.close())


def running(world: World) -> list[str]:
    """The statements of the server that PostgreSQL is at."""
    return [query for (query,) in world.sql(RUNNING) if "image" in query]


def test_a_call_has_the_time_of_the_settings_whatever_deadline_it_came_with(world: World) -> None:
    with locked(world, "image"):
        refused = send(world, GET, pb.GetImageRequest(image_id="img-00000000"), "acme", timeout=60)
        assert (refused.code, refused.reason) == (StatusCode.DEADLINE_EXCEEDED, "CALL_TIMED_OUT")
        info = ErrorInfo()
        assert any(each.Unpack(info) for each in refused.status.details)
        assert dict(info.metadata) == {"seconds": "1"}
        until(lambda: not running(world))
    assert send(world, GET, pb.GetImageRequest(image_id="img-00000000"), "acme").reason == "IMAGE_NOT_FOUND"


@pytest.mark.parametrize("path", [GET, UPDATE])
def test_what_a_caller_gives_up_is_ended_in_the_database(world: World, path: str) -> None:
    tenant = world.tenant()
    update = pb.UpdateImageRequest(image=pb.Image(image_id="img-00000000", name="renamed"))
    update.update_mask.paths.append("name")
    requests: dict[str, Any] = {GET: pb.GetImageRequest(image_id="img-00000000"), UPDATE: update}
    with locked(world, "image"):
        with grpc.insecure_channel(world.address) as channel:
            sent = (("authorization", f"Bearer {world.token(tenant.account_id)}"),)
            method: Any = channel.unary_unary(path)
            given_up = method.future(requests[path].SerializeToString(), timeout=10, metadata=sent)
            until(lambda: running(world))
            given_up.cancel()
            until(lambda: not running(world))
        until(lambda: world.service.admission.calls == 0)
    assert world.database.usage.in_use == 0
    assert send(world, path, requests[path], tenant.account_id).reason == "IMAGE_NOT_FOUND"


def test_a_wait_ends_in_time_and_says_how_far_the_operation_is(world: World, driver: Held) -> None:
    tenant = world.tenant()
    with driver.holding("import"):
        operation = import_image(tenant, "stock")
        wait = operations_pb2.WaitOperationRequest(name=operation.name)
        wait.timeout.FromSeconds(60)
        answer = send(world, WAIT, wait, tenant.account_id, timeout=60)
        assert answer.code is StatusCode.OK
        assert not operations_pb2.Operation.FromString(answer.body).done
    operation.result(timeout_seconds=20)
