"""How many calls this process answers at once: in total, of one account and from one network address, and the waits.

Whatever is over a limit is refused at once, before anything is looked up, so that the calls under way keep their pace.
Callers are known before they are counted; a call without credentials does not count. Nothing here knows gRPC.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial

from cunho_rules.model import Caller
from cunho_rules.refusals import Reason, Refusal
from cunho_server.pace import Pace
from cunho_server.settings import Settings
from cunho_storage import deadlines


class Admission:
    """The calls under way in this process.

    Attributes:
        calls: those under way, without the waits.
        waits: those that wait for operations.
        pace: how many calls a second an account may make.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.pace = Pace(settings.calls_per_second_per_account_max, settings.calls_per_second_per_account_min)
        self._of_account: Counter[str] = Counter()
        self._of_peer: Counter[str] = Counter()
        #: Refusals that wait for their turn.
        self._refused_of_account: Counter[str] = Counter()
        self.calls = self.waits = 0
        self._closed = False

    async def keep_pace(self, caller: Caller) -> None:
        """Counts a call in the pace of its account. Refuses: TOO_MANY_CALLS, with half of the call's time left."""
        account = _account(caller)
        waiting = self._refused_of_account[account]
        # One of many calls, too, can be the only one under way: the refusals of the others tell.
        alone = not (self._of_account[account] or waiting)
        if self.pace.let(account, alone=alone):
            return
        if seconds := self.pace.turn_seconds(account, waiting, deadlines.remaining_seconds() / 2):
            self._refused_of_account[account] += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                _one_less(self._refused_of_account, account)
        if self.pace.slowed and not alone:
            limit = f"{self.pace.calls_per_second:.0f}"
            raise _too_many("the account, while this server process is behind", limit, "a second", "processes")
        limit = str(self._settings.calls_per_second_per_account_max)
        raise _too_many("the account", limit, "a second", "calls_per_second_per_account_max")

    def call(self, caller: Caller, peer: str) -> "Counted":
        """Counts a call until the block ends. Refuses: SERVICE_STOPPING, TOO_MANY_CALLS.

        Args:
            peer: network address, without the port.
        """
        account = _account(caller)
        self._let(self.calls, "calls_max", "this server process")
        self._let(self._of_account[account], "calls_per_account_max", "the account")
        self._let(self._of_peer[peer], "calls_per_peer_max", "the network address")
        self.calls += 1
        self._of_account[account] += 1
        self._of_peer[peer] += 1
        return Counted(partial(self._end_call, account, peer))

    def wait(self) -> "Counted":
        """Counts a call that waits for an operation until the block ends. Refuses: SERVICE_STOPPING, TOO_MANY_CALLS."""
        self._let(self.waits, "waits_max", "this server process, of those that wait for operations")
        self.waits += 1
        return Counted(self._end_wait)

    def close(self) -> None:
        """Lets no more calls in; those under way go on."""
        self._closed = True

    def _let(self, under_way: int, setting: str, scope: str) -> None:
        if self._closed:
            raise Refusal(Reason.SERVICE_STOPPING)
        limit: int = getattr(self._settings, setting)
        if under_way >= limit:
            raise _too_many(scope, str(limit), "at once", setting)

    def _end_call(self, account: str, peer: str) -> None:
        self.calls -= 1
        _one_less(self._of_account, account)
        _one_less(self._of_peer, peer)

    def _end_wait(self) -> None:
        self.waits -= 1


class Counted:
    """What is counted for the time of a block; every call is, so that this is no generator.

    Args:
        end: counts it no more.
    """

    __slots__ = ("_end",)

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._end()


def _account(caller: Caller) -> str:
    """Who makes a call, for the count: an account, or somebody of the operator's."""
    return caller.account_id or f"operator:{caller.actor}"


def _too_many(scope: str, limit: str, unit: str, setting: str) -> Refusal:
    return Refusal(Reason.TOO_MANY_CALLS, scope=scope, limit=limit, unit=unit, setting=f"CUNHO_{setting.upper()}")


def _one_less(counts: Counter[str], key: str) -> None:
    """Forgets what is no more, so that the counts stay as small as what is under way."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
