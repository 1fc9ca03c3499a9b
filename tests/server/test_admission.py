"""How many calls are answered at once: what is over is refused at once, and never those who did not ask for much."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests import world as worlds
from tests.end_to_end.requests_of import BY_NAME, Answer, call
from tests.end_to_end.steps import Held, import_image, until
from tests.world import GUANGZHOU, Postgres, World

from cunho import v1 as pb
from cunho_rules.model import Caller, Role
from cunho_rules.refusals import Refusal
from cunho_server.admission import Admission
from cunho_server.images import ImageService
from cunho_server.settings import Settings
from cunho_storage import images

GET, RESOLVE, WAIT = (BY_NAME[name].path for name in ("GetImage", "ResolveImage", "WaitOperation"))
ABSENT = pb.GetImageRequest(image_id="img-00000000").SerializeToString()
FAMILY = pb.ResolveImageRequest(region_id=GUANGZHOU, family="debian-12").SerializeToString()


class Scene:
    """A service, a channel to it, and calls that are under way until they are let go."""

    def __init__(self, world: World, channel: grpc.Channel, others: ThreadPoolExecutor, go: threading.Event) -> None:
        self.world, self.channel, self._others, self.go = world, channel, others, go
        self.admission = world.service.admission

    def send(self, path: str = GET, data: bytes = ABSENT, account_id: str = "acme", **options: Any) -> Answer:
        """What is answered to a call."""
        return call(self.channel, path, data, options.pop("token", self.world.token(account_id)), **options)

    def start(self, number: int, path: str = RESOLVE, data: bytes = FAMILY, **options: Any) -> list[Future[Answer]]:
        """Calls that are under way when this returns."""
        before = self.admission.calls + self.admission.waits
        calls = [self._others.submit(self.send, path, data, **options) for _ in range(number)]
        until(lambda: self.admission.calls + self.admission.waits == before + number)
        return calls


@pytest.fixture
def served(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes scenes by settings; there, ResolveImage answers when it is let."""

    @contextmanager
    def made(driver: Any = None, **settings: Any) -> Iterator[Scene]:
        go = threading.Event()

        async def waiting(self: ImageService, request: object, context: object) -> pb.Image:
            while not go.is_set():
                await asyncio.sleep(0.01)
            return pb.Image()

        monkeypatch.setattr(ImageService, "ResolveImage", waiting)
        with (
            worlds.world(postgres, driver, **settings) as world,
            grpc.insecure_channel(world.address, [("grpc.enable_retries", 0)]) as channel,
            ThreadPoolExecutor(8) as others,
        ):
            try:
                yield Scene(world, channel, others, go)
            finally:
                go.set()

    return made


def detail(answer: Answer, kind: Any) -> Any:
    message = kind()
    assert any(each.Unpack(message) for each in answer.status.details)
    return message


def told(answer: Answer) -> dict[str, str]:
    """The metadata of a refusal that says that there are too many calls."""
    assert (answer.code, answer.reason) == (StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    return dict(detail(answer, ErrorInfo).metadata)


@pytest.mark.parametrize(
    ("setting", "scope"),
    [
        ("calls_max", "this server process"),
        ("calls_per_account_max", "the account"),
        ("calls_per_peer_max", "the network address"),
    ],
)
def test_calls_over_a_limit_are_refused_at_once_and_those_under_way_go_on(
    served: Any, setting: str, scope: str
) -> None:
    with served(workers=0, **{setting: 2}) as scene:
        under_way = scene.start(2)
        refused = scene.send()
        assert told(refused) == {"limit": "2", "unit": "at once", "scope": scope, "setting": f"CUNHO_{setting.upper()}"}
        assert detail(refused, RetryInfo).retry_delay.seconds == 1
        assert 800 <= int(dict(refused.trailers)["grpc-retry-pushback-ms"]) <= 1200
        scene.go.set()
        assert [each.result(10).code for each in under_way] == [StatusCode.OK] * 2
        assert scene.send().reason == "IMAGE_NOT_FOUND"
        assert scene.admission.calls == 0


def test_an_account_at_its_limit_is_in_nobody_elses_way(served: Any) -> None:
    with served(workers=0, calls_per_account_max=1) as scene:
        scene.start(1)
        assert scene.send().reason == "TOO_MANY_CALLS"
        assert scene.send(account_id="globex").reason == "IMAGE_NOT_FOUND"
        operator = scene.world.token("acme", "operator")
        assert scene.send(token=operator).reason == "IMAGE_NOT_FOUND", "of the same name, and yet another"


def test_the_unauthenticated_and_health_checks_take_no_place_and_need_none(served: Any) -> None:
    with served(workers=0, calls_max=1) as scene:
        scene.start(1)
        assert scene.send(token="").reason == "CREDENTIALS_MISSING"
        health: Any = health_pb2_grpc.HealthStub(scene.channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
        assert scene.admission.calls == 1


def test_however_a_call_ends_its_place_is_free_again(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(workers=0, calls_max=1) as scene:

        async def fail(*arguments: object) -> None:
            raise RuntimeError

        reasons = [scene.send(data=data).reason for data in (b"", b"\xff", ABSENT)]
        assert reasons == ["INVALID_REQUEST", "INVALID_REQUEST", "IMAGE_NOT_FOUND"]
        with monkeypatch.context() as broken:
            broken.setattr(images, "get_shown", fail)
            assert scene.send().reason == "INTERNAL_ERROR"
        assert scene.send(RESOLVE, FAMILY, timeout=0.3).code is StatusCode.DEADLINE_EXCEEDED
        until(lambda: scene.admission.calls == 0)
        assert scene.send().reason == "IMAGE_NOT_FOUND"


def test_waits_are_counted_apart_from_other_calls(served: Any) -> None:
    driver = Held()
    with served(driver, calls_max=1, waits_max=1) as scene, driver.holding("import"):
        tenant = scene.world.tenant()
        wait = operations_pb2.WaitOperationRequest(name=import_image(tenant, "stock").name).SerializeToString()
        scene.start(1, WAIT, wait, account_id=tenant.account_id)
        assert (scene.admission.calls, scene.admission.waits) == (0, 1)
        assert scene.send().reason == "IMAGE_NOT_FOUND"
        assert told(scene.send(WAIT, wait, account_id=tenant.account_id))["setting"] == "CUNHO_WAITS_MAX"


def test_streams_without_a_message_take_no_place_and_end(served: Any) -> None:
    with served(workers=0, calls_max=1, call_seconds_max=1) as scene, grpc.insecure_channel(scene.world.address) as own:
        never = threading.Event()

        def nothing() -> Iterator[bytes]:
            never.wait(20)
            yield from ()

        send: Any = own.stream_unary(GET)
        sent = (("authorization", f"Bearer {scene.world.token('acme')}"),)
        streams = [send.future(nothing(), timeout=10, metadata=sent) for _ in range(50)]
        stranger = send.future(nothing(), timeout=10)
        try:
            assert stranger.code() is StatusCode.UNAUTHENTICATED
            assert scene.admission.calls == 0
            assert scene.send().reason == "IMAGE_NOT_FOUND"
            assert {stream.code() for stream in streams} == {StatusCode.DEADLINE_EXCEEDED}
            assert {stream.details() for stream in streams} == {
                "the call was not answered within 1 s, the time that it had"
            }
        finally:
            never.set()


def test_a_call_that_ends_without_a_message_is_malformed(served: Any) -> None:
    with served(workers=0) as scene:
        send: Any = scene.channel.stream_unary(GET)
        sent = (("authorization", f"Bearer {scene.world.token('acme')}"),)
        refused = send.future(iter(()), timeout=10, metadata=sent)
        assert refused.code() is StatusCode.INVALID_ARGUMENT


def test_retries_of_grpc_itself_come_when_they_are_told_to(served: Any) -> None:
    policy = {
        "maxAttempts": 5,
        "initialBackoff": "3600s",  # without a word of the service, the retry would not come
        "maxBackoff": "3600s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
    }
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    with (
        served(workers=0, calls_max=1) as scene,
        grpc.insecure_channel(scene.world.address, [("grpc.service_config", config)]) as retrying,
    ):
        scene.start(1)
        threading.Timer(0.5, scene.go.set).start()
        assert call(retrying, GET, ABSENT, scene.world.token("acme"), timeout=15).reason == "IMAGE_NOT_FOUND"


def test_a_process_that_stops_takes_no_more_calls_and_ends_those_under_way(served: Any) -> None:
    with served(workers=0) as scene:
        (under_way,) = scene.start(1)
        scene.admission.close()
        refused = scene.send()
        assert (refused.code, refused.reason) == (StatusCode.UNAVAILABLE, "SERVICE_STOPPING")
        assert detail(refused, RetryInfo).retry_delay.seconds == 1
        scene.go.set()
        assert under_way.result(10).code is StatusCode.OK


def test_counts_are_kept_of_what_is_under_way_alone() -> None:
    admission = Admission(Settings.model_validate({"calls_per_account_max": 1}))
    for index in range(100):
        caller = Caller(f"account-{index}", Role.ACCOUNT, "x")
        with admission.call(caller, f"ipv4:10.0.0.{index}"), pytest.raises(Refusal), admission.call(caller, "ipv4:x"):
            pass
    assert (admission.calls, admission._of_account, admission._of_peer) == (0, {}, {})


# --- connections

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # and empty settings
SETTINGS, PING, GOAWAY = 4, 6, 7


def frames(address: str, sent: bytes = PREFACE) -> dict[int, bytes]:
    """What a server says to a peer that says nothing more, by the kind of frame, until it closes the connection."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent)
        said = b""
        while more := connection.recv(65536):
            said += more
    found: dict[int, bytes] = {}
    while said:
        length = int.from_bytes(said[:3], "big")
        found.setdefault(said[3], said[9 : 9 + length])
        said = said[9 + length :]
    return found


def test_a_silent_peer_is_told_the_bounds_asked_for_a_sign_of_life_and_closed(served: Any) -> None:
    with served(workers=0, keepalive_seconds=1) as scene:
        said = frames(scene.world.address)
        assert PING in said
        told = {said[SETTINGS][at : at + 2]: said[SETTINGS][at + 2 : at + 6] for at in range(0, len(said[SETTINGS]), 6)}
        assert told[b"\0\3"] == (100).to_bytes(4, "big"), "streams at once"
        assert told[b"\0\6"] == (16 << 10).to_bytes(4, "big"), "bytes of metadata"


def test_a_peer_that_does_not_even_begin_is_closed(served: Any) -> None:
    with served(workers=0, keepalive_seconds=3600) as scene:
        assert PING not in frames(scene.world.address, b"")


def test_an_old_connection_is_to_be_made_anew(served: Any) -> None:
    with served(workers=0, connection_age_seconds=1, call_seconds_max=1, keepalive_seconds=3600) as scene:
        assert GOAWAY in frames(scene.world.address)


def test_what_is_too_large_for_a_call_is_refused(served: Any) -> None:
    with served(workers=0) as scene:
        assert scene.send(data=bytes(5 << 20)).code is StatusCode.RESOURCE_EXHAUSTED
        sent = (("large", "x" * (17 << 10)),)
        with pytest.raises(grpc.RpcError) as refused:
            scene.channel.unary_unary(GET)(ABSENT, timeout=10, metadata=sent)
        error: Any = refused.value
        assert error.code() is StatusCode.RESOURCE_EXHAUSTED
        assert scene.send().reason == "IMAGE_NOT_FOUND"
