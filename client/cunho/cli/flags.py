"""Flags that several commands share, and how words become the values of the API."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Protocol

from cyclopts import Parameter, Token, validators

from cunho.cli.session import DAY_SECONDS, MisuseError

#: How flags are by default: none has a --no-… beside it, and help shows no default that says nothing.
QUIET = Parameter(negative=(), show_default=lambda value: str(value) if value else None)

WATCH_SECONDS = 2
_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_INT64_MAX = (1 << 63) - 1


def _size_bytes(_: type, tokens: Sequence[Token]) -> int:
    text = tokens[0].value
    parts = re.fullmatch(r"(\d{1,19})(\.\d{1,9})?\s*([A-Z]*)", text.upper())
    if not parts or parts[3] not in _UNITS:
        raise ValueError(f"{text!r} is no size: write bytes, or as in 20GiB or 512MiB")
    size = float(parts[1] + parts[2]) * _UNITS[parts[3]] if parts[2] else int(parts[1]) * _UNITS[parts[3]]
    if size != int(size):
        raise ValueError(f"{text!r} is no whole number of bytes")
    if size > _INT64_MAX:
        raise ValueError(f"{text!r} is more than 8 EiB")
    return int(size)


def _whole_number(_: type, tokens: Sequence[Token]) -> int:
    text = tokens[0].value
    try:
        return int(text)  # where cyclopts would round
    except ValueError as error:
        raise ValueError(f"{text!r} is no whole number") from error


def _is_pause(_: type, seconds: Any) -> None:
    if seconds is not None and not 0.1 <= seconds <= DAY_SECONDS:
        raise ValueError("must be 0.1 seconds at least, and a day at most")


# What the key of a label may be, the service says.


def _labels(_: type, tokens: Sequence[Token]) -> tuple[str, ...]:
    for token in tokens:
        if "=" not in token.value:
            raise ValueError(f"{token.value!r} is no label: write KEY=VALUE")
    return tuple(token.value for token in tokens)


def _label_choices(_: type, tokens: Sequence[Token]) -> tuple[str, ...]:
    for token in tokens:
        if not re.fullmatch(r"[\w.-]+", token.value.partition("=")[0]):  # or it would end the field in the filter
            raise ValueError(f"{token.value!r} is no label: write KEY or KEY=VALUE")
    return tuple(token.value for token in tokens)


Architecture = Literal["i386", "x86_64", "arm64"]
Region = Annotated[str, Parameter(help='Region, or "-" for all.', allow_leading_hyphen=True)]
Filter = Annotated[
    str,
    Parameter(
        help="Which ones, in the filter language of the API, as in 'name = \"web*\" AND NOT labels:old'.",
        allow_leading_hyphen=True,  # which is NOT
    ),
]
OrderBy = Annotated[str, Parameter(help='Order, as in "name" or "create_time desc, name". Default: newest first.')]
Limit = Annotated[
    int | None,
    Parameter(
        help="The most to show. Default: all.",
        converter=_whole_number,
        n_tokens=1,
        validator=validators.Number(gte=1),
        show_default=False,
    ),
]
Count = Annotated[
    int, Parameter(converter=_whole_number, n_tokens=1, validator=validators.Number(gte=1, lte=(1 << 31) - 1))
]
Watch = Annotated[
    float | None,
    Parameter(
        help="Show it anew every 2 seconds, or every so many, until Ctrl-C.", metavar="[SECONDS]", validator=_is_pause
    ),
]
DryRun = Annotated[bool, Parameter(help="Make every check and show the price, but do nothing.")]
NoWait = Annotated[bool, Parameter(help="Print the operation's name at once, instead of waiting for its end.")]
Bytes = Annotated[int, Parameter(converter=_size_bytes, metavar="SIZE", n_tokens=1)]
Labels = Annotated[tuple[str, ...], Parameter(name="--label", metavar="KEY=VALUE", converter=_labels, n_tokens=1)]
LabelChoice = Annotated[
    tuple[str, ...], Parameter(name="--label", metavar="KEY[=VALUE]", converter=_label_choices, n_tokens=1)
]


def with_pauses(words: Sequence[str]) -> list[str]:
    """The words, with the pause behind each --watch that has none: only a number is taken for one."""
    pairs = pairwise([*words, ""])
    return [
        f"--watch={WATCH_SECONDS}" if word == "--watch" and not _is_number(next_) else word for word, next_ in pairs
    ]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def labels_of(labels: Sequence[str]) -> dict[str, str]:
    """Labels given as KEY=VALUE. Raises MisuseError if two have the same key."""
    pairs = [(key, value) for key, _, value in (label.partition("=") for label in labels)]
    for key, times in Counter(key for key, _ in pairs).items():
        if times > 1:
            raise MisuseError(f"the label {key} is given {times} times: give it once")
    return dict(pairs)


def changed(*, label: Sequence[str] | None, no_labels: bool, **values: Any) -> dict[str, Any]:
    """The fields that an update gives, by name. Raises MisuseError if there are none, or they contradict each other."""
    if label and no_labels:
        raise MisuseError("--label and --no-labels contradict each other: give one of them")
    given = {name: value for name, value in values.items() if value is not None}
    if label or no_labels:
        given["labels"] = labels_of(label or ())
    if not given:
        raise MisuseError("nothing to change: name what it shall be, as by --name")
    return given


class Enum(Protocol):
    """An enum of the API."""

    def Name(self, number: Any, /) -> str: ...
    def Value(self, name: Any, /) -> Any: ...


def value_of(enum: Enum, word: str | None) -> Any:
    """The value that a word stands for: x86_64 for ARCHITECTURE_X86_64; for no word the unspecified one."""
    if word is None:
        return 0
    return enum.Value(f"{_prefix(enum)}_{word.upper().replace('-', '_')}")


def _prefix(enum: Enum) -> str:
    """What the names of an enum begin with, as ARCHITECTURE."""
    return enum.Name(0).removesuffix("_UNSPECIFIED")


def word_of(enum: Enum, value: int) -> str:
    """The name of a value without what all names of its enum begin with: AVAILABLE for STATE_AVAILABLE."""
    try:
        return enum.Name(value).removeprefix(f"{_prefix(enum)}_")
    except ValueError:  # of a newer service
        return str(value)
