"""Slow work: its operation is waited for with a live view of its steps, or left to go on."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cunho import Operation, Refused
from cunho.cli import refusals
from cunho.cli.exit_codes import exit_code
from cunho.cli.printing import Cell, as_json, console, say, say_if_rehearsed, say_notice, say_to_programs, show
from cunho.cli.session import MisuseError
from cunho.cli.views import operation_details, quotes, refusals_within, result_view, step_text
from cunho.v1 import OperationMetadata, Warning

if TYPE_CHECKING:
    from rich.progress import Progress

    from cunho.cli.session import Session

_AT_ONCE_SECONDS = 0.3  # what ends within it needs no live view
_POLL_SECONDS = 1.0


def finish(session: "Session", operation: Operation[Any], *, no_wait: bool = False) -> int:
    """Shows what the operation will do, waits for it, and shows what it made. Returns the exit code.

    Raises:
        Refused: It failed or was cancelled, or the service could not be asked.
        MisuseError: The token's file holds none any more.
        KeyboardInterrupt: It goes on; the way to wait for it again is said.
    """
    for warning in operation.warnings:
        _warn(warning, session.json)
    if not operation.name:
        say_if_rehearsed(dry_run=True, json=session.json)
        _show_rehearsal(session, operation)
        return 0
    if no_wait:
        _show_name(session, operation)
        return 0
    result = _waited(session, operation)
    show(lambda: operation_details(operation) if session.json else result_view(result), json=session.json)
    failures = refusals_within(result)
    for failure in failures:
        refusals.tell(failure, session.connection.address, session.json)
    return exit_code(failures[0].code.name) if failures else 0


def _warn(warning: Warning, json: bool) -> None:
    if json:
        say_to_programs({"warning": as_json(warning)})
    else:
        say(Cell(f"warning: {warning.message} ({warning.reason})", "yellow"))


def _show_rehearsal(session: "Session", operation: Operation[Any]) -> None:
    if session.json:
        show(lambda: operation_details(operation), json=True)
    elif operation.quotes:
        show(lambda: quotes(operation.quotes), json=False)


def _show_name(session: "Session", operation: Operation[Any]) -> None:
    if session.json:
        show(lambda: operation_details(operation), json=True)
    else:
        print(operation.name)


def _waited(session: "Session", operation: Operation[Any]) -> Any:
    try:
        return _result(operation)
    except (KeyboardInterrupt, MisuseError, Refused):
        if not operation.done:
            wait = shlex.join(["cunho", "operations", "wait", operation.name, *session.flags])
            say_notice(f"the operation goes on; wait for it with: {wait}", json=session.json)
        raise


def _result(operation: Operation[Any]) -> Any:
    try:
        return operation.result(timeout_seconds=_AT_ONCE_SECONDS)
    except TimeoutError:
        if not sys.stderr.isatty():
            return operation.result()
    with _progress() as progress:
        steps = _Steps(progress)
        while True:
            steps.update(operation.metadata)
            try:
                return operation.result(timeout_seconds=_POLL_SECONDS)
            except TimeoutError:
                continue


@contextmanager
def _progress() -> Iterator["Progress"]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(sys.stderr), transient=True) as progress:
        yield progress


class _Steps:
    """The live view of an operation: a line for each step, and one for the whole."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._tasks: list[Any] = []

    def update(self, metadata: OperationMetadata) -> None:
        """Shows how far the operation is."""
        while len(self._tasks) <= len(metadata.steps):
            self._tasks.append(self._progress.add_task("", total=None))
        whole, *tasks = self._tasks
        self._progress.update(whole, description=f"{metadata.method}", total=100, completed=metadata.progress_percent)
        for task, step in zip(tasks, metadata.steps, strict=True):
            ended = step.state not in (OperationMetadata.Step.STATE_PENDING, OperationMetadata.Step.STATE_RUNNING)
            total = 1 if ended or step.state == OperationMetadata.Step.STATE_PENDING else None
            self._progress.update(task, description=step_text(step), total=total, completed=int(ended))
