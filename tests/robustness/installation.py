"""Two servers of several processes each over one database, as an operator runs them: what traffic goes to."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
from tests import server_process
from tests.end_to_end.steps import until
from tests.robustness import checker, stored, traffic
from tests.robustness.checker import Violation
from tests.robustness.history import OPERATOR, History
from tests.world import Postgres

from cunho_server import keys
from cunho_server.settings import Settings
from cunho_server.tokens import Signer


class Installation(NamedTuple):
    """The servers, and their database."""

    servers: Sequence[server_process.Server]
    dsn: str

    def callable(self) -> list[traffic.Server]:
        """The servers, as traffic calls them."""
        return [traffic.Server(each.address, Tokens(each.data_dir)) for each in self.servers]

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query, as the owner of the tables."""

        async def fetch() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.dsn)
            try:
                return [tuple(row) for row in await connection.fetch(query)]
            finally:
                await connection.close()

        return asyncio.run(fetch())

    def judge(self, history: History) -> list[Violation]:
        """What the checker finds in a history of these servers, once nothing goes on any more."""
        until(lambda: not stored.unfinished(self.sql), 60)
        return checker.check(history, stored.read(self.sql))


class Tokens:
    """Gives tokens that the server of a data folder accepts."""

    def __init__(self, data_dir: Path) -> None:
        self._signer = Signer(keys.private_key(data_dir / "development-key.pem"), Settings.model_validate({}))

    def __call__(self, account_id: str) -> str:
        role: Any = "operator" if account_id == OPERATOR else "account"
        return self._signer.token(account_id, role, seconds=3600)


@contextmanager
def installed(postgres: Postgres, folder: Path, *, servers: int = 2, **settings: Any) -> Iterator[Installation]:
    """Servers over a new database.

    Args:
        folder: an empty one, for what they keep and log.
        settings: by the names of their variables without the prefix.
    """
    dsn = postgres.database()
    # Operations take a moment, so that others find what is being made.
    given: dict[str, Any] = {"DATABASE_URL": dsn, "PROCESSES": 2, "LEDGER_SECONDS": 0.005} | settings
    with ExitStack() as stack:
        started = []
        for number in range(servers):
            (data_dir := folder / f"server-{number}" / "data").mkdir(parents=True)
            started.append(server := server_process.Server(data_dir, **given))
            stack.callback(_stop, server)
            _await(server)
        yield Installation(started, dsn)


def _await(server: server_process.Server) -> None:
    """Waits until all its processes answer, however busy the machine is."""
    until(lambda: "serving on" in server.log or server.process.poll() is not None, 300)
    server.ready()


def _stop(server: server_process.Server) -> None:
    if server.process.poll() is None:
        server.stop()
