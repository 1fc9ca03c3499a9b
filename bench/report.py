"""What was measured, as tables for a terminal and as JSON for programs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from bench.installation import Start
from bench.measure import Compared, Sample
from bench.waiting import Waiting


def limits(compared: Iterable[Compared]) -> Table:
    """Each call beside its limit."""
    table = _table(
        "CPU of a call in µs, 32 callers: ours beside the limit, a bare echo and the bare statements",
        "call server PostgreSQL ours echo statement PostgreSQL limit ratio target",
    )
    for each in compared:
        cost, echo_us, statement = each.ours.cost, each.echo.cost.server, each.statement
        table.add_row(
            each.call.name,
            *(f"{value:.0f}" for value in (cost.server, cost.postgresql, cost.total)),
            *(f"{value:.0f}" for value in (echo_us, statement.server, statement.postgresql, each.limit_us)),
            f"{each.ratio:.2f}",
            f"{each.call.target:.2f}" if each.call.target else "",
        )
    return table


def loads(title: str, samples: Mapping[str, Iterable[Sample]]) -> Table:
    """Throughput, latency and cost of calls by so many connections."""
    table = _table(
        title, "call connections calls/s p50/ms p99/ms p99.9/ms p99/p50 server/µs PostgreSQL/µs both/µs load/core"
    )
    for name, of_call in samples.items():
        for sample in of_call:
            table.add_row(name, *_row(sample))
    return table


def growth(images: Sequence[int], samples: Mapping[str, Sequence[Sample]]) -> Table:
    """What calls cost as there are more images."""
    table = _table("CPU of a call in µs, server + PostgreSQL, by the number of images", "call")
    for number in images:
        table.add_column(f"{number:,}", justify="right")
    table.add_column("most/least", justify="right")
    for name, of_call in samples.items():
        costs = [sample.cost for sample in of_call]
        totals = [cost.total for cost in costs]
        table.add_row(
            name,
            *(f"{cost.server:.0f} + {cost.postgresql:.0f}" for cost in costs),
            f"{max(totals) / min(totals):.2f}",
        )
    return table


def waiting(waiting: Waiting) -> Table:
    """What those cost who wait for operations."""
    table = _table(f"WaitOperation, {waiting.waiters:,} at once", "what figure")
    table.add_row("one comes: CPU", f"{waiting.coming_us:.0f} µs")
    table.add_row("one waits: memory of the server", f"{waiting.memory_bytes / 1024:.1f} KiB")
    table.add_row("all wait: CPU", f"{waiting.idle_ms:.0f} ms a second")
    table.add_row("GetImage meanwhile: CPU", f"{waiting.beside.cost.total:.0f} µs")
    table.add_row("GetImage before: CPU", f"{waiting.alone.cost.total:.0f} µs")
    table.add_row("one is answered: CPU", f"{waiting.answered_us:.0f} µs")
    table.add_row("all are answered after", f"{waiting.last_seconds:.2f} s")
    return table


def process(start: Start, memory_bytes: Mapping[str, int]) -> Table:
    """How fast a server starts, and what it and PostgreSQL keep in memory."""
    table = _table("A server of one process", "what figure")
    table.add_row("start over an existing database", f"{start.seconds:.2f} s")
    table.add_row("start: CPU", f"{start.cpu_seconds:.2f} s")
    for name, size_bytes in memory_bytes.items():
        table.add_row(f"memory: {name}", f"{size_bytes / 2**20:.0f} MiB")
    return table


def _row(sample: Sample) -> list[str]:
    cost = sample.cost
    return [
        str(sample.connections),
        f"{sample.calls_per_second:.0f}",
        *(f"{sample.latency_ms(quantile):.2f}" for quantile in (0.5, 0.99, 0.999)),
        f"{sample.latency_ms(0.99) / sample.latency_ms(0.5):.1f}",
        *(f"{value:.0f}" for value in (cost.server, cost.postgresql, cost.total)),
        f"{sample.load_share:.0%}",
    ]


def facts(found: Mapping[str, str]) -> str:
    """What was measured on, in a line."""
    return ", ".join(f"{name} {value}" for name, value in found.items())


def as_json(table: Table) -> list[dict[str, Any]]:
    """The rows of a table, by its columns."""
    names = [str(column.header) for column in table.columns]
    cells = zip(*(column.cells for column in table.columns), strict=True)
    return [dict(zip(names, row, strict=True)) for row in cells]


def _table(title: str, headers: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, header in enumerate(headers.split()):
        table.add_column(header, justify="right" if index else "left", no_wrap=not index)
    return table
