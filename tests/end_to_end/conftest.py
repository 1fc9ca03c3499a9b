"""What the tests of the rules share: a service whose compute driver can be held back and made to fail."""

from collections.abc import Iterator

import pytest
from tests import world as worlds
from tests.end_to_end.steps import Held
from tests.world import Postgres, World


@pytest.fixture(scope="module")
def driver() -> Held:
    """The compute driver of the file's service."""
    return Held()


@pytest.fixture(scope="module")
def world(postgres: Postgres, driver: Held) -> Iterator[World]:
    """A service for this file: tests keep apart by accounts of their own."""
    with worlds.world(postgres, driver=driver) as running:
        yield running
