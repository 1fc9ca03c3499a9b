"""How much the tests here do: a little in `make test`, all that docs/robustness.md speaks of in `make robustness`."""

import os
from typing import TypeVar

import pytest

LONG = os.environ.get("ROBUSTNESS") == "long"

#: Marks what takes too long, or too quiet a machine, for every run of the tests.
only_long = pytest.mark.skipif(not LONG, reason="part of `make robustness`")

Amount = TypeVar("Amount", int, float)


def scaled(short: Amount, long: Amount) -> Amount:
    """The amount for this run."""
    return long if LONG else short
