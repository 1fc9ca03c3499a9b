"""The language of `order_by`: which fields there are, parsing, and checking. Knows no table and no query.

An order is empty, or fields with commas between them, each ascending unless `desc` follows: `create_time desc, name`.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

IMAGE_ORDER_FIELDS = ("create_time", "update_time", "name", "size_bytes", "image_id")
INSTANCE_ORDER_FIELDS = ("create_time", "update_time", "name", "instance_id")

#: Taken where the caller gives no order.
DEFAULT_ORDER = "create_time desc"

_SHOWN = 60  # characters of the order that a problem quotes


class Key(NamedTuple):
    """One field of an order."""

    field: str
    descending: bool


@dataclass(eq=False)
class OrderProblem(Exception):
    """Why an order is refused: the field at fault ("" if none), the character's offset, and the problem in words."""

    field: str
    position: int
    problem: str


def parse(text: str, fields: Collection[str], tie_breaker: str, default: str = DEFAULT_ORDER) -> tuple[Key, ...]:
    """The keys of the order `text`, or of `default` if it is blank.

    Unless named, the `tie_breaker` comes last, in the direction of the key before it: an index serves keys of one
    direction best. Raises OrderProblem.
    """
    directions: dict[str, bool] = {}
    start = 0
    descending = False
    for term in (text if text.strip() else default).split(","):
        words = list(re.finditer(r"\S+", term))
        name, position = (words[0][0], start + words[0].start()) if words else ("", start + len(term))
        if name not in fields:
            found = repr(name[:_SHOWN]) if name else "none"
            raise OrderProblem(name[:_SHOWN], position, f"expected one of {', '.join(fields)}, found {found}")
        if name in directions:
            raise OrderProblem(name, position, f"{name} is named twice")
        direction = words[1][0] if words[1:] else "asc"
        if direction not in ("asc", "desc") or words[2:]:
            problem = (
                f"after {name} there may be desc or asc, then a comma; found {term[words[1].start() :][:_SHOWN]!r}"
            )
            raise OrderProblem(name, start + words[1].start(), problem)
        descending = directions[name] = direction == "desc"
        start += len(term) + 1
    directions.setdefault(tie_breaker, descending)
    return tuple(Key(name, descending) for name, descending in directions.items())
