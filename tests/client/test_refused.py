"""What a refusal tells: every detail of the status that the service sent, and nothing that it did not send."""

import pickle

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from tests.client.conftest import FakeService, packed, refusing

from cunho import Client, Refused, v1

BUSY = Status(
    code=grpc.StatusCode.ABORTED.value[0],
    message="Image img-00000001 is being copied.",
    details=[
        packed(ErrorInfo(domain="proxy.example", reason="OTHER", metadata={"other": "1"})),
        packed(ErrorInfo(domain="cunho.v1", reason="IMAGE_BUSY", metadata={"image_id": "img-00000001", "copies": "2"})),
        packed(v1.Advice(rule="CUS-9", remedy="Wait until it is copied.", retry=v1.Advice.RETRY_CALL)),
        packed(RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))),
    ],
)


def refusal(client: Client) -> Refused:
    """The refusal of a call."""
    with pytest.raises(Refused) as refused:
        client.get_image(image_id="img-00000001")
    return refused.value


def test_a_refused_call_tells_all_that_the_service_said(service: FakeService, client: Client) -> None:
    service.answers["GetImage"] = refusing(BUSY)
    refused = refusal(client)
    assert refused.code is grpc.StatusCode.ABORTED
    assert refused.message == "Image img-00000001 is being copied."
    assert refused.reason == "IMAGE_BUSY"
    assert refused.metadata == {"image_id": "img-00000001", "copies": "2"}
    assert refused.rule == "CUS-9"
    assert refused.remedy == "Wait until it is copied."
    assert refused.retry == v1.Advice.RETRY_CALL
    assert refused.retry_after_seconds == 1.5
    assert refused.violations == {}


def test_a_refusal_reads_as_its_message_and_its_remedy() -> None:
    assert str(Refused.from_status(BUSY)) == "Image img-00000001 is being copied. Wait until it is copied."


def test_an_invalid_request_tells_what_is_wrong_with_each_field() -> None:
    violations = [
        BadRequest.FieldViolation(field="name", description="1 to 60 characters"),
        BadRequest.FieldViolation(field="destinations[1].region_id", description="given twice"),
    ]
    refused = Refused.from_status(Status(code=3, details=[packed(BadRequest(field_violations=violations))]))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.violations == {"name": "1 to 60 characters", "destinations[1].region_id": "given twice"}


@pytest.mark.parametrize(
    ("code", "retry", "may_help"),
    [
        (grpc.StatusCode.ABORTED, v1.Advice.RETRY_CALL, True),
        (grpc.StatusCode.ABORTED, v1.Advice.RETRY_READ_AGAIN, False),
        (grpc.StatusCode.UNAVAILABLE, v1.Advice.RETRY_NOTHING, False),
        (grpc.StatusCode.UNAVAILABLE, v1.Advice.RETRY_UNSPECIFIED, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, v1.Advice.RETRY_UNSPECIFIED, True),
        (grpc.StatusCode.CANCELLED, v1.Advice.RETRY_UNSPECIFIED, True),  # by a server that stops
        (grpc.StatusCode.INTERNAL, v1.Advice.RETRY_UNSPECIFIED, False),
    ],
)
def test_the_advice_decides_whether_a_retry_may_help(
    code: grpc.StatusCode, retry: v1.Advice.Retry.ValueType, may_help: bool
) -> None:
    refused = Refused(code, "No.", [packed(v1.Advice(retry=retry))])
    assert refused.retry_may_help is may_help


def test_a_refusal_that_is_not_the_services_own_has_a_code_and_a_message_only(
    service: FakeService, client: Client
) -> None:
    service.answers["GetImage"] = lambda request, context: context.abort(grpc.StatusCode.INTERNAL, "No.")
    refused = refusal(client)
    assert (refused.code, str(refused)) == (grpc.StatusCode.INTERNAL, "No.")
    assert (refused.reason, refused.metadata, refused.rule, refused.remedy) == ("", {}, "", "")
    assert (refused.retry, refused.retry_after_seconds) == (v1.Advice.RETRY_UNSPECIFIED, None)


@pytest.mark.parametrize("message", ["no such image", "no such image."])
def test_a_refusal_is_told_in_sentences(message: str) -> None:
    refused = Refused(grpc.StatusCode.NOT_FOUND, message, [packed(v1.Advice(remedy="Check the id."))])
    assert str(refused) == "no such image. Check the id."


@pytest.mark.parametrize("details", [BUSY.SerializeToString(), b"\xff"], ids=["of another status", "malformed"])
def test_details_that_do_not_fit_the_status_are_left_out(service: FakeService, client: Client, details: bytes) -> None:
    def answer(request: v1.GetImageRequest, context: grpc.ServicerContext) -> v1.Image:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(grpc.StatusCode.INTERNAL, "The proxy broke.")

    service.answers["GetImage"] = answer
    refused = refusal(client)
    assert (refused.code, str(refused)) == (grpc.StatusCode.INTERNAL, "The proxy broke.")
    assert refused.reason == ""


def test_a_code_that_this_client_does_not_know_is_unknown() -> None:
    assert Refused.from_status(Status(code=99)).code is grpc.StatusCode.UNKNOWN


def test_a_refusal_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(Refused.from_status(BUSY)))
    assert (str(again), again.reason) == (str(Refused.from_status(BUSY)), "IMAGE_BUSY")
