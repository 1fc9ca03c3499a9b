"""What the operator asks for on a command line, answered by a service in this process: the same rules, the same log.

The service is there for one command, on a loopback port, and takes only tokens of a key that is thrown away with it.
"""

import asyncio
import getpass
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cunho import Client
from cunho_server import app, issuing, logs
from cunho_server.opening import opened, postgresql
from cunho_server.settings import Settings

Answer = TypeVar("Answer")

#: What a service for one command has instead of the settings: nothing that others could see or wait for.
_FOR_ONE_COMMAND = {
    "address": "127.0.0.1:0",
    "admin_address": "",
    "metrics_address": "",
    "tls_certificate": None,
    "tls_key": None,
    "tls_client_ca": None,
    "token_key": None,
    "token_jwks": "",
    "traces": False,
    "reflection": False,
    "connections": 4,
    "workers": 0,
    "shutdown_seconds": 0,
}


async def asked(settings: Settings, operator: str, ask: Callable[[Client], Answer]) -> Answer:
    """What the service answers.

    Args:
        operator: the name that the log shows.
        ask: makes the calls.
    Raises `cunho.Refused`.
    """
    logs.configure(settings)
    with postgresql(settings) as dsn, tempfile.TemporaryDirectory() as folder:
        own = settings.model_copy(update=_FOR_ONE_COMMAND | {"data_dir": Path(folder)})
        async with opened(own, dsn) as database, app.serving(own, database) as serving:
            with Client(serving.address, token=issuing.token(own, operator, "operator")) as client:
                return await asyncio.to_thread(ask, client)


def user() -> str:
    """The name of the operating system's user, as far as an id can have it."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        name = ""
    return re.sub(r"[^a-z0-9-]", "-", name.lower())[:60] or "operator"
