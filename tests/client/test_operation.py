"""Slow work: the service is waited on, the result has its type, a failure is a refusal."""

from collections.abc import Callable
from datetime import timedelta
from threading import Event

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf.any_pb2 import Any as PackedMessage
from google.protobuf.empty_pb2 import Empty
from google.rpc.status_pb2 import Status
from tests.client.conftest import FakeService, packed

from cunho import Client, Operation, Refused, v1
from cunho.operation import WAIT_SECONDS

NAME = "operations/op-00000001"
RUNNING = operations_pb2.Operation(name=NAME)


MADE = operations_pb2.Operation(name=NAME, done=True, response=packed(v1.Image(image_id="img-00000001")))
FAILED = operations_pb2.Operation(name=NAME, done=True, error=Status(code=1, message="Cancelled."))


@pytest.fixture
def operation(service: FakeService, client: Client) -> Operation[v1.Image]:
    """An operation that is running."""
    service.answers["CreateImage"] = lambda request, context: RUNNING
    return client.create_image(region_id="a", instance_id="ins-00000001", name="web")


def test_the_result_is_waited_for_on_the_service(service: FakeService, operation: Operation[v1.Image]) -> None:
    answers = iter([RUNNING, RUNNING, MADE])
    service.answers["WaitOperation"] = lambda request, context: next(answers)
    image: v1.Image = operation.result()
    assert image.image_id == "img-00000001"
    assert operation.done
    waits = [call for call in service.calls if call.rpc == "WaitOperation"]
    assert [(wait.request.name, wait.request.timeout.seconds) for wait in waits] == [(NAME, WAIT_SECONDS)] * 3
    assert all(wait.seconds_left > WAIT_SECONDS + 1 for wait in waits)  # so that the answer can still arrive


def test_a_result_that_is_known_is_not_asked_for_again(service: FakeService, client: Client) -> None:
    service.answers["CreateImage"] = lambda request, context: MADE
    operation = client.create_image(region_id="a", instance_id="ins-00000001", name="web")
    assert operation.result() == operation.result()
    assert [call.rpc for call in service.calls] == ["CreateImage"]


def test_a_result_of_a_type_that_is_not_known_stays_packed(service: FakeService, client: Client) -> None:
    unknown = PackedMessage(type_url="type.googleapis.com/cunho.v1.Thing", value=b"\xff")
    made = operations_pb2.Operation(name=NAME, done=True, response=unknown)
    service.answers["GetOperation"] = lambda request, context: made
    assert client.get_operation(name=NAME).result() == unknown


def test_a_failed_operation_raises_its_error(service: FakeService, operation: Operation[v1.Image]) -> None:
    service.answers["WaitOperation"] = lambda request, context: FAILED
    with pytest.raises(Refused, match=r"^Cancelled\.$") as refused:
        operation.result()
    assert refused.value.code is grpc.StatusCode.CANCELLED


def test_a_result_that_is_not_there_in_time_is_a_timeout(service: FakeService, operation: Operation[v1.Image]) -> None:
    def wait(request: operations_pb2.WaitOperationRequest, context: grpc.ServicerContext) -> operations_pb2.Operation:
        Event().wait(request.timeout.ToTimedelta().total_seconds())
        return RUNNING

    service.answers["WaitOperation"] = wait
    with pytest.raises(TimeoutError, match=rf"^{NAME} has not ended within 0\.05 s \(0 % "):
        operation.result(timeout_seconds=0.05)
    assert service.calls[-1].request.timeout.ToTimedelta() <= timedelta(seconds=0.05)
    assert not operation.done


def test_who_does_not_wait_gets_the_result_of_what_has_ended(
    service: FakeService, operation: Operation[v1.Image]
) -> None:
    answers = iter([RUNNING, MADE])
    service.answers["WaitOperation"] = lambda request, context: next(answers)
    with pytest.raises(TimeoutError):
        operation.result(timeout_seconds=0)
    assert operation.result(timeout_seconds=0).image_id == "img-00000001"
    assert [call.request.timeout.ToTimedelta() for call in service.calls[1:]] == [timedelta(0)] * 2


def test_a_wait_that_the_service_does_not_answer_is_not_the_end(
    service: FakeService, operation: Operation[v1.Image]
) -> None:
    def wait(request: operations_pb2.WaitOperationRequest, context: grpc.ServicerContext) -> operations_pb2.Operation:
        service.answers["WaitOperation"] = lambda request, context: MADE
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    service.answers["WaitOperation"] = wait
    assert operation.result().image_id == "img-00000001"


def test_a_refused_wait_is_refused(service: FakeService, operation: Operation[v1.Image]) -> None:
    service.answers["WaitOperation"] = lambda request, context: context.abort(grpc.StatusCode.NOT_FOUND, "None.")
    with pytest.raises(Refused, match=r"^None\.$"):
        operation.result()


def test_an_operation_shows_its_progress_price_and_warnings(service: FakeService, client: Client) -> None:
    metadata = v1.OperationMetadata(
        method="CreateImage",
        progress_percent=40,
        quotes=[v1.PriceQuote(region_id="a", size_bytes=1)],
        warnings=[v1.Warning(reason="UNVERIFIED_SHARED_IMAGE")],
    )
    service.answers["CreateImage"] = lambda request, context: operations_pb2.Operation(metadata=packed(metadata))
    operation = client.create_image(region_id="a", instance_id="ins-00000001", name="web", validate_only=True)
    assert operation.metadata == metadata
    assert operation.quotes == [v1.PriceQuote(region_id="a", size_bytes=1)]
    assert operation.warnings == [v1.Warning(reason="UNVERIFIED_SHARED_IMAGE")]


def test_an_operation_is_shown_by_its_name_and_whether_it_has_ended(
    service: FakeService, client: Client, operation: Operation[v1.Image]
) -> None:
    service.answers["GetOperation"] = lambda request, context: MADE
    assert repr(operation) == f"<Operation {NAME}, under way>"
    operation.refresh()
    assert repr(operation) == f"<Operation {NAME}, ended>"


def test_refreshing_brings_the_state_of_now(service: FakeService, operation: Operation[v1.Image]) -> None:
    service.answers["GetOperation"] = lambda request, context: MADE
    assert not operation.done
    operation.refresh()
    assert operation.done
    assert operation.result().image_id == "img-00000001"


def test_cancelling_asks_the_service(service: FakeService, operation: Operation[v1.Image]) -> None:
    service.answers["CancelOperation"] = lambda request, context: Empty()
    operation.cancel()
    assert (service.calls[-1].rpc, service.calls[-1].request.name) == ("CancelOperation", NAME)


@pytest.mark.parametrize("use", [Operation.result, Operation.refresh, Operation.cancel])
def test_what_was_only_validated_is_no_operation(
    service: FakeService, client: Client, use: Callable[[Operation[v1.Image]], object]
) -> None:
    service.answers["CreateImage"] = lambda request, context: operations_pb2.Operation(done=True)
    operation = client.create_image(region_id="a", instance_id="ins-00000001", name="web", validate_only=True)
    assert (operation.name, repr(operation)) == ("", "<Operation of validate_only>")
    with pytest.raises(ValueError, match="validate_only"):
        use(operation)
    assert len(service.calls) == 1


def test_operations_are_found_again_by_name_and_by_listing(service: FakeService, client: Client) -> None:
    service.answers["GetOperation"] = lambda request, context: MADE
    service.answers["ListOperations"] = lambda request, context: operations_pb2.ListOperationsResponse(
        operations=[MADE, FAILED]
    )
    image = client.get_operation(name=NAME).result()
    assert isinstance(image, v1.Image)
    made, failed = client.list_operations()
    assert made.result() == image
    with pytest.raises(Refused):
        failed.result()
