"""PostgreSQL on a loopback port, run by the programs that the server brings: for standbys, backups and restores.

What the server itself runs is embedded.py's; here is what an administrator of the database does by hand.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.end_to_end.steps import until
from tests.server_process import reserved_port, rows

from cunho_storage import embedded

_SETTINGS = ("--listen_addresses=127.0.0.1", "--unix_socket_directories=")


class Clusters:
    """A folder of clusters, and PostgreSQL's programs run as the user that owns them.

    Args:
        programs_in: a data folder of the embedded PostgreSQL, for its copy of the programs if it needs one.
    """

    def __init__(self, folder: Path, programs_in: Path) -> None:
        self.folder = folder
        self._user = embedded._User.of(None)
        self._programs = embedded._programs(programs_in, self._user)
        if os.geteuid() == 0:
            shutil.chown(folder, self._user.uid, self._user.gid)

    def run(self, program: str, *words: str | Path) -> None:
        """Runs one of PostgreSQL's programs to its end. Raises CalledProcessError."""
        self._user.run(self._programs / program, *words)

    def new(self) -> Path:
        """The data folder of a new cluster: its superuser is `postgres`, and it holds nothing of ours."""
        data = self._empty()
        self.run(
            "initdb", "-D", data, "--auth=trust", "-U", "postgres", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"
        )
        return data

    def base_backup(self, of: "Cluster", *options: str) -> Path:
        """The data folder of a base backup of a running cluster."""
        data = self._empty()
        self.run("pg_basebackup", "-d", of.dsn("postgres"), "-D", data, "--checkpoint=fast", "--no-sync", *options)
        return data

    @contextmanager
    def running(self, data: Path) -> Iterator["Cluster"]:
        """The cluster of that folder, accepting connections; ended at once on leaving."""
        with reserved_port() as reserved:
            port = reserved.getsockname()[1]
            process = self._started(data, port)
            try:
                until(lambda: self._answers(port))
                yield Cluster(data, port, process)
            finally:
                process.send_signal(signal.SIGQUIT)
                process.wait(20)

    def _started(self, data: Path, port: int) -> "subprocess.Popen[Any]":
        command = (self._programs / "postgres", "-D", data, f"--port={port}", *_SETTINGS)
        with (self.folder / f"{data.name}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, **self._user.options())

    def _answers(self, port: int) -> bool:
        return self._user.run(self._programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port), check=False)

    def _empty(self) -> Path:
        data = Path(tempfile.mkdtemp(dir=self.folder))
        if os.geteuid() == 0:
            shutil.chown(data, self._user.uid, self._user.gid)
        return data


class Cluster:
    """A running cluster."""

    def __init__(self, data: Path, port: int, process: "subprocess.Popen[Any]") -> None:
        self.data, self.port, self._process = data, port, process

    def dsn(self, database: str, user: str = "postgres") -> str:
        """The URL of one of its databases."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def sql(self, query: str, *arguments: Any, database: str = "postgres") -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return rows(self.dsn(database), query, *arguments)

    def kill(self) -> None:
        """Ends it without a warning, as a crash does."""
        self._process.kill()
        self._process.wait(20)


class Pair:
    """A primary, and a standby that confirms every commit."""

    def __init__(self, made: Clusters, undo: ExitStack) -> None:
        self._made = made
        self.primary = undo.enter_context(made.running(made.new()))
        self.primary.sql("CREATE DATABASE cunho")
        copy = made.base_backup(self.primary, "--write-recovery-conf")
        self.standby = undo.enter_context(made.running(copy))
        self.primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.sql("SELECT pg_reload_conf()")
        until(lambda: self.primary.sql("SELECT FROM pg_stat_replication WHERE sync_state = 'sync'"), 20)

    @property
    def url(self) -> str:
        """The database URL that finds whichever of them is the primary, the standby named first."""
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in (self.standby, self.primary))
        return f"postgresql://postgres@{hosts}/cunho?target_session_attrs=read-write"

    def promote(self) -> None:
        """Makes the standby the primary."""
        self._made.run("pg_ctl", "promote", "-D", self.standby.data)


@contextmanager
def clusters(programs_in: Path) -> Iterator[Clusters]:
    """Clusters in a temporary folder that every user may enter, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield Clusters(folder, programs_in)
    finally:
        shutil.rmtree(folder)
