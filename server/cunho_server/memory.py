"""How much memory this process has, and giving back to the system what a burst of calls left behind."""

import asyncio
import ctypes
import os
from pathlib import Path

#: How often it is looked at, and growth from which on memory is given back: that takes the time of some calls.
_LOOK_SECONDS, _GROWTH_BYTES = 10, 32 << 20


def resident_bytes() -> int:
    """The memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def give_back() -> None:
    """Gives back what is free each time that the process has grown, until cancelled.

    The C library keeps what lies between memory in use: of 5,000 answers that nobody read, a hundred mebibytes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    least_bytes = resident_bytes()
    while trim:
        await asyncio.sleep(_LOOK_SECONDS)
        size_bytes = resident_bytes()
        if size_bytes > least_bytes + _GROWTH_BYTES:
            await asyncio.to_thread(trim, 0)
            least_bytes = resident_bytes()
        least_bytes = min(least_bytes, size_bytes)
