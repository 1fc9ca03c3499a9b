"""Messages to attack the service with: requests of every call, right or made wrong, from callers of every kind.

They are drawn from a seed, and name what earlier answers told of, so that many get to where things are changed. Nothing
is sent here.
"""

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha.reflection_pb2 import ExtensionRequest, ServerReflectionRequest
from tests.end_to_end.requests_of import NOTHING, RPCS, Place, Rpc, is_map, places, valid
from tests.end_to_end.test_bad_input import NOWHERE
from tests.robustness import languages, mutating

HEALTH = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")
REFLECTION = tuple(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha"))
#: What answers everybody, in the words of the libraries that it comes from.
OPEN = (*HEALTH, *REFLECTION)

#: Ample for every call.
TIMEOUT_SECONDS = 30.0
_SHORT_SECONDS = (0.0001, 0.001, 0.003, 0.01, 0.05)

Metadata = tuple[tuple[str, str | bytes], ...]


class Message(NamedTuple):
    """One call, so that it can be made again."""

    path: str
    data: bytes
    metadata: Metadata = ()
    timeout_seconds: float = TIMEOUT_SECONDS
    #: How often the data is sent in the one call.
    times: int = 1
    #: Whether its credentials are right.
    known: bool = True
    #: Whether it must be refused, whatever else is right about it.
    wrong: bool = False
    caller: str = ""


class Caller(NamedTuple):
    """One who may call.

    Attributes:
        account_id: the account that the calls are for; "" for the operator.
    """

    account_id: str
    token: str
    acting: bool = False

    @property
    def metadata(self) -> Metadata:
        """The right credentials."""
        bearer = ("authorization", f"Bearer {self.token}")
        return (bearer, ("cunho-account", self.account_id)) if self.acting else (bearer,)


class Page(NamedTuple):
    """A list's request for the page that comes next."""

    rpc: Rpc
    data: bytes


@dataclass
class Known:
    """What answers have told a caller of: the latest alone, since the rest is soon gone."""

    images: deque[str] = field(default_factory=lambda: deque(maxlen=40))
    instances: deque[str] = field(default_factory=lambda: deque(maxlen=40))
    operations: deque[str] = field(default_factory=lambda: deque(maxlen=40))
    pages: deque[Page] = field(default_factory=lambda: deque(maxlen=40))

    def learn(self, text: str) -> None:
        """Takes in the ids in an answer."""
        for id in _ID.findall(text):
            {"img": self.images, "ins": self.instances, "op-": self.operations}[id[:3]].append(id)


_ID = re.compile(r"(?:img|ins|op)-[0-9a-z]{8}(?![0-9a-z])")
_LEARNED_BYTES = 4000

_BY_PATH = {rpc.path: rpc for rpc in RPCS}
#: Fields with a language of their own, which are drawn more often.
_LANGUAGES = {"filter", "order_by", "update_mask"}
_PLACES = {
    rpc.path: [
        place for place in places(rpc.request.DESCRIPTOR) for _ in range(8 if place.field.name in _LANGUAGES else 1)
    ]
    for rpc in RPCS
}
_LISTS = [rpc for rpc in RPCS if "page_token" in rpc.request.DESCRIPTOR.fields_by_name]
_REQUEST_ID = b"7f1f6c1e-3b6f-4f6e-9d0e-2c5c5a8b6d21"


def _forms(rpc: Rpc) -> list[bytes]:
    """A valid request in every form: for real and as a rehearsal, with a request id and without."""
    request = valid(rpc)
    made = [request.SerializeToString()]
    if hasattr(request, "validate_only"):
        request.validate_only = False
        made.append(request.SerializeToString())
        request.request_id = ""
        made.append(request.SerializeToString())
        request.validate_only = True
        made.append(request.SerializeToString())
    return made


_FORMS = {rpc.path: _forms(rpc) for rpc in RPCS}


class Generator:
    """Draws messages.

    Args:
        callers: whose credentials are right.
        seed: with the same seed, the same message has the same number, but for what answers told.
        forged: authorization headers that are wrong.
    """

    def __init__(self, callers: Sequence[Caller], seed: int, forged: Sequence[str] = ()) -> None:
        self._callers, self._seed, self._forged = callers, seed, forged
        self.known: Mapping[str, Known] = {caller.account_id: Known() for caller in callers}

    def message(self, number: int) -> Message:
        """The message of that number."""
        draw = Random(self._seed << 32 | number)
        if draw.random() < 0.03:
            return _of_an_open_service(draw)
        caller, rpc = draw.choice(self._callers), draw.choice(RPCS)
        message = Message(rpc.path, self._request(draw, rpc, caller), caller.metadata, caller=caller.account_id)
        if rpc in _LISTS and draw.random() < 0.4:
            message = self._continued(draw, message, caller)
        if not message.wrong and draw.random() < 0.15:
            message = message._replace(data=mutating.broken(draw, message.data, draw.choice(_FORMS[rpc.path])))
        return self._around(draw, message, caller)

    def learn(self, message: Message, body: bytes) -> None:
        """Takes in what the answer to a message tells of."""
        known = self.known[message.caller]
        known.learn(body[:_LEARNED_BYTES].decode(errors="replace"))
        rpc = _BY_PATH[message.path]
        if rpc in _LISTS and (token := getattr(rpc.response.FromString(body), "next_page_token", "")):
            request: Any = rpc.request.FromString(message.data)
            request.page_token = token
            known.pages.append(Page(rpc, request.SerializeToString()))

    # --- requests

    def _request(self, draw: Random, rpc: Rpc, caller: Caller) -> bytes:
        data = self._named(draw, draw.choice(_FORMS[rpc.path]), caller)
        if draw.random() < 0.45:
            return data
        request = rpc.request.FromString(data)
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            self._change(draw, draw.choice(_PLACES[rpc.path]), request, caller)
        return bytes(request.SerializeToString())

    def _named(self, draw: Random, data: bytes, caller: Caller) -> bytes:
        """The request with ids of things that are there, or lately were; they are as long as those of nothing."""
        known = self._somebody(draw, caller)
        ids = zip(NOTHING[:3], (known.images, known.instances, known.operations), strict=True)
        for absent, there in ids:
            if there:
                data = data.replace(absent.removeprefix("operations/").encode(), draw.choice(there).encode())
        account_id = draw.choice(self._callers).account_id
        if len(account_id) == len(NOTHING.account_id):
            data = data.replace(NOTHING.account_id.encode(), account_id.encode())
        if draw.random() < 0.9:
            data = data.replace(_REQUEST_ID, _uuid(draw).encode())
        return data.replace(b"a name", f"{draw.getrandbits(24):06x}".encode())

    def _somebody(self, draw: Random, caller: Caller) -> Known:
        """Mostly what the caller knows."""
        return self.known[caller.account_id if draw.random() < 0.85 else draw.choice(self._callers).account_id]

    def _change(self, draw: Random, place: Place, request: Any, caller: Caller) -> None:
        """Gives a field of the request another value of its type, or none."""
        field, owner = place.field, place.owner(request)
        if draw.random() < 0.1:
            owner.ClearField(field.name)
        elif is_map(field):
            for _ in range(draw.choice((1, 1, 2, 65))):
                getattr(owner, field.name)[mutating.text(draw)] = mutating.text(draw)
        elif field.message_type is not None:
            _change_part(draw, field, getattr(owner, field.name))
        elif field.is_repeated:
            count = draw.choice((1, 1, 2, 2, 3, 101, 1001))
            made = [self._value(draw, field, request, caller) for _ in range(min(count, 3))]
            getattr(owner, field.name).extend(made * (count // len(made) if len(str(made)) < 2000 else 1))
        else:
            setattr(owner, field.name, self._value(draw, field, request, caller))

    def _value(self, draw: Random, field: FieldDescriptor, request: Any, caller: Caller) -> Any:
        if field.enum_type is not None:
            return draw.choice((*range(-1, 10), 99, 2**31 - 1, -(2**31)))
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return draw.random() < 0.5
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return self._text(draw, field, request.DESCRIPTOR.name, caller)
        return mutating.number(draw, 32 if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 else 64)

    def _text(self, draw: Random, field: FieldDescriptor, request: str, caller: Caller) -> str:
        if draw.random() < 0.001:
            length, text = draw.choice((10_000, 100_000)), mutating.text(draw) or " "
            return (text * (length // len(text) + 1))[:length]
        if field.name == "filter" and draw.random() < 0.95:
            return languages.filter_text(draw, request)
        if field.name == "order_by" and draw.random() < 0.9:
            return languages.order_text(draw, request)
        if field.name.removesuffix("s").endswith("_id") and draw.random() < 0.4:
            known = self._somebody(draw, caller)
            return draw.choice((*known.images, *known.instances, caller.account_id))
        return mutating.text(draw)

    # --- pages

    def _continued(self, draw: Random, message: Message, caller: Caller) -> Message:
        """A request for a next page, by whom it was given to and as it was given, or not."""
        giver = draw.choice(self._callers)
        pages = self.known[giver.account_id].pages
        if not pages:
            return message
        page = draw.choice(pages)
        request: Any = page.rpc.request.FromString(page.data)
        kept = message._replace(path=page.rpc.path, wrong=giver.account_id != caller.account_id)
        match draw.randrange(5):
            case 0:
                request.page_token = mutating.flipped(draw, request.page_token)
            case 1:
                request.page_token = request.page_token[: draw.randrange(1, len(request.page_token))]
            case 2 if page.rpc.path != message.path:
                other: Any = _BY_PATH[message.path].request.FromString(message.data)
                other.page_token = request.page_token
                return message._replace(data=other.SerializeToString(), wrong=True)
            case 3 if hasattr(request, "filter"):
                request.filter += " "
            case _:
                return kept._replace(data=page.data)
        return kept._replace(data=request.SerializeToString(), wrong=True)

    # --- what is around a request

    def _around(self, draw: Random, message: Message, caller: Caller) -> Message:
        """The message with another path, wrong credentials, more metadata or little time, or none of these."""
        chance = draw.random()
        if chance < 0.01:
            message = message._replace(path=draw.choice(NOWHERE), wrong=True)
        elif chance < 0.02:
            message = message._replace(times=0)
        elif chance < 0.04:
            message = message._replace(timeout_seconds=draw.choice(_SHORT_SECONDS))
        if draw.random() < 0.05:
            message = message._replace(metadata=self._wrong_credentials(draw, caller), known=False)
        elif draw.random() < 0.02:
            account_id = draw.choice(self._callers).account_id if draw.random() < 0.5 else _ascii(draw)
            acting = ("cunho-account", account_id)
            wrong = caller.acting or account_id != caller.account_id or not caller.account_id
            message = message._replace(metadata=(*message.metadata, acting), wrong=message.wrong or wrong)
        if draw.random() < 0.15:
            message = message._replace(metadata=(*message.metadata, *_metadata(draw)))
        return message

    def _wrong_credentials(self, draw: Random, caller: Caller) -> Metadata:
        token = caller.token
        headers = {
            "none": (),
            "flipped": (f"Bearer {mutating.flipped(draw, token)}",),
            "cut": (f"Bearer {token[: draw.randrange(len(token))]}",),
            "twice": (f"Bearer {token}", f"Bearer {token}"),
            "another scheme": (f"{draw.choice(('Basic', 'bearer:', 'Token', ''))} {token}",),
            "longer": (f"Bearer {token}{_ascii(draw) or '='}",),
            "any text": (_ascii(draw),),
            "forged": (draw.choice(self._forged or ("Bearer a.b.c",)),),
        }
        return tuple(("authorization", header) for header in headers[draw.choice(tuple(headers))])


def _change_part(draw: Random, field: FieldDescriptor, part: Any) -> None:
    assert field.message_type is not None
    if field.is_repeated:
        part.extend([part[0] if part else part.add()] * draw.choice((1, 2, 21, 101)))
    elif field.message_type.name == "FieldMask":
        part.paths[:] = languages.paths(draw)
    elif field.message_type.name == "Duration":
        part.seconds, part.nanos = mutating.number(draw, 64), mutating.number(draw, 32)
    else:
        part.Clear()
        part.SetInParent()


def _of_an_open_service(draw: Random) -> Message:
    text = draw.choice(("cunho.v1.Image", "cunho.v1.ImageService.GetImage", "google.protobuf.FieldOptions"))
    text = draw.choice((text, mutating.edited(draw, text), mutating.text(draw)))
    asked = ServerReflectionRequest(host=mutating.text(draw))
    match draw.randrange(5):
        case 0:
            asked.file_by_filename = text
        case 1:
            asked.file_containing_symbol = text
        case 2:
            extension = ExtensionRequest(containing_type=text, extension_number=mutating.number(draw, 32))
            asked.file_containing_extension.CopyFrom(extension)
        case 3:
            asked.all_extension_numbers_of_type = text
    path, data = draw.choice(REFLECTION), asked.SerializeToString()
    if draw.random() < 0.5:
        path, data = draw.choice(HEALTH), HealthCheckRequest(service=text).SerializeToString()
    if draw.random() < 0.3:
        data = mutating.broken(draw, data, data)
    return Message(path, data, times=draw.choice((1, 1, 1, 0, 2) if path in REFLECTION else (1, 1, 1, 0)))


_HEADERS = (
    *("x-request-id", "x-request-id", "idempotency-key", "idempotency-key", "x-forwarded-for", "traceparent"),
    *("x-a-bin", "cunho-account-bin", "authorization-bin", "accept-language", "user-agent", "x", "_", "a.b-c_d"),
)


def _metadata(draw: Random) -> Metadata:
    """Headers that gRPC lets pass: its clients refuse others themselves."""
    made: list[tuple[str, str | bytes]] = []
    for _ in range(draw.choice((1, 1, 2, 3, 30))):
        key = draw.choice(_HEADERS)
        if key.endswith("-bin"):
            made.append((key, draw.randbytes(draw.choice((0, 1, 16, 300)))))
        else:
            made.append((key, draw.choice((_uuid(draw), _uuid(draw), _ascii(draw)))))
    return tuple(made * draw.choice((1, 1, 1, 1, 2)))


def _uuid(draw: Random) -> str:
    digits = f"{draw.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], "4" + digits[13:16], "8" + digits[17:20], digits[20:]))


def _ascii(draw: Random) -> str:
    """A text that a header may hold."""
    if draw.random() < 0.02:
        return "x" * draw.choice((1000, 8192, 8193, 12_000, 40_000))
    return "".join(character for character in mutating.text(draw)[:200] if " " <= character <= "~").strip()
