"""Memory that a burst left free goes back to the system."""

import asyncio
import ctypes

import pytest
from tests.end_to_end.steps import until

from cunho_server import memory
from cunho_server.memory import resident_bytes

_BLOCK_BYTES, _BLOCKS = 64 << 10, 2000


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is seen at each look, of which there is one after the other."""
    seen: list[int] = []

    def look() -> int:
        seen.append(resident_bytes())
        return seen[-1]

    monkeypatch.setattr(memory, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(memory, "resident_bytes", look)
    return seen


@pytest.mark.parametrize("looks_in_use", [0, 5])
async def test_what_a_burst_left_free_is_given_back(looks: list[int], looks_in_use: int) -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    before_bytes = resident_bytes()
    giving = asyncio.create_task(memory.give_back())
    await asyncio.sleep(0)
    blocks = [library.malloc(_BLOCK_BYTES) for _ in range(_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, _BLOCK_BYTES)
    number = len(looks) + looks_in_use
    await asyncio.to_thread(until, lambda: len(looks) >= number)
    last = blocks.pop()  # while it is in use, the library keeps all that lies below
    for block in blocks:
        library.free(block)
    assert resident_bytes() > before_bytes + memory._GROWTH_BYTES
    try:
        await asyncio.to_thread(until, lambda: resident_bytes() < before_bytes + memory._GROWTH_BYTES, 10)
    finally:
        giving.cancel()
        library.free(last)
        await asyncio.wait({giving})
