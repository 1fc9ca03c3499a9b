"""How calls are sent: who sends them, what they carry, when they are repeated, how pages are walked."""

import inspect
import re
from functools import partial
from math import inf, nan
from threading import Event, Thread
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.api.field_behavior_pb2 import REQUIRED, field_behavior
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from tests.client.conftest import Answer, FakeService
from tests.client.test_operation import MADE, NAME, RUNNING

import cunho
from cunho import CHANNEL_OPTIONS, Client, Refused, v1
from cunho.v1 import (
    account_service_pb2,
    image_service_pb2,
    instance_service_pb2,
    quota_service_pb2,
    region_service_pb2,
)
from cunho.v1.image_service_pb2_grpc import ImageServiceStub

FILES = (account_service_pb2, image_service_pb2, instance_service_pb2, quota_service_pb2, region_service_pb2)
REPEATED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
RPCS = [rpc for file in FILES for service in file.DESCRIPTOR.services_by_name.values() for rpc in service.methods]


def repeatable(
    times: int, then: Message, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, milliseconds: int = 1
) -> Answer:
    """Refuses so many times, and says when to call again; below 0: never."""
    left = iter(range(times))

    def answer(request: Message, context: grpc.ServicerContext) -> Message:
        if next(left, None) is not None:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(milliseconds)),))
            context.abort(code, "Not now.")
        return then

    return answer


def regions(request: v1.ListRegionsRequest, context: grpc.ServicerContext) -> v1.ListRegionsResponse:
    """Two pages of two regions."""
    if not request.page_token:
        return v1.ListRegionsResponse(regions=[v1.Region(region_id=i) for i in "ab"], next_page_token="second")
    return v1.ListRegionsResponse(regions=[v1.Region(region_id=i) for i in "cd"])


def test_the_package_offers_what_a_caller_needs() -> None:
    assert cunho.__all__ == ["CHANNEL_OPTIONS", "Client", "Operation", "Refused", "Tls", "TokenFile"]


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
def test_every_rpc_is_a_method_with_the_fields_of_its_request_as_keywords(rpc: MethodDescriptor) -> None:
    method = getattr(Client, re.sub(r"(?<!^)(?=[A-Z])", "_", rpc.name).lower())
    keywords = {name: k for name, k in inspect.signature(method).parameters.items() if name != "self"}
    fields = {field.name: field for field in rpc.input_type.fields if field.name != "page_token"}
    assert keywords.keys() == {*fields, "timeout_seconds"}
    assert all(keyword.kind is inspect.Parameter.KEYWORD_ONLY for keyword in keywords.values())
    extension: Any = field_behavior  # its stub says a plain field, which Extensions does not take
    required = {name for name, field in fields.items() if REQUIRED in field.GetOptions().Extensions[extension]}
    assert {name for name, keyword in keywords.items() if keyword.default is inspect.Parameter.empty} == required


def test_every_call_carries_the_token_and_the_account(service: FakeService) -> None:
    service.answers["GetImage"] = lambda request, context: v1.Image()
    with Client(service.address, token="secret\n", account="acme") as client:
        client.get_image(image_id="img-00000001")
    metadata = service.calls[0].metadata
    assert metadata["authorization"] == "Bearer secret"
    assert metadata["cunho-account"] == "acme"


def test_a_client_that_acts_for_itself_names_no_account(service: FakeService, client: Client) -> None:
    service.answers["GetImage"] = lambda request, context: v1.Image()
    client.get_image(image_id="img-00000001")
    assert "cunho-account" not in service.calls[0].metadata


def test_a_function_is_asked_for_the_token_of_each_call(service: FakeService) -> None:
    service.answers["ListRegions"] = regions
    tokens = iter(["first", "second"])
    with Client(service.address, token=lambda: next(tokens)) as client:
        list(client.list_regions())
    assert [call.metadata["authorization"] for call in service.calls] == ["Bearer first", "Bearer second"]


def test_keywords_become_the_fields_of_the_request(service: FakeService, client: Client) -> None:
    service.answers["UpdateImage"] = lambda request, context: request.image
    service.answers["ResolveImage"] = lambda request, context: v1.Image(architecture=request.architecture)
    image = v1.Image(image_id="img-00000001", name="web", labels={"tier": "front"})
    assert client.update_image(image=image, update_mask=["name", "labels"]) == image
    assert service.calls[0].request.update_mask.paths == ["name", "labels"]
    arm = client.resolve_image(region_id="a", family="debian", architecture=v1.Architecture.ARCHITECTURE_ARM64)
    assert arm.architecture == v1.Architecture.ARCHITECTURE_ARM64


def test_an_empty_answer_is_none(service: FakeService, client: Client) -> None:
    service.answers["DeleteOperation"] = lambda request, context: Empty()
    answer: object = client.delete_operation(name="operations/op-00000001")  # type: ignore[func-returns-value]
    assert answer is None
    assert service.calls[0].request.name == "operations/op-00000001"


def test_a_list_walks_all_pages_and_fetches_each_when_it_is_reached(service: FakeService, client: Client) -> None:
    service.answers["ListRegions"] = regions
    found = client.list_regions(page_size=2)
    fetched = []
    for region in found:
        fetched.append((region.region_id, len(service.calls)))
    assert fetched == [("a", 1), ("b", 1), ("c", 2), ("d", 2)]


def test_every_page_is_asked_for_with_the_same_arguments(service: FakeService, client: Client) -> None:
    service.answers["ListImages"] = lambda request, context: v1.ListImagesResponse(
        next_page_token="" if request.page_token else "second"
    )
    assert list(client.list_images(region_id="a", filter="bits = 64", page_size=7)) == []
    first, second = (call.request for call in service.calls)
    assert (second.region_id, second.filter, second.page_size) == ("a", "bits = 64", 7)
    assert (first.page_token, second.page_token) == ("", "second")


def test_every_mutation_gets_a_request_id_of_its_own(service: FakeService, client: Client) -> None:
    service.answers["DeleteImage"] = lambda request, context: v1.Image()
    client.delete_image(image_id="img-00000001")
    client.delete_image(image_id="img-00000001")
    first, second = (UUID(call.request.request_id) for call in service.calls)
    assert first != second


def test_a_request_id_that_is_given_is_sent(service: FakeService, client: Client) -> None:
    service.answers["DeleteImage"] = lambda request, context: v1.Image()
    client.delete_image(image_id="img-00000001", request_id="7c0e8c8e-0000-4000-8000-000000000001")
    assert service.calls[0].request.request_id == "7c0e8c8e-0000-4000-8000-000000000001"


def test_a_mutation_that_finds_the_service_unavailable_is_repeated_with_the_same_request_id(
    service: FakeService, client: Client
) -> None:
    service.answers["DeleteImage"] = repeatable(times=3, then=v1.Image(image_id="img-00000001"))
    assert client.delete_image(image_id="img-00000001").image_id == "img-00000001"
    assert len(service.calls) == 4
    assert len({call.request.request_id for call in service.calls}) == 1


def test_a_mutation_of_an_operation_is_repeated_with_the_same_idempotency_key(
    service: FakeService, client: Client
) -> None:
    for rpc, mutate in {"DeleteOperation": client.delete_operation, "CancelOperation": client.cancel_operation}.items():
        service.answers[rpc] = repeatable(times=1, then=Empty())
        mutate(name="operations/op-00000001")
        mutate(name="operations/op-00000001")
    keys = [str(call.metadata.get("idempotency-key")) for call in service.calls]
    assert [UUID(key).version for key in keys] == [4] * 6
    assert [keys.index(key) for key in keys] == [0, 0, 2, 3, 3, 5]


def test_a_call_that_finds_the_service_unavailable_four_times_is_refused(service: FakeService, client: Client) -> None:
    service.answers["GetImage"] = repeatable(times=4, then=v1.Image())
    with pytest.raises(Refused, match=r"^Not now\.$") as refused:
        client.get_image(image_id="img-00000001")
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    assert refused.value.retry_may_help
    assert len(service.calls) == 4


@pytest.mark.parametrize("code", REPEATED)
def test_the_service_says_when_a_call_is_repeated(service: FakeService, client: Client, code: grpc.StatusCode) -> None:
    service.answers["GetImage"] = repeatable(times=1, then=v1.Image(), code=code)
    client.get_image(image_id="img-00000001")
    assert len(service.calls) == 2
    service.answers["GetImage"] = repeatable(times=1, then=v1.Image(), code=code, milliseconds=60_000)
    with pytest.raises(Refused):
        client.get_image(image_id="img-00000001", timeout_seconds=0.4)  # in which gRPC would call again
    assert len(service.calls) == 3


@pytest.mark.parametrize("code", REPEATED)
def test_a_call_is_not_repeated_if_the_service_says_never(
    service: FakeService, client: Client, code: grpc.StatusCode
) -> None:
    service.answers["GetImage"] = repeatable(times=1, then=v1.Image(), code=code, milliseconds=-1)
    with pytest.raises(Refused, match=r"^Not now\.$"):
        client.get_image(image_id="img-00000001")
    assert len(service.calls) == 1


def test_a_call_that_is_refused_otherwise_is_not_repeated(service: FakeService, client: Client) -> None:
    service.answers["GetImage"] = lambda request, context: context.abort(grpc.StatusCode.ABORTED, "Busy.")
    with pytest.raises(Refused):
        client.get_image(image_id="img-00000001")
    assert len(service.calls) == 1


def test_a_call_has_the_deadline_of_the_client_unless_it_is_given_one(service: FakeService) -> None:
    service.answers["GetImage"] = lambda request, context: v1.Image()
    with Client(service.address, token="secret", timeout_seconds=50) as client:
        client.get_image(image_id="img-00000001")
        client.get_image(image_id="img-00000001", timeout_seconds=9)
    assert [call.seconds_left for call in service.calls] == pytest.approx([50, 9], abs=3)


@pytest.mark.parametrize("seconds", [inf, 1e300])
def test_a_call_may_have_as_much_time_as_is_wanted(service: FakeService, client: Client, seconds: float) -> None:
    service.answers["GetImage"] = lambda request, context: v1.Image(name="web")
    assert client.get_image(image_id="img-00000001", timeout_seconds=seconds).name == "web"
    assert service.calls[0].seconds_left > 365 * 86_400


@pytest.mark.parametrize(("seconds", "sent"), [(inf, 1e9), (1e300, 1e9), (0.5, 0.5), (-1, 0), (-inf, 0)])
def test_an_operation_may_be_waited_for_as_long_as_is_wanted(
    service: FakeService, client: Client, seconds: float, sent: float
) -> None:
    service.answers["WaitOperation"] = lambda request, context: MADE
    assert client.wait_operation(name=NAME, timeout_seconds=seconds).done
    assert service.calls[0].request.timeout.ToTimedelta().total_seconds() == sent


def test_a_time_that_is_no_number_is_refused_before_any_call(service: FakeService, client: Client) -> None:
    service.answers["GetOperation"] = lambda request, context: RUNNING
    operation = client.get_operation(name=NAME)
    for use in (partial(client.wait_operation, name=NAME), partial(client.get_operation, name=NAME), operation.result):
        with pytest.raises(ValueError, match=r"^timeout_seconds is NaN"):
            use(timeout_seconds=nan)
    with pytest.raises(ValueError, match=r"^timeout_seconds is NaN"):
        Client(service.address, timeout_seconds=nan)
    assert len(service.calls) == 1


def test_one_text_for_a_list_is_refused_before_any_call(service: FakeService, client: Client) -> None:
    with pytest.raises(TypeError, match=r"^account_ids is a list, and was given 'globex': give \['globex'\]$"):
        client.share_image(image_id="img", account_ids="globex")
    with pytest.raises(TypeError, match=r"^update_mask is a list, and was given 'name'"):
        client.update_image(image=v1.Image(), update_mask="name")
    assert not service.calls


def test_a_call_that_takes_too_long_is_refused(service: FakeService, client: Client) -> None:
    over = Event()

    def answer(request: v1.GetImageRequest, context: grpc.ServicerContext) -> v1.Image:
        over.wait(10)
        return v1.Image()

    service.answers["GetImage"] = answer
    with pytest.raises(Refused) as refused:
        client.get_image(image_id="img-00000001", timeout_seconds=0.05)
    over.set()
    assert refused.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_channel_that_is_given_is_used_and_closed_with_the_client(service: FakeService) -> None:
    service.answers["GetImage"] = repeatable(times=1, then=v1.Image())
    channel = grpc.insecure_channel(service.address, options=CHANNEL_OPTIONS)
    with Client(channel, token="secret") as client:
        client.get_image(image_id="img-00000001")
    with pytest.raises(ValueError, match="closed channel"):
        ImageServiceStub(channel).GetImage(v1.GetImageRequest())


def test_a_client_that_is_closed_says_so_to_every_call(service: FakeService, client: Client) -> None:
    service.answers |= {"ListRegions": regions, "GetOperation": lambda request, context: RUNNING}
    begun, operation = client.list_regions(), client.get_operation(name=NAME)
    assert (next(begun).region_id, next(begun).region_id) == ("a", "b")
    client.close()
    client.close()
    for use in (partial(client.get_image, image_id="img-00000001"), partial(next, begun), operation.result):
        with pytest.raises(ValueError, match=r"^the client is closed"):
            use()


def test_a_call_under_way_is_refused_when_its_client_is_closed(service: FakeService, client: Client) -> None:
    over = Event()

    def answer(request: v1.GetImageRequest, context: grpc.ServicerContext) -> v1.Image:
        Thread(target=client.close).start()
        over.wait(10)
        return v1.Image()

    service.answers["GetImage"] = answer
    with pytest.raises(Refused) as refused:
        client.get_image(image_id="img-00000001")
    over.set()
    assert refused.value.code is grpc.StatusCode.CANCELLED
