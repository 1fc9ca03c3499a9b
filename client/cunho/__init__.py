"""Client of the Cunho image and instance service; its messages and enums are in cunho.v1, asyncio's in cunho.aio.

What is in here is imported when it is first asked for: gRPC reads the environment when it is imported, and the command
changes that before.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cunho import v1 as v1
    from cunho.client import Client
    from cunho.connection import CHANNEL_OPTIONS, Tls, TokenFile
    from cunho.operation import Operation
    from cunho.refused import Refused

__all__ = ["CHANNEL_OPTIONS", "Client", "Operation", "Refused", "Tls", "TokenFile"]

_FILES = {
    "CHANNEL_OPTIONS": "connection",
    "Client": "client",
    "Operation": "operation",
    "Refused": "refused",
    "Tls": "connection",
    "TokenFile": "connection",
}

if not TYPE_CHECKING:  # checkers know the names from above, and take no others

    def __getattr__(name: str) -> object:
        if name == "v1":
            return import_module("cunho.v1")
        if name not in _FILES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"cunho.{_FILES[name]}"), name)

    def __dir__() -> list[str]:
        return [*__all__, "v1"]
