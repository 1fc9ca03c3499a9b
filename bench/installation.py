"""What is measured: PostgreSQL with its data, and a real server over it, each kept on its core."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tests.server_process import Server, postgres_process, serving

from bench import data, machine
from bench.calls import Scene
from bench.child import Child, child
from cunho_server import keys, opening
from cunho_server.settings import Settings
from cunho_server.tokens import Signer
from cunho_storage import embedded

#: One process, so that a call's cost has one place; nobody carries out operations, so that it is the call's alone.
_SETTINGS: dict[str, Any] = {"PROCESSES": 1, "WORKERS": 0, "CALL_SECONDS_MAX": 600}


class Cores(NamedTuple):
    """Where processes run; None for anywhere."""

    #: What answers: a server, an echo, or who runs bare statements.
    server: int | None
    #: PostgreSQL and the load.
    other: int | None


class Installation(NamedTuple):
    """A server over a filled database, and the processes that measure it."""

    scene: Scene
    images: int
    server: Server
    #: PostgreSQL's first process.
    postgresql: int
    cores: Cores
    load: Child
    statements: Child

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory of the server's processes, and of PostgreSQL's what each has for itself."""
        (process,) = self.server.processes()
        return {
            "process": machine.resident_bytes(process),
            "supervisor": machine.resident_bytes(self.server.process.pid),
            "PostgreSQL": sum(map(machine.proportional_bytes, machine.family(self.postgresql))),
        }


@contextmanager
def installed(images: int, accounts: int) -> Iterator[Installation]:
    """A server that answers, over a database of its own with so many images and accounts."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="cunho-bench-"))
        stack.callback(shutil.rmtree, folder)
        folder.chmod(0o755)
        postgresql = embedded.start(folder / "data")
        stack.callback(postgresql.stop)
        asyncio.run(_fill(folder / "data", postgresql.dsn, images, accounts))
        server = stack.enter_context(serving(folder / "data", DATABASE_URL=postgresql.dsn, **_SETTINGS))
        cores = _pinned(server, folder / "data")
        load = stack.enter_context(child("load", cores.other))
        statements = stack.enter_context(child("statements", cores.server))
        scene = Scene(postgresql.dsn, server.port, _signer(folder / "data"))
        stack.callback(scene.close)
        asyncio.run(scene.load())
        yield Installation(scene, images, server, postgres_process(folder / "data"), cores, load, statements)


async def _fill(folder: Path, dsn: str, images: int, accounts: int) -> None:
    async with opening.opened(Settings.model_validate({"data_dir": folder, "database_url": dsn}), dsn):
        pass
    await data.seed(dsn, images, accounts)


def _pinned(server: Server, folder: Path) -> Cores:
    cores = machine.cores()
    if len(cores) < 2:
        return Cores(None, None)
    chosen = Cores(cores[0], cores[1])
    for number in machine.family(server.process.pid):
        machine.pinned(number, chosen.server)
    for number in machine.family(postgres_process(folder)):
        machine.pinned(number, chosen.other)
    return chosen


def _signer(folder: Path) -> Signer:
    return Signer(keys.private_key(folder / "development-key.pem"), Settings.model_validate({}))


class Start(NamedTuple):
    """How long a server takes until it answers calls, and the CPU time of its processes till then."""

    seconds: float
    cpu_seconds: float


def start(installation: Installation, *, rounds: int) -> Start:
    """Another server over the same database."""
    starts = []
    for _ in range(rounds):
        begin = time.monotonic()
        with serving(installation.server.data_dir, DATABASE_URL=installation.scene.dsn, **_SETTINGS) as server:
            starts.append(Start(time.monotonic() - begin, machine.cpu_seconds(server.process.pid)))
    return Start(*map(median, zip(*starts, strict=True)))
