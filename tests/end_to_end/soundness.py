"""What must be true of the database at every moment, whatever was interrupted."""

from collections.abc import Callable
from typing import Any

from cunho_storage.soundness import CONTRADICTIONS


def unsound(sql: Callable[[str], list[tuple[Any, ...]]]) -> list[str]:
    """What is half-made, moving by itself, or counted wrong, a sentence for each.

    Args:
        sql: gives the rows of a query.
    """
    return [sentence for (sentence,) in sql(CONTRADICTIONS)]
