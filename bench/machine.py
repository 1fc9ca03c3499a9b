"""What processes cost: CPU time, memory, and the cores that they may run on. Linux alone."""

import os
import platform
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def pinned(number: int, core: int | None) -> None:
    """Keeps a process, with every thread that it has and will have, on one core; nothing with None."""
    if core is not None:
        for thread in Path(f"/proc/{number}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


def family(number: int) -> list[int]:
    """A process and all that come from it."""
    children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    return [number, *(each for child in children for each in family(int(child)))]


def cpu_seconds(number: int) -> float:
    """CPU time until now of a process and all that come from it, those that have ended too."""
    while True:
        # One of them that ends just now is counted again, as its parent's.
        with suppress(OSError):
            return sum(_own_seconds(each) + _ended_seconds(each) for each in family(number))


def demand_seconds(number: int) -> float:
    """CPU time until now that the threads of a process had or waited for, however busy the machine is with others."""
    texts = (path.read_text() for path in Path(f"/proc/{number}/task").glob("*/schedstat"))
    return sum(int(value) for text in texts for value in text.split()[:2]) / 1e9


def _own_seconds(number: int) -> float:
    # clock_getcpuclockid(3), which Python does not have: the CPU clock of a process is named by its inverted number.
    return time.clock_gettime_ns(~number << 3 | 2) / 1e9


def _ended_seconds(number: int) -> float:
    fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / _TICKS


def resident_bytes(number: int) -> int:
    """Memory of a process that is resident now, with what it shares with others."""
    return int(Path(f"/proc/{number}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def proportional_bytes(number: int) -> int:
    """Memory of a process that is resident now, and of what it shares with others its share."""
    lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def facts() -> dict[str, str]:
    """What was measured on, and with what."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "cores": f"{len(cores())} of {os.cpu_count()}",
        "processor": models[0].partition(": ")[2] if models else platform.processor(),
        "memory": f"{int(memory.split()[1]) >> 20} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("grpcio", "protobuf", "uvloop", "asyncpg")},
    }
