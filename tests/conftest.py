"""What tests of several folders use: a real PostgreSQL for the run, and a whole service for each file."""

import os
import signal
from collections.abc import Iterator

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # before gRPC is imported: tests start programs while calls are under way

import hypothesis
import pytest
from tests import world as worlds
from tests.world import Postgres, World

# Started in the background by a shell, this process ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")


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
