"""What lasts as long as a process goes on after a bug. What each of it does is tested elsewhere."""

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests import world as worlds
from tests.end_to_end.steps import until
from tests.world import Postgres, World

from cunho_server import app, healthy, memory, metrics, self_probe
from cunho_server.healthy import Health
from cunho_server.identity import Identity
from cunho_server.work import Work
from cunho_storage.database import Database

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(healthy, "_LOOK_SECONDS", 0.01)


def failing(follow: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """The same with a bug."""

    @wraps(follow)
    async def fail(*arguments: object) -> None:
        raise RuntimeError("a bug in what lasts")

    return fail


def tells(world: World, status: int) -> bool:
    """Whether the health service answers so."""
    with grpc.insecure_channel(world.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return bool(stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == status)


def test_health_follows_the_database_again_after_a_bug(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def away(*arguments: object) -> bool:
        return False

    for answers, told in ((away, NOT_SERVING), (Database.answers, SERVING)):
        caplog.clear()
        monkeypatch.setattr(Database, "answers", failing(answers))
        until(lambda: "bug in cunho_server.healthy.Health.follow, which begins again" in caplog.text)
        monkeypatch.setattr(Database, "answers", answers)
        until(partial(tells, world, told))
    assert "a bug in what lasts" in caplog.text


def test_whatever_lasts_begins_again_after_a_bug_and_the_log_says_so(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lasting = [
        (Work, "run"),
        (Health, "follow"),
        (Identity, "keep_current"),
        (metrics, "follow"),
        (memory, "give_back"),
        (self_probe, "follow"),
    ]
    for owner, name in lasting:
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    with worlds.world(postgres) as running:
        until(lambda: all(caplog.text.count(f"{name}, which begins again") > 4 for _, name in lasting))
        assert next(running.operator.list_regions())
    assert len({record.getMessage() for record in caplog.records if "begins again" in record.getMessage()}) == 6
