"""Connections and transactions, and what the database's errors mean. No statement of any noun here.

Everything runs at READ COMMITTED: locks are followed by reads in later statements, which see what the lock waited for.
Whoever is cancelled has its statement cancelled, and a connection whose server falls silent is closed.
"""

import asyncio
import json
import logging
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, NamedTuple, TypeAlias
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
    # A plan is kept: made while its table was nearly empty, it would read through the table however large that becomes.
    "enable_seqscan": "off",
}


#: How much longer than its time a statement is waited for before its server is taken to be hung.
_MARGIN_SECONDS = 1

_PING = Statement(Select([], [SQL("1")]))

#: How long a host of several may take to let us in.
_HOST_SECONDS = 2


class Conflict(Exception):
    """Another transaction got in the way: run this one again from its beginning."""


_IN_THE_WAY = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError)
_OUTAGES = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # asked between the server's last word and the end of the connection
    # What the machine of PostgreSQL cannot do now: a full disk, a file that cannot be read or written.
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby
    asyncpg.TargetServerAttributeNotMatched,
    OSError,
    TimeoutError,
)


def _translate(error: Exception) -> None:
    """Raises what an error of the driver means: Conflict or DATABASE_UNAVAILABLE; any other is a bug, and is left."""
    if isinstance(error, _IN_THE_WAY):
        raise Conflict(type(error).__name__) from error
    if isinstance(error, asyncpg.IntegrityConstraintViolationError) and error.constraint_name in GUARDS:
        raise Conflict(error.constraint_name) from error
    if isinstance(error, _OUTAGES):
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> Refusal:
    """What callers are told; the cause is for the operator alone."""
    log.warning("the database is unavailable: %s: %s", type(error).__name__, error)
    return Refusal(Reason.DATABASE_UNAVAILABLE)


#: A connection of the driver's, for those that run SQL text.
DriverConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Connection:
    """A connection to PostgreSQL; statements are prepared on first use."""

    def __init__(self, raw: DriverConnection) -> None:
        self._raw = raw
        self._news = select.poll()
        transport: asyncio.Transport = raw._transport  # type: ignore[attr-defined]
        self._news.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    async def rows(self, statement: Statement, **arguments: Any) -> list[asyncpg.Record]:
        """Every row that the statement returns."""
        found: list[asyncpg.Record] = await self._asked(self._raw.fetch, statement.text, *statement.values(arguments))
        return found

    async def row(self, statement: Statement, **arguments: Any) -> asyncpg.Record | None:
        """The first row that the statement returns, or None."""
        found: asyncpg.Record | None = await self._asked(
            self._raw.fetchrow, statement.text, *statement.values(arguments)
        )
        return found

    async def value(self, statement: Statement, **arguments: Any) -> Any:
        """The first value of the first row, or None."""
        return await self._asked(self._raw.fetchval, statement.text, *statement.values(arguments))

    async def run(self, statement: Statement, **arguments: Any) -> int:
        """The number of rows that the statement wrote."""
        status: str = await self._asked(self._raw.execute, statement.text, *statement.values(arguments))
        return int(status.rpartition(" ")[2])

    async def script(self, sql: str) -> None:
        """Runs SQL text of our own: a migration, the begin or the end of a transaction."""
        await self._asked(self._raw.execute, sql)

    async def settle(self, sql: str = _PING.text) -> None:
        """Runs SQL text once a cancelled statement has ended; closes the connection if that is not soon."""
        # No asyncio.timeout: Python 3.11.2 loses those of a task that is being cancelled.
        task = asyncio.create_task(self.script(sql))
        try:
            ended, _ = await asyncio.wait({task}, timeout=_MARGIN_SECONDS)
            if not ended:
                raise TimeoutError
            task.result()
        except (Refusal, TimeoutError):
            await self._end(task)
        except BaseException:
            await self._end(task)
            raise

    async def _end(self, task: "asyncio.Task[None]") -> None:
        """Closes the connection, and waits for what was asked on it."""
        await self.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

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

    async def _asked(self, ask: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """The driver's answer, its errors translated."""
        try:
            return await ask(*arguments)
        except Exception as error:
            # Neither in time nor ended by the server itself, which is hung; or ended, and the driver does not know yet.
            if isinstance(error, TimeoutError | asyncpg.InternalClientError):
                self._raw.terminate()
            _translate(error)
            raise


async def reach(dsn: str, **options: Any) -> DriverConnection:
    """The driver's connection to the first host of the URL that lets us in and is what the URL asks for.

    One after the other, because the driver gives a host that hangs all the time there is. Raises what the last one did.
    """
    *first, last = _each_host(dsn)
    for host in first:
        with suppress(asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched, OSError, TimeoutError):
            return await asyncpg.connect(host, timeout=_HOST_SECONDS, **options)
    return await asyncpg.connect(last, timeout=5, **options)


async def leave(connection: DriverConnection) -> None:
    """Closes a connection of the driver; without a word, if its server does not answer soon."""
    closing = asyncio.create_task(connection.close())
    if not (await asyncio.wait({closing}, timeout=_MARGIN_SECONDS))[0]:
        connection.terminate()
        closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)


def _each_host(dsn: str) -> list[str]:
    parts = urlsplit(dsn)
    user, at, hosts = parts.netloc.rpartition("@")
    return [dsn.replace(parts.netloc, f"{user}{at}{host}", 1) for host in hosts.split(",")] if "," in hosts else [dsn]


async def connect(dsn: str, settings: Mapping[str, str] = SESSION) -> Connection:
    """A new connection, its session in these settings. Refuses: DATABASE_UNAVAILABLE."""
    try:
        raw = await reach(
            dsn,
            server_settings={**settings},
            command_timeout=int(SESSION["statement_timeout"]) / 1000 + _MARGIN_SECONDS,
            statement_cache_size=500,
        )
    except (asyncpg.PostgresError, *_OUTAGES) as error:  # a password, a missing or a closed database, no host at all
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
    except BaseException as error:
        raw.terminate()
        if isinstance(error, _OUTAGES):
            raise _unavailable(error) from error
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
        self._slots = asyncio.Semaphore(connections)
        self._wait_seconds = wait_seconds
        self._in_use = self._waiting = 0

    @property
    def usage(self) -> Usage:
        """The connections now."""
        return Usage(self._in_use + len(self._idle), self._in_use, self._waiting)

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """A connection outside of a transaction. Refuses: DATABASE_UNAVAILABLE."""
        return _Borrowed(self, counted=True)

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
            async with asyncio.timeout(timeout_seconds), _Borrowed(self, counted=False) as connection:
                await connection.value(_PING)
        except (Refusal, TimeoutError):
            return False
        return True

    async def close(self) -> None:
        """Closes the idle connections."""
        while self._idle:
            await self._idle.pop().close()

    async def lend(self) -> Connection:
        """A connection that is to be given back, the one used last if there is one."""
        connection = await self._take()
        self._in_use += 1
        return connection

    async def take_back(self, connection: Connection, error: BaseException | None) -> None:
        """Takes a connection back.

        Args:
            error: how its use ended. After a cancellation, the cancelled statement is waited for.
        """
        try:
            if isinstance(error, asyncio.CancelledError):
                if connection.usable:
                    await connection.settle()
                if not connection.usable and not deadlines.remaining_seconds():
                    raise _unavailable(TimeoutError("no answer within the time of the call")) from None
        finally:
            self._in_use -= 1
            if connection.usable:
                self._idle.append(connection)
            else:
                await self.close()  # what ended this one has most likely ended them all

    async def wait_for_slot(self) -> None:
        """Waits until one more connection may be in use. Refuses: DATABASE_UNAVAILABLE."""
        if not self._slots.locked():
            await self._slots.acquire()
            return
        self._waiting += 1
        try:
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the slot.
            async with asyncio.timeout(self._wait_seconds):
                await self._slots.acquire()
        except TimeoutError as error:
            raise _unavailable(error) from error
        finally:
            self._waiting -= 1

    def leave_slot(self) -> None:
        """Lets another connection be in use."""
        self._slots.release()

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.quiet:
                return connection
            await connection.close()
        return await connect(self._dsn, self._settings)


class _Borrowed:
    """A connection for the time of a block; every call has one, so that this is no generator.

    Args:
        counted: whether it counts among those that may be in use at once.
    """

    __slots__ = ("_connection", "_counted", "_database")

    def __init__(self, database: Database, *, counted: bool) -> None:
        self._database = database
        self._counted = counted

    async def __aenter__(self) -> Connection:
        if self._counted:
            await self._database.wait_for_slot()
        try:
            self._connection = await self._database.lend()
        except BaseException:
            self._leave_slot()
            raise
        return self._connection

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            await self._database.take_back(self._connection, error)
        finally:
            self._leave_slot()

    def _leave_slot(self) -> None:
        if self._counted:
            self._database.leave_slot()


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
