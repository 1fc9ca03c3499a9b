"""What the log says of calls: one line of everything that changes something, and an id that callers can ask about."""

import inspect
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from tests.end_to_end.requests_of import BY_NAME as RPC
from tests.end_to_end.requests_of import RPCS, TRAILERS_SIZE_BYTES_MAX, Answer, Rpc, call, valid
from tests.world import World

from cunho import v1 as pb
from cunho_server import app, logs
from cunho_server.call import CALL_ID_KEY, method
from cunho_server.settings import Settings
from cunho_storage import images

ABSENT = pb.GetImageRequest(image_id="img-00000000")
FORGED = "x\n2026-01-01 [info] forged\u2028\x1b[31m"


def send(world: World, name: str, request: Any, token: str, *metadata: tuple[str, str]) -> Answer:
    with grpc.insecure_channel(world.address) as channel:
        return call(channel, RPC[name].path, request.SerializeToString(), token, *metadata)


def ids(answer: Answer) -> list[str | bytes]:
    return [value for key, value in answer.trailers if key == CALL_ID_KEY]


# --- ids of calls


@pytest.fixture
def unnamed(world: World) -> Callable[..., list[str | bytes]]:
    """The id that comes back for one that is sent, if any."""

    def called(*sent: str) -> list[str | bytes]:
        with grpc.insecure_channel(world.address) as channel:
            metadata = [("authorization", f"Bearer {world.token('acme')}"), *((CALL_ID_KEY, each) for each in sent)]
            method: Any = channel.unary_unary(RPC["ListRegions"].path)
            _, done = method.with_call(b"", timeout=10, metadata=metadata)
            return [value for key, value in done.trailing_metadata() if key == CALL_ID_KEY]

    return called


@pytest.mark.parametrize("sent", ["a", "0b5bd7d4-6cf4", "A.b_c-9" * 9])
def test_the_id_that_a_caller_gives_a_call_comes_back(unnamed: Any, sent: str) -> None:
    assert unnamed(sent) == [sent]


@pytest.mark.parametrize("sent", ["", "x" * 65, "a b", 'a"b', "../etc"])
def test_an_id_that_could_be_mistaken_is_replaced(unnamed: Any, sent: str) -> None:
    (made,) = unnamed(sent)
    assert re.fullmatch("[0-9a-f]{16}", made)


def test_a_call_without_an_id_is_given_one_of_its_own(unnamed: Any) -> None:
    assert len({*unnamed(), *unnamed(), *unnamed()}) == 3


def test_refused_calls_have_an_id_too_and_bugs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*arguments: object) -> None:
        raise RuntimeError

    assert ids(send(world, "GetImage", ABSENT, "")) == ["test"]
    assert ids(send(world, "GetImage", ABSENT, world.token("acme"))) == ["test"]
    with monkeypatch.context() as broken:
        broken.setattr(images, "get_shown", fail)
        answer = send(world, "GetImage", ABSENT, world.token("acme"))
    assert answer.reason == "INTERNAL_ERROR"
    assert ids(answer) == ["test"]


# --- the lines of calls


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Callable[[], list[str]]]]:
    """Logs as the settings say; the lines of calls since, when asked."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = [*root.handlers], root.level

    def configured(**settings: str) -> Callable[[], list[str]]:
        for handler in handlers:
            root.removeHandler(handler)  # else it would be closed
        monkeypatch.setattr("sys.stderr", stream)
        logs.configure(Settings.model_validate(settings))
        return lambda: stream.getvalue().splitlines()

    yield configured
    for handler in [*root.handlers]:
        root.removeHandler(handler)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


@pytest.fixture
def audited(written: Any) -> Callable[[], list[dict[str, Any]]]:
    """The lines that say who changed what."""
    lines = written(log_format="json")
    return lambda: [line for line in map(json.loads, lines()) if line["logger"] == "cunho.audit"]


def test_a_caller_who_left_just_when_it_was_refused_leaves_no_traceback_and_a_bug_does(written: Any) -> None:
    lines, grpc_log = written(), logging.getLogger("grpc._cython.cygrpc")
    for told in ("ExecuteBatchError raised in core by servicer method [%s]", "Unexpected [%s] raised by servicer"):
        try:
            raise RuntimeError
        except RuntimeError:
            grpc_log.exception(told, "/cunho.v1.ImageService/GetImage")
    assert [line.count("raised") for line in lines() if line.startswith("20")] == [1]
    assert [line.strip() for line in lines()].count("RuntimeError") == 1


def test_a_mutation_leaves_a_line_that_says_who_did_what(world: World, audited: Any) -> None:
    tenant = world.tenant()
    image = world.image(tenant, name=FORGED.split("\n")[0])
    recipient = world.tenant()
    acting = world.token("portal", "service", acts_for=[tenant.account_id])
    share = pb.ShareImageRequest(image_id=image.image_id, account_ids=[recipient.account_id])
    answer = send(world, "ShareImage", share, acting, ("cunho-account", tenant.account_id))
    assert answer.code is grpc.StatusCode.OK
    line = audited()[-1]
    assert (line["event"], line["service"], line["level"]) == ("ShareImage", "cunho.v1.ImageService", "info")
    assert (line["actor"], line["account_id"], line["call_id"]) == ("service:portal", tenant.account_id, "test")
    assert line["targets"]["image_id"] == image.image_id
    assert line["targets"]["account_ids"] == [recipient.account_id]
    assert line["code"] == "OK"
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert 0 < line["duration_ms"] < 10_000
    assert {"reason", "rule", "rehearsal", "replayed"}.isdisjoint(line)


def test_what_a_mutation_made_is_in_its_line(world: World, audited: Any) -> None:
    tenant = world.tenant()
    instance = world.launch(tenant)
    (operation,) = tenant.list_operations()
    (line,) = [each for each in audited() if each["event"] == "CreateInstance"]
    assert line["targets"]["operation"] == operation.name
    assert line["targets"]["target_ids"] == [instance.instance_id]


def test_a_refused_mutation_leaves_a_line_with_the_reason(world: World, audited: Any) -> None:
    delete = pb.DeleteImageRequest(image_id=world.public_image().image_id)
    send(world, "DeleteImage", delete, world.token(world.tenant().account_id))
    send(world, "DeleteImage", delete, "")
    send(world, "CancelOperation", operations_pb2.CancelOperationRequest(name="operations/x"), world.token("acme"))
    public, stranger, malformed = audited()[-3:]
    assert (public["code"], public["reason"], public["rule"]) == (
        "PERMISSION_DENIED",
        "PUBLIC_IMAGE_READ_ONLY",
        "PUB-8",
    )
    assert (stranger["code"], stranger["reason"]) == ("UNAUTHENTICATED", "CREDENTIALS_MISSING")
    assert "actor" not in stranger
    assert (malformed["actor"], malformed["reason"]) == ("acme", "INVALID_REQUEST")


def test_rehearsals_and_repeated_requests_are_marked(world: World, audited: Any) -> None:
    tenant = world.tenant()
    request = valid(RPC["ImportImage"])
    token = world.token(tenant.account_id)
    send(world, "ImportImage", request, token)
    request.validate_only = False
    send(world, "ImportImage", request, token)
    send(world, "ImportImage", request, token)
    lines = [{key: line.get(key) for key in ("rehearsal", "replayed", "code")} for line in audited()[-3:]]
    assert lines == [
        {"rehearsal": True, "replayed": None, "code": "OK"},
        {"rehearsal": None, "replayed": None, "code": "OK"},
        {"rehearsal": None, "replayed": True, "code": "OK"},
    ]


def test_a_call_that_names_much_leaves_a_line_of_bounded_length(world: World, audited: Any) -> None:
    share = pb.ShareImageRequest(image_id="img-00000000", account_ids=[f"acc-{n:08}" for n in range(1000)])
    send(world, "ShareImage", share, world.token("acme"))
    assert len(audited()[-1]["targets"]["account_ids"]) == 20


@pytest.mark.parametrize(("level", "shown"), [("info", 0), ("debug", 1)])
def test_reads_leave_a_line_at_debug_alone(world: World, written: Any, level: str, shown: int) -> None:
    lines = written(log_format="json", log_level=level)
    send(world, "GetImage", ABSENT, world.token("acme"))
    reads = [line for line in map(json.loads, lines()) if line["logger"] == "cunho.reads"]
    assert [(line["event"], line["reason"], line["call_id"]) for line in reads] == [
        ("GetImage", "IMAGE_NOT_FOUND", "test")
    ] * shown


def test_every_line_of_a_call_has_its_id(world: World, written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*arguments: object) -> None:
        raise RuntimeError(FORGED)

    lines = written(log_format="json")
    send(world, "GetImage", ABSENT, "not.a.token")
    with monkeypatch.context() as broken:
        broken.setattr(images, "get_shown", fail)
        send(world, "GetImage", ABSENT, world.token("acme"))
    told = [json.loads(line) for line in lines()]
    assert len(told) == 2
    assert {line["call_id"] for line in told} == {"test"}
    assert "incident" in told[1]["event"]
    assert "Traceback" in told[1]["exception"]


# --- which calls change something


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
def test_what_begins_a_mutation_is_audited(rpc: Rpc) -> None:
    servicer = next(each for _, _, each in app._SERVICES if hasattr(each, rpc.name) and rpc.name in vars(each))
    source = inspect.getsource(getattr(servicer, rpc.name))
    for called in re.findall(r"self\.(_\w+)\(", source):
        source += inspect.getsource(getattr(servicer, called))
    assert method(rpc.path).mutates == ("self.mutation(" in source or "self.one_write(" in source)


# --- what callers write


@pytest.mark.parametrize("form", ["console", "json"])
def test_nothing_that_a_caller_writes_begins_a_line(written: Any, form: str) -> None:
    lines = written(log_format=form)
    log = logging.getLogger("cunho")
    log.info("said %s", FORGED, extra={"facts": {"targets": {"image_id": FORGED}, "actor": FORGED, "peer": "\x1b[2J"}})
    try:
        raise ValueError(FORGED)
    except ValueError:
        log.exception("failed")
    first, second, *rest = lines()
    assert "said" in first
    assert "failed" in second
    assert not "".join([first, second, *rest]).count("\x1b")
    assert all(line.startswith("    ") for line in rest)
    assert bool(rest) == (form == "console")


def test_trailers_leave_room_for_an_id(world: World) -> None:
    request = pb.ListImagesRequest(region_id="x" * 100, filter="(" * 2000, page_size=-1)
    answer = send(world, "ListImages", request, world.token("acme"), (CALL_ID_KEY, "y" * 64))
    assert answer.reason == "INVALID_REQUEST"
    assert answer.trailers_size_bytes <= TRAILERS_SIZE_BYTES_MAX
