"""Connections and transactions, and what the database's errors mean. No statement of any noun here.

Everything runs at READ COMMITTED: locks are followed by reads in later statements, which see what the lock waited for.
Whoever is cancelled has its statement cancelled, and a connection whose server falls silent is closed.
"""

import asyncio
import json
import logging
import select
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
from peewee import SQL, Select

from cunho_rules.refusals import Reason, Refusal
from cunho_storage import deadlines
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


#: How much longer than its time a statement is waited for before its server is taken to be hung.
_MARGIN_SECONDS = 1

_PING = Statement(Select([], [SQL("1")]))

#: How long a host of several may take to let us in.
_HOST_SECONDS = 2


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
        asyncpg.ReadOnlySQLTransactionError,  # a standby
        asyncpg.TargetServerAttributeNotMatched,
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
        self._news = select.poll()
        transport: asyncio.Transport = raw._transport  # type: ignore[attr-defined]
        self._news.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    async def rows(self, statement: Statement, **arguments: Any) -> list[asyncpg.Record]:
        """Every row that the statement returns."""
        with self._translated():
            return await self._raw.fetch(statement.text, *statement.values(arguments))

    async def row(self, statement: Statement, **arguments: Any) -> asyncpg.Record | None:
        """The first row that the statement returns, or None."""
        with self._translated():
            return await self._raw.fetchrow(statement.text, *statement.values(arguments))

    async def value(self, statement: Statement, **arguments: Any) -> Any:
        """The first value of the first row, or None."""
        with self._translated():
            return await self._raw.fetchval(statement.text, *statement.values(arguments))

    async def run(self, statement: Statement, **arguments: Any) -> int:
        """The number of rows that the statement wrote."""
        with self._translated():
            status = await self._raw.execute(statement.text, *statement.values(arguments))
        return int(status.rpartition(" ")[2])

    async def script(self, sql: str) -> None:
        """Runs SQL text of our own: a migration, the begin or the end of a transaction."""
        with self._translated():
            await self._raw.execute(sql)

    async def settle(self, sql: str = _PING.text) -> None:
        """Runs SQL text once a cancelled statement has ended; closes the connection if that is not soon."""
        try:
            async with asyncio.timeout(_MARGIN_SECONDS):
                with self._translated():
                    await self._raw.execute(sql)
        except (Refusal, TimeoutError):
            await self.close()
        except BaseException:
            await self.close()
            raise

    @property
    def usable(self) -> bool:
        """False once the connection is lost."""
        return not self._raw.is_closed()

    @property
    def quiet(self) -> bool:
        """False if the server has said something to an idle connection: it says nothing but that it ends it."""
        return not self._news.poll(0)

    async def close(self) -> None:
        """Closes the connection at once, whatever it is doing."""
        self._raw.terminate()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """As `_translated`; a server that neither answered in time nor ended the statement itself is hung."""
        with _translated():
            try:
                yield
            except TimeoutError:
                self._raw.terminate()
                raise


async def reach(dsn: str, **options: Any) -> "asyncpg.Connection[asyncpg.Record]":
    """The driver's connection to the first host of the URL that lets us in and is what the URL asks for.

    One after the other, because the driver gives a host that hangs all the time there is. Raises what the last one did.
    """
    *first, last = _each_host(dsn)
    for host in first:
        with suppress(asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched, OSError, TimeoutError):
            return await asyncpg.connect(host, timeout=_HOST_SECONDS, **options)
    return await asyncpg.connect(last, timeout=5, **options)


def _each_host(dsn: str) -> list[str]:
    parts = urlsplit(dsn)
    user, at, hosts = parts.netloc.rpartition("@")
    return [dsn.replace(parts.netloc, f"{user}{at}{host}", 1) for host in hosts.split(",")] if "," in hosts else [dsn]


async def connect(dsn: str, settings: Mapping[str, str] = SESSION) -> Connection:
    """A new connection, its session in these settings. Refuses: DATABASE_UNAVAILABLE."""
    with _translated():
        try:
            raw = await reach(
                dsn,
                server_settings={**settings},
                command_timeout=int(SESSION["statement_timeout"]) / 1000 + _MARGIN_SECONDS,
                statement_cache_size=500,
            )
        except asyncpg.PostgresError as error:  # whatever keeps us out: a password, a missing or a closed database
            raise _unavailable(error) from error
        try:
            # In binary, because that is how JSON within a row within a row comes: its version, 1, and then the text.
            await raw.set_type_codec(
                "jsonb",
                encoder=lambda value: b"\1" + json.dumps(value).encode(),
                decoder=lambda data: json.loads(data[1:].decode()),
                schema="pg_catalog",
                format="binary",
            )
        except BaseException:
            raw.terminate()
            raise
    return Connection(raw)


class Usage(NamedTuple):
    """How many connections are open and in use, and how many calls wait for one."""

    open: int
    in_use: int
    waiting: int


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
        self._in_use = self._waiting = 0

    @property
    def usage(self) -> Usage:
        """The connections now."""
        return Usage(self._in_use + len(self._idle), self._in_use, self._waiting)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection outside of a transaction. Refuses: DATABASE_UNAVAILABLE."""
        await self._wait_for_place()
        try:
            async with self._connection() as connection:
                yield connection
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
                await connection.script(_begin())
                yield connection
                await connection.script("ROLLBACK" if rehearsal else "COMMIT")
            except asyncio.CancelledError:
                await connection.settle("ROLLBACK")
                raise
            except BaseException:
                await _roll_back(connection)
                raise

    async def answers(self, timeout_seconds: float) -> bool:
        """Whether the database answers in time. That every connection is in use does not keep it from being asked."""
        try:
            async with asyncio.timeout(timeout_seconds), self._connection() as connection:
                await connection.value(_PING)
        except (Refusal, TimeoutError):
            return False
        return True

    async def close(self) -> None:
        """Closes the idle connections."""
        while self._idle:
            await self._idle.pop().close()

    async def _wait_for_place(self) -> None:
        self._waiting += 1
        try:
            with _translated():
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the place.
                async with asyncio.timeout(self._wait_seconds):
                    await self._places.acquire()
        finally:
            self._waiting -= 1

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """A connection, whether or not there is a place for it."""
        connection = await self._take()
        self._in_use += 1
        try:
            yield connection
        except asyncio.CancelledError:
            if connection.usable:
                await connection.settle()
            if not connection.usable and not deadlines.remaining_seconds():
                raise _unavailable(TimeoutError("no answer within the time of the call")) from None
            raise
        finally:
            self._in_use -= 1
            if connection.usable:
                self._idle.append(connection)
            else:
                await self.close()  # what ended this one has most likely ended them all

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.quiet:
                return connection
            await connection.close()
        return await connect(self._dsn, self._settings)


def _begin() -> str:
    """Begins a transaction that PostgreSQL ends by itself soon after the time of the call is over."""
    remaining_ms = deadlines.remaining_seconds() * 1000
    limits = {"statement_timeout": remaining_ms + _MARGIN_SECONDS * 1000, "lock_timeout": remaining_ms + 1}
    shorter = [f"; SET LOCAL {name} = {limit:.0f}" for name, limit in limits.items() if limit < int(SESSION[name])]
    return "BEGIN" + "".join(shorter)


async def _roll_back(connection: Connection) -> None:
    """Ends a failed transaction; a connection that cannot even do that is closed, which ends it as well."""
    try:
        await connection.script("ROLLBACK")
    except BaseException:
        with suppress(Exception):
            await connection.close()
        raise
