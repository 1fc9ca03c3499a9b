"""Servers with seeded bugs: each lacks one of the defences against races, or more, and its windows are wide open.

A mutant is a server whose processes are patched when they start; the service has no hooks for it. What each is found
by, docs/robustness.md tells. Statements are known by the name that their module gives them, and rewritten as text: what
is rewritten and is not there any more raises LookupError, and the server does not start.
"""

import asyncio
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from cunho_rules import actions
from cunho_rules.checks import Check
from cunho_rules.images import not_busy
from cunho_server import images as images_of_server
from cunho_server import instances as instances_of_server
from cunho_server import making, servicer
from cunho_storage import accounts, database, facts_of, images, instances, operations, requests, shares
from cunho_storage.database import Connection
from cunho_storage.statements import Statement

#: What is patched before a server begins.
Patch = Callable[[], None]

LOCK = re.compile(r" FOR (NO KEY UPDATE|KEY SHARE|SHARE|UPDATE)( SKIP LOCKED| NOWAIT)?")
_WRITE = re.compile(r"\b(INSERT|DELETE|(?<!FOR )(?<!KEY )UPDATE)\b")

#: What a line begins with that tells which defence held.
HELD = "held by "

#: The longest pauses: some that others come in between, and one in which others can do several things.
_PAUSES_SECONDS = (0.02, 0.02, 0.5)

_MODULES = (accounts, facts_of, images, instances, operations, requests, shares)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A server without some defences."""

    #: What it does wrong, in a sentence.
    what: str
    patches: Sequence[Patch] = ()
    #: What is dropped from the schema.
    drops: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    #: What holds although the defence is gone; "" if nothing does, and the checker finds it.
    held_by: str = ""


# --- patches


def statements() -> dict[str, list[Statement]]:
    """Every statement that is composed at import, by module and name; some names have several."""
    found = {
        f"{module.__name__.rpartition('.')[2]}.{name}": [*_statements(value)]
        for module in _MODULES
        for name, value in vars(module).items()
        if not isinstance(value, type)
    }
    return {name: composed for name, composed in found.items() if composed}


def _statements(value: object) -> Iterator[Statement]:
    if isinstance(value, Statement):
        yield value
    elif isinstance(value, requests.Basis | requests.Beginning | requests.Ending):
        yield from (each for each in vars(value).values() if isinstance(each, Statement))


def locks() -> list[str]:
    """The names of those that lock rows."""
    return [name for name, composed in statements().items() if any(LOCK.search(each.text) for each in composed)]


def rewritten(names: str, pattern: str, replacement: str) -> Patch:
    """Rewrites statements.

    Args:
        names: a regular expression for their module and name.
        pattern: another, for what is replaced in each of them that has it.
    """

    def patch() -> None:
        named = (each for name, composed in statements().items() if re.fullmatch(names, name) for each in composed)
        found = [each for each in named if re.search(pattern, each.text)]
        if not found:
            raise LookupError(f"no statement {names} has {pattern} any more")
        for each in found:
            each.text = re.sub(pattern, replacement, each.text)

    return patch


def unlocked(names: str) -> Patch:
    """Takes the locks from statements."""
    return rewritten(names, LOCK.pattern, "")


def replaced(module: ModuleType, name: str, make: Callable[[Any], Any]) -> Patch:
    """Puts what `make` makes of a function in its place."""

    def patch() -> None:
        original = getattr(module, name)
        setattr(module, name, make(original))

    return patch


def widened() -> None:
    """Every call pauses now and then between its statements, most often before it writes, with its facts read."""
    for name in ("rows", "row", "value", "run"):
        setattr(Connection, name, _pausing(getattr(Connection, name)))


async def _pause(often: float) -> None:
    if random.random() < often:
        await asyncio.sleep(random.uniform(0, random.choice(_PAUSES_SECONDS)))


def _pausing(original: Any) -> Any:
    async def asked(self: Connection, statement: Statement, **arguments: Any) -> Any:
        await _pause(0.5 if _WRITE.search(statement.text) else 0.1)
        return await original(self, statement, **arguments)

    return asked


def _talkative() -> None:
    """Says on standard error what got in the way of a transaction: which of the last defences held."""

    class Told(database.Conflict):
        def __init__(self, why: str) -> None:
            super().__init__(why)
            print(f"{HELD}{why}", file=sys.stderr, flush=True)

    for module in (database, images, making, requests, instances_of_server, images_of_server):
        vars(module)["Conflict"] = Told


def _isolation() -> None:
    database.SESSION["default_transaction_isolation"] = "repeatable read"


def _one_share_more() -> None:
    making._NEW["share_limit"] += 1


def _without_rule(action: str, check: Check) -> Patch:
    """Takes a rule from what an action is judged by."""

    def patch() -> None:
        judged = getattr(actions, action)
        if check not in judged.checks:
            raise LookupError(f"{action} is not judged by {check.demand!r} any more")
        setattr(actions, action, judged._replace(checks=tuple(each for each in judged.checks if each is not check)))

    return patch


def _everything(page: Any) -> Any:
    """Lists without the share predicate: whatever accounts have is shared with everybody."""

    async def found(connection: Connection, asked: images.Asked) -> Any:
        return [
            image._replace(shared_with_caller=image.owner_account_id not in (None, asked.account_id))
            for image in await page(connection, asked._replace(account_id=None))
        ]

    return found


def _in_two(page: Any) -> Any:
    """Lists in two statements: which images the account sees, and then the images."""

    async def found(connection: Connection, asked: images.Asked) -> Any:
        seen = {image.image_id: image for image in await page(connection, asked)}
        await asyncio.sleep(max(_PAUSES_SECONDS))
        return [
            image._replace(shared_with_caller=seen[image.image_id].shared_with_caller)
            for image in await page(connection, asked._replace(account_id=None))
            if image.image_id in seen
        ]

    return found


def _early(cancel: Any) -> Any:
    """Frees the places of what is made as soon as that is to be cancelled, and not when it is undone."""

    async def freeing(connection: Connection, operation_id: str) -> None:
        operation = await operations.get(connection, operation_id)
        await cancel(connection, operation_id)
        if operation is None or operation.end_time is not None:
            return
        for step in operation.steps:
            if str(step["target_id"]).startswith("img-"):
                await accounts.free_place(connection, operation.account_id, step["region_id"])

    return freeing


def _silent(extend: Any) -> Any:
    """Workers never extend a lease, so that others take over what they are still doing."""

    async def extended(connection: Connection, operation: Any, lease_seconds: float) -> bool:
        return False

    return extended


# --- the mutants

_UNCOUNTED = rewritten(
    r"accounts\._TAKE_PLACE", r' AND \("account_region"\."images_used" < "account_region"\."images_limit"\)', ""
)
_UNBOUNDED = "ALTER TABLE account_region DROP CONSTRAINT account_region_images"
_UNFENCED = rewritten(r"operations\..*", r'\("operation"\."epoch" = (\$\d+)\)', r"(\1::int IS NOT NULL)")
_ENDLESS = rewritten(r"operations\..*", r' AND \("operation"\."end_time" IS NULL\)', "")
_ANY_STATE = rewritten(r"images\._DELETE", r'\("image"\."state" IN \((\$\d+), (\$\d+)\)\)', r"(\1::text <> \2::text)")
_OVERTAKEN = {"LEASE_SECONDS": 1, "LEDGER_SECONDS": 1.5}

_LISTS = ("page", "shown_page")

#: Whatever is made takes longer than calls that meet, so that these do not pass for one after the other.
_SLOW = {"LEDGER_SECONDS": 0.5}

#: What holds where one lock alone is gone. Of every other lock the checker must find that it is.
_LOCK_HELD_BY = {
    "accounts._LOCK_PLACE": "the condition of the counter, its bounds, and the unique index of names",
    "accounts.CHANGING_PLACE": "the condition of the counter, its bounds, and the unique index of names",
    "accounts._LOCK_REGIONS": "the foreign key of shares",
    "images.LAUNCHED": "that the write demands the image as it was seen",
    "images.SHARED": "that the write demands the image as it was seen",
    "images._KEEP": "the version of what is kept",
    "instances._LAUNCHING": "the short time that its one statement takes",
    "instances._LOCK": "the state that the write demands",
    "instances.MOVED": "that the write demands the instance as it was seen",
    "operations._CLAIM": "the epoch",
}

_AS_SEEN = r"\(xmin = CAST\((\$\d+) AS xid\)\)"
_SLEEP = "(SELECT pg_sleep(random() * 0.5)) IS NOT NULL"

MUTANTS: dict[str, Mutant] = {
    "none": Mutant("Lacks nothing; its windows are as wide as the others'.", held_by="everything"),
    **{
        f"unlocked {name}": Mutant(
            f"Takes no lock by {name}.",
            [unlocked(re.escape(name))],
            settings=_SLOW if name == "images._LOCK_SHARED" else {},
            held_by=_LOCK_HELD_BY.get(name, ""),
        )
        for name in locks()
    },
    "uncounted": Mutant("Counts images whatever the limit.", [_UNCOUNTED], held_by="the lock of the place"),
    "uncounted, unlocked": Mutant(
        "Counts images whatever the limit, and without a lock.",
        [_UNCOUNTED, unlocked(r"accounts\.(_LOCK_PLACE|CHANGING_PLACE)")],
        held_by="the bounds of the counter",
    ),
    "uncounted, unlocked, unbounded": Mutant(
        "Counts images whatever the limit, without a lock and without bounds.",
        [_UNCOUNTED, unlocked(r"accounts\.(_LOCK_PLACE|CHANGING_PLACE)")],
        [_UNBOUNDED],
    ),
    "names": Mutant("Has no unique index of names.", drops=["DROP INDEX image_name_of_owner"]),
    "regions": Mutant(
        "Lets accounts leave regions without a lock and without a foreign key.",
        [unlocked(r"accounts\._LOCK_REGIONS")],
        ["ALTER TABLE image_share DROP CONSTRAINT image_share_recipient"],
    ),
    "isolation": Mutant("Runs at REPEATABLE READ.", [_isolation], settings=_SLOW),
    "51 shares": Mutant("Lets images be shared with one account more.", [_one_share_more]),
    "list of everything": Mutant(
        "Lists without the share predicate.", [replaced(images, name, _everything) for name in _LISTS]
    ),
    "list in two": Mutant("Lists in two statements.", [replaced(images, name, _in_two) for name in _LISTS]),
    **{
        f"{name} of anything": Mutant(
            f"Writes by {name} whatever has become of what it relies on.",
            [rewritten(re.escape(name), _AS_SEEN, r"(\1::xid IS NOT NULL)")],
        )
        for name in ("instances._LAUNCHING", "instances._MOVING", "shares._ADDING")
    },
    "launch unlocked, slow": Mutant(
        "Lets an image change while instances of it are written.",
        [rewritten(r"instances\._LAUNCHING", rf"{_AS_SEEN}\) FOR SHARE", rf"(xmin = \1::xid) AND {_SLEEP})")],
    ),
    "delete of anything": Mutant(
        "Deletes without the rule that the image is not busy.",
        [_without_rule("DELETE_IMAGE", not_busy)],
        settings=_SLOW,
    ),
    "delete of anything, in any state": Mutant(
        "Deletes without that rule and in any state.", [_without_rule("DELETE_IMAGE", not_busy), _ANY_STATE]
    ),
    "place freed early": Mutant(
        "Frees a place when a cancellation is asked for.", [replaced(operations, "cancel", _early)]
    ),
    "unfenced": Mutant(
        "Lets a worker write whose lease is another's.",
        [_UNFENCED, replaced(operations, "extend", _silent)],
        settings=_OVERTAKEN,
        held_by="that an operation ends once",
    ),
    "unfenced, endless": Mutant(
        "Lets such a worker write, and operations end twice.",
        [_UNFENCED, _ENDLESS, replaced(operations, "extend", _silent)],
        settings=_OVERTAKEN,
    ),
    "request ids of everybody": Mutant(
        "Takes request ids for those of everybody.",
        [replaced(requests, "Request", lambda request: lambda _, *more: request("everybody", *more))],
    ),
    "fingerprint ignored": Mutant(
        "Takes a call for another with its request id.",
        [replaced(servicer, "_fingerprint", lambda _: lambda request: b"the same")],
    ),
}


def become(name: str) -> None:
    """Makes this process a process of that mutant."""
    _talkative()
    widened()
    for patch in MUTANTS[name].patches:
        patch()


@contextmanager
def mutation(name: str) -> Iterator[None]:
    """Servers that start within are of that mutant."""
    folder = Path(__file__).parent
    before = dict(os.environ)
    os.environ |= {"MUTANT": name, "PYTHONPATH": f"{folder / 'mutated'}:{folder.parent.parent}"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
