"""A loopback port of each process for operators to look into it, without credentials: channelz and reflection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2

from cunho_server import reflection
from cunho_server.address import AddressError
from cunho_server.settings import Settings


@asynccontextmanager
async def serving(settings: Settings, index: int) -> AsyncIterator[str]:
    """Answers at the address of the settings, each process at the port after that of the process before it.

    Yields that address; "" if the settings have none. Raises AddressError.

    Args:
        index: which of the server's processes this is.
    """
    if not (address := settings.admin_address_of(index)):
        yield ""
        return
    # Shared, since a process that takes over from this one starts before this one ends.
    server = grpc.aio.server(options=(("grpc.so_reuseport", 1),))
    channelz.add_channelz_servicer(server)
    reflection.add(server, [each.full_name for each in channelz_pb2.DESCRIPTOR.services_by_name.values()])
    try:
        taken = server.add_insecure_port(address)
    except RuntimeError:
        raise AddressError(
            f"cannot listen on {address}: stop what listens there, or choose another address with CUNHO_ADMIN_ADDRESS"
        ) from None
    await server.start()
    try:
        yield f"{address.rpartition(':')[0]}:{taken}"
    finally:
        await server.stop(0)
