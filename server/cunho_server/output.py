"""What commands print, which somebody may read only the beginning of."""

import os
import sys


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
