"""One call: what is known of it from its first byte to its outcome. Nothing here decides, and nothing knows gRPC."""

import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from google.longrunning import operations_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from cunho.v1 import OperationMetadata
from cunho_rules.model import Caller
from cunho_rules.refusals import Refusal

#: Metadata key of a call's id, by which what its caller saw is found in the log.
CALL_ID_KEY = "x-request-id"

_CALL_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

#: What a target is known by, in requests and answers; `name` in those of google.longrunning.
_TARGET = re.compile(r"\w+_ids?")
_NO_TARGETS = ("request_id",)
_TARGETS_SHOWN = 20

#: Methods that change something and cannot be rehearsed.
_MUTATIONS = ("google.longrunning.Operations.CancelOperation", "google.longrunning.Operations.DeleteOperation")


class Method(NamedTuple):
    """What is called."""

    service: str
    name: str
    #: Whether it changes something: its request can be rehearsed with validate_only, or it is one of _MUTATIONS.
    mutates: bool


#: Stands for whatever is called that there is not, so that callers cannot make up names of metrics.
UNKNOWN = Method("unknown", "unknown", False)


def method(path: str) -> Method:
    """The method of a path such as "/cunho.v1.ImageService/GetImage"."""
    _, service, name = path.split("/")
    pool: Any = descriptor_pool.Default()
    described = pool.FindServiceByName(service).methods_by_name[name]
    rehearsable = "validate_only" in described.input_type.fields_by_name
    return Method(service, name, rehearsable or described.full_name in _MUTATIONS)


@dataclass(slots=True)
class Call:
    """A call under way, or ended."""

    method: Method
    #: As gRPC names it, for example "ipv4:127.0.0.1:50312".
    peer: str
    metadata: Iterable[tuple[str, str | bytes]]
    call_id: str = ""
    caller: Caller | None = None
    request: Message | None = None
    answer: Message | None = None
    #: True if the request was answered before.
    replayed: bool = False
    refusal: Refusal | None = None
    code: str = "OK"
    #: How often it was begun again because others got in its way.
    conflicts: int = 0
    _start: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.call_id = _sane_id(self.metadata) or secrets.token_hex(8)

    @property
    def address(self) -> str:
        """The network address that it comes from, without the port."""
        return self.peer.rpartition(":")[0]

    @property
    def seconds(self) -> float:
        """How long it has been under way."""
        return time.perf_counter() - self._start

    @property
    def rehearsal(self) -> bool:
        """True with validate_only."""
        return getattr(self.request, "validate_only", False)

    @property
    def targets(self) -> dict[str, Any]:
        """The ids in request and answer, by field: what the call is about."""
        return _targets(self.request) | _targets(self.answer)

    def refuse(self, refusal: Refusal) -> None:
        """Ends it by a refusal without the frames that it came through: they keep the call, which keeps the refusal."""
        self.refusal = refusal.with_traceback(None)
        refusal.__context__ = refusal.__cause__ = None
        self.code = refusal.code.value


def _sane_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    sent = next((value for key, value in metadata if key == CALL_ID_KEY), "")
    return sent if isinstance(sent, str) and _CALL_ID.fullmatch(sent) else ""


def _targets(message: Message | None) -> dict[str, Any]:
    if message is None:
        return {}
    if isinstance(message, operations_pb2.Operation):
        metadata = OperationMetadata()
        message.metadata.Unpack(metadata)
        return {"operation": message.name, "target_ids": [*metadata.target_ids][:_TARGETS_SHOWN]}
    found: dict[str, Any] = {}
    one, several, parts = _target_fields(message.DESCRIPTOR)
    for part in parts:
        if message.HasField(part):
            found = _targets(getattr(message, part)) | found
    found |= {name: value for field, name in one if (value := getattr(message, field))}
    return found | {field: [*value][:_TARGETS_SHOWN] for field in several if (value := getattr(message, field))}


class _TargetFields(NamedTuple):
    """Where messages of a type have targets."""

    #: Fields with one, and what it is told as.
    one: Sequence[tuple[str, str]]
    several: Sequence[str]
    #: Fields with messages that may have some.
    parts: Sequence[str]


@cache
def _target_fields(described: Descriptor) -> _TargetFields:
    targets = [each for each in described.fields if _TARGET.fullmatch(each.name) and each.name not in _NO_TARGETS]
    one = [(each.name, each.name) for each in targets if not each.is_repeated]
    if described.file.package == "google.longrunning" and "name" in described.fields_by_name:
        one.append(("name", "operation"))
    messages = [each for each in described.fields if each.message_type and not each.is_repeated]
    parts = [each.name for each in messages if any(_target_fields(each.message_type))]
    return _TargetFields(one, [each.name for each in targets if each.is_repeated], parts)
