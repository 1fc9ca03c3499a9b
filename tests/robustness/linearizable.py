"""Linearizability: whether calls that overlapped have an order, one after the other, in which each could have had the
outcome that it had, and which keeps to real time. Knows nothing of what the calls are about.

The search goes through the begins and ends in the order of time and carries along every state that the object could be
in, each with the calls under way that have had their effect by then. A call takes effect at the latest when it ends:
what could not have had its outcome in any of the states drops out, and if nothing is left there is no order. (Lowe,
"Testing for linearizability", 2017: just-in-time linearization.)
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: More states than this at one moment are not searched.
_BRANCHES_MAX = 50_000


@dataclass(eq=False, slots=True)
class Step:
    """What one call did to one object, or saw of it.

    Attributes:
        what: the call, for whoever reads of a violation.
        apply: the state after the step; None if the step could not have come to what it came to.
        begin, end: before and after which it had no effect; `end` None: it may have its effect at any time, or never.
        reads: True if it changes nothing.
    """

    what: Any
    apply: Callable[[Any], Any]
    begin: int
    end: int | None
    reads: bool = False
    _known: dict[Hashable, Any] = field(default_factory=dict)

    def after(self, state: Any) -> Any:
        """As `apply`, which is asked once for each state."""
        if state not in self._known:
            self._known[state] = self.apply(state)
        return self._known[state]


class Stuck(NamedTuple):
    """There is no order."""

    #: The step that ended and could not have had its effect.
    step: Step
    #: What the object could have been when it ended.
    states: Sequence[Any]


class Undecided(Exception):
    """The search was given up: too many steps of unknown outcome."""


#: A state, and the steps under way that led to it.
_Branch = tuple[Any, frozenset[Step]]


def stuck(steps: Sequence[Step], initial: Any) -> Stuck | None:
    """Where the steps have no order any more; None if they have one to the end. Raises Undecided.

    Args:
        initial: the state before the first.
    """
    pending: set[Step] = set()
    branches: set[_Branch] = {(initial, frozenset())}
    for step, begins in _events(steps):
        if begins:
            pending.add(step)
            if step.reads:
                branches = {_absorbed(branch, [step]) for branch in branches}
            continue
        found = {(state, done - {step}) for state, done in _led_to(step, branches, pending)}
        pending.discard(step)
        if not found:
            return Stuck(step, list(dict.fromkeys(state for state, _ in branches)))
        branches = found
        step._known.clear()
    return None


def _events(steps: Sequence[Step]) -> Iterator[tuple[Step, bool]]:
    """Every begin (True) and end in the order of time; of one moment the begins first, so that they overlap."""
    moments = [(step.begin, 0, number, step) for number, step in enumerate(steps)]
    moments += [(step.end, 1, number, step) for number, step in enumerate(steps) if step.end is not None]
    for _, ends, _, step in sorted(moments, key=lambda moment: moment[:3]):
        yield step, not ends


def _led_to(step: Step, branches: set[_Branch], pending: set[Step]) -> Iterator[_Branch]:
    """Every branch in which the step has had its effect, by way of other pending ones or not."""
    reads = [each for each in pending if each.reads]
    writes = [each for each in pending if not each.reads]
    seen, todo = set(branches), list(branches)
    while todo:
        state, done = branch = todo.pop()
        if step in done:
            yield branch
            continue
        for write in writes:
            if write in done or (after := write.after(state)) is None:
                continue
            if (further := _absorbed((after, done | {write}), reads)) not in seen:
                seen.add(further)
                todo.append(further)
        if len(seen) > _BRANCHES_MAX:
            raise Undecided(f"{len(seen)} states with {len(writes)} changes under way at {step.what}")


def _absorbed(branch: _Branch, reads: Sequence[Step]) -> _Branch:
    """The branch with every read that it explains: a read changes nothing, so the sooner the better."""
    state, done = branch
    explained = {read for read in reads if read not in done and read.after(state) is not None}
    return state, done | explained
