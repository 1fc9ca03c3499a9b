"""What a refused call tells its caller."""

from collections.abc import Iterable
from typing import Self, TypeVar, cast

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from cunho.v1 import Advice

DOMAIN = "cunho.v1"
_UNHEARD = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
CODES = {code.value[0]: code for code in grpc.StatusCode}

Detail = TypeVar("Detail", bound=Message)


class Refused(Exception):
    """The service refused a call, or it could not be reached; `str()` says why and what to do about it."""

    code: grpc.StatusCode
    """Class of the refusal."""

    message: str
    """Why, in a sentence."""

    reason: str
    """Name of a `cunho.v1.ErrorReason`, for example "IMAGE_SHARED". Empty if the refusal is not the service's own, as
    when it cannot be reached. A newer service may send names that this client does not know."""

    metadata: dict[str, str]
    """The ids and numbers of the message, by the keys that the reason's comment names."""

    rule: str
    """Id of the rule that refused, for example "CUS-5"; may be empty."""

    remedy: str
    """What to do about it, in a sentence; may be empty."""

    retry: Advice.Retry.ValueType
    """What sending something again may change; RETRY_UNSPECIFIED if the refusal is not the service's own."""

    retry_after_seconds: float | None
    """How long to wait before a retry, if the service said so."""

    violations: dict[str, str]
    """Of an invalid request: what is wrong with each field, by its path."""

    def __init__(self, code: grpc.StatusCode, message: str, details: Iterable[Any] = ()) -> None:
        details = list(details)
        super().__init__(code, message, details)
        info = next((info for info in _unpacked(details, ErrorInfo) if info.domain == DOMAIN), ErrorInfo())
        advice = next(iter(_unpacked(details, Advice)), Advice())
        delays = [info.retry_delay for info in _unpacked(details, RetryInfo)]
        self.code = code
        self.message = message
        self.reason = info.reason
        self.metadata = dict(info.metadata)
        self.rule = advice.rule
        self.remedy = advice.remedy
        self.retry = advice.retry
        self.retry_after_seconds = delays[0].seconds + delays[0].nanos / 1e9 if delays else None
        self.violations = {
            violation.field: violation.description
            for request in _unpacked(details, BadRequest)
            for violation in request.field_violations
        }

    @property
    def retry_may_help(self) -> bool:
        """True if the same call, with the same request_id, may succeed later.

        False for RETRY_READ_AGAIN, where the call itself has to change first. If the refusal is not the service's own,
        true if the service was not reached, did not answer in time, or stopped before it began (CANCELLED).
        """
        if self.retry == Advice.RETRY_UNSPECIFIED:
            return self.code in _UNHEARD
        return self.retry == Advice.RETRY_CALL

    def __str__(self) -> str:
        return f"{self.message.removesuffix('.')}. {self.remedy}" if self.remedy else self.message

    @classmethod
    def from_call(cls, error: grpc.RpcError) -> Self:
        """The refusal that gRPC raised for a call."""
        assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
        try:
            status = rpc_status.from_call(cast(grpc.Call, error))  # asks nothing that asyncio's error has not
        except (ValueError, DecodeError):  # a proxy changed the status and left the service's details on it
            status = None
        return cls(error.code(), error.details() or "", status.details if status else ())

    @classmethod
    def from_status(cls, status: Status) -> Self:
        """The refusal in an answer: an operation's error, or that of one item of a batch."""
        return cls(CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status.details)


def _unpacked(details: Iterable[Any], kind: type[Detail]) -> list[Detail]:
    messages = [(detail, kind()) for detail in details]
    return [message for detail, message in messages if detail.Unpack(message)]
