"""How many calls a second an account may make: as many as the settings say, and fewer while this process falls behind.

Then the pace goes down, step by step, until those who call most make room, and up again once calls are taken up in
time; whoever calls less than the pace, or one call after the other, notices nothing. Nothing here knows gRPC.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

#: A process is behind when so many calls in a row waited longer than this to be taken up, while it used that much of a
#: core. One that others keep from its core is late as well, but to refuse calls would not help.
_DELAY_SECONDS_MAX, _LATE_MAX, _BUSY_MIN = 0.025, 2, 0.5

#: Pause from one look at that to the next, and after a late one.
_LOOK_SECONDS, _LOOK_SECONDS_LATE = 0.05, 0.01

#: What a look multiplies the pace by: the first time that the process is behind, so much that what waits is soon gone;
#: while it is still behind; when it is in time; and when it is in time and so few calls came, as a part of the pace.
_SLOWER_AT_FIRST, _SLOWER, _FASTER, _MUCH_FASTER, _FEW = 0.1, 0.7, 1.02, 1.5, 0.5

#: How much the last look counts in how many calls are let in each second.
_WEIGHT = 0.3

#: Calls refused for each that was let in, from which on the pace goes no further down: refusing takes time, too.
_REFUSED_MAX = 4

#: How far ahead of the pace an account may be. What comes at once is no haste while the process is in time.
_AHEAD_SECONDS, _AHEAD_SECONDS_SLOWED = 1, 0.02

#: Refusals that are sent each second, and the longest that one waits for its turn.
_REFUSALS_PER_SECOND, _TURN_SECONDS_MAX = 250, 0.8


class Pace:
    """The pace of calls in this process.

    Args:
        most: calls a second that the settings allow an account.
        least: how far down the pace may go while the process is behind.

    Attributes:
        calls_per_second: how many an account may make now.
    """

    def __init__(self, most: float, least: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.calls_per_second: float = most
        self._most, self._least = most, min(least, most)
        self._clock = clock
        #: When each account will have been at the pace of the settings, if it makes no more calls until then; and,
        #: while the pace is slower, when at that. The algorithm is GCRA, whose theoretical arrival times these are.
        self._even: dict[str, float] = {}
        self._even_slowed: dict[str, float] = {}
        #: When the last refusal is sent.
        self._turn = 0.0
        self._let = self._refused = self._late = 0
        #: Calls let in each second, lately.
        self._rate = 0.0
        self._looked, self._used_seconds = clock(), time.process_time()

    @property
    def slowed(self) -> bool:
        """Whether it is slower than the settings say."""
        return self.calls_per_second < self._most

    @property
    def behind(self) -> bool:
        """Whether the last look found it late."""
        return self._late > 0

    def let(self, account: str, *, alone: bool = False) -> bool:
        """Whether the account may make a call now, which then counts.

        Args:
            alone: whether it has no other under way. Who waits for each answer cannot hold up others by much, and is
                kept to the pace of the settings alone.
        """
        now, slowed = self._clock(), self.slowed
        even = max(self._even.get(account, now), now)
        even_slowed = max(self._even_slowed.get(account, now), now) if slowed else now
        if even - now > _AHEAD_SECONDS or (even_slowed - now > _AHEAD_SECONDS_SLOWED and not alone):
            self._refused += 1
            return False
        self._let += 1
        self._even[account] = even + 1 / self._most
        if slowed:
            self._even_slowed[account] = min(even_slowed, now + _AHEAD_SECONDS_SLOWED) + 1 / self.calls_per_second
        return True

    def turn_seconds(self) -> float:
        """How long a refusal is to wait: 0 unless there are so many that sending them would take the time of calls.

        Meanwhile its caller has one stream less to call by: that slows down who does not heed refusals.
        """
        now = self._clock()
        self._turn = max(self._turn + 1 / _REFUSALS_PER_SECOND, now)
        if self._turn <= now + _TURN_SECONDS_MAX:
            return self._turn - now
        self._turn = now + _TURN_SECONDS_MAX
        return random.uniform(0.5, 1) * _TURN_SECONDS_MAX  # not all at once

    async def follow(self, probe: Callable[[float], Awaitable[bool]]) -> None:
        """Keeps the pace to what this process can take up, until cancelled.

        Args:
            probe: whether a call is answered within so many seconds.
        """
        while True:
            await asyncio.sleep(_LOOK_SECONDS_LATE if self._late else _LOOK_SECONDS)
            in_time = not (self._let or self._refused) or await probe(_DELAY_SECONDS_MAX)
            self.adjust(time.process_time(), in_time=in_time)

    def adjust(self, used_seconds: float, *, in_time: bool) -> None:
        """Makes the pace slower if the process is behind, and faster if it is not.

        Args:
            used_seconds: time of a core that the process has used since it started.
            in_time: whether a call was just taken up in time.
        """
        now = self._clock()
        seconds, used_seconds_before = now - self._looked, self._used_seconds
        self._rate += _WEIGHT * (self._let / (seconds or 1) - self._rate)
        busy = used_seconds - used_seconds_before >= _BUSY_MIN * seconds
        self._late = self._late + 1 if busy and not in_time else 0
        if not self._late:
            few = not self._refused and self._rate < _FEW * self.calls_per_second
            self.calls_per_second = min(self.calls_per_second * (_MUCH_FASTER if few else _FASTER), self._most)
        elif self._late >= _LATE_MAX and self._refused <= self._let * _REFUSED_MAX:
            slower = _SLOWER if self.slowed else _SLOWER_AT_FIRST
            self.calls_per_second = max(slower * min(self.calls_per_second, self._rate), self._least)
        self._let = self._refused = 0
        self._looked, self._used_seconds = now, used_seconds
        self._even = {account: even for account, even in self._even.items() if even > now}
        self._even_slowed = {account: even for account, even in self._even_slowed.items() if even > now}
