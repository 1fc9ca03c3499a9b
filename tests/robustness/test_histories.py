"""Histories: whatever clients do at once, on whichever servers, is answered as if it were done one after the other."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

from tests.end_to_end.soundness import unsound
from tests.robustness import traffic
from tests.robustness.history import History
from tests.robustness.installation import installed
from tests.robustness.scale import scaled
from tests.world import Postgres

CALLS = scaled(3_000, 100_000)

#: While something dies again and again.
HARMED_CALLS, HARMS_MIN = scaled(1_500, 30_000), scaled(3, 60)

#: How calls must have ended, or been under way at once about one image, so often in each thousand. A history in which
#: nothing collides proves nothing.
ENDED = {
    "ACCOUNT_REGION_IN_USE": 1,
    "CUSTOM_IMAGE_QUOTA_EXCEEDED": 3,
    "ETAG_MISMATCH": 1,
    "IMAGE_NAME_TAKEN": 10,
    "IMAGE_NOT_FOUND": 20,
    "IMAGE_OBSOLETE": 0.3,
    "IMAGE_SHARED": 1,
    "INSTANCE_BUSY": 1,
    "QUOTA_BELOW_USAGE": 0.5,
    "SHARE_QUOTA_EXCEEDED": 0.5,
}
MET = {
    frozenset(["CopyImage", "DeleteImage"]): 0.5,
    frozenset(["CreateInstance", "DeleteImage"]): 1,
    frozenset(["CreateInstance", "DeprecateImage"]): 0.5,
    frozenset(["CreateInstance", "UnshareImage"]): 1,
    frozenset(["DeleteImage", "ShareImage"]): 1,
    frozenset(["DeleteImage"]): 0.5,
    frozenset(["ShareImage", "UnshareImage"]): 1,
    frozenset(["ShareImage"]): 1,
    frozenset(["UpdateImage"]): 0.5,
}


def test_every_history_has_an_order_that_keeps_the_rules(postgres: Postgres, tmp_path: Path) -> None:
    with installed(postgres, tmp_path) as installation:
        history = asyncio.run(traffic.run(installation.callable(), operations=CALLS))
        violations = installation.judge(history)
        assert not violations, "\n".join(map(str, violations[:5]))
        assert not unsound(installation.sql)
    print(f"{len(history.calls)} calls in {history.seconds:.0f} s", dict(history.reasons()), dict(history.meetings()))
    assert not [*rare(history)]


def test_a_history_in_which_processes_and_connections_die_has_such_an_order_too(
    postgres: Postgres, tmp_path: Path
) -> None:
    with installed(postgres, tmp_path, LEASE_SECONDS=1) as installation:
        with installation.harmed(pause_seconds=1) as harm:
            calls = traffic.run(installation.callable(), operations=HARMED_CALLS, timeout_seconds=5)
            history = asyncio.run(calls)
        violations = installation.judge(history)
        assert not violations, "\n".join(map(str, violations[:5]))
        assert not unsound(installation.sql)
    print(f"{len(history.calls)} calls in {history.seconds:.0f} s", dict(harm), dict(history.reasons()))
    assert harm.total() >= HARMS_MIN


def rare(history: History) -> Iterator[str]:
    """What was met too seldom."""
    reasons, meetings = history.reasons(), history.meetings()
    numbers = {reason: (reasons[reason], often) for reason, often in ENDED.items()} | {
        " and ".join(sorted(methods)): (meetings[methods], often) for methods, often in MET.items()
    }
    for what, (number, often) in numbers.items():
        if number < often * CALLS / 1000:
            yield f"{what}: {number} times in {CALLS} calls"
