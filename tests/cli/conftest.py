"""The command as people run it: on a real service, by its words, with what it prints and its exit code."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests import world as worlds
from tests.end_to_end.steps import STOCK_URI, Held
from tests.world import GUANGZHOU, Postgres, Tenant, World

from cunho.cli import main

COMMAND = (sys.executable, "-m", "cunho.cli")

IMPORT = (
    *("images", "import", STOCK_URI, "--region", GUANGZHOU, "--os", "linux", "--platform", "debian"),
    *("--arch", "x86_64", "--size", "1.5GiB", "--min-disk", "10GiB"),
)


@dataclass(frozen=True)
class Ran:
    """What a run left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output, which is JSON."""
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        """The words of each line of the output, the heading's first."""
        return [line.split() for line in self.out.splitlines()]


class Run(Protocol):
    """Runs the command with these words and requires this exit code."""

    def __call__(self, *words: str, caller: Tenant | None = None, code: int = 0) -> Ran: ...


@pytest.fixture(scope="session")
def driver() -> Held:
    """The compute driver of the service."""
    return Held()


@pytest.fixture(scope="session")
def world(postgres: Postgres, driver: Held) -> Iterator[World]:
    """A service for all tests of the command: they keep apart by accounts of their own."""
    with worlds.world(postgres, driver=driver) as running:
        yield running


@pytest.fixture
def tenant(world: World) -> Tenant:
    """A new account."""
    return world.tenant()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of whoever runs the tests changes what the command does."""
    for name in [name for name in os.environ if name.startswith("CUNHO_")]:
        monkeypatch.delenv(name)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def as_caller(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[Tenant], None]:
    """Sets the variables that name the service and the caller."""

    def set_variables(caller: Tenant) -> None:
        monkeypatch.setenv("CUNHO_ADDRESS", world.address)
        monkeypatch.setenv("CUNHO_TOKEN", world.token(caller.account_id))

    return set_variables


@pytest.fixture
def run(tenant: Tenant, as_caller: Callable[[Tenant], None], capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command within this process, as the test's tenant if no caller is named."""

    def run(*words: str, caller: Tenant | None = None, code: int = 0) -> Ran:
        as_caller(caller or tenant)
        capsys.readouterr()
        returned = main(words)
        out, err = capsys.readouterr()
        assert returned == code, f"{words}\n{out}\n{err}"
        return Ran(returned, out, err)

    return run


@pytest.fixture
def started(tenant: Tenant, as_caller: Callable[[Tenant], None]) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Starts the command as a process of its own, which does not outlive the test."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*words: str, **more: Any) -> "subprocess.Popen[bytes]":
        as_caller(tenant)
        # readline, if anything imports it, puts COLUMNS and LINES into the environment behind the back of os.environ
        process: Any = subprocess.Popen([*COMMAND, *words], env=dict(os.environ), **more)
        running.append(process)
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


@pytest.fixture
def token_file(world: World, tenant: Tenant, tmp_path: Path) -> Path:
    """A file with the tenant's token."""
    path = tmp_path / "token"
    path.write_text(world.token(tenant.account_id) + "\n")
    return path
