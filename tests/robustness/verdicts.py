"""What is wrong with an answer of the service, whatever was sent. Knows the published API and no rule of it."""

import re
from collections.abc import Iterator

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode
from tests.end_to_end.requests_of import RPCS, Answer
from tests.robustness.messages import OPEN, TIMEOUT_SECONDS, Message

from cunho.v1 import Advice
from cunho.v1.error_reason_pb2 import ErrorReason
from cunho_rules.rules import RULES

#: What a refusal of ours may be, if the caller is known and had time.
_CODES = {
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.ALREADY_EXISTS,
    StatusCode.PERMISSION_DENIED,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.ABORTED,
    StatusCode.RESOURCE_EXHAUSTED,
}
_CODES_OF_OPEN = {StatusCode.OK, StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND}

#: Words of what the server is made of.
_INNER = re.compile(
    rb"Traceback|\.py\b|site-packages|<class|object at 0x|Exception|Unexpected|Error\b|asyncpg|peewee|lark|uvloop"
    rb"|postgres|\b(?:SELECT|INSERT|UPDATE|DELETE) |relation|constraint|psql|socket"
    rb"|grpc\._|DETAIL:|/tmp/|/home/|/root/|0x[0-9a-f]{8}"
)

_REASONS = {*ErrorReason.keys()}

_BY_PATH = {rpc.path: rpc for rpc in RPCS}

#: What gRPC takes by itself, and refuses without our details: bytes of a message, and of the metadata of a call.
_MESSAGE_SIZE_BYTES, _METADATA_SIZE_BYTES = 4 << 20, 8 << 10


def faults(message: Message, answer: Answer) -> list[str]:
    """What is wrong with the answer, a sentence for each."""
    if _refused_by_grpc(message, answer):
        return []
    found = [*_code_faults(message, answer), *_leaks(message, answer)]
    if answer.code is StatusCode.OK:
        return [*found, *_body_faults(message, answer)]
    return found if message.path in OPEN else [*found, *_detail_faults(answer)]


def _refused_by_grpc(message: Message, answer: Answer) -> bool:
    if answer.code in (StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED):
        return message.timeout_seconds < TIMEOUT_SECONDS
    metadata_size_bytes = sum(len(key) + len(value) + 32 for key, value in message.metadata)
    large = len(message.data) > _MESSAGE_SIZE_BYTES or metadata_size_bytes > _METADATA_SIZE_BYTES
    return large and answer.code is StatusCode.RESOURCE_EXHAUSTED


def _code_faults(message: Message, answer: Answer) -> Iterator[str]:
    if message.path in OPEN:
        if answer.code not in _CODES_OF_OPEN:
            yield f"{answer.code.name} of an open service"
    elif not message.known:
        if answer.code is not StatusCode.UNAUTHENTICATED:
            yield f"{answer.code.name} for wrong credentials"
    elif answer.code is StatusCode.OK:
        if message.wrong:
            yield "OK for what is to be refused"
    elif answer.reason == "DATABASE_UNAVAILABLE" and message.timeout_seconds < TIMEOUT_SECONDS:
        pass  # the database had too little time to answer
    elif answer.code not in _CODES and (answer.code, answer.reason) != (StatusCode.UNIMPLEMENTED, "METHOD_NOT_FOUND"):
        yield f"{answer.code.name} {answer.reason}"


def _leaks(message: Message, answer: Answer) -> Iterator[str]:
    """Words of the server's own, in what a refusal says and does not only repeat."""
    if answer.code is StatusCode.OK:
        return
    said = answer.message.encode() + b"".join(_bytes(key) + _bytes(value) for key, value in answer.trailers)
    for word in set(_INNER.findall(said)):
        if word not in message.data and not any(word in _bytes(value) for _, value in message.metadata):
            yield f"it says {word.decode()}"


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _body_faults(message: Message, answer: Answer) -> Iterator[str]:
    if rpc := _BY_PATH.get(message.path):
        try:
            rpc.response.FromString(answer.body)
        except DecodeError:
            yield "the answer is no message of its type"


def _detail_faults(answer: Answer) -> Iterator[str]:
    status, info, advice = answer.status, ErrorInfo(), Advice()
    if not any(detail.Unpack(info) for detail in status.details):
        yield "no ErrorInfo"
    elif info.domain != "cunho.v1" or info.reason not in _REASONS:
        yield f"ErrorInfo of {info.domain} with reason {info.reason}"
    if not any(detail.Unpack(advice) for detail in status.details):
        yield "no Advice"
    elif advice.rule not in RULES or not advice.remedy:
        yield f"Advice by rule {advice.rule} with remedy {advice.remedy}"
    if (status.code, status.message) != (answer.code.value[0], answer.message):
        yield "the details are of another status"
    if answer.code is StatusCode.INVALID_ARGUMENT and not answer.violations:
        yield "no field is named"
