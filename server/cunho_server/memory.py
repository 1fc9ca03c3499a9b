"""How much memory this process has, and giving back to the system what a burst of calls left behind."""

import asyncio
import ctypes
import os
from pathlib import Path

#: How often it is looked at, and growth from which on memory is given back: that takes the time of some calls.
_LOOK_SECONDS, _GROWTH_BYTES = 10, 32 << 20

#: The most looks from one time to the next while the process stays large.
_LOOKS_MAX = 64


def resident_bytes() -> int:
    """The memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def give_back() -> None:
    """Gives back what is free whenever the process has grown, until cancelled.

    The C library keeps what lies between memory in use: of 5,000 answers that nobody read, a hundred mebibytes. What is
    still in use may be free soon, so it is tried again, ever less often, as long as the process is that large.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    least_bytes = last_bytes = resident_bytes()
    passed, looks = 0, 1
    while trim:
        await asyncio.sleep(_LOOK_SECONDS)
        size_bytes, passed = resident_bytes(), passed + 1
        least_bytes, last_bytes = min(least_bytes, size_bytes), min(last_bytes, size_bytes)
        grows = size_bytes > last_bytes + _GROWTH_BYTES
        if grows or (size_bytes > least_bytes + _GROWTH_BYTES and passed >= looks):
            await asyncio.to_thread(trim, 0)
            last_bytes = resident_bytes()
            passed, looks = 0, 1 if grows else min(2 * looks, _LOOKS_MAX)
