"""Whatever a method returns or raises, callers get an answer or a refusal with details, never a word of the inside."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import FrameType
from typing import Any, NamedTuple

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.longrunning import operations_pb2
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc import StatusCode
from tests.end_to_end.requests_of import BY_NAME, Answer, call
from tests.world import World

from cunho import v1 as pb
from cunho.v1 import image_service_pb2_grpc
from cunho_rules.refusals import REFUSALS, Reason, Refusal, Retry, Violation
from cunho_server import logs
from cunho_server.admission import Admission
from cunho_server.answering import Answering, Replayed
from cunho_server.identity import Identity
from cunho_server.keys import Key, Keys
from cunho_server.settings import Settings
from cunho_server.tokens import Signer
from cunho_storage import images
from cunho_storage.database import Conflict

GET_IMAGE = BY_NAME["GetImage"].path
ASKED = pb.GetImageRequest(image_id="img-00000000")
SECRET = "password=hunter2 in /srv/app/db.py"

Behavior = Callable[[pb.GetImageRequest, Any], Awaitable[Message]]


class Service(image_service_pb2_grpc.ImageServiceServicer):
    """Does what a test says, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0
        self.behavior: Behavior = returned

    async def GetImage(self, request: pb.GetImageRequest, context: Any) -> Any:
        self.calls += 1
        return await self.behavior(request, context)


async def returned(request: pb.GetImageRequest, context: Any) -> pb.Image:
    return pb.Image(image_id=request.image_id)


def raising(*errors: BaseException) -> Behavior:
    """Raises one error after the other, then answers."""
    left = [*errors]

    async def behavior(request: pb.GetImageRequest, context: Any) -> pb.Image:
        if left:
            raise left.pop(0)
        return pb.Image(image_id=request.image_id)

    return behavior


class Served(NamedTuple):
    """The service behind `Answering`, and how to call it."""

    service: Service
    channel: grpc.Channel
    token: str

    async def send(self, path: str = GET_IMAGE, data: bytes | None = None, **options: Any) -> Answer:
        """What is answered to a valid request, unless other bytes are given."""
        sent = ASKED.SerializeToString() if data is None else data
        return await asyncio.to_thread(call, self.channel, path, sent, options.pop("token", self.token), **options)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    key = Ed25519PrivateKey.generate()
    service = Service()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]
    settings = Settings.model_validate({})
    identity = Identity(Keys(lambda: (Key(key.public_key()),)), settings)
    server = grpc.aio.server(
        interceptors=[Answering(identity, Admission(settings), call_seconds_max=settings.call_seconds_max)]
    )
    image_service_pb2_grpc.add_ImageServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(service, channel, Signer(key, settings).token("acme", "account", seconds=900))
    await server.stop(0)


def detail(answer: Answer, kind: type[Message]) -> Any:
    """The one detail of that type."""
    message = kind()
    found = [detail for detail in answer.status.details if detail.Unpack(message)]
    assert len(found) == 1
    return message


# --- what comes before the method


async def test_an_answer_is_the_message_that_the_method_returned(served: Served) -> None:
    answer = await served.send()
    assert (answer.code, pb.Image.FromString(answer.body)) == (StatusCode.OK, pb.Image(image_id="img-00000000"))


async def test_a_method_is_not_run_without_credentials(served: Served) -> None:
    for data in (None, b"\xff"):
        assert (await served.send(data=data, token="")).reason == "CREDENTIALS_MISSING"
        assert (await served.send(data=data, token="x")).reason == "CREDENTIALS_INVALID"
    assert served.service.calls == 0


async def test_a_method_is_not_run_with_a_malformed_request(served: Served) -> None:
    for data in (b"", b"\xff", pb.GetImageRequest(image_id="x").SerializeToString()):
        assert (await served.send(data=data)).reason == "INVALID_REQUEST"
    assert served.service.calls == 0


async def test_a_method_that_is_not_there_is_refused_in_our_words(served: Served) -> None:
    answer = await served.send("/cunho.v1.ImageService/DropImage")
    assert (answer.code, answer.reason) == (StatusCode.UNIMPLEMENTED, "METHOD_NOT_FOUND")
    assert answer.message == "there is no method /cunho.v1.ImageService/DropImage"


async def test_a_service_of_somebody_else_is_not_served(served: Served) -> None:
    for path in ("/nope/Nope", "/cunho.v1x.ImageService/GetImage", "/grpc.health.v1.Health/Check"):
        assert (await served.send(path)).reason == "METHOD_NOT_FOUND"


# --- refusals

VIOLATIONS = (Violation("image_id", "must not be empty"),)


@pytest.mark.parametrize("reason", Reason)
async def test_every_refusal_travels_with_its_code_and_details(served: Served, reason: Reason) -> None:
    metadata: Any = {key: f"some-{key}" for key in REFUSALS[reason].keys}
    refusal = Refusal(reason, **metadata, violations=VIOLATIONS if reason is Reason.INVALID_REQUEST else ())
    served.service.behavior = raising(refusal)
    answer = await served.send()
    assert answer.code is StatusCode[refusal.code]
    assert answer.message == answer.status.message == str(refusal)
    assert answer.status.code == answer.code.value[0]
    info, advice = detail(answer, ErrorInfo), detail(answer, pb.Advice)
    assert (info.reason, info.domain, dict(info.metadata)) == (reason, "cunho.v1", metadata)
    assert (advice.rule, advice.remedy) == (refusal.rule, refusal.remedy)
    pushback = int(dict(answer.trailers)["grpc-retry-pushback-ms"])
    assert 800 <= pushback <= 1200 if refusal.retry is Retry.CALL else pushback == -1
    assert served.service.calls == 1


# --- conflicts


@pytest.mark.parametrize("conflicts", [1, 2, 3])
async def test_a_transaction_that_others_got_in_the_way_of_is_run_again(served: Served, conflicts: int) -> None:
    served.service.behavior = raising(*(Conflict("40001") for _ in range(conflicts)))
    assert (await served.send()).code is StatusCode.OK
    assert served.service.calls == conflicts + 1


async def test_after_four_conflicts_the_caller_is_told_to_call_again(served: Served) -> None:
    served.service.behavior = raising(*(Conflict("image_name_of_owner") for _ in range(9)))
    answer = await served.send()
    assert (answer.code, answer.reason) == (StatusCode.ABORTED, "TRANSACTION_CONFLICT")
    assert detail(answer, RetryInfo).retry_delay.seconds == 1
    assert detail(answer, pb.Advice).retry == pb.Advice.RETRY_CALL
    assert "image_name_of_owner" not in str(answer)
    assert served.service.calls == 4


async def test_what_refuses_after_a_conflict_is_the_answer(served: Served) -> None:
    served.service.behavior = raising(Conflict("x"), Refusal(Reason.IMAGE_NOT_FOUND, image_id="img-00000000"))
    assert (await served.send()).reason == "IMAGE_NOT_FOUND"
    assert served.service.calls == 2


# --- bugs


@pytest.mark.parametrize(
    "bug",
    [
        RuntimeError(SECRET),
        KeyError(SECRET),
        AssertionError(SECRET),
        OSError(2, SECRET),
        TimeoutError(SECRET),
        ExceptionGroup(SECRET, [ValueError(SECRET)]),
        grpc.RpcError(SECRET),
        StopAsyncIteration(SECRET),
    ],
    ids=lambda bug: type(bug).__name__,
)
async def test_a_bug_is_told_by_its_incident_alone_and_logged_in_full(
    served: Served, bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    served.service.behavior = raising(bug)
    answer = await served.send()
    assert (answer.code, answer.reason) == (StatusCode.INTERNAL, "INTERNAL_ERROR")
    incident_id = detail(answer, ErrorInfo).metadata["incident_id"]
    assert answer.message == f"an internal error occurred; incident {incident_id}"
    for word in ("hunter2", "/srv", type(bug).__name__, "Traceback"):
        assert word.encode() not in b"".join(str(pair).encode() for pair in answer.trailers)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert incident_id in record.getMessage()
    assert GET_IMAGE in record.getMessage()
    assert record.exc_info is not None
    assert "hunter2" in str(record.exc_info[1])


async def test_every_incident_has_an_id_of_its_own(served: Served) -> None:
    served.service.behavior = raising(*(ValueError() for _ in range(20)))
    answers = [await served.send() for _ in range(20)]
    assert len({answer.message for answer in answers}) == 20


async def test_an_answer_that_cannot_be_sent_is_a_bug(served: Served) -> None:
    async def no_message(request: pb.GetImageRequest, context: Any) -> Any:
        return SECRET

    served.service.behavior = no_message
    assert (await served.send()).reason == "INTERNAL_ERROR"


async def test_a_bug_harms_no_other_call(served: Served) -> None:
    served.service.behavior = raising(*(RuntimeError(SECRET) for _ in range(5)))
    answers = await asyncio.gather(*(served.send() for _ in range(10)))
    assert sorted(answer.reason for answer in answers) == [""] * 5 + ["INTERNAL_ERROR"] * 5


async def test_a_caller_who_hangs_up_is_no_bug(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def waiting(request: pb.GetImageRequest, context: Any) -> pb.Image:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set_result("cancelled")
            raise
        raise AssertionError

    served.service.behavior = waiting
    assert (await served.send(timeout=0.2)).code is StatusCode.DEADLINE_EXCEEDED
    assert await asyncio.wait_for(ended, 5) == "cancelled"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR and logs._matters(record)]


def test_a_bug_in_the_real_server_tells_nothing_and_leaves_it_serving(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    token = world.token(world.tenant().account_id)

    async def fail(*arguments: object) -> None:
        raise RuntimeError(SECRET)

    with grpc.insecure_channel(world.address) as channel:
        with monkeypatch.context() as broken:
            broken.setattr(images, "get_shown", fail)
            answer = call(channel, GET_IMAGE, ASKED.SerializeToString(), token)
        assert answer.reason == "INTERNAL_ERROR"
        assert "hunter2" not in str(answer)
        assert "hunter2" in caplog.text
        assert call(channel, GET_IMAGE, ASKED.SerializeToString(), token).reason == "IMAGE_NOT_FOUND"


# --- answers that stand


async def test_a_request_answered_before_gets_the_very_bytes_again(served: Served) -> None:
    kept = pb.Image(image_id="img-kept0000").SerializeToString() + b"\xfa\xff\x03\x01x"
    served.service.behavior = raising(Replayed(kept))
    answer = await served.send()
    assert (answer.code, answer.body) == (StatusCode.OK, kept)


async def test_an_empty_answer_stands_as_well(served: Served) -> None:
    served.service.behavior = raising(Replayed(b""))
    answer = await served.send()
    assert (answer.code, answer.body) == (StatusCode.OK, b"")


KEY = ("idempotency-key", "0b5bd7d4-6cf4-4f6c-8f5e-00000000000a")


def test_the_real_server_repeats_its_answer_byte_for_byte(world: World) -> None:
    tenant = world.tenant()
    image = world.public_image()
    launch = pb.CreateInstanceRequest(
        region_id=image.region_id, zone_id="ap-guangzhou-3", instance_type="S5.MEDIUM4", image_id=image.image_id
    ).SerializeToString()
    with grpc.insecure_channel(world.address) as channel:
        answers = [
            call(channel, BY_NAME["CreateInstance"].path, launch, world.token(tenant.account_id), KEY) for _ in range(3)
        ]
    assert answers[0].code is StatusCode.OK
    assert answers[0] == answers[1] == answers[2]
    assert len(list(tenant.list_instances(region_id="-"))) == 1


@pytest.mark.parametrize("name", ["CancelOperation", "DeleteOperation"])
def test_operations_are_cancelled_and_deleted_with_an_idempotency_key_too(world: World, name: str) -> None:
    tenant = world.tenant()
    world.launch(tenant)
    (ended,) = tenant.list_operations()
    request = operations_pb2.DeleteOperationRequest(name=ended.name).SerializeToString()
    other = operations_pb2.DeleteOperationRequest(name="operations/op-00000000").SerializeToString()
    with grpc.insecure_channel(world.address) as channel:
        first, repeated, reused = (
            call(channel, BY_NAME[name].path, data, world.token(tenant.account_id), KEY)
            for data in (request, request, other)
        )
    assert first.code is StatusCode.OK
    assert repeated == first
    assert reused.reason == "REQUEST_ID_REUSED"


# --- what is left of a call


def frames_in_rings() -> list[str]:
    """The functions of the server whose frames only a search for garbage would end."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        frames = [each for each in gc.garbage if isinstance(each, FrameType)]
        return [each.f_code.co_qualname for each in frames if "cunho_server" in each.f_code.co_filename]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@pytest.mark.parametrize(
    "sent",
    [{}, {"data": b"\xff"}, {"token": ""}, {"token": "forged"}, {"path": f"{GET_IMAGE}s"}],
    ids=["a rule", "no message", "no credentials", "a forged token", "no method"],
)
async def test_a_refusal_leaves_nothing_that_is_to_be_searched_for(served: Served, sent: dict[str, Any]) -> None:
    served.service.behavior = raising(*(Refusal(Reason.IMAGE_NOT_FOUND, image_id="img-00000000") for _ in range(3)))
    under_way = len(asyncio.all_tasks())
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            assert (await served.send(**sent)).code is not StatusCode.OK
        async with asyncio.timeout(10):  # the server ends its side of the last one
            while len(asyncio.all_tasks()) > under_way:
                await asyncio.sleep(0.001)
        assert frames_in_rings() == []
    finally:
        gc.enable()
