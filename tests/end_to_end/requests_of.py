"""A valid request of every RPC, made from descriptors, and raw calls: where tests of wrong input and strangers start.

Nothing of the server is used here: bytes go out, and whatever comes back is kept as it is.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import grpc
from google.api.field_behavior_pb2 import IDENTIFIER, IMMUTABLE, OUTPUT_ONLY, REQUIRED, field_behavior
from google.longrunning import operations_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from tests.world import GUANGZHOU, SHANGHAI, ZONES

from cunho.v1 import (
    account_service_pb2,
    image_service_pb2,
    instance_service_pb2,
    quota_service_pb2,
    region_service_pb2,
)

#: What gRPC libraries accept of trailing metadata by default.
TRAILERS_SIZE_BYTES_MAX = 8192


class Rpc(NamedTuple):
    """One method of the service."""

    #: As it is called, for example "/cunho.v1.ImageService/GetImage".
    path: str
    name: str
    request: type[Message]
    response: type[Message]


SERVICES = [
    service
    for module in (
        image_service_pb2,
        instance_service_pb2,
        quota_service_pb2,
        account_service_pb2,
        region_service_pb2,
        operations_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
]

RPCS = [
    Rpc(
        f"/{service.full_name}/{method.name}",
        method.name,
        GetMessageClass(method.input_type),
        GetMessageClass(method.output_type),
    )
    for service in SERVICES
    for method in service.methods
]

BY_NAME = {rpc.name: rpc for rpc in RPCS}


# --- raw calls


class Answer(NamedTuple):
    """What came back for a call, byte for byte."""

    code: grpc.StatusCode
    #: The message of the answer; empty if the call was refused.
    body: bytes
    #: Why it was refused.
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]

    @property
    def status(self) -> Status:
        """The refusal with its details."""
        details: Any = dict(self.trailers).get("grpc-status-details-bin", b"")
        return Status.FromString(details)

    @property
    def reason(self) -> str:
        """The refusal's reason; empty if there is none."""
        info = ErrorInfo()
        return next((info.reason for detail in self.status.details if detail.Unpack(info)), "")

    @property
    def violations(self) -> list[tuple[str, str]]:
        """The fields at fault, and what is wrong with each."""
        bad = BadRequest()
        found = (bad.field_violations for detail in self.status.details if detail.Unpack(bad))
        return [(violation.field, violation.description) for violation in next(found, ())]

    @property
    def trailers_size_bytes(self) -> int:
        """Size of the trailing metadata as HTTP/2 counts it: names and encoded values, and 32 bytes for each pair."""
        printable = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
        pairs = [("grpc-status", "00"), ("grpc-message", quote(self.message, safe=printable))]
        pairs += [
            (key, "=" * -(-len(value) * 4 // 3) if key.endswith("-bin") else "=" * len(value))
            for key, value in self.trailers
        ]
        return sum(len(key) + len(value) + 32 for key, value in pairs)


def call(
    channel: grpc.Channel, path: str, data: bytes, token: str = "", *metadata: tuple[str, str], timeout: float = 10
) -> Answer:
    """What the service answers to these bytes; without a token, the call carries no credentials."""
    # An id of the call, which comes back: otherwise no two answers would be the same, byte for byte.
    sent = ((("authorization", f"Bearer {token}"),) if token else ()) + (("x-request-id", "test"), *metadata)
    try:
        method: Any = channel.unary_unary(path)
        body, done = method.with_call(data, timeout=timeout, metadata=sent)
        return Answer(grpc.StatusCode.OK, body, "", tuple(done.trailing_metadata() or ()))
    except grpc.RpcError as refused:
        error: Any = refused
        return Answer(error.code(), b"", error.details() or "", tuple(error.trailing_metadata() or ()))


# --- fields


class Place(NamedTuple):
    """A field of a request, in it or in a message within it; of repeated messages, in the first."""

    fields: tuple[FieldDescriptor, ...]

    @property
    def field(self) -> FieldDescriptor:
        """The field itself."""
        return self.fields[-1]

    @property
    def name(self) -> str:
        """As violations name it, for example "destinations[0].region_id"."""
        inner = (f"{field.name}[0]" if field.is_repeated else field.name for field in self.fields[:-1])
        return ".".join((*inner, self.field.name))

    def owner(self, request: Message) -> Any:
        """The message that has the field; the first of repeated ones is made if there is none."""
        message: Any = request
        for field in self.fields[:-1]:
            message = getattr(message, field.name)
            if field.is_repeated:
                message = message[0] if message else message.add()
        return message


def behaves(field: FieldDescriptor, *behaviors: int) -> bool:
    """True if the proto gives the field any of these behaviours."""
    options: Any = field.GetOptions()
    return any(behavior in options.Extensions[field_behavior] for behavior in behaviors)


def is_map(field: FieldDescriptor) -> bool:
    """True if the field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def is_part(field: FieldDescriptor) -> bool:
    """True if the field is a message of ours, or several, whose fields are sent too."""
    return field.message_type is not None and field.message_type.file.package == "cunho.v1" and not is_map(field)


#: Required where the protos cannot say so by an option: parts of requests, and messages that are not ours.
_REQUIRED = {
    "cunho.v1.Checksum.algorithm",
    "cunho.v1.Checksum.value",
    "cunho.v1.Deprecation.state",
    "cunho.v1.ImageContent.uri",
    "cunho.v1.Image.name",
    "cunho.v1.Image.min_disk_bytes",
    "cunho.v1.Account.state",
    "cunho.v1.OperatingSystem.family",
    "cunho.v1.OperatingSystem.platform",
    "cunho.v1.Software.name",
    "cunho.v1.Software.version",
    "cunho.v1.Support.contact_uri",
    "cunho.v1.Support.kind",
    *(f"google.longrunning.{verb}OperationRequest.name" for verb in ("Get", "Wait", "Cancel", "Delete")),
}


def required(field: FieldDescriptor) -> bool:
    """True if a request without the field is refused."""
    return behaves(field, REQUIRED, IDENTIFIER) or field.full_name in _REQUIRED


def places(descriptor: Any, within: tuple[FieldDescriptor, ...] = ()) -> Iterator[Place]:
    """Every field that a caller may send in the message, nested ones too."""
    for field in descriptor.fields:
        if behaves(field, OUTPUT_ONLY, IMMUTABLE):
            continue
        yield Place((*within, field))
        if is_part(field):
            assert field.message_type is not None
            yield from places(field.message_type, (*within, field))


# --- valid requests


class Ids(NamedTuple):
    """What a request names. By default it names nothing."""

    image_id: str = "img-00000000"
    instance_id: str = "ins-00000000"
    operation: str = "operations/op-00000000"
    account_id: str = "acc-0000000000"


NOTHING = Ids()


def _values(ids: Ids) -> dict[str, Any]:
    """What a field of some name holds. None: it stays empty."""
    return {
        "account_id": ids.account_id,
        "account_ids": [ids.account_id],
        "actions": ["CopyImage"],
        "CheckInstanceActionsRequest.actions": ["StartInstance"],
        "contact_uri": "https://example.org/support",
        "count": 1,
        "family": "debian-12",
        "OperatingSystem.family": 1,
        "image_id": ids.image_id,
        "image_ids": [ids.image_id],
        "GetQuotaRequest.image_id": None,
        "SetQuotaLimitRequest.image_id": None,
        "instance_id": ids.instance_id,
        "instance_type": "S5.MEDIUM4",
        "labels": {"env": "test"},
        "limit": 10,
        "min_disk_bytes": 8 << 30,
        "size_bytes": 1 << 30,
        "name": "a name",
        "ListOperationsRequest.name": "operations",
        **{f"{verb}OperationRequest.name": ids.operation for verb in ("Get", "Wait", "Cancel", "Delete")},
        "page_size": 10,
        "paths": ["*"],
        "platform": "debian",
        "region_id": GUANGZHOU,
        "Destination.region_id": SHANGHAI,
        "region_ids": [GUANGZHOU],
        "replacement_image_id": None,
        "request_id": "7f1f6c1e-3b6f-4f6e-9d0e-2c5c5a8b6d21",
        "target_account_ids": [ids.account_id],
        "target_image_id": ids.image_id,
        "target_region_id": SHANGHAI,
        "uri": "https://cloud.debian.org/disk.raw",
        "usable_with_instance_type": "S5.MEDIUM4",
        "validate_only": True,
        "value": "0" * 64,
        "version": "12",
        "zone_id": ZONES[GUANGZHOU],
    }


def valid(rpc: Rpc, ids: Ids = NOTHING) -> Any:
    """A request with nothing wrong in it but that what it names may not be there; of mutations, a rehearsal."""
    request = rpc.request()
    _fill(request, _values(ids))
    return request


def _fill(message: Any, values: dict[str, Any]) -> None:
    for field in message.DESCRIPTOR.fields:
        if behaves(field, OUTPUT_ONLY, IMMUTABLE):
            continue
        value = values.get(f"{message.DESCRIPTOR.name}.{field.name}", values.get(field.name))
        if is_part(field):
            part = getattr(message, field.name)
            _fill(part.add() if field.is_repeated else part, values)
        elif is_map(field):
            getattr(message, field.name).update(value)
        elif field.message_type is not None:
            if field.message_type.name == "FieldMask":
                _fill(getattr(message, field.name), values)
        elif field.enum_type is not None:
            setattr(message, field.name, 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(value)
        elif value is not None:
            setattr(message, field.name, value)
