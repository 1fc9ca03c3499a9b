"""The address of a server: kept by the supervisor for its processes, and what these say once they listen there.

Nothing here knows gRPC, which takes time to load: the supervisor does without.
"""

import socket

from cunho_server.settings import host_of

#: What a process says on standard output once it takes connections.
READY = b"ready\n"


class AddressError(Exception):
    """The address cannot be listened on; the message says what to do."""


def reserved(address: str) -> socket.socket:
    """A socket that keeps the address, and its port, for the processes to share. Raises AddressError."""
    port = int(address.rpartition(":")[2])
    try:
        family, kind, _, _, place = socket.getaddrinfo(host_of(address), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:  # it fails where another server listens, which sharing would hide
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen()
            place = probe.getsockname()
        kept = socket.socket(family, kind)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(place)
        return kept
    except OSError as error:
        raise AddressError(
            f"cannot listen on {address} ({error.strerror}): stop what listens there, or choose another address with "
            "CUNHO_ADDRESS"
        ) from error
