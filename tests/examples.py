"""The examples of a document: its code blocks, and whether what they print is what is shown.

A block is fenced, and may be indented, as under a tab. What it prints is shown in the block that follows it.
"""

import re
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

ADDRESS = "127.0.0.1:50051"
_ID = re.compile(r"(?:img|ins|op)-[0-9a-z]{8}")
_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_SHOWS = ("json", "text")


class Example(NamedTuple):
    """A block of code, and the block that shows what it prints; "" if there is none."""

    language: str
    code: str
    shown: str


def examples(document: Path) -> list[Example]:
    """Every block of the document that is no output, in order."""
    blocks = [(language, dedent(code)) for _, language, code in _BLOCK.findall(document.read_text())]
    return [
        Example(language, code, shown if kind in _SHOWS else "")
        for (language, code), (kind, shown) in pairwise([*blocks, ("", "")])
        if language not in _SHOWS
    ]


class Ids:
    """The ids that stand in for those of a document, once answers have shown them."""

    def __init__(self) -> None:
        self._actual: dict[str, str] = {}

    def put_in(self, code: str) -> str:
        """The code with actual ids. Raises KeyError if it names one that no answer has shown."""
        return _ID.sub(lambda found: self._actual[found[0]], code)

    def fit(self, shown: str, printed: str) -> bool:
        """Whether `printed` is what is shown, but for blanks, "..." and ids, which are learned from it."""
        named: dict[str, str] = {}
        parts = re.split(rf"({_ID.pattern}|\.\.\.)", "".join(shown.split()))
        pattern = "".join(self._pattern(part, named) for part in parts)
        found = re.fullmatch(pattern, "".join(printed.split()), re.DOTALL)
        if found:
            self._actual |= {id: found[group] for id, group in named.items()}
        return found is not None

    def _pattern(self, part: str, named: dict[str, str]) -> str:
        if part == "...":
            return ".*"
        if not _ID.fullmatch(part):
            return re.escape(part)
        if part in self._actual:
            return re.escape(self._actual[part])
        if part in named:
            return f"(?P={named[part]})"
        named[part] = part.replace("-", "_")
        return f"(?P<{named[part]}>{part[: part.index('-')]}-[0-9a-z]{{8}})"
