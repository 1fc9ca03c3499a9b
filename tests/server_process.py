"""A server as processes of its own, over a data folder of its own: what a test can do to it from outside."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.end_to_end.steps import until
from tests.world import CATALOG, lay

from cunho import CHANNEL_OPTIONS, Client
from cunho_server import keys
from cunho_server.settings import Settings
from cunho_server.tokens import Signer

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Server:
    """A server's process over a data folder.

    Args:
        host: what it listens on.
        port: Default: a free one.
        python: the interpreter of the environment that it is installed in.
        stdout: where what it prints goes.
        settings: by the names of their variables without the prefix.
    """

    def __init__(
        self,
        data_dir: Path,
        host: str = "127.0.0.1",
        *,
        port: int = 0,
        python: Path = Path(sys.executable),
        stdout: int | IO[str] = subprocess.DEVNULL,
        **settings: Any,
    ) -> None:
        self.data_dir, self._reserved = data_dir, reserved_port(port)
        self.port: int = self._reserved.getsockname()[1]
        own = {"DATA_DIR": data_dir, "ADDRESS": f"{host}:{self.port}", "CATALOG": CATALOG}
        if python == Path(sys.executable):  # releases may not have the settings
            own |= {"PROCESSES": 1, "CALLS_PER_SECOND_PER_ACCOUNT_MIN": 1_000_000}
        given: dict[str, object] = own | settings
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CUNHO_")}
        environment |= {f"CUNHO_{name}": str(value) for name, value in given.items()}
        if "DATABASE_URL" not in settings:
            lay(data_dir)
        self._log = data_dir.parent / f"log-{uuid4().hex}"
        with self._log.open("w") as log:
            command = [str(python), "-m", "cunho_server", "serve"]
            self.process = subprocess.Popen(command, env=environment, stdout=stdout, stderr=log)
        self._clients: list[Client] = []

    def ready(self) -> None:
        """Waits until all its processes answer."""
        until(lambda: "serving on" in self.log or self.process.poll() is not None, 180)
        assert self.process.poll() is None, self.log

    @property
    def address(self) -> str:
        """Where it is reached on this machine."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text()

    def client(self, account_id: str, address: str = "", *, repeats: bool = True) -> Client:
        """A client of an account, on a connection of its own; of the operator, if that is its name.

        Args:
            address: of a proxy to go through. Default: the server's own.
            repeats: whether it sends calls again by itself.
        """
        options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", int(repeats)))
        channel = grpc.insecure_channel(address or self.address, options)
        self._clients.append(client := Client(channel, token=self.token(account_id)))
        return client

    def token(self, account_id: str) -> str:
        """A token of an account; of the operator, if that is its name."""
        signer = Signer(keys.private_key(self.data_dir / "development-key.pem"), Settings.model_validate({}))
        return signer.token(account_id, "operator" if account_id == "operator" else "account", seconds=600)

    @property
    def dsn(self) -> str:
        """Its own PostgreSQL, as the owner of the tables."""
        return f"postgresql://cunho@/cunho?host={self.data_dir}/socket&port=5432"

    def sql(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return rows(self.dsn, query, *arguments)

    def processes(self) -> list[int]:
        """The numbers of the processes that answer calls."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(number) for number in children if "cunho_server.process" in _command(number)]

    def kill(self) -> None:
        """Ends all of it without a warning."""
        for number in (*self.processes(), self.process.pid):
            os.kill(number, signal.SIGKILL)
        self.ended()

    def ended(self) -> int:
        """Its exit code, once it has ended."""
        code = self.process.wait(60)
        self._reserved.close()
        for client in self._clients:
            client.close()
        return code

    def stop(self) -> int:
        """Asks it to stop; its exit code."""
        self.process.terminate()
        return self.ended()


def _command(number: str) -> str:
    """How a process was called; "" if it has ended."""
    try:
        return Path(f"/proc/{number}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def health(server: Server, service: str = "") -> int:
    """What the health service answers on a connection of its own."""
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status)
        except grpc.RpcError:
            return NOT_SERVING


def metric(server: Server, name: str) -> float:
    """A number that the server tells of itself, by its name with its labels; 0 if it does not tell it yet."""
    (address,) = re.findall(r"metrics on (http://\S+)", server.log)
    with urllib.request.urlopen(address, timeout=5) as answer:
        lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines())
    return float(lines.get(name, 0))


def rows(dsn: str, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    """The rows of a query to a database."""

    async def fetch() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(dsn)
        try:
            return [tuple(row) for row in await connection.fetch(query, *arguments)]
        finally:
            await connection.close()

    return asyncio.run(fetch())


def reserved_port(port: int = 0) -> socket.socket:
    """Has a port that nobody else is given until it is closed, and on which a server can listen all the same.

    Args:
        port: Default: a free one.
    """
    reserved = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        reserved.setsockopt(socket.SOL_SOCKET, option, 1)
    reserved.bind(("127.0.0.1", port))
    return reserved


@contextmanager
def serving(data_dir: Path, host: str = "127.0.0.1", **more: Any) -> Iterator[Server]:
    """A server that answers, stopped in the end if it still runs; `more` as Server takes it."""
    server = Server(data_dir, host, **more)
    try:
        server.ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def postgres_process(data_dir: Path) -> int:
    """The process of the folder's PostgreSQL; 0 if there is none."""
    with suppress(FileNotFoundError, IndexError):  # it may be about to start or to stop
        for file in data_dir.glob("pg*/postmaster.pid"):
            return int(file.read_text().split()[0])
    return 0


@contextmanager
def locked(server: Server, image_id: str) -> Iterator[None]:
    """An image that nobody else can lock."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(server.dsn))
        runner.run(connection.execute("BEGIN"))
        runner.run(connection.fetch("SELECT FROM image WHERE image_id = $1 FOR UPDATE", image_id))
        try:
            yield
        finally:
            runner.run(connection.close())
