"""Ten times what a server can answer, and one account that wants all of it: the others are answered as before.

What is a matter of seconds is only asserted by `make robustness`, on a machine that has nothing else to do.
"""

import statistics
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from tests.end_to_end.requests_of import BY_NAME, Answer, call
from tests.end_to_end.steps import until
from tests.robustness.load import STREAMS, Load, Outcome
from tests.robustness.processes import Process, calling
from tests.robustness.scale import only_long, scaled
from tests.server_process import Server, serving
from tests.world import GUANGZHOU, Postgres

from cunho import v1 as pb

RESOLVE = BY_NAME["ResolveImage"].path
FAMILY = pb.ResolveImageRequest(region_id=GUANGZHOU, family="debian-12").SerializeToString()
SECONDS = scaled(2, 20)

#: How much more memory a process may hold after an overload.
MEMORY_BYTES = 64 << 20


@contextmanager
def served(postgres: Postgres, folder: Path, **settings: Any) -> Iterator[Server]:
    """A server of one process, which makes the pace of accounts slower if it has to."""
    own: dict[str, Any] = {
        "SHUTDOWN_SECONDS": 0,
        "DATABASE_URL": postgres.database(),
        "CALLS_PER_SECOND_PER_ACCOUNT_MIN": 10,
    }
    with serving(folder / "data", **own, **settings) as server:
        yield server


#: Calls a second that an account may make, where that is what is tested.
_PACE = 50

#: Refusals that a process sends each second.
_REFUSALS_PER_SECOND = 250


def load(server: Server, account_id: str, rate: float, **more: Any) -> Load:
    """Calls of an account, each of which has an answer."""
    given = {"seconds": SECONDS} | more
    return Load(server.address, RESOLVE, server.token(account_id), FAMILY.hex(), rate, **given)


def capacity(server: Server) -> float:
    """How many calls a second the server answers to eight callers that call again and again."""
    outcome = load(server, "acme", 1e5, connections=1, streams=8, seconds=scaled(1, 5)).start().outcome()
    return len(outcome.answered) / scaled(1, 5)


def p99(seconds: list[float]) -> float:
    """What all but one in a hundred stayed below."""
    return statistics.quantiles(seconds, n=100)[-1]


def is_refused(answer: Answer) -> bool:
    """Whether the call was refused; if so, it says that there are too many calls, and when to come again."""
    if answer.code is grpc.StatusCode.OK:
        return False
    assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    assert any(each.Unpack(RetryInfo()) for each in answer.status.details)
    return True


def assert_only_refused(outcome: Outcome) -> None:
    """Whatever was not answered was refused; a stream that gRPC did not take at all (REFUSED_STREAM) is sent anew."""
    assert outcome.failed.keys() <= {"reset 7"}


def test_an_account_over_its_pace_starves_nobody(postgres: Postgres, tmp_path: Path) -> None:
    with (
        served(postgres, tmp_path, CALLS_PER_SECOND_PER_ACCOUNT_MAX=_PACE) as server,
        grpc.insecure_channel(server.address, [("grpc.enable_retries", 0)]) as channel,
    ):
        noisy = load(server, "acme", 10 * _PACE).start()
        with calling(channel, server.token("globex"), RESOLVE, FAMILY, pause_seconds=2 / _PACE) as others:
            until(lambda: is_refused(call(channel, RESOLVE, FAMILY, server.token("acme"))))
            outcome = noisy.outcome()
        assert {answer.code for answer in others} == {grpc.StatusCode.OK}
        assert_only_refused(outcome)
        assert len(outcome.answered) <= _PACE * (SECONDS + 2), "a second's worth may come at once"
        assert len(outcome.refused) > len(outcome.answered)
        until(lambda: call(channel, RESOLVE, FAMILY, server.token("acme")).code is grpc.StatusCode.OK)


def test_who_has_thousands_of_calls_under_way_is_refused_no_faster(postgres: Postgres, tmp_path: Path) -> None:
    with served(postgres, tmp_path, CALLS_PER_SECOND_PER_ACCOUNT_MAX=_PACE) as server:
        outcome = load(server, "acme", 1e4, connections=20).start().outcome()
    assert_only_refused(outcome)
    assert len(outcome.refused) < SECONDS * _REFUSALS_PER_SECOND * 1.5
    assert len(outcome.refused) > len(outcome.answered) > 0, "it is let in at its pace meanwhile"


def test_who_has_more_calls_than_streams_is_not_refused_by_grpc_itself(postgres: Postgres, tmp_path: Path) -> None:
    with (
        served(postgres, tmp_path) as server,
        grpc.insecure_channel(server.address, [("grpc.enable_retries", 0)]) as channel,
    ):
        ask: Any = channel.unary_unary(RESOLVE)
        metadata = (("authorization", f"Bearer {server.token('acme')}"),)
        codes, slots = Counter[str](), threading.Semaphore(4 * STREAMS)

        def ended(answer: Any) -> None:
            codes[answer.code().name] += 1
            slots.release()

        for _ in range(3000):
            slots.acquire()
            ask.future(FAMILY, timeout=60, metadata=metadata).add_done_callback(ended)
        for _ in range(4 * STREAMS):
            slots.acquire()
    assert codes["OK"]
    assert codes.keys() <= {"OK", "RESOURCE_EXHAUSTED"}


@only_long
def test_ten_times_the_capacity_is_refused_and_leaves_nothing_behind(postgres: Postgres, tmp_path: Path) -> None:
    with (
        served(postgres, tmp_path) as server,
        grpc.insecure_channel(server.address, [("grpc.enable_retries", 0)]) as channel,
    ):
        most = capacity(server)
        unloaded = load(server, "acme", most / 10).start().outcome()
        process = Process(server)
        memory_bytes = process.memory_bytes
        noisy = load(server, "acme", 10 * most).start()
        with calling(channel, server.token("globex"), RESOLVE, FAMILY, pause_seconds=0.05) as others:
            outcome = noisy.outcome()
        report(most, unloaded, outcome)
        assert {answer.code for answer in others} == {grpc.StatusCode.OK}
        assert_only_refused(outcome)
        assert process.memory_bytes < memory_bytes + MEMORY_BYTES
        until(lambda: call(channel, RESOLVE, FAMILY, server.token("acme")).code is grpc.StatusCode.OK)
        assert len(outcome.answered) < outcome.due / 5
        assert len(outcome.refused) > SECONDS * _REFUSALS_PER_SECOND / 2, "whoever asks goes on being told"
        assert p99(outcome.answered) < 5 * p99(unloaded.answered)


def report(most: float, unloaded: Outcome, outcome: Outcome) -> None:
    """Prints what docs/robustness.md tells, for `pytest -s`."""
    milliseconds = (1000 * p99(each) for each in (unloaded.answered, outcome.answered, outcome.refused or [0, 0]))
    print(
        f"capacity {most:.0f}/s; p99 unloaded {{:.1f}} ms, answered {{:.1f}} ms, refused {{:.1f}} ms".format(
            *milliseconds
        )
    )
    print(f"offered {outcome.due}, answered {len(outcome.answered)}, refused {len(outcome.refused)}, {outcome.failed}")


@only_long
def test_accounts_that_want_too_much_together_are_cut_alike(postgres: Postgres, tmp_path: Path) -> None:
    with served(postgres, tmp_path) as server:
        most = capacity(server)
        running = [load(server, f"account-{index}", most, connections=1).start() for index in range(5)]
        answered = [len(each.outcome().answered) for each in running]
        assert min(answered) > max(answered) / 2
