"""Commands about operations: the slow work that the service does."""

from itertools import islice
from typing import Annotated, Any

from cyclopts import App, Parameter

from cunho import Operation
from cunho.cli import choosing, views
from cunho.cli.flags import Filter, Limit, Watch
from cunho.cli.printing import show
from cunho.cli.session import Session
from cunho.cli.waiting import finish

app: App = App(name="operations", help_epilogue="")

Name = Annotated[str, Parameter(help='Name, "operations/op-..." or "op-...".')]


@app.command(name="list")
def list_(
    *,
    running: bool = False,
    method: str = "",
    target: str = "",
    filter: Filter = "",
    limit: Limit = None,
    watch: Watch = None,
    session: Session,
) -> None:
    """Lists operations, the newest first.

    Args:
        running: Only those that have not ended.
        method: Only those begun by this call of the API, as CopyImage.
        target: Only those that make or change this image or instance.
    """
    comparisons = ["done = false"] if running else []
    comparisons += [choosing.comparison("method", method)] if method else []
    comparisons += [choosing.comparison("target_id", target)] if target else []
    chosen = choosing.all_of(filter, comparisons)
    show(
        lambda: views.operations(
            islice(session.client.list_operations(filter=chosen, page_size=choosing.page_size(limit)), limit)
        ),
        json=session.json,
        watch=watch,
    )


@app.command(name="show")
def show_(name: Name, /, *, watch: Watch = None, session: Session) -> None:
    """Shows one operation and its steps."""
    show(lambda: views.operation_details(_get(session, name)), json=session.json, watch=watch)


@app.command
def wait(name: Name, /, *, session: Session) -> int:
    """Waits until an operation has ended, and shows what it made."""
    return finish(session, _get(session, name))


@app.command
def cancel(name: Name, /, *, session: Session) -> None:
    """Asks an operation to stop; it may still succeed."""
    operation = _get(session, name)
    operation.cancel()
    operation.refresh()
    show(lambda: views.operation_details(operation), json=session.json)


def _get(session: Session, name: str) -> Operation[Any]:
    return session.client.get_operation(name=f"operations/{name.removeprefix('operations/')}")
