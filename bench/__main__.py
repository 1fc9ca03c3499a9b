"""`python -m bench`: fills a database, starts a server over it, measures, prints. docs/performance.md says how."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # before gRPC is imported: programs are started while calls are under way

from rich.console import Console
from rich.table import Table

from bench import machine, report
from bench.calls import CALLS, Call
from bench.installation import installed, start
from bench.measure import CALLERS, Bench, Compared, Sample
from bench.waiting import wait

_CONNECTIONS = (1, CALLERS, 256)
_IMAGES = 100_000
_WAIT, _START = "WaitOperation", "start"
_WAITERS = 5000
_GROWTH = (10_000, 100_000, 1_000_000)


def main(given: Sequence[str] | None = None) -> int:
    """Measures what the arguments say; the exit code."""
    arguments = _parser().parse_args(given)
    calls = [call for call in CALLS if _wanted(call.name, arguments)]
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(report.facts(machine.facts()))
    tables = []
    for table in (_growth if arguments.growth else _all)(calls, arguments):
        console.print(table)
        tables.append(table)
    if arguments.json:
        found = {str(table.title): report.as_json(table) for table in tables}
        arguments.json.write_text(json.dumps({"machine": machine.facts(), **found}, indent=2))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = parser.add_argument
    names = [*(call.name for call in CALLS), _WAIT, _START]
    add("--only", action="append", choices=names, metavar="WHAT", help=f"may be repeated; {'; '.join(names)}")
    add("--growth", action="store_true", help="measure what calls cost as there are more images, and nothing else")
    add("--images", type=int, nargs="*", help="how many images there are; with --growth, numbers to compare")
    add("--accounts", type=int, default=10_000, help="how many accounts there are (default: %(default)s)")
    add("--connections", type=int, nargs="*", default=_CONNECTIONS, help="of callers (default: 1 32 256)")
    add("--waiters", type=int, default=_WAITERS, help="how many wait for operations (default: %(default)s)")
    add("--rounds", type=int, default=5, help="rounds of which medians are taken (default: %(default)s)")
    add("--seconds", type=float, default=1, help="length of each measurement (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the tables there too")
    return parser


def _wanted(name: str, arguments: argparse.Namespace) -> bool:
    return not arguments.only or name in arguments.only


def _all(calls: Sequence[Call], arguments: argparse.Namespace) -> Iterator[Table]:
    rounds, seconds = arguments.rounds, arguments.seconds
    images, *_ = arguments.images or [_IMAGES]
    with installed(images, arguments.accounts) as installation:
        bench = Bench(installation)
        if compared := [bench.compare(call, rounds=rounds, seconds=seconds) for call in calls]:
            yield report.limits(compared)
            yield report.loads(
                "As many calls as are answered",
                {each.call.name: _at_once(bench, each, arguments) for each in compared},
            )
            yield report.loads(
                "Half as many, at random moments",
                {each.call.name: [_at_half(bench, each, arguments)] for each in compared}
                | {f"bare echo of {compared[0].call.name}": [_echo_at_half(bench, compared[0], arguments)]},
            )
        if _wanted(_WAIT, arguments):
            yield report.waiting(wait(installation, arguments.waiters, seconds=seconds))
        if _wanted(_START, arguments):
            yield report.process(start(installation, rounds=rounds), installation.memory_bytes())


def _at_once(bench: Bench, compared: Compared, arguments: argparse.Namespace) -> list[Sample]:
    call, ours, seconds = compared.call, compared.ours, arguments.seconds
    return [
        ours if connections == ours.connections else bench.sample(call, connections, seconds=seconds)
        for connections in arguments.connections
    ]


def _at_half(bench: Bench, compared: Compared, arguments: argparse.Namespace) -> Sample:
    """By as many connections as there are, so that calls hardly ever wait for one."""
    rate, connections = compared.ours.calls_per_second / 2, max(arguments.connections)
    return bench.sample(compared.call, connections, seconds=3 * arguments.seconds, rate=rate)


def _echo_at_half(bench: Bench, compared: Compared, arguments: argparse.Namespace) -> Sample:
    """The same of a server that does nothing: how long calls take by the machine itself."""
    rate, connections = compared.echo.calls_per_second / 2, max(arguments.connections)
    return bench.sample_echo(compared.call, connections, seconds=3 * arguments.seconds, rate=rate)


def _growth(calls: Sequence[Call], arguments: argparse.Namespace) -> Iterator[Table]:
    with ExitStack() as stack:
        installations = [
            stack.enter_context(installed(images, arguments.accounts)) for images in arguments.images or _GROWTH
        ]
        samples = {call.name: [Sample(CALLERS) for _ in installations] for call in calls}
        for call in calls:
            for _ in range(arguments.rounds):
                for installation, sample in zip(installations, samples[call.name], strict=True):
                    Bench(installation).add(sample, call, arguments.seconds)
        yield report.growth([installation.images for installation in installations], samples)


if __name__ == "__main__":
    sys.exit(main())
