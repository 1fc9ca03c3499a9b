"""The address of a server: kept by the supervisor for its processes, and what these say while they listen there.

Nothing here knows gRPC, which takes time to load: the supervisor does without.
"""

import socket
from errno import EADDRINUSE
from socket import SOCK_STREAM
from typing import Any

from cunho_server.forms import host_of

#: What a process says on standard output once it takes connections.
READY = b"ready\n"

#: What it says from then on, and how often, to show that it does not hang.
BEAT, BEAT_SECONDS = b".", 1


class AddressError(Exception):
    """The address cannot be listened on; the message says what to do."""


def reserved(address: str, variable: str = "CUNHO_ADDRESS") -> socket.socket:
    """A socket that keeps that variable's address, and its port, for the processes to share. Raises AddressError."""
    port = int(address.rpartition(":")[2])
    try:
        (family, first), *others = _socket_addresses(host_of(address), port)
        free = _free(family, first)
        for another, (host, _, *more) in others:
            try:
                _free(another, (host, free[1], *more))
            except OSError as error:
                if error.errno == EADDRINUSE:  # else it is one that this machine does not have
                    raise
        kept = socket.socket(family)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(free)
        return kept
    except OSError as error:
        raise AddressError(
            f"cannot listen on {address} ({error.strerror}): stop what listens there, or choose another address with "
            f"{variable}"
        ) from error


def _socket_addresses(host: str, port: int) -> list[tuple[int, Any]]:
    """All that gRPC listens on for a host, by family. It knows localhost by itself."""
    names = (host, "::1") if host == "localhost" else (host,)
    return [(found[0], found[4]) for name in names for found in socket.getaddrinfo(name, port, type=SOCK_STREAM)]


def _free(family: int, socket_address: Any) -> Any:
    """The socket address, which nobody listens on, with its port. Raises OSError."""
    with socket.socket(family) as probe:  # it fails where another server listens, which sharing would hide
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(socket_address)
        probe.listen()
        return probe.getsockname()
