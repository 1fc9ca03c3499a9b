"""The comments of the protos promise exactly the refusals that the checks of the action can make."""

import re
from pathlib import Path

import pytest
from docs.generate import reasons

from cunho_rules.actions import ACTIONS
from cunho_rules.checks import Action

PROTOS = Path(__file__).parents[2] / "protos" / "cunho" / "v1"

#: What the service's own comment says of every call, and what a list refuses before any rule of an action.
OF_EVERY_CALL = {"ETAG_MISMATCH"}
OF_LISTS = {"INVALID_FILTER", "INVALID_ORDER_BY", "INVALID_PAGE_TOKEN"}


def promised() -> dict[str, set[str]]:
    """The reasons behind "Refuses:" in the comment of each RPC."""
    found: dict[str, set[str]] = {}
    for path in PROTOS.glob("*_service.proto"):
        for comment, name in re.findall(r"((?:  //[^\n]*\n)+)  rpc (\w+)", path.read_text()):
            text = re.sub(r"\s*//\s*", " ", comment)
            said = text.partition("Refuses")[2].partition(":")[2]
            if other := re.search(r"as (\w+Image)\b", said):
                found[name] = found[other[1]]
            else:
                found[name] = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", said))
    return found


def refused(action: Action) -> set[str]:
    """The reasons that the checks of the action can refuse with."""
    return {reason for check in action.checks for reason in reasons(check)}


NAMES = sorted({action.name for action in ACTIONS})


@pytest.mark.parametrize("name", NAMES)
def test_the_comment_of_an_rpc_promises_what_its_checks_refuse(name: str) -> None:
    checked = set().union(*(refused(action) for action in ACTIONS if action.name == name)) - OF_EVERY_CALL
    assert promised()[name] - OF_LISTS == checked


def test_every_rpc_that_can_refuse_has_its_action() -> None:
    without = {name for name, said in promised().items() if said - OF_LISTS} - {*NAMES}
    assert without == {"BatchGetImages", "CheckImageActions", "CheckInstanceActions"}  # they ask GetImage, GetInstance
