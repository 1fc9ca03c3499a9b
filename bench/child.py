"""Processes of the bench's own: each does one thing when told, so that its CPU time is that thing's alone."""

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.machine import pinned


class Child:
    """A process that runs `main` of one of the bench's modules; told and answering by pickled values."""

    def __init__(self, module: str, core: int | None) -> None:
        command = (sys.executable, "-m", "bench.child", module)
        environment = os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "0"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        pinned(self._process.pid, core)

    @property
    def number(self) -> int:
        """Its process number."""
        return self._process.pid

    def tell(self, value: object) -> None:
        """Sends it a value."""
        assert self._process.stdin
        pickle.dump(value, self._process.stdin)
        self._process.stdin.flush()

    def told(self) -> Any:
        """The next value that it sends. Raises EOFError if it has ended."""
        assert self._process.stdout
        return pickle.load(self._process.stdout)

    def ask(self, value: object) -> Any:
        """Its answer to a value."""
        self.tell(value)
        return self.told()

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


@contextmanager
def child(module: str, core: int | None) -> Iterator[Child]:
    """A process that is ended in the end.

    Args:
        core: the only one that it runs on; None for any.
    """
    started = Child(module, core)
    try:
        yield started
    finally:
        started.close()


class Parent:
    """The other end, in the child."""

    def __init__(self) -> None:
        self._input, self._output = sys.stdin.buffer, sys.stdout.buffer
        sys.stdout = sys.stderr  # what is printed must not get among the values

    def told(self) -> Any:
        """The next value that is sent. Raises EOFError at the end."""
        return pickle.load(self._input)

    def tell(self, value: object) -> None:
        """Sends a value."""
        pickle.dump(value, self._output)
        self._output.flush()


if __name__ == "__main__":
    importlib.import_module(f"bench.{sys.argv[1]}").main(Parent())
