"""Writes every page that says what the code says: `python -m docs.generate FOLDER`.

Says nothing of its own about a rule: statements, demands, messages and remedies are those that the server works with.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import FunctionType

from docs import api_reference, filter_reference, settings_reference
from docs.markdown import table

from cunho_rules import actions
from cunho_rules.checks import Check, Stage
from cunho_rules.refusals import REFUSALS, Code, Reason, Retry
from cunho_rules.rules import SECTIONS

RULES_INTRODUCTION = f"""\
# Rules

Written by `make docs` from `server/cunho_rules`; change the rules there.

An id never changes, and stands in every refusal. Sources: *spec*, the description of the product; *docs*, common
practice of such services; *ours*, a decision of this project; *AIP*, one of the API improvement proposals.

When several rules refuse, the answer is the first in this order: credentials,
{", ".join(stage.name.lower() for stage in Stage)}. [errors.md](errors.md) has the whole of each refusal.
"""

CALLS_INTRODUCTION = """\
## Calls

The checks of each call, in the order in which they are made. Every call checks credentials first ([ALL-1](#all-1)),
then that nothing in the request is missing or malformed ([ALL-5](#all-5)). Once a stage has refused, later ones are not
looked at. BatchGetImages and CheckImageActions check as [GetImage](#getimage) does, CheckInstanceActions as
[GetInstance](#getinstance).
"""

ERRORS_INTRODUCTION = """\
# Errors

Written by `make docs` from `server/cunho_rules/refusals.py`; change them there.

The details of every refusal have a `google.rpc.ErrorInfo` of the domain `cunho.v1`, with one of these reasons and its
metadata, in which what there is not is empty, and a `cunho.v1.Advice` with rule, remedy and whether a retry may help.
What is malformed, which quota is exceeded and when to retry are there as google.rpc's `BadRequest`, `QuotaFailure` and
`RetryInfo` too. In the Python client all of it is on the exception `Refused`. Below, each reason's message is followed
by its remedy.
"""

RETRIES = {
    Retry.NOTHING: "does not help",
    Retry.CALL: "the same call may succeed later",
    Retry.READ_AGAIN: "read the resource again, then decide anew",
}

#: Calls whose checks depend on which quota is asked for.
QUOTAS = {
    actions.GET_IMAGE_QUOTA: "CUSTOM_IMAGES",
    actions.GET_SHARE_QUOTA: "SHARES_PER_IMAGE",
    actions.SET_IMAGE_QUOTA: "CUSTOM_IMAGES",
    actions.SET_SHARE_QUOTA: "SHARES_PER_IMAGE",
}


@cache
def reasons(check: Check) -> list[Reason]:
    """The reasons that the check can refuse with, found in its source and in that of the functions it calls."""
    named = _named(check.judge, set())
    return [reason for reason in Reason if reason in named]


def _named(function: object, seen: set[object]) -> set[str]:
    function = function.judge if isinstance(function, Check) else function
    if not isinstance(function, FunctionType) or function in seen:
        return set()
    seen.add(function)
    source = inspect.getsource(function)
    called = [function.__globals__.get(name) for name in re.findall(r"\b(\w+)(?:\.judge)?\(", source)]
    within = [cell.cell_contents for cell in function.__closure__ or ()]
    found = {*re.findall(r"\bReason\.([A-Z_]+)", source)}
    return found.union(*(_named(other, seen) for other in (*called, *within)))


def rules_page() -> str:
    """The text of docs/rules.md."""
    parts = [RULES_INTRODUCTION]
    for heading, rules in SECTIONS.items():
        parts.append(f"## {heading}\n")
        for id, rule in rules.items():
            parts.append(f"### {id}\n\n{rule.statement} *{rule.source}*\n")
            if lines := [*_demands(id), *_refusals(id)]:
                parts.append("\n".join(lines) + "\n")
    parts.append(CALLS_INTRODUCTION)
    parts += [_call(name) for name in dict.fromkeys(action.name for action in actions.ACTIONS)]
    return "\n".join(parts)


def _demands(id: str) -> Iterator[str]:
    """What the checks of the rule demand, and in which calls."""
    calls: dict[str, list[str]] = {}
    for action in actions.ACTIONS:
        for check in action.checks:
            if check.rule == id:
                calls.setdefault(check.demand, []).append(action.name)
    for demand, names in calls.items():
        linked = ", ".join(f"[{name}](#{name.lower()})" for name in dict.fromkeys(names))
        yield f"- **Checked** by {linked}: {demand}"


def _refusals(id: str) -> Iterator[str]:
    """How the rule refuses: as its checks do, or as what is no check does."""
    for reason, entry in REFUSALS.items():
        if id in _rules(reason):
            yield f"- **Refused** with {_linked(reason)}, {entry.code}: {_marked(entry.remedy)}"


@cache
def _rules(reason: Reason) -> list[str]:
    """The rules that refuse with the reason."""
    checks = (check for action in actions.ACTIONS for check in action.checks)
    return [*dict.fromkeys(check.rule for check in checks if reason in reasons(check))] or [REFUSALS[reason].rule]


def _call(name: str) -> str:
    parts = [f"### {name}\n"]
    for action in actions.ACTIONS:
        if action.name == name:
            rows = [
                (check.stage.name.lower(), _rule(check.rule), check.demand, _listed(reasons(check)))
                for check in action.checks
            ]
            parts += [f"Of {QUOTAS[action]}:\n"] if action in QUOTAS else []
            parts.append(table(("Stage", "Rule", "Demand", "Refusal"), rows))
    return "\n".join(parts)


def errors_page() -> str:
    """The text of docs/errors.md."""
    by_code = [(code, _listed(r for r, entry in REFUSALS.items() if entry.code is code)) for code in Code]
    parts = [ERRORS_INTRODUCTION, table(("Code", "Reasons"), by_code)]
    for reason, entry in REFUSALS.items():
        rules = ", ".join(_rule(id) for id in _rules(reason))
        keys = ", ".join(f"`{key}`" for key in sorted(entry.keys)) or "none"
        parts.append(
            f"## {reason}\n\n{entry.code}. Rule: {rules}. Metadata: {keys}. Retry: {RETRIES[entry.retry]}.\n\n"
            f"> {_marked(entry.message)}\n>\n> {_marked(entry.remedy)}\n"
        )
    return "\n".join(parts)


def _rule(id: str) -> str:
    return f"[{id}](rules.md#{id.lower()})"


def _linked(reason: Reason) -> str:
    return f"[{reason}](errors.md#{reason.lower()})"


def _listed(found: Iterable[Reason]) -> str:
    return ", ".join(_linked(reason) for reason in found)


def _marked(text: str) -> str:
    """The text with {keys} marked as code."""
    return re.sub(r"\{(\w+)(:[^}]*)?\}", r"`{\1}`", text)


def pages() -> dict[str, str]:
    """The text of every page that is written here, by its path within docs."""
    found = {"rules.md": rules_page(), "errors.md": errors_page(), "settings.md": settings_reference.page()}
    calls = api_reference.pages() | {"filters.md": filter_reference.page()}
    return found | {f"api/{name}": text for name, text in calls.items()}


def main(folder: str) -> None:
    """Writes every page."""
    Path(folder, "api").mkdir(exist_ok=True)
    for name, text in pages().items():
        Path(folder, name).write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
