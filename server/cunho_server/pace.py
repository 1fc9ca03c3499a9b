"""How many calls a second an account may make: as many as the settings say, and fewer while this process falls behind.

Then the pace goes down until those who call most make room, and up again as far as the process has time to spare;
whoever calls less than the pace, or one call after the other, notices nothing. Nothing here knows gRPC.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

#: A process is behind when a call waited longer than this to be taken up, while it used that much of a core. One that
#: others keep from its core is late as well, but to refuse calls would not help.
_DELAY_SECONDS_MAX, _BUSY_MIN = 0.04, 0.5

#: Pause from one look at that to the next, and after a late one.
_LOOK_SECONDS, _LOOK_SECONDS_LATE = 0.025, 0.01

#: What the first late look multiplies the pace by, so much that what waits is soon gone; and each late one that to
#: which the pace comes back, or the pace itself once it is back.
_SLOWER_AT_FIRST, _SLOWER = 0.05, 0.7

#: What a look multiplies the pace by while it comes back, or while no more than such a part of the pace is used.
_MUCH_FASTER, _FEW = 1.5, 0.5

#: The part of a core that a slowed process is to use, and how much the pace changes with each look for what is missing.
#: The rest is for moments in which more comes or the machine does less: without it, calls would wait in each of them.
_BUSY, _GAIN = 0.7, 0.2

#: How much the last look counts in how many calls are let in each second, and in how busy the process is.
_WEIGHT = 0.3

#: Calls refused for each that was let in, from which on the pace goes no further down: refusing takes time, too.
_REFUSED_MAX = 4

#: How far ahead of the pace an account may be. What comes at once is no haste while the process is in time.
_AHEAD_SECONDS, _AHEAD_SECONDS_SLOWED = 1, 0.02

#: Refusals that are sent each second, to all accounts together.
_REFUSALS_PER_SECOND = 250


class Pace:
    """The pace of calls in this process.

    Args:
        most: calls a second that the settings allow an account.
        least: how far down the pace may go while the process is behind.

    Attributes:
        calls_per_second: how many an account may make now.
        behind: whether the last look found the process behind.
    """

    def __init__(self, most: float, least: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.calls_per_second: float = most
        self._most, self._least = most, min(least, most)
        self._clock = clock
        #: When each account will have been at the pace of the settings, if it makes no more calls until then; and,
        #: while the pace is slower, when at that. The algorithm is GCRA, whose theoretical arrival times these are.
        self._even: dict[str, float] = {}
        self._even_slowed: dict[str, float] = {}
        #: When the last refusal of each account is sent.
        self._turns: dict[str, float] = {}
        self.behind = False
        self._let = self._refused = 0
        #: Most calls let in each second and the part of a core that was used, lately.
        self._rate = self._busy = 0.0
        #: Up to where the pace comes back once the process is in time, 0 when it has. After one late look that is most
        #: of what it was, since the machine may be the cause.
        self._back = 0.0
        self._looked, self._used_seconds = clock(), time.thread_time()

    @property
    def slowed(self) -> bool:
        """Whether it is slower than the settings say."""
        return self.calls_per_second < self._most

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

    def turn_seconds(self, account: str, waiting: int, longest_seconds: float) -> float:
        """How long a refusal is to wait: 0 unless there are so many that sending them would take the time of calls.

        Meanwhile its caller has one stream less to call by: that slows down who does not heed refusals. Accounts that
        are refused share what is sent each second.

        Args:
            waiting: refusals of the account that wait already.
            longest_seconds: what no refusal may wait longer than.
        """
        now = self._clock()
        step = max(len(self._turns), 1) / _REFUSALS_PER_SECOND
        # No later than after those that wait: of the others before it, callers may have left.
        turn = min(max(self._turns.get(account, 0) + step, now), now + (waiting + 1) * step)
        if turn > now + longest_seconds:
            return random.uniform(0.5, 1) * longest_seconds  # not all at once
        self._turns[account] = turn
        return turn - now

    async def follow(self, probe: Callable[[float], Awaitable[bool]]) -> None:
        """Keeps the pace to what this process can take up, until cancelled.

        Args:
            probe: whether a call is answered within so many seconds.
        """
        while True:
            await asyncio.sleep(_LOOK_SECONDS_LATE if self.behind else _LOOK_SECONDS)
            in_time = not (self._let or self._refused) or await probe(_DELAY_SECONDS_MAX)
            self.adjust(time.thread_time(), in_time=in_time)

    def adjust(self, used_seconds: float, *, in_time: bool) -> None:
        """Makes the pace slower if the process is behind, and faster if it is not.

        Args:
            used_seconds: time of a core that the thread of the event loop has used since it started.
            in_time: whether a call was just taken up in time.
        """
        now = self._clock()
        seconds, used_seconds_before = now - self._looked, self._used_seconds
        rate = self._let / (seconds or 1)
        self._rate = max(rate, self._rate + _WEIGHT * (rate - self._rate))
        busy = (used_seconds - used_seconds_before) / (seconds or 1)
        self._busy += _WEIGHT * (busy - self._busy)
        self.behind = busy >= _BUSY_MIN and not in_time
        pace = self._slower() if self.behind else self._faster()
        if pace > self.calls_per_second or self._refused <= self._let * _REFUSED_MAX:
            self.calls_per_second = min(max(pace, self._least), self._most)
        self._let = self._refused = 0
        self._looked, self._used_seconds = now, used_seconds
        self._even = {account: even for account, even in self._even.items() if even > now}
        self._even_slowed = {account: even for account, even in self._even_slowed.items() if even > now}
        self._turns = {account: turn for account, turn in self._turns.items() if turn > now}

    def _slower(self) -> float:
        """The next pace of a process that is behind."""
        pace, lately = self.calls_per_second, min(self.calls_per_second, self._rate)
        if not self.slowed:
            self._back = _SLOWER * lately
            return _SLOWER_AT_FIRST * lately
        if pace < self._back:
            self._back *= _SLOWER
            return pace
        self._back = pace
        return _SLOWER * lately

    def _faster(self) -> float:
        """The next pace of a process that is in time; slower if it is slowed and does too much still."""
        pace = self.calls_per_second
        few = not self._refused and self._rate < _FEW * pace
        if few or pace < self._back:
            return _MUCH_FASTER * pace
        self._back = 0.0
        return pace * (1 + _GAIN * (_BUSY - self._busy)) if self.slowed else pace
