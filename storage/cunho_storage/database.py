"""Connections and transactions, and what the database's errors mean. No statement of any noun here.

Everything runs at READ COMMITTED: locks are followed by reads in later statements, which see what the lock waited for.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import asyncpg

from cunho_rules.refusals import Reason, Refusal
from cunho_storage.statements import Statement

log = logging.getLogger(__name__)

#: The constraints that guard rules, and the rule that each is the last word of. A violation means that the facts
#: changed after they were read: the transaction is run again, and then the rule itself refuses, with the numbers.
GUARDS = {
    "account_pkey": "ALL-5",
    "account_region_account": "CUS-14",
    "account_region_images": "CUS-5",
    "image_copy": "CUS-12",
    "image_copy_of_own": "CUS-12",
    "image_name_of_owner": "SEL-4",
    "image_name_public": "SEL-4",
    "image_owner": "CUS-14",
    "image_pkey": "SEL-2",
    "image_share_image": "SHR-9",
    "image_share_not_with_owner": "SHR-10",
    "image_share_by_owner": "SHR-5",
    "image_share_pkey": "SHR-10",
    "image_share_recipient": "SHR-9",
    "image_shares": "SHR-8",
    "instance_account": "CUS-14",
    "instance_image": "INS-3",
    "instance_pkey": "INS-6",
    "instance_zone": "INS-1",
    "operation_pkey": "INS-5",
}

#: What every connection is set to. A server default of another isolation would silently break every lock.
SESSION = {
    "application_name": "cunho-server",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "10000",
    "lock_timeout": "2000",
    "idle_in_transaction_session_timeout": "5000",
    "jit": "off",
    "timezone": "UTC",
    "plan_cache_mode": "force_generic_plan",
}


class Conflict(Exception):
    """Another transaction got in the way: run this one again from its beginning."""


@contextmanager
def _translated() -> Iterator[None]:
    """What the driver raises, as Conflict or DATABASE_UNAVAILABLE; anything else is a bug and passes."""
    try:
        yield
    except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError) as error:
        raise Conflict(type(error).__name__) from error
    except asyncpg.IntegrityConstraintViolationError as error:
        if error.constraint_name in GUARDS:
            raise Conflict(error.constraint_name) from error
        raise
    except (
        asyncpg.PostgresConnectionError,
        asyncpg.OperatorInterventionError,
        asyncpg.InsufficientResourcesError,
        asyncpg.IdleInTransactionSessionTimeoutError,
        asyncpg.InterfaceError,
        OSError,
        TimeoutError,
    ) as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> Refusal:
    """What callers are told; the cause is for the operator alone."""
    log.warning("the database is unavailable: %s: %s", type(error).__name__, error)
    return Refusal(Reason.DATABASE_UNAVAILABLE)


class Connection:
    """A connection to PostgreSQL; statements are prepared on first use."""

    def __init__(self, raw: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._raw = raw

    async def rows(self, statement: Statement, **arguments: Any) -> list[asyncpg.Record]:
        """Every row that the statement returns."""
        with _translated():
            return await self._raw.fetch(statement.text, *statement.values(arguments))

    async def row(self, statement: Statement, **arguments: Any) -> asyncpg.Record | None:
        """The first row that the statement returns, or None."""
        with _translated():
            return await self._raw.fetchrow(statement.text, *statement.values(arguments))

    async def value(self, statement: Statement, **arguments: Any) -> Any:
        """The first value of the first row, or None."""
        with _translated():
            return await self._raw.fetchval(statement.text, *statement.values(arguments))

    async def run(self, statement: Statement, **arguments: Any) -> int:
        """The number of rows that the statement wrote."""
        with _translated():
            status = await self._raw.execute(statement.text, *statement.values(arguments))
        return int(status.rpartition(" ")[2])

    async def script(self, sql: str) -> None:
        """Runs SQL text of our own: a migration, the begin or the end of a transaction."""
        with _translated():
            await self._raw.execute(sql)

    @property
    def usable(self) -> bool:
        """False once the connection is lost."""
        return not self._raw.is_closed()

    async def close(self) -> None:
        """Closes the connection at once, whatever it is doing."""
        self._raw.terminate()


async def connect(dsn: str, settings: Mapping[str, str] = SESSION) -> Connection:
    """A new connection, its session in these settings. Refuses: DATABASE_UNAVAILABLE."""
    with _translated():
        try:
            raw = await asyncpg.connect(
                dsn, server_settings={**settings}, timeout=5, command_timeout=15, statement_cache_size=500
            )
        except asyncpg.PostgresError as error:  # whatever keeps us out: a password, a missing or a closed database
            raise _unavailable(error) from error
        # In binary, because that is how JSON within a row within a row comes: its version, 1, and then the text.
        await raw.set_type_codec(
            "jsonb",
            encoder=lambda value: b"\1" + json.dumps(value).encode(),
            decoder=lambda data: json.loads(data[1:].decode()),
            schema="pg_catalog",
            format="binary",
        )
    return Connection(raw)


class Database:
    """PostgreSQL behind a list of connections, the last one used first.

    Args:
        dsn: where it is, a postgresql:// URL.
        connections: how many may be open at once.
        role: the database role that statements run as; "" for the one that connects.
        wait_seconds: how long a call waits for a free connection before it is refused.
    """

    def __init__(self, dsn: str, *, connections: int = 16, role: str = "", wait_seconds: float = 5) -> None:
        self._dsn = dsn
        self._settings = SESSION | ({"role": role} if role else {})
        self._idle: list[Connection] = []
        self._places = asyncio.Semaphore(connections)
        self._wait_seconds = wait_seconds

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection outside of a transaction. Refuses: DATABASE_UNAVAILABLE."""
        with _translated():
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the place.
            async with asyncio.timeout(self._wait_seconds):
                await self._places.acquire()
        try:
            connection = await self._take()
            try:
                yield connection
            finally:
                if connection.usable:
                    self._idle.append(connection)
        finally:
            self._places.release()

    @asynccontextmanager
    async def transaction(self, *, rehearsal: bool = False) -> AsyncIterator[Connection]:
        """A transaction: committed on return, rolled back on any exception. Refuses: DATABASE_UNAVAILABLE.

        Args:
            rehearsal: rolled back on return too: everything is checked and nothing is written.
        """
        async with self.connection() as connection:
            try:
                await connection.script("BEGIN")
                yield connection
                await connection.script("ROLLBACK" if rehearsal else "COMMIT")
            except BaseException:
                await _roll_back(connection)
                raise

    async def close(self) -> None:
        """Closes the idle connections."""
        while self._idle:
            await self._idle.pop().close()

    async def _take(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
        return await connect(self._dsn, self._settings)


async def _roll_back(connection: Connection) -> None:
    """Ends a failed transaction; a connection that cannot even do that is closed, which ends it as well."""
    try:
        await connection.script("ROLLBACK")
    except BaseException:
        with suppress(Exception):
            await connection.close()
        raise
