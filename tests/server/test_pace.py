"""How many calls a second an account may make: what the settings say; in a process that falls behind, its share."""

import asyncio

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc import StatusCode
from tests import world as worlds
from tests.end_to_end.requests_of import BY_NAME, Answer, call
from tests.world import Postgres

from cunho import v1 as pb
from cunho_rules.model import Caller, Role
from cunho_rules.refusals import Refusal
from cunho_server.admission import Admission
from cunho_server.pace import Pace
from cunho_server.settings import Settings
from cunho_storage import deadlines

GET, ABSENT = BY_NAME["GetImage"].path, pb.GetImageRequest(image_id="img-00000000").SerializeToString()


class Clock:
    """A clock that a test sets."""

    seconds = 1.0

    def __call__(self) -> float:
        return self.seconds


class Process:
    """A process that has so many seconds for calls in each second; each account sends as many as it likes."""

    def __init__(self, most: float = 10_000) -> None:
        self.clock = Clock()
        self.pace = Pace(most, 10, self.clock)
        self.pace._used_seconds = self._used_seconds = 0.0

    def look(self, *, in_time: bool, busy: float = 1, **calls_per_second: int) -> dict[str, int]:
        """A tenth of a second up to the next look; how many calls of each account were let in."""
        let = dict.fromkeys(calls_per_second, 0)
        for step in range(100):
            self.clock.seconds += 0.001
            for account, number in calls_per_second.items():
                for _ in range((step + 1) * number // 1000 - step * number // 1000):
                    let[account] += self.pace.let(account)
        self._used_seconds += busy / 10
        self.pace.adjust(self._used_seconds, in_time=in_time)
        return let

    def behind(self, looks: int, **calls_per_second: int) -> dict[str, int]:
        """As `look`, so often, while it falls behind; what was let in up to the last."""
        for _ in range(looks - 1):
            self.look(in_time=False, **calls_per_second)
        return self.look(in_time=False, **calls_per_second)


@pytest.fixture
def process() -> Process:
    process = Process()
    process.pace.adjust(0, in_time=True)
    return process


def detail(answer: Answer, kind: type[ErrorInfo] | type[RetryInfo]) -> ErrorInfo | RetryInfo:
    message = kind()
    assert any(each.Unpack(message) for each in answer.status.details)
    return message


def test_an_account_over_its_calls_a_second_is_refused_and_others_are_not(postgres: Postgres) -> None:
    with (
        worlds.world(postgres, workers=0, calls_per_second_per_account_max=1) as world,
        grpc.insecure_channel(world.address, [("grpc.enable_retries", 0)]) as channel,
    ):
        answers = [call(channel, GET, ABSENT, world.token("acme")) for _ in range(20)]
        refused = answers[-1]
        assert (refused.code, refused.reason) == (StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
        info = detail(refused, ErrorInfo)
        assert isinstance(info, ErrorInfo)
        setting = "CUNHO_CALLS_PER_SECOND_PER_ACCOUNT_MAX"
        assert info.metadata == {"limit": "1", "unit": "a second", "scope": "the account", "setting": setting}
        assert isinstance(detail(refused, RetryInfo), RetryInfo)
        assert call(channel, GET, ABSENT, world.token("globex")).reason == "IMAGE_NOT_FOUND"


def test_the_pace_lets_in_so_many_calls_a_second() -> None:
    process = Process(most=100)
    for _ in range(20):  # what may come at once is used up
        process.look(in_time=True, acme=1000)
    assert sum(process.look(in_time=True, acme=1000)["acme"] for _ in range(10)) == pytest.approx(100, abs=2)


def test_calls_at_once_are_let_in_while_the_process_is_in_time(process: Process) -> None:
    assert all(process.pace.let("acme") for _ in range(1000))


def test_a_process_that_is_behind_cuts_those_who_call_most_and_nobody_else(process: Process) -> None:
    let = process.behind(12, acme=1000, globex=20)
    assert let["globex"] == 2, "all of its calls"
    assert let["acme"] <= 30, "of a hundred"


def test_a_pace_starts_from_what_is_answered_lately(process: Process) -> None:
    for _ in range(20):
        process.look(in_time=True, acme=1000)
    process.look(in_time=False, acme=10)  # it was kept from taking up more
    assert 30 < process.pace.calls_per_second < 50, "about a twentieth, so that what waits is soon gone"


def test_who_makes_one_call_after_the_other_is_never_slowed(process: Process) -> None:
    process.behind(100, acme=1000)
    assert process.pace.slowed
    assert all(process.pace.let("globex", alone=True) for _ in range(1000))
    assert not all(process.pace.let("globex") for _ in range(10))


async def test_one_of_many_calls_does_not_pass_for_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    admission = Admission(Settings.model_validate({}))
    monkeypatch.setattr(admission.pace, "turn_seconds", lambda *_: 60)
    admission.pace.calls_per_second = 10
    acme, globex = (Caller(account, Role.ACCOUNT, account) for account in ("acme", "globex"))

    async def lets(caller: Caller, times: int) -> list[bool]:
        """Whether each of so many calls is let in; those that are not wait for their turn to be refused."""
        tasks = [asyncio.create_task(admission.keep_pace(caller)) for _ in range(times)]
        await asyncio.wait(tasks, timeout=0.01)
        waiting.update(task for task in tasks if not task.done())
        return [task.done() for task in tasks]

    waiting: set[asyncio.Task[None]] = set()
    with admission.call(acme, "ipv4:10.0.0.1"):
        assert await lets(acme, 3) == [True, False, False]
    assert await lets(acme, 3) == [False, False, False], "none is under way, and yet they are many"
    assert await lets(globex, 3) == [True, True, True], "each ended before the next began"
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert admission._refused_of_account == {}


def test_who_makes_one_call_after_the_other_keeps_to_what_the_settings_allow() -> None:
    process = Process(most=100)
    assert sum(process.pace.let("acme", alone=True) for _ in range(1000)) <= 101


def test_who_makes_one_call_after_the_other_keeps_to_that_while_the_process_is_behind_too() -> None:
    process = Process(most=100)
    process.pace.adjust(0, in_time=True)
    process.behind(10, globex=1000)
    assert process.pace.slowed
    assert sum(process.pace.let("acme", alone=True) for _ in range(1000)) <= 101


def test_who_made_one_call_after_the_other_too_fast_is_told_the_limit_of_the_settings() -> None:
    admission = Admission(Settings.model_validate({"calls_per_second_per_account_max": 20}))
    admission.pace.calls_per_second = 10
    caller = Caller("acme", Role.ACCOUNT, "acme")

    async def calls() -> None:
        for _ in range(30):
            await admission.keep_pace(caller)

    with pytest.raises(Refusal) as refused:
        asyncio.run(calls())
    setting = "CUNHO_CALLS_PER_SECOND_PER_ACCOUNT_MAX"
    assert refused.value.metadata == {"limit": "20", "unit": "a second", "scope": "the account", "setting": setting}


@pytest.mark.parametrize(("looks", "part"), [(1, 0.7), (2, 0.49), (4, 0.24)])
def test_the_pace_is_soon_back_to_less_of_what_was_answered_the_longer_the_process_was_behind(
    process: Process, looks: int, part: float
) -> None:
    for _ in range(20):
        process.look(in_time=True, busy=0.7, acme=1000)
    process.behind(looks, acme=1000)
    for _ in range(8):
        process.look(in_time=True, busy=0.7, acme=1000)
    assert part <= process.pace.calls_per_second / 1000 < 1.5 * part


def test_a_pace_that_is_back_does_not_jump_there_again(process: Process) -> None:
    for _ in range(20):
        process.look(in_time=True, acme=1000)
    process.behind(1, acme=1000)
    for _ in range(8):
        process.look(in_time=True, acme=1000)
    paces = [process.pace.calls_per_second]
    for _ in range(30):
        process.look(in_time=True, busy=0.9, acme=1000)
        paces.append(process.pace.calls_per_second)
    assert paces == sorted(paces, reverse=True)
    assert paces[-1] < 500


def test_a_slowed_pace_goes_down_for_as_long_as_the_process_is_behind(process: Process) -> None:
    process.behind(1, acme=1000)
    for _ in range(8):
        process.look(in_time=True, busy=0.7, acme=1000)
    before = process.pace.calls_per_second
    process.behind(3, acme=1000)
    assert process.pace.calls_per_second < before / 2


def test_a_slowed_process_keeps_a_part_of_its_time_for_moments_in_which_more_comes(process: Process) -> None:
    process.behind(5, acme=1000)
    busy = 1.0
    for _ in range(200):  # each call takes a millisecond
        busy = process.look(in_time=True, busy=busy, acme=1000)["acme"] / 100
    assert 0.65 < busy < 0.75


def test_a_process_that_does_much_and_is_in_time_refuses_nobody(process: Process) -> None:
    for _ in range(100):
        process.look(in_time=True, busy=1, acme=1000)
    assert not process.pace.slowed


def test_a_process_that_others_keep_from_its_core_refuses_nobody(process: Process) -> None:
    for _ in range(20):
        process.look(in_time=False, busy=0.4, acme=1000)
    assert not process.pace.slowed


def test_the_pace_stays_where_refusals_are_most_of_the_work(process: Process) -> None:
    for _ in range(20):
        process.look(in_time=True, acme=1000)
    let = process.behind(100, acme=1000)
    assert 4 <= let["acme"] <= 10, "of a hundred; the slowest pace would be one"


def test_the_pace_is_never_slower_than_the_slowest(process: Process) -> None:
    process.behind(100, **{f"account_{index}": 10 for index in range(50)})
    assert process.pace.calls_per_second == 10


def test_the_pace_recovers_by_itself(process: Process) -> None:
    process.behind(100, acme=1000)
    looks = 0
    while process.pace.slowed:
        process.look(in_time=True, busy=0.3, acme=100)
        looks += 1
    assert looks < 100
    assert process.look(in_time=True, acme=1000) == {"acme": 100}


def test_a_slowed_pace_is_told_with_what_makes_room() -> None:
    admission = Admission(Settings.model_validate({"calls_per_second_per_account_max": 1000}))
    admission.pace.calls_per_second = 50
    caller = Caller("acme", Role.ACCOUNT, "acme")

    async def calls() -> None:
        with admission.call(caller, "ipv4:10.0.0.1"):
            for _ in range(10):
                await admission.keep_pace(caller)

    with pytest.raises(Refusal) as refused:
        asyncio.run(calls())
    told = {"limit": "50", "unit": "a second", "setting": "CUNHO_PROCESSES"}
    assert refused.value.metadata == told | {"scope": "the account, while this server process is behind"}


def turns(pace: Pace, account: str, waiting: int, longest_seconds: float = 15) -> list[float]:
    """How long so many refusals wait that come at once."""
    return [pace.turn_seconds(account, before, longest_seconds) for before in range(waiting)]


def test_refusals_are_sent_at_once_until_there_are_very_many(process: Process) -> None:
    assert turns(process.pace, "acme", 400) == [pytest.approx(number / 250) for number in range(400)]
    process.clock.seconds += 2
    assert process.pace.turn_seconds("acme", 0, 15) == 0


def test_who_is_refused_less_does_not_wait_for_who_is_refused_more(process: Process) -> None:
    turns(process.pace, "acme", 2000)
    assert turns(process.pace, "globex", 3) == [0, pytest.approx(2 / 250), pytest.approx(4 / 250)]


def test_refusals_that_were_cancelled_hold_up_nobody(process: Process) -> None:
    turns(process.pace, "acme", 2000)
    assert process.pace.turn_seconds("acme", 0, 15) == pytest.approx(1 / 250)


def test_a_refusal_comes_before_its_callers_deadline(process: Process) -> None:
    late = turns(process.pace, "acme", 2000, longest_seconds=0.5)[200:]
    assert all(0.25 <= turn <= 0.5 for turn in late)
    assert len({*late}) > 100, "not all of them at once"


async def test_a_refusal_waits_for_no_more_than_half_of_what_its_call_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    admission, longest = Admission(Settings.model_validate({})), list[float]()
    monkeypatch.setattr(admission.pace, "let", lambda *_, **__: False)
    monkeypatch.setattr(admission.pace, "turn_seconds", lambda account, waiting, seconds: longest.append(seconds))
    deadlines.ends_at(asyncio.get_running_loop().time() + 60)
    with pytest.raises(Refusal):
        await admission.keep_pace(Caller("acme", Role.ACCOUNT, "acme"))
    assert longest == [pytest.approx(30, abs=5)]


def test_accounts_that_call_no_more_are_forgotten(process: Process) -> None:
    process.behind(10, acme=1000)
    for index in range(100):
        process.pace.let(f"account-{index}")
        process.pace.turn_seconds(f"account-{index}", 0, 15)
    for _ in range(10):
        process.look(in_time=False)
    assert process.pace.slowed
    assert process.pace._even == process.pace._even_slowed == process.pace._turns == {}


async def test_the_pace_follows_the_probe() -> None:
    pace, asked = Pace(10_000, 10), asyncio.Event()

    async def probe(seconds: float) -> bool:
        asked.set()
        return True

    task = asyncio.create_task(pace.follow(probe))
    pace.let("acme")
    await asyncio.wait_for(asked.wait(), 10)
    task.cancel()
    await asyncio.wait({task})
