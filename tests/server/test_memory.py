"""Memory that a burst left free goes back to the system."""

import asyncio
import ctypes

import pytest
from tests.end_to_end.steps import until

from cunho_server import memory
from cunho_server.memory import resident_bytes

_BLOCK_BYTES, _BLOCKS = 64 << 10, 2000


async def test_what_a_burst_left_free_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LOOK_SECONDS", 0.01)
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    before_bytes = resident_bytes()
    giving = asyncio.create_task(memory.give_back())
    await asyncio.sleep(0)
    blocks = [library.malloc(_BLOCK_BYTES) for _ in range(_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, _BLOCK_BYTES)
    last = blocks.pop()  # while it is in use, the library keeps all that lies below
    for block in blocks:
        library.free(block)
    assert resident_bytes() > before_bytes + memory._GROWTH_BYTES
    try:
        await asyncio.to_thread(until, lambda: resident_bytes() < before_bytes + memory._GROWTH_BYTES)
    finally:
        giving.cancel()
        library.free(last)
        await asyncio.wait({giving})
