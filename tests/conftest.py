"""What tests of several folders use: a real PostgreSQL for the run, and a whole service for each file."""

import os
import signal
from collections.abc import Iterator

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # before gRPC is imported: tests start programs while calls are under way

import hypothesis
import pytest
from tests import world as worlds
from tests.robustness.scale import LONG
from tests.world import Postgres, World

# Started in the background by a shell, this process ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")


#: No test waits longer: one that hangs fails, and the others go on.
_SECONDS_MAX = 300


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Ends a test that hangs."""

    def end(number: int, frame: object) -> None:
        raise TimeoutError(f"the test hangs: it has not ended after {_SECONDS_MAX} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(0 if LONG else _SECONDS_MAX)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for this run of the tests."""
    with worlds.postgres() as started:
        yield started


@pytest.fixture(scope="module")
def world(postgres: Postgres) -> Iterator[World]:
    """A service for this file: tests keep apart by accounts of their own."""
    with worlds.world(postgres) as running:
        yield running
