"""Printing what commands say: its reader may stop early, and the disk that it is written to may be full."""

import os
import sys
from pathlib import Path


class OutputError(Exception):
    """What was to be printed cannot be; the message says why."""


def say(said: str | bytes) -> None:
    """Prints a text, or bytes as they are. Who reads no more of it is no mistake. Raises OutputError."""
    try:
        if isinstance(said, bytes):
            sys.stdout.buffer.write(said)
            sys.stdout.flush()
        else:
            print(said, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        if not isinstance(error, BrokenPipeError):
            raise OutputError(f"the output cannot be written ({error.strerror})") from error


def write(path: Path, content: bytes) -> None:
    """Writes a file. Raises OutputError."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror})") from error
