"""The client for asyncio: the same methods as of `cunho.Client`, to await, and lists to walk with `async for`."""

from cunho.aio.client import Client
from cunho.aio.operation import Operation

__all__ = ["Client", "Operation"]
