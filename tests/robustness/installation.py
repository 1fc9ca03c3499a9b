"""Two servers of several processes each over one database, as an operator runs them: what traffic goes to."""

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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

_CONNECTIONS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'cunho-server'"
)


class Installation(NamedTuple):
    """The servers, and their database."""

    servers: Sequence[server_process.Server]
    dsn: str

    def callable(self) -> list[traffic.Server]:
        """The servers, as traffic calls them."""
        return [traffic.Server(each.address, Tokens(each.data_dir)) for each in self.servers]

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query, as the owner of the tables."""
        return server_process.rows(self.dsn, query)

    @contextmanager
    def harmed(self, pause_seconds: float) -> Iterator[Counter[str]]:
        """Within the block something dies after each pause; what did, so far."""
        done, over = Counter[str](), threading.Event()

        def harm() -> None:
            while not over.wait(pause_seconds):
                act = random.choice((self._kill_process, self._end_connections, self._kill_connection))
                with suppress(ProcessLookupError, IndexError, OSError, asyncpg.PostgresError):  # it is down already
                    act()
                    done[act.__name__] += 1

        thread = threading.Thread(target=harm)
        thread.start()
        try:
            yield done
        finally:
            over.set()
            thread.join()

    def _kill_process(self) -> None:
        """A process of a server that answers calls dies."""
        os.kill(random.choice(random.choice(self.servers).processes()), signal.SIGKILL)

    def _end_connections(self) -> None:
        """PostgreSQL ends half of its connections to the servers."""
        self.sql(f"SELECT pg_terminate_backend(pid) FROM ({_CONNECTIONS}) AS one WHERE random() < 0.5")

    def _kill_connection(self) -> None:
        """PostgreSQL's process of a connection dies, whereupon it ends all others and recovers."""
        (number,) = random.choice(self.sql(_CONNECTIONS))
        os.kill(number, signal.SIGKILL)

    def judge(self, history: History) -> list[Violation]:
        """What the checker finds in a history of these servers, once nothing goes on any more."""
        until(self._at_rest, 60)
        return checker.check(history, stored.read(self.sql))

    def _at_rest(self) -> bool:
        """Whether PostgreSQL is back, if it died last, and every operation has ended."""
        with suppress(asyncpg.PostgresError, OSError):
            return not stored.unfinished(self.sql)
        return False


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
    # Else a kill loses what was acknowledged just before: PostgreSQL of the tests gives that up for speed.
    server_process.rows(dsn, f"ALTER DATABASE {dsn.partition('?')[0].rpartition('/')[2]} SET synchronous_commit = on")
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
