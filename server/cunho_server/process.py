"""One of the processes that answer calls: `python -m cunho_server.process`, started by the supervisor alone.

It is told on standard input what to serve, says on standard output when it does, and from then on each second that it
does not hang. It stops when its standard input ends: it does not outlive the supervisor.
"""

import gc

gc.disable()  # while code is loaded, all of which stays: to search it for garbage takes a tenth of the time

import asyncio
import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncpg
import uvloop

from cunho_rules.refusals import Refusal
from cunho_server import app, logs
from cunho_server.address import BEAT, BEAT_SECONDS, READY, AddressError
from cunho_server.keys import KeyFileError
from cunho_server.opening import database_of, refuse_outdated
from cunho_server.settings import Settings
from cunho_server.tracing import TracingError
from cunho_storage.migrations import MigrationError


async def _serve(settings: Settings, dsn: str, index: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_reader(sys.stdin.fileno(), _at_end(stopped.set))
    await refuse_outdated(dsn)
    database = database_of(settings, dsn)
    try:
        async with app.serving(settings, database, index=index, shares_port=True):
            # All that is there now stays. To go through it in each full search for garbage takes 20 ms, and every call
            # waits; to search it once now takes five times that, and finds less than a hundredth.
            gc.freeze()
            gc.enable()
            os.write(sys.stdout.fileno(), READY)
            beating = asyncio.create_task(_beat())
            await stopped.wait()
        beating.cancel()
    finally:
        await database.close()


async def _beat() -> None:
    """Shows that the event loop turns, until cancelled."""
    os.set_blocking(sys.stdout.fileno(), False)
    while True:
        with suppress(OSError):  # nobody reads it any more
            os.write(sys.stdout.fileno(), BEAT)
        await asyncio.sleep(BEAT_SECONDS)


def _at_end(stop: Callable[[], None]) -> Callable[[], None]:
    def read() -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            stop()

    return read


def main() -> int:
    """Serves as the first line of standard input says; the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    faulthandler.register(signal.SIGUSR2)  # it says where it hangs
    line = sys.stdin.readline()  # all that comes before the end
    if not line:  # the supervisor ended before it said anything
        return 0
    told: dict[str, Any] = json.loads(line)
    settings = Settings.model_validate(told["settings"])
    logs.configure(settings)
    try:
        uvloop.run(_serve(settings, told["dsn"], told["index"]))
    except (AddressError, KeyFileError, MigrationError, TracingError) as error:
        print(error, file=sys.stderr)
        return 1
    except (Refusal, asyncpg.PostgresError, OSError) as error:
        print(f"the database cannot be used ({str(error) or type(error).__name__})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
