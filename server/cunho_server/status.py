"""A refusal as google.rpc.Status: the only module that knows both."""

import random
from typing import TypeAlias

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from cunho.v1 import advice_pb2
from cunho_rules.limits import RETRY_DELAY_SECONDS
from cunho_rules.refusals import Code, Reason, Refusal, Retry

DOMAIN = "cunho.v1"

#: How far retries spread, so that those refused together do not come again together.
_SPREAD = 0.2

#: What keeps gRPC from a retry.
_NEVER = -1

#: Which metadata key names the thing that a precondition or a quota is about.
_SUBJECTS = ("image_id", "instance_id", "account_id", "operation", "quota_id", "scope")

Trailers: TypeAlias = tuple[tuple[str, str | bytes], ...]


def status(refusal: Refusal, request: Message | None = None) -> status_pb2.Status:
    """The refusal with all its details: ErrorInfo and Advice always, the others as they fit.

    Args:
        request: what was refused, if its fields are to be named as it has them.
    """
    message = str(refusal)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=refusal.metadata),
        advice_pb2.Advice(
            rule=refusal.rule, remedy=refusal.remedy, retry=advice_pb2.Advice.Retry.Value(f"RETRY_{refusal.retry}")
        ),
    ]
    subject = next((f"{key}:{refusal.metadata[key]}" for key in _SUBJECTS if key in refusal.metadata), "")
    match refusal.code:
        case Code.INVALID_ARGUMENT:
            details.append(_bad_request(refusal, request))
        case Code.RESOURCE_EXHAUSTED:
            violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=message)
            details.append(error_details_pb2.QuotaFailure(violations=[violation]))
        case Code.FAILED_PRECONDITION:
            precondition = error_details_pb2.PreconditionFailure.Violation(
                type=refusal.reason, subject=subject, description=message
            )
            details.append(error_details_pb2.PreconditionFailure(violations=[precondition]))
    if refusal.retry is Retry.CALL:
        delay = duration_pb2.Duration(seconds=RETRY_DELAY_SECONDS)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=code_pb2.Code.Value(refusal.code), message=message, details=map(_packed, details))


def trailers(refusal: Refusal, status: status_pb2.Status) -> Trailers:
    """Trailing metadata that carries the status to gRPC clients, and tells their own retries when to come, if ever."""
    pushback = ("grpc-retry-pushback-ms", str(_delay_ms() if refusal.retry is Retry.CALL else _NEVER))
    return ("grpc-status-details-bin", status.SerializeToString()), pushback


def _delay_ms() -> int:
    return int(RETRY_DELAY_SECONDS * 1000 * random.uniform(1 - _SPREAD, 1 + _SPREAD))


def code(refusal: Refusal) -> grpc.StatusCode:
    """The refusal's code as gRPC names it."""
    return grpc.StatusCode[refusal.code]


#: The field at fault where the reason, not the shape of the request, names it: the first that the request has.
_FIELDS = {
    Reason.INVALID_FILTER: ("filter",),
    Reason.INVALID_ORDER_BY: ("order_by",),
    Reason.INVALID_PAGE_TOKEN: ("page_token",),
    Reason.REGION_NOT_FOUND: ("region_id", "region_ids", "destinations", "account.region_ids"),
    Reason.ZONE_NOT_IN_REGION: ("zone_id",),
    Reason.INSTANCE_TYPE_NOT_FOUND: ("instance_type", "usable_with_instance_type"),
    Reason.COPY_TO_SAME_REGION: ("destinations",),
    Reason.SHARE_WITH_SELF: ("account_ids",),
    Reason.IMPORT_URI_NOT_ALLOWED: ("uri",),
}


def _bad_request(refusal: Refusal, request: Message | None) -> error_details_pb2.BadRequest:
    pairs = refusal.violations or [(_field(refusal.reason, request), str(refusal))]
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=field, description=description, reason=refusal.reason)
            for field, description in pairs
        ]
    )


def _field(reason: Reason, request: Message | None) -> str:
    there = request.DESCRIPTOR.fields_by_name if request is not None else {}
    names = _FIELDS[reason]
    return next((name for name in names if name.partition(".")[0] in there), names[0])


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
