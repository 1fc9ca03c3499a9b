"""Harm done to a server, its PostgreSQL and what lies between, and how well the service is afterwards.

Whoever is killed here is the test's own: servers over a folder of theirs.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from tests.end_to_end.soundness import unsound
from tests.end_to_end.steps import until
from tests.robustness.proxy import Proxy
from tests.robustness.writers import CALL_SECONDS, Traffic
from tests.server_process import SERVING, Server, health, metric, postgres_process
from tests.storage.clusters import Cluster, Pair

from cunho import Client

#: Settings that keep operations under way for a while, and have lost ones taken over soon.
BUSY: dict[str, Any] = {
    "PROCESSES": 2,
    "LEDGER_SECONDS": 0.05,
    "LEASE_SECONDS": 1,
    "SHUTDOWN_SECONDS": 2,
    "METRICS_ADDRESS": "127.0.0.1:0",
}

#: What a call writes to in any case, and an operation.
_WRITTEN = ("request_log", "operation")

#: How often in a row a server must be found healthy, each time on a new connection to any of its processes.
_LOOKS = 6

#: What nobody holds when no call is under way.
_TAKEN = (
    'cunho_calls_under_way{kind="call"}',
    'cunho_calls_under_way{kind="wait"}',
    'cunho_database_connections{state="in_use"}',
    "cunho_database_calls_waiting",
)


class Service:
    """A server with its own PostgreSQL, started again when it was killed, as systemd does."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self._killed: list[Server] = []
        self._settings = BUSY | settings
        self.server = Server(data_dir, **self._settings)
        self.server.ready()
        #: With all its processes, each of which may have several.
        self._sockets = _listening(self.server.port)

    @property
    def log(self) -> str:
        """What every one of its servers wrote."""
        return "".join(each.log for each in (*self._killed, self.server))

    def sql(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return self.server.sql(query, *arguments)

    def connect(self, account_id: str) -> Client:
        """A client of an account, on a connection of its own."""
        return self.server.client(account_id)

    def stop(self) -> None:
        """Stops it."""
        for each in self._killed:
            each.ended()
        self.server.stop()

    def is_healthy(self) -> bool:
        """True if all its processes listen, and every one that is asked says that it serves."""
        all_listen = _listening(self.server.port) == self._sockets
        return all_listen and all(health(self.server) == SERVING for _ in range(_LOOKS))

    # --- faults

    def kill_process(self) -> None:
        """One of the processes that answer calls dies."""
        _kill(self.server.processes()[0])

    def kill_supervisor(self) -> None:
        """The supervisor dies; systemd kills the rest (KillMode=mixed), and starts the server again."""
        left = [*self.server.processes(), *_family(postgres_process(self.server.data_dir))]
        self.server.process.kill()
        for number in left:
            _send(number, signal.SIGKILL)
        self._start_again(left)

    def kill_lone_supervisor(self) -> None:
        """The supervisor dies; what it left running ends by itself or is replaced, once the server is started again."""
        left = self.server.processes()
        self.server.process.kill()
        self._start_again(left)

    def _start_again(self, left: list[int]) -> None:
        until(lambda: not any(map(_is_alive, (self.server.process.pid, *left))), 60)
        self._killed.append(self.server)
        self.server = Server(self.server.data_dir, port=self.server.port, **self._settings)

    def kill_postgres(self) -> None:
        """PostgreSQL's first process dies; those of its connections notice, or not yet."""
        os.kill(postgres_process(self.server.data_dir), signal.SIGKILL)

    def kill_backend(self) -> None:
        """A process of a connection dies: PostgreSQL drops every connection and recovers."""
        ((number,),) = self.sql(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'cunho-server' ORDER BY random() LIMIT 1"
        )
        os.kill(number, signal.SIGKILL)

    def suspend_postgres(self, seconds: float = 1) -> None:
        """PostgreSQL and all its connections stand still for some seconds."""
        numbers = _family(postgres_process(self.server.data_dir))
        for number in numbers:
            _send(number, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            for number in numbers:
                _send(number, signal.SIGCONT)


def _kill(number: int) -> None:
    os.kill(number, signal.SIGKILL)
    until(lambda: not _is_alive(number), 20)


def _send(number: int, sent: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(number, sent)


def _family(number: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    return [number, *map(int, children)]


def _listening(port: int) -> int:
    """How many sockets of this machine take connections on a port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(local.endswith(f":{port:04X}") and state == "0A" for _, local, _, state, *_ in rows)


def _is_alive(number: int) -> bool:
    """False too for one that only waits to be forgotten by its parent."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter where it is forgotten while this is read
        return False


class Wired(Service):
    """A server that reaches a PostgreSQL of others, and is reached, through proxies.

    Attributes:
        dsn: PostgreSQL, without a proxy.
        near: between callers and the server.
        far: between the server and PostgreSQL.
    """

    def __init__(self, data_dir: Path, cluster: Cluster, undo: ExitStack, **settings: Any) -> None:
        self._cluster, self.dsn = cluster, cluster.dsn("cunho")
        self.far = undo.enter_context(Proxy(cluster.port))
        url = f"postgresql://postgres@127.0.0.1:{self.far.port}/cunho"
        super().__init__(data_dir, DATABASE_URL=url, **settings)
        undo.callback(self.stop)
        self.near = undo.enter_context(Proxy(self.server.port))

    def sql(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return self._cluster.sql(query, *arguments, database="cunho")

    def connect(self, account_id: str) -> Client:
        return self.server.client(account_id, f"127.0.0.1:{self.near.port}")

    def connect_once(self, account_id: str) -> Client:
        """A client that sends no call again by itself."""
        return self.server.client(account_id, repeats=False)

    @contextmanager
    def raising(self, *sqlstates: str, at_commit: bool, often: float = 0.1) -> Iterator[None]:
        """Statements that write, or the commits of those, fail with one of these errors, some of them."""
        states = ", ".join(f"'{each}'" for each in sqlstates)
        self._run(f"""
            CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF random() < {often} THEN
                RAISE 'a fault' USING ERRCODE = (ARRAY[{states}])[ceil(random() * {len(sqlstates)})];
              END IF;
              RETURN NEW;
            END $$
        """)
        kind, when = ("CONSTRAINT", "AFTER") if at_commit else ("", "BEFORE")
        deferred = "DEFERRABLE INITIALLY DEFERRED" if at_commit else ""
        for table in _WRITTEN:
            self._run(
                f"CREATE {kind} TRIGGER fault {when} INSERT OR UPDATE ON {table} {deferred} "
                "FOR EACH ROW EXECUTE FUNCTION fault()"
            )
        try:
            yield
        finally:
            for table in _WRITTEN:  # one after the other: who locks both may deadlock with the traffic
                self._run(f"DROP TRIGGER fault ON {table}")
            self._run("DROP FUNCTION fault")

    def _run(self, statement: str) -> None:
        self.sql(statement)


class Replicated(Service):
    """A server over a primary and its standby.

    Attributes:
        pair: the two.
    """

    def __init__(self, data_dir: Path, pair: Pair) -> None:
        self.pair, self._now = pair, pair.primary
        super().__init__(data_dir, DATABASE_URL=pair.url)

    def sql(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return self._now.sql(query, *arguments, database="cunho")

    def fail_over(self) -> None:
        """The standby becomes the primary."""
        self._now = self.pair.standby
        self.pair.promote()


# --- what networks do


def cut(proxy: Proxy) -> None:
    """Every connection is reset."""
    proxy.cut()


def refuse(proxy: Proxy) -> None:
    """Every connection is reset, and new ones are not taken for a second."""
    with proxy.refusing():
        time.sleep(1)


def fall_silent(proxy: Proxy) -> None:
    """Nothing arrives for longer than calls wait."""
    with proxy.silent():
        time.sleep(CALL_SECONDS + 1)


def delay(proxy: Proxy) -> None:
    """Everything arrives a fifth of a second later, for two seconds."""
    with proxy.delaying(0.2):
        time.sleep(2)


def close_near_half(proxy: Proxy) -> None:
    """Who connected is told that nothing more comes."""
    proxy.half_close(near=True)


def close_far_half(proxy: Proxy) -> None:
    """Who was connected to is told that nothing more comes."""
    proxy.half_close(near=False)


NETWORK = (cut, refuse, fall_silent, delay, close_near_half, close_far_half)


# --- how well the service is


class Recoveries:
    """How long the service was away after faults, and what goes on meanwhile."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def measured(self, kind: str, service: Service, traffic: Traffic) -> Iterator[None]:
        """Within the block the fault ends; returns once both processes are healthy and every writer has written."""
        start = time.monotonic()
        try:
            yield
            traffic.go_on(1)
            until(service.is_healthy, 60)
        except TimeoutError as error:
            error.add_note(f"after {kind}; the log ends with: {service.log[-5000:]}")
            raise
        self._seconds[kind].append(time.monotonic() - start)

    def __str__(self) -> str:
        """A line for each kind of fault."""
        lines = [
            f"{kind}: {len(seconds)} times, healthy after {median(seconds):.2f} s (median), {max(seconds):.2f} s (most)"
            for kind, seconds in sorted(self._seconds.items())
        ]
        return "\n".join(lines)


def assert_whole(service: Service, traffic: Traffic) -> None:
    """What was acknowledged is there, once, and nothing else; nothing is half-done, and nothing leaked."""
    different = traffic.differences(service.sql)
    assert not different, different
    assert unsound(service.sql) == []
    assert service.sql("SELECT operation_id FROM operation WHERE end_time IS NULL OR lease_until IS NOT NULL") == []
    assert "bug in" not in service.log
    for taken in _TAKEN:
        until(lambda: metric(service.server, taken) == 0, 20)  # noqa: B023


# --- disks and clocks


@contextmanager
def small_disk(folder: Path, size_mib: int) -> Iterator[None]:
    """The folder is on a disk of that size."""
    subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=755", "tmpfs", folder), check=True)
    try:
        yield
    finally:
        subprocess.run(("umount", folder), check=True)


def can_mount() -> bool:
    """Whether this process may mount disks."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder), 1):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Nothing more can be written to the disk of the folder."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    try:
        yield
    finally:
        ballast.unlink()
