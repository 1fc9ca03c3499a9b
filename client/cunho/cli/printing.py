"""How answers look: tables for people, aligned text for pipes, JSON for programs. Knows no call and no message.

Texts of others are shown as they are: what looks like markup is text, and what a terminal would obey is spelt out.
"""

import io
import json
import sys
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from time import sleep
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from google.protobuf.any_pb2 import Any as PackedMessage
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

from cunho import Refused
from cunho.cli.streams import telling

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.timestamp_pb2 import Timestamp
    from google.type.money_pb2 import Money
    from rich.console import Console, RenderableType
    from rich.text import Text

_AGES = ((86400, "d"), (3600, "h"), (60, "min"))
_GAP, _CUT_WIDTH = 2, 16
_PLAIN_WIDTH = 1 << 16  # wide enough that nothing is cut


class Cell(NamedTuple):
    """A text and its style; the style is lost where there are no colours."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        heading: Its heading.
        cell: What it shows of a message.
        fit: Where the terminal is narrow, a text is cut or wrapped, but an id shown whole: it is there to be copied.
    """

    heading: str
    cell: Callable[[Any], "Cell | str"]
    fit: Literal["cut", "whole", "wrapped"] = "cut"


class Shown(Protocol):
    """Anything that can be shown."""

    @property
    def json(self) -> object:
        """It as JSON."""
        ...

    def text(self, width: int) -> "RenderableType":
        """It for people, whose terminal is so many characters wide."""
        ...


@dataclass(frozen=True)
class Table:
    """Messages, each in a row. Where the terminal is too narrow, the columns on the right are left out."""

    messages: Sequence[Any]
    columns: Sequence[Column]
    empty: str = "nothing found"
    to_json: Callable[[Any], object] = field(default_factory=lambda: as_json)

    @property
    def json(self) -> object:
        return [self.to_json(message) for message in self.messages]

    def text(self, width: int) -> "RenderableType":
        from rich.table import Table as RichTable

        if not self.messages:
            return cell_text(Cell(self.empty, "dim"))
        columns = [(column, [cell_text(column.cell(message)) for message in self.messages]) for column in self.columns]
        while len(columns) > 1 and sum(_least_width(*column) + _GAP for column in columns) > width + _GAP:
            columns.pop()
        table = RichTable(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for column, texts in columns:
            table.add_column(column.heading, no_wrap=column.fit == "whole")
            for text in texts if column.fit == "cut" else ():
                text.no_wrap, text.overflow = True, "ellipsis"
        for row in zip(*(texts for _, texts in columns), strict=True):
            table.add_row(*row)
        return table


class Row(Table):
    """A table of one message, which is no list: as JSON it is an object."""

    @property
    def json(self) -> object:
        (message,) = self.messages
        return self.to_json(message)


def _least_width(column: Column, texts: "Iterable[Text]") -> int:
    """How narrow a column may get before another one has to go."""
    longest = max(len(column.heading), *(text.cell_len for text in texts))
    return longest if column.fit == "whole" else min(longest, _CUT_WIDTH)


@dataclass(frozen=True)
class Details:
    """One message, a line for each thing to tell about it; lines that tell nothing are left out.

    Attributes:
        message: The message.
        lines: What each line is about, and what it says.
        below: What follows the lines.
    """

    message: Any
    lines: Sequence[tuple[str, "Cell | str"]]
    below: Sequence[Table] = ()
    to_json: Callable[[Any], object] = field(default_factory=lambda: as_json)

    @property
    def json(self) -> object:
        return self.to_json(self.message)

    def text(self, width: int) -> "RenderableType":
        from rich.console import Group

        lines = grid((Cell(name, "bold"), cell) for name, cell in self.lines if cell_text(cell).plain)
        return Group(lines, *(part for table in self.below if table.messages for part in ("", table.text(width))))


def grid(rows: Iterable[Sequence["Cell | str"]], indent: int = 0) -> "RenderableType":
    """Rows of equally many cells; where the terminal is narrow, the last of them goes on below itself."""
    from rich.padding import Padding
    from rich.table import Table as RichTable

    texts = [[cell_text(cell) for cell in row] for row in rows]
    table = RichTable.grid(padding=(0, 2, 0, 0))
    for last in [False] * (len(texts[0]) - 1) + [True] if texts else []:
        table.add_column(no_wrap=not last, overflow="fold")
    for row in texts:
        table.add_row(*row)
    return Padding(table, (0, 0, 0, indent), expand=False)


# --- the ways of showing


def show(make: Callable[[], Shown], *, json: bool, watch: float | None = None) -> None:
    """Shows on the output what `make` gives; anew each time so many seconds have passed, if any. Raises Refused."""
    if watch is None:
        _print(make(), json, indent=2)
        return
    if json or not sys.stdout.isatty():
        while True:
            _print(make(), json, indent=None)
            sys.stdout.flush()
            sleep(watch)
    _live(make, watch)


def say(text: "RenderableType | Cell | str") -> None:
    """Prints beside the output, to people: notices, refusals, what to do next."""
    with telling():
        _print_to(sys.stderr, text)


def say_to_programs(told: object) -> None:
    """Prints beside the output, as JSON in a line."""
    with telling():
        print(json.dumps(told), file=sys.stderr)


def say_notice(text: str, *, json: bool) -> None:
    """Prints a notice beside the output."""
    if json:
        say_to_programs({"notice": text})
    else:
        say(text)


def say_if_rehearsed(dry_run: bool, *, json: bool) -> None:
    """Says what --dry-run means for what is shown."""
    if dry_run:
        say_notice("every check passed; nothing was done", json=json)


def _print(shown: Shown, as_json: bool, indent: int | None) -> None:
    if as_json:
        print(json.dumps(shown.json, indent=indent))
    else:
        _print_to(sys.stdout, shown.text(width(sys.stdout)))


def _print_to(file: Any, what: "RenderableType | Cell | str") -> None:
    renderable = cell_text(what) if isinstance(what, str | Cell) else what
    if file.isatty():
        console(file).print(renderable, soft_wrap=isinstance(what, str))  # a command in it is there to be copied
        return
    from rich.console import Console

    plain = Console(file=io.StringIO(), width=_PLAIN_WIDTH, color_system=None, force_terminal=False)
    with plain.capture() as captured:
        plain.print(renderable)
    file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def console(file: Any) -> "Console":
    """The terminal that a file is."""
    from rich.console import Console

    return Console(file=file, highlight=False, markup=False, emoji=False)


def width(file: Any) -> int:
    """How many characters fit into a line of the terminal that a file is; of any other file as good as all."""
    return console(file).width if file.isatty() else _PLAIN_WIDTH


def _live(make: Callable[[], Shown], seconds: float) -> None:
    """Shows on the terminal what `make` gives, in place, until Ctrl-C. Refusals that may pass are shown below."""
    from rich.console import Group
    from rich.live import Live

    last = make().text(width(sys.stdout))
    with Live(last, console=console(sys.stdout), auto_refresh=False) as live:
        while True:
            sleep(seconds)
            try:
                last = make().text(width(sys.stdout))
                live.update(last, refresh=True)
            except Refused as refused:
                if not refused.retry_may_help:
                    raise
                live.update(Group(last, "", cell_text(Cell(f"as of before: {refused}", "yellow"))), refresh=True)


def cell_text(what: "Cell | str") -> "Text":
    """A cell as rich shows it."""
    from rich.text import Text

    cell = Cell(what) if isinstance(what, str) else what
    return Text(visible(cell.text), style=cell.style)


# --- values


def visible(text: str) -> str:
    """A text with everything spelt out that a terminal would obey or hide."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def as_json(message: Message) -> Any:
    """A message as JSON: every field, by the name that the API has for it; integers of 64 bits as text, exact.

    A packed message whose type is not known stays packed: its type and its bytes, in base64.
    """
    try:
        return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    except (TypeError, DecodeError):  # of a newer service
        if isinstance(message, PackedMessage):
            return {"@type": message.type_url, "value": b64encode(message.value).decode()}
        return _as_json_in_parts(message)


def _as_json_in_parts(message: Message) -> Any:
    """The same, with each message within by itself."""
    parts = {field.name: part for field, part in message.ListFields() if _holds_messages(field)}
    rest = type(message)()
    rest.CopyFrom(message)
    for name in parts:
        rest.ClearField(name)
    told = {name: as_json(part) if isinstance(part, Message) else [*map(as_json, part)] for name, part in parts.items()}
    return {**as_json(rest), **told}


def _holds_messages(field: "FieldDescriptor") -> bool:
    return field.message_type is not None and not field.message_type.GetOptions().map_entry


def size(size_bytes: int) -> str:
    """A size for people: 4.2 GiB."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size_bytes} B"


def money(amount: "Money") -> str:
    """An amount, exact, with two decimals at least: 0.046 USD."""
    value = (Decimal(amount.units) + Decimal(amount.nanos) / 10**9).normalize()
    decimals = max(2, -int(value.as_tuple().exponent))
    return f"{value:.{decimals}f} {amount.currency_code}"


def moment(timestamp: "Timestamp") -> str:
    """A moment in UTC: 2026-01-31T12:00:00Z; nothing if there is none."""
    if not timestamp.ByteSize():
        return ""
    return f"{datetime.fromtimestamp(timestamp.seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def age(timestamp: "Timestamp") -> str:
    """How long ago a moment was: 3 h."""
    if not timestamp.ByteSize():
        return ""
    seconds = max(0, int(datetime.now(UTC).timestamp()) - timestamp.seconds)
    return next((f"{seconds // unit} {name}" for unit, name in _AGES if seconds >= unit), f"{seconds} s")


def joined(parts: Iterable[str], separator: str = ", ") -> str:
    """The parts that are not empty."""
    return separator.join(part for part in parts if part)
