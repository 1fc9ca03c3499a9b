r"""The language of `filter`: which fields there are, parsing, and checking. Knows no table and no query.

The language is a part of AIP-160 (https://google.aip.dev/160). A filter is empty, or comparisons joined by words::

    kind = PUBLIC AND os.platform = "ubuntu" AND (bits = 64 OR architecture = ARM64) AND NOT labels:experimental

* A comparison is a field, an operator and a value. Two comparisons always need `AND` or `OR` between them.
* `OR` binds tighter than `AND`, as in AIP-160: `a = 1 AND b = 2 OR c = 3` means `a = 1 AND (b = 2 OR c = 3)`.
  `NOT` and `-` are the same and bind tightest. Words and field names are case-sensitive.
* A value is read as its field's type says, quoted or not. Quotes, `"` or `'`, are needed around blanks, around any of
  `( ) = ! < > " ' \`, around `AND`, `OR`, `NOT`, and for the empty text. Inside them `\"`, `\'`, `\\` and `\*` stand
  for the second character.
* `= != < <= > >=` compare: numbers by size, times by moment, text case-sensitively by code point.
  Versions, software and targets have no order.
* `= "web*"` is true if the text starts with `web`, `!= "web*"` if it does not; `\*` is the character itself.
* `:` is true if the text contains the value, case-sensitively: `name:web`.
* `labels.KEY` is the value of one label; `labels:KEY`, or `labels.KEY:*`, is true if there is such a label.
* A field of a list, such as `software.name`, is true if it is for at least one element; several comparisons may be true
  for different elements.
* `!=` is always the same as `NOT` with `=`: true for what has no such label, software or owner at all. An absent text
  compares as the empty text, an absent label or element as nothing.
* Enum values are given short (`AVAILABLE`) or in full (`STATE_AVAILABLE`), truth as `true` and `false`, numbers as
  decimal integers, times as in RFC 3339 (`2026-01-31T12:00:00Z`) to the microsecond.

There are at most 100 comparisons, and 50 levels of `AND`, `OR` and `NOT`; parentheses that change nothing do not count.
The fields are data: `IMAGE_FIELDS`, `INSTANCE_FIELDS`, `OPERATION_FIELDS`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache
from typing import NamedTuple, TypeAlias

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedToken

from cunho_rules.model import DeprecationState, ImageState, InstanceState, Kind, Origin, Trust

#: Levels of AND, OR and NOT.
NESTING = 50

#: Comparisons in one filter.
COMPARISONS = 100

#: What the key of a label is, and in words.
LABEL_KEY = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
LABEL_KEY_FORM = "1 to 63 characters of [a-z0-9_.-], the first a letter"

#: What a value is once read.
Value: TypeAlias = str | int | bool | datetime


@dataclass(eq=False)
class FilterProblem(Exception):
    """Why a filter is refused: the field at fault ("" if none), the character's offset, and the problem in words."""

    field: str
    position: int
    problem: str


@dataclass(frozen=True, slots=True)
class And:
    """True if every part is."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """True if any part is."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """True if its part is not."""

    part: "Expression"


@dataclass(frozen=True, slots=True)
class Comparison:
    """True if the field compares so with the value. That a label exists is that it contains the empty text."""

    field: str
    #: Key of the label; "" for every other field.
    key: str
    operator: str
    value: Value
    #: True if the value is what the text starts with.
    prefix: bool
    #: Offset of its first character.
    position: int


Expression: TypeAlias = And | Or | Not | Comparison

_EQUALITY = ("=", "!=")
_ORDER = (*_EQUALITY, "<", "<=", ">", ">=")
_UNORDERED = (*_EQUALITY, ":")  # versions as text would have "10" before "9"
_ESCAPED = "\"'\\*"
_SHOWN = 60  # characters of the filter that a problem quotes
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6}0*)?(Z|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Field(ABC):
    """A field that a filter may name: its meaning in a line, and the operators that it takes."""

    meaning: str
    operators: tuple[str, ...] = field(default=_ORDER, kw_only=True)

    @abstractmethod
    def value(self, text: str) -> Value:
        """`text` as a value of this field. Raises ValueError with the problem."""


@dataclass(frozen=True, slots=True)
class Text(Field):
    """A text; takes prefixes too."""

    operators: tuple[str, ...] = field(default=(*_ORDER, ":"), kw_only=True)

    def value(self, text: str) -> str:
        if _CONTROL.search(text):
            raise ValueError(f"{_shown(text)} holds a control character; texts have none")
        return text


@dataclass(frozen=True, slots=True)
class Label(Text):
    """The text of one label, named by the field, a dot and the label's key."""


@dataclass(frozen=True, slots=True)
class Enum(Field):
    """One of some names; in full they begin with the enum's own."""

    enum: str
    values: tuple[str, ...]
    operators: tuple[str, ...] = field(default=_EQUALITY, kw_only=True)

    def value(self, text: str) -> str:
        short = text.removeprefix(f"{self.enum}_")
        if short not in self.values:
            raise ValueError(f"{_shown(text)} is none of {', '.join(self.values)}")
        return short


@dataclass(frozen=True, slots=True)
class Int(Field):
    """A 64-bit integer; one of `values` if there are any."""

    values: tuple[int, ...] = ()

    def value(self, text: str) -> int:
        number = int(text) if re.fullmatch(r"-?[0-9]{1,19}", text) else None
        if number is None or not -(2**63) <= number < 2**63:
            raise ValueError(f"{_shown(text)} is not an integer of 64 bits in decimal digits")
        if self.values and number not in self.values:
            raise ValueError(f"{number} is none of {', '.join(map(str, self.values))}")
        return number


@dataclass(frozen=True, slots=True)
class Bool(Field):
    """True or false."""

    operators: tuple[str, ...] = field(default=_EQUALITY, kw_only=True)

    def value(self, text: str) -> bool:
        if text not in ("true", "false"):
            raise ValueError(f"{_shown(text)} is neither true nor false")
        return text == "true"


@dataclass(frozen=True, slots=True)
class Time(Field):
    """A moment."""

    def value(self, text: str) -> datetime:
        try:
            if not _TIME.fullmatch(text.upper()):
                raise ValueError
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValueError(
                f"{_shown(text)} is not a time as 2026-01-31T12:00:00Z or 2026-01-31T12:00:00.000001+08:00"
            ) from None


IMAGE_FIELDS: Mapping[str, Field] = {
    "image_id": Text("Its id."),
    "name": Text("Its name."),
    "description": Text("Its description."),
    "owner_account_id": Text("Account that owns it; empty for a public image."),
    "kind": Enum("What it is to the caller.", "IMAGE_KIND", tuple(Kind)),
    "origin": Enum("How it came to be.", "ORIGIN", tuple(Origin)),
    "state": Enum("Where it is in its life.", "STATE", tuple(ImageState)),
    "family": Text("Its family; empty if it has none."),
    "architecture": Enum("Its architecture.", "ARCHITECTURE", ("I386", "X86_64", "ARM64")),
    "bits": Int("Width of its architecture in bits.", (32, 64)),
    "os.family": Enum("Family of its operating system.", "OS_FAMILY", ("LINUX", "WINDOWS", "OTHER")),
    "os.platform": Text("Distribution or product."),
    "os.version": Text("Version of the platform; empty if unknown.", operators=_UNORDERED),
    "software.name": Text("Name of any software bundled with it.", operators=_UNORDERED),
    "software.version": Text("Version of any software bundled with it.", operators=_UNORDERED),
    "labels": Label("Its labels."),
    "deprecation.state": Enum("How far it is retired.", "STATE", tuple(DeprecationState)),
    "trust": Enum("Who answers for its contents, to the caller.", "TRUST", tuple(Trust)),
    "cloud_init": Bool("Whether cloud-init configures a new instance at its first start."),
    "boot_mode": Enum("How it starts.", "BOOT_MODE", ("BIOS", "UEFI")),
    "size_bytes": Int("Size of its stored contents, in bytes."),
    "min_disk_bytes": Int("Smallest disk it fits on, in bytes."),
    "min_memory_bytes": Int("Smallest memory it runs in, in bytes; 0 for any."),
    "create_time": Time("When it was requested."),
    "update_time": Time("When it last changed."),
}

INSTANCE_FIELDS: Mapping[str, Field] = {
    "instance_id": Text("Its id."),
    "name": Text("Its name; may be empty."),
    "description": Text("Its description."),
    "account_id": Text("Account that it belongs to."),
    "zone_id": Text("Zone it runs in."),
    "instance_type": Text("Its instance type."),
    "image_id": Text("Image that its disk was made from."),
    "state": Enum("Where it is in its life.", "STATE", tuple(InstanceState)),
    "labels": Label("Its labels."),
    "create_time": Time("When it was requested."),
    "update_time": Time("When it last changed."),
}

OPERATION_FIELDS: Mapping[str, Field] = {
    "done": Bool("Whether it has ended."),
    "method": Text('Name of the RPC that began it, for example "CopyImage".'),
    "target_id": Text("Id of any image or instance that it makes or changes.", operators=_UNORDERED),
    "create_time": Time("When it was requested."),
}


def parse(text: str, fields: Mapping[str, Field]) -> Expression | None:
    """What the filter `text` over `fields` means; None if it is blank, since that selects everything.

    Raises FilterProblem.
    """
    if not text.strip():
        return None
    try:
        tree = _parser().parse(text)
    except (UnexpectedToken, UnexpectedCharacters) as unexpected:
        raise _syntax_problem(text, unexpected) from None
    positions = sorted(comparison.meta.start_pos for comparison in tree.find_data("comparison"))
    if len(positions) > COMPARISONS:
        raise FilterProblem("", positions[COMPARISONS], f"more than {COMPARISONS} comparisons; split the filter")
    return _expression(tree, fields, NESTING)


@cache
def _parser() -> Lark:
    """Made for the first filter, so that a start does not wait for it."""
    return Lark(
        r"""
        ?conjunction: disjunction (_AND disjunction)*
        ?disjunction: term (_OR term)*
        ?term: simple | (_NOT | _MINUS) simple -> negation
        ?simple: comparison | _OPEN conjunction _CLOSE
        comparison: FIELD OPERATOR (WORD | QUOTED)

        _AND.2: /AND(?![^\s()])/
        _OR.2: /OR(?![^\s()])/
        _NOT.2: /NOT(?![^\s()])/
        _MINUS: "-"
        _OPEN: "("
        _CLOSE: ")"
        FIELD: /(?!(AND|OR|NOT)(?![^\s()]))\w[\w.-]*/
        OPERATOR: /[<>!]=|[=<>:]/
        WORD: /(?!(AND|OR|NOT)(?![^\s()]))[^\s()=!<>"'\\:][^\s()=!<>"'\\]*/
        QUOTED: /"(\\.|[^"\\])*"|'(\\.|[^'\\])*'/s
        %ignore /\s+/
        """,
        start="conjunction",
        parser="lalr",
        lexer="contextual",
        propagate_positions=True,
    )


def _syntax_problem(text: str, unexpected: UnexpectedToken | UnexpectedCharacters) -> FilterProblem:
    """What the parser could have gone on with and what it met, in words."""
    if isinstance(unexpected, UnexpectedToken):
        possible, at_end = unexpected.expected, unexpected.token.type == "$END"
    else:
        possible, at_end = unexpected.allowed or set(), False
    position = len(text) if at_end else unexpected.pos_in_stream or 0
    found = "" if at_end else text[position:].split(maxsplit=1)[0]
    if {found, *text[:position].split()[-1:]} & {"and", "or", "not"}:
        problem = "AND, OR and NOT are written in capitals"
    elif "QUOTED" in possible and found.startswith(('"', "'")):
        problem = "the quotes are never closed"
    else:
        problem = f"expected {_expected(possible, at_end)}, found {_shown(found) if found else 'the end'}"
    return FilterProblem("", position, problem)


def _expected(possible: Collection[str], at_end: bool) -> str:
    """The terminals that are possible, in words."""
    if "FIELD" in possible:
        return "a field"
    if "OPERATOR" in possible:
        return "one of the operators = != < <= > >= :"
    if "WORD" in possible:
        return "a value, in quotes unless it is one plain word"
    return 'AND, OR or ")"' if at_end else "AND or OR"


def _expression(tree: Tree[Token], fields: Mapping[str, Field], levels: int) -> Expression:
    """What `tree` means, if it has at most so many levels. Raises FilterProblem."""
    if tree.data == "comparison":
        tokens = [token for token in tree.children if isinstance(token, Token)]
        name, operator, literal = (_Piece(str(token), token.start_pos or 0) for token in tokens)
        return _comparison(name, operator, literal, fields)
    if not levels:
        raise FilterProblem("", tree.meta.start_pos, f"AND, OR and NOT are nested over {NESTING} deep; nest them less")
    parts = tuple(_expression(part, fields, levels - 1) for part in tree.children if isinstance(part, Tree))
    if tree.data == "negation":
        return Not(*parts)
    return And(parts) if tree.data == "conjunction" else Or(parts)


class _Piece(NamedTuple):
    """A piece of the filter and where it starts."""

    text: str
    position: int


def _comparison(name: _Piece, operator: _Piece, literal: _Piece, fields: Mapping[str, Field]) -> Comparison:
    """The comparison of these three. Raises FilterProblem if they do not fit together."""
    path, key = _path(name, fields)
    field = fields[path]
    if operator.text not in field.operators:
        problem = f"{path} takes {' '.join(field.operators)}, not {operator.text}"
        raise FilterProblem(path, operator.position, problem)
    text, prefix = _text(path, literal)
    if isinstance(field, Label):
        if operator.text == ":" and not key:
            key, text = text, ""
        elif operator.text == ":" and not text:
            prefix = False
        if not LABEL_KEY.fullmatch(key):
            raise FilterProblem(path, name.position, f"write {path}.KEY, or {path}:KEY; keys are {LABEL_KEY_FORM}")
    if prefix and not (isinstance(field, Text) and operator.text in _EQUALITY):
        problem = r'a prefix stands after = and != of a text alone; "\*" is the character itself'
        raise FilterProblem(path, literal.position, problem)
    try:
        return Comparison(path, key, operator.text, field.value(text), prefix, name.position)
    except ValueError as error:
        raise FilterProblem(path, literal.position, str(error)) from None


def _path(name: _Piece, fields: Mapping[str, Field]) -> tuple[str, str]:
    """The field that `name` is of, and the label's key; "" if it has none. Raises FilterProblem if there is none."""
    path, _, key = name.text.partition(".")
    if isinstance(fields.get(path), Label):
        return path, key
    if name.text in fields:
        return name.text, ""
    if name.text == "region_id":
        problem = "region_id is no field of filters; lists by region have it as a field of the request"
    else:
        nearest = get_close_matches(name.text.lower(), fields, n=1)
        problem = f"there is no field {_shown(name.text)}" + (f"; did you mean {nearest[0]}?" if nearest else "")
    raise FilterProblem(name.text[:_SHOWN], name.position, problem)


def _text(path: str, literal: _Piece) -> tuple[str, bool]:
    """The text that `literal` stands for, and whether it is a prefix. Raises FilterProblem."""
    quotes = literal.text[0] in "\"'"
    pieces = re.findall(r"\\.|.", literal.text[quotes : len(literal.text) - quotes], re.DOTALL)
    prefix = pieces[-1:] == ["*"]
    if prefix:
        pieces.pop()
    position = literal.position + quotes
    for piece in pieces:
        if piece == "*":
            raise FilterProblem(path, position, r'* stands only at the end of a value; "\*" is the character itself')
        if piece[0] == "\\" and piece[1] not in _ESCAPED:
            raise FilterProblem(path, position, rf"\ stands only before one of {_ESCAPED}; write \\ for the character")
        position += len(piece)
    return "".join(piece[-1] for piece in pieces), prefix


def _shown(text: str) -> str:
    """`text` in quotes, cut if long, its unprintable characters escaped."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
