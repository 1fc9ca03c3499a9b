"""When the call at hand ends: who calls says so once, and whatever takes time asks how much of it is left."""

import asyncio
import math
from contextvars import ContextVar

_end: ContextVar[float] = ContextVar("end", default=math.inf)


def ends_at(time: float) -> None:
    """Says when the work of the current task ends, by the clock of its loop."""
    _end.set(time)


def remaining_seconds() -> float:
    """The time left; infinite for work that is no call."""
    end = _end.get()
    return end if end == math.inf else max(0.0, end - asyncio.get_running_loop().time())
