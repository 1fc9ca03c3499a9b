"""The streams of the process: what is written to them may find no room, and nobody who reads it."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


def prepare() -> None:
    """Makes streams that are closed, as by >&-, take what is written, and all of them every character."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what the encoding of a terminal has not


def discard(stream: TextIO) -> None:
    """What is still to be written there goes nowhere, or the last flush fails once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def telling() -> Iterator[None]:
    """Around what is written to the error output: if nobody can read it, the exit code alone tells what happened."""
    try:
        yield
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)
