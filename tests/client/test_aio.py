"""The client for asyncio: the same methods as the other client's, and what only it can do."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from math import inf, nan
from threading import Event
from typing import Any, get_args, get_origin

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from tests.client.conftest import FakeService, refusing
from tests.client.test_client import regions, repeatable
from tests.client.test_operation import FAILED, MADE, NAME, RUNNING
from tests.client.test_refused import BUSY

import cunho
from cunho import CHANNEL_OPTIONS, Refused, aio, v1
from cunho.v1.image_service_pb2_grpc import ImageServiceStub


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[aio.Client]:
    async with aio.Client(service.address, token="secret") as client:
        yield client


def public(class_: type) -> dict[str, Any]:
    """What a class offers, by name."""
    return {name: value for name, value in inspect.getmembers(class_) if not name.startswith("_")}


def awaited(method: Any) -> inspect.Signature:
    """The signature that the method has for those who await it, in the other client's words."""
    signature = inspect.signature(method)
    answer = signature.return_annotation
    kinds: dict[Any, Any] = {AsyncIterator: Iterator, aio.Operation: cunho.Operation}

    def translated(type_: Any) -> Any:
        arguments = tuple(map(translated, get_args(type_)))
        origin = get_origin(type_)
        return kinds[origin][arguments] if origin in kinds else type_

    assert (get_origin(answer) is AsyncIterator) is not inspect.iscoroutinefunction(method)
    return signature.replace(return_annotation=translated(answer))


@pytest.mark.parametrize(("own", "other"), [(aio.Client, cunho.Client), (aio.Operation, cunho.Operation)])
def test_both_clients_offer_the_same(own: type, other: type) -> None:
    here, there = public(own), public(other)
    assert here.keys() == there.keys()
    for name, method in here.items():
        if not inspect.isfunction(method):
            assert method is there[name]
            continue
        assert inspect.getdoc(method) == inspect.getdoc(there[name]), name
        assert awaited(method) == inspect.signature(there[name]), name
    same = inspect.signature(own).parameters.keys() == inspect.signature(other).parameters.keys()
    assert same


def test_the_package_offers_the_names_that_differ() -> None:
    assert aio.__all__ == ["Client", "Operation"]


async def test_a_call_is_awaited_and_carries_the_token_and_the_account(service: FakeService) -> None:
    service.answers["GetImage"] = lambda request, context: v1.Image(image_id=request.image_id)
    async with aio.Client(service.address, token=lambda: "secret", account="acme", timeout_seconds=50) as client:
        image = await client.get_image(image_id="img-00000001")
    assert image.image_id == "img-00000001"
    (call,) = service.calls
    assert (call.metadata["authorization"], call.metadata["cunho-account"]) == ("Bearer secret", "acme")
    assert call.seconds_left == pytest.approx(50, abs=3)


async def test_calls_are_under_way_at_the_same_time(service: FakeService, client: aio.Client) -> None:
    both = Event()

    def first(request: v1.GetImageRequest, context: grpc.ServicerContext) -> v1.Image:
        assert both.wait(10)
        return v1.Image()

    def second(request: operations_pb2.CancelOperationRequest, context: grpc.ServicerContext) -> Empty:
        both.set()
        return Empty()

    service.answers |= {"GetImage": first, "CancelOperation": second}
    await asyncio.gather(client.get_image(image_id="img-00000001"), client.cancel_operation(name=NAME))


async def test_a_list_walks_all_pages_and_fetches_each_when_it_is_reached(
    service: FakeService, client: aio.Client
) -> None:
    service.answers["ListRegions"] = regions
    found = client.list_regions(page_size=2)
    fetched = [(region.region_id, len(service.calls)) async for region in found]
    assert fetched == [("a", 1), ("b", 1), ("c", 2), ("d", 2)]


async def test_a_refused_call_tells_all_that_the_service_said(service: FakeService, client: aio.Client) -> None:
    service.answers["GetImage"] = refusing(BUSY)
    with pytest.raises(Refused, match=r"^Image img-00000001 is being copied\. Wait until it is copied\.$") as refused:
        await client.get_image(image_id="img-00000001")
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.ABORTED, "IMAGE_BUSY")
    assert refused.value.retry_after_seconds == 1.5


async def test_a_call_that_takes_too_long_is_refused(service: FakeService, client: aio.Client) -> None:
    over = Event()
    service.answers["GetImage"] = lambda request, context: v1.Image(name=str(over.wait(10)))
    with pytest.raises(Refused) as refused:
        await client.get_image(image_id="img-00000001", timeout_seconds=0.05)
    over.set()
    assert refused.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_mutation_that_finds_the_service_unavailable_is_repeated_with_the_same_request_id(
    service: FakeService, client: aio.Client
) -> None:
    service.answers["DeleteImage"] = repeatable(times=3, then=v1.Image(image_id="img-00000001"))
    assert (await client.delete_image(image_id="img-00000001")).image_id == "img-00000001"
    assert len(service.calls) == 4
    assert len({call.request.request_id for call in service.calls}) == 1


async def test_a_task_that_is_cancelled_cancels_its_call(service: FakeService, client: aio.Client) -> None:
    started, cancelled = Event(), Event()

    def answer(request: v1.GetImageRequest, context: grpc.ServicerContext) -> v1.Image:
        context.add_callback(cancelled.set)
        started.set()
        cancelled.wait(10)
        return v1.Image()

    service.answers["GetImage"] = answer
    task = asyncio.create_task(client.get_image(image_id="img-00000001"))
    assert await asyncio.to_thread(started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(cancelled.wait, 5)


async def test_a_channel_that_is_given_is_used_and_closed_with_the_client(service: FakeService) -> None:
    service.answers["GetImage"] = repeatable(times=1, then=v1.Image())
    channel = grpc.aio.insecure_channel(service.address, options=CHANNEL_OPTIONS)
    async with aio.Client(channel, token="secret") as client:
        await client.get_image(image_id="img-00000001")
    with pytest.raises(grpc.aio.UsageError, match="closed"):
        await ImageServiceStub(channel).GetImage(v1.GetImageRequest())


async def test_a_client_that_is_closed_says_so_to_every_call(service: FakeService, client: aio.Client) -> None:
    service.answers |= {"ListRegions": regions, "GetOperation": lambda request, context: RUNNING}
    begun, operation = client.list_regions(), await client.get_operation(name=NAME)
    assert [(await anext(begun)).region_id for _ in "ab"] == ["a", "b"]
    await client.close()
    await client.close()
    for call in (client.get_image(image_id="img-00000001"), anext(begun), operation.result()):
        with pytest.raises(ValueError, match=r"^the client is closed"):
            await call


async def test_a_call_under_way_is_refused_when_its_client_is_closed(service: FakeService, client: aio.Client) -> None:
    started, over = Event(), Event()

    def answer(request: v1.GetImageRequest, context: grpc.ServicerContext) -> v1.Image:
        started.set()
        over.wait(10)
        return v1.Image()

    service.answers["GetImage"] = answer
    task = asyncio.create_task(client.get_image(image_id="img-00000001"))
    assert await asyncio.to_thread(started.wait, 10)
    await client.close()
    with pytest.raises(Refused) as refused:
        await task
    over.set()
    assert refused.value.code is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(("seconds", "sent"), [(inf, 1e9), (-1, 0)])
async def test_an_operation_may_be_waited_for_as_long_as_is_wanted(
    service: FakeService, client: aio.Client, seconds: float, sent: float
) -> None:
    service.answers["WaitOperation"] = lambda request, context: MADE
    assert (await client.wait_operation(name=NAME, timeout_seconds=seconds)).done
    assert service.calls[0].request.timeout.ToTimedelta().total_seconds() == sent


async def test_a_time_that_is_no_number_is_refused_before_any_call(service: FakeService, client: aio.Client) -> None:
    service.answers["GetOperation"] = lambda request, context: RUNNING
    operation = await client.get_operation(name=NAME)
    for call in (client.wait_operation(name=NAME, timeout_seconds=nan), operation.result(timeout_seconds=nan)):
        with pytest.raises(ValueError, match=r"^timeout_seconds is NaN"):
            await call
    assert len(service.calls) == 1


async def test_the_result_of_an_operation_is_waited_for_on_the_service(
    service: FakeService, client: aio.Client
) -> None:
    answers = iter([RUNNING, MADE])
    service.answers |= {
        "CreateImage": lambda request, context: RUNNING,
        "WaitOperation": lambda request, context: next(answers),
    }
    operation = await client.create_image(region_id="a", instance_id="ins-00000001", name="web")
    assert not operation.done
    image: v1.Image = await operation.result()
    assert image.image_id == "img-00000001"
    assert [call.rpc for call in service.calls] == ["CreateImage", "WaitOperation", "WaitOperation"]


async def test_an_operation_is_found_refreshed_and_cancelled(service: FakeService, client: aio.Client) -> None:
    states = iter([RUNNING, FAILED])
    service.answers |= {
        "GetOperation": lambda request, context: next(states),
        "CancelOperation": lambda request, context: Empty(),
        "ListOperations": lambda request, context: operations_pb2.ListOperationsResponse(operations=[MADE]),
    }
    operation = await client.get_operation(name=NAME)
    await operation.cancel()
    await operation.refresh()
    with pytest.raises(Refused, match=r"^Cancelled\.$"):
        await operation.result()
    (made,) = [found async for found in client.list_operations()]
    assert isinstance(await made.result(), v1.Image)


async def test_a_result_that_is_not_there_in_time_is_a_timeout(service: FakeService, client: aio.Client) -> None:
    def wait(request: operations_pb2.WaitOperationRequest, context: grpc.ServicerContext) -> operations_pb2.Operation:
        Event().wait(request.timeout.ToTimedelta().total_seconds())
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    service.answers |= {"GetOperation": lambda request, context: RUNNING, "WaitOperation": wait}
    operation = await client.get_operation(name=NAME)
    with pytest.raises(TimeoutError, match=rf"^{NAME} has not ended within 0\.05 s"):
        await operation.result(timeout_seconds=0.05)
