"""How much the tests here do: a little in `make test`, all that docs/robustness.md speaks of in `make robustness`."""

import os
from typing import TypeVar

LONG = os.environ.get("ROBUSTNESS") == "long"

Amount = TypeVar("Amount", int, float)


def scaled(short: Amount, long: Amount) -> Amount:
    """The amount for this run."""
    return long if LONG else short
