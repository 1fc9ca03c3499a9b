"""Reflection and health, as the tools use them: without credentials, and grpcurl itself where there is one."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from tests import world as worlds
from tests.end_to_end.requests_of import RPCS, SERVICES
from tests.world import Postgres, World

OURS = {service.full_name for service in SERVICES}
VERSIONS = ("v1", "v1alpha")

every_version = pytest.mark.parametrize("version", VERSIONS)

#: What answers and refusals carry packed, so that a tool can show it.
PACKED = (
    "cunho.v1.Advice",
    "cunho.v1.OperationMetadata",
    "cunho.v1.Image",
    "cunho.v1.Instance",
    "cunho.v1.CreateInstanceResponse",
    "cunho.v1.CopyImageResponse",
    "google.rpc.ErrorInfo",
    "google.rpc.BadRequest",
    "google.rpc.QuotaFailure",
    "google.rpc.PreconditionFailure",
    "google.rpc.RetryInfo",
    "google.rpc.Status",
    "google.longrunning.Operation",
)


@pytest.fixture(scope="module")
def channel(world: World) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(world.address) as channel:
        yield channel


def reflected(channel: grpc.Channel, version: str, **request: Any) -> ServerReflectionResponse:
    """What reflection answers to one request."""
    method: Any = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    (response,) = method(iter([ServerReflectionRequest(**request)]), timeout=10)
    assert isinstance(response, ServerReflectionResponse)
    return response


def files(channel: grpc.Channel, version: str, symbol: str) -> list[FileDescriptorProto]:
    """The file that has the symbol, and those that it imports."""
    response = reflected(channel, version, file_containing_symbol=symbol)
    return [FileDescriptorProto.FromString(data) for data in response.file_descriptor_response.file_descriptor_proto]


# --- reflection


@every_version
def test_reflection_lists_every_service_without_credentials(channel: grpc.Channel, version: str) -> None:
    listed = {service.name for service in reflected(channel, version, list_services="").list_services_response.service}
    others = {"grpc.health.v1.Health", *(f"grpc.reflection.{each}.ServerReflection" for each in VERSIONS)}
    assert listed == OURS | others


@every_version
@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.full_name)
def test_reflection_describes_every_service_and_each_method_of_it(
    channel: grpc.Channel, version: str, service: Any
) -> None:
    symbols = [service.full_name, *(method.full_name for method in service.methods)]
    for symbol in symbols:
        described = [f"{file.package}.{each.name}" for file in files(channel, version, symbol) for each in file.service]
        assert service.full_name in described


@every_version
def test_what_reflection_serves_is_enough_to_build_every_request(channel: grpc.Channel, version: str) -> None:
    pool = DescriptorPool()
    known: set[str] = set()

    def add(name: str) -> None:
        if name in known:
            return
        known.add(name)
        response = reflected(channel, version, file_by_filename=name)
        for data in response.file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(data)
            if file.name == name:
                for imported in file.dependency:
                    add(imported)
                pool.Add(file)

    for service in OURS:
        add(files(channel, version, service)[-1].name)
        for file in files(channel, version, service):
            add(file.name)
    for rpc in RPCS:
        descriptor: Any = rpc.request.DESCRIPTOR
        assert [field.name for field in pool.FindMessageTypeByName(descriptor.full_name).fields] == [
            field.name for field in descriptor.fields
        ]


@every_version
@pytest.mark.parametrize("name", PACKED)
def test_reflection_resolves_what_answers_carry_packed(channel: grpc.Channel, version: str, name: str) -> None:
    declared = {
        f"{file.package}.{message.name}" for file in files(channel, version, name) for message in file.message_type
    }
    assert name in declared


@every_version
@pytest.mark.parametrize(
    "symbol",
    [
        "",
        ".",
        "nope",
        "cunho.v1",
        "cunho.v1.Nope",
        "cunho.v1.ImageService.Nope",
        "cunho.v1.ImageService.GetImage.Nope",
        "cunho.v1.Image.GetImage",
        "GetImage",
        ".cunho.v1.ImageService",
        "cunho.v1.ImageService/GetImage",
        "語",
        "x" * 10_000,
    ],
)
def test_an_unknown_symbol_is_not_found(channel: grpc.Channel, version: str, symbol: str) -> None:
    response = reflected(channel, version, file_containing_symbol=symbol)
    assert response.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert not response.HasField("file_descriptor_response")


@every_version
def test_an_unknown_file_is_not_found(channel: grpc.Channel, version: str) -> None:
    for name in ("", "nope.proto", "/etc/passwd", "../cunho/v1/image.proto"):
        response = reflected(channel, version, file_by_filename=name)
        assert response.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_reflection_can_be_switched_off(postgres: Postgres) -> None:
    with worlds.world(postgres, reflection=False) as world, grpc.insecure_channel(world.address) as channel:
        for version in VERSIONS:
            with pytest.raises(grpc.RpcError) as caught:
                reflected(channel, version, list_services="")
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED  # as for whatever is not there


# --- health


def checked(channel: grpc.Channel, service: str) -> health_pb2.HealthCheckResponse:
    """How the service is, to a caller without credentials."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer: health_pb2.HealthCheckResponse = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    return answer


@pytest.mark.parametrize("service", ["", "grpc.health.v1.Health", *sorted(OURS)])
def test_every_service_is_serving_and_says_so_without_credentials(channel: grpc.Channel, service: str) -> None:
    assert checked(channel, service).status == health_pb2.HealthCheckResponse.SERVING


def test_the_health_of_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        checked(channel, "nope")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


# --- what is no request

NOT_REQUESTS = {"no protobuf": [b"\xff"], "no UTF-8": [b"\x0a\x01\xff"], "nothing": []}


@pytest.mark.parametrize("sent", NOT_REQUESTS.values(), ids=NOT_REQUESTS)
@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_what_is_no_request_for_health_is_refused_at_once(
    channel: grpc.Channel, method: str, sent: list[bytes]
) -> None:
    called: Any = channel.stream_stream(f"/grpc.health.v1.Health/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        next(called(iter(sent), timeout=10))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "there is no request, or its bytes are none"


@every_version
@pytest.mark.parametrize("sent", [b"\xff", b"\x0a\x01\xff"])
def test_what_is_no_request_for_reflection_is_an_invalid_argument(
    channel: grpc.Channel, version: str, sent: bytes
) -> None:
    called: Any = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
    wrong, right = called(iter([sent, ServerReflectionRequest(list_services="").SerializeToString()]), timeout=10)
    error = ServerReflectionResponse.FromString(wrong).error_response
    assert error.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert ServerReflectionResponse.FromString(right).HasField("list_services_response")


# --- grpcurl

GRPCURL = shutil.which("grpcurl") or shutil.which("grpcurl", path=Path(sys.executable).parent)

with_grpcurl = pytest.mark.skipif(
    GRPCURL is None, reason="there is no grpcurl on PATH or beside the Python interpreter"
)


def grpcurl(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert GRPCURL is not None
    return subprocess.run([GRPCURL, "-plaintext", *arguments], capture_output=True, text=True, timeout=20, check=False)


@with_grpcurl
def test_grpcurl_lists_services_and_methods(world: World) -> None:
    assert {*grpcurl(world.address, "list").stdout.split()} > OURS
    listed = grpcurl(world.address, "list", "cunho.v1.RegionService").stdout.split()
    assert listed == ["cunho.v1.RegionService.ListRegions"]


@with_grpcurl
@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("cunho.v1.ImageService", "rpc GetImage ( .cunho.v1.GetImageRequest ) returns ( .cunho.v1.Image );"),
        ("cunho.v1.ImageService.GetImage", "rpc GetImage ( .cunho.v1.GetImageRequest ) returns ( .cunho.v1.Image );"),
        ("google.longrunning.Operations.GetOperation", "rpc GetOperation"),
        ("cunho.v1.GetImageRequest", "string image_id = 1"),
        ("cunho.v1.ErrorReason", "IMAGE_NOT_FOUND = 12;"),
    ],
)
def test_grpcurl_describes(world: World, symbol: str, expected: str) -> None:
    described = grpcurl(world.address, "describe", symbol)
    assert described.returncode == 0, described.stderr
    assert expected in described.stdout


@with_grpcurl
def test_grpcurl_calls_and_shows_what_is_packed(world: World) -> None:
    tenant = world.tenant()
    bearer = ("-H", f"authorization: Bearer {world.token(tenant.account_id)}")
    called = grpcurl(*bearer, world.address, "cunho.v1.RegionService.ListRegions")
    regions = json.loads(called.stdout)["regions"]
    # Versions of grpcurl differ in whether they write region_id or regionId.
    assert [region.get("region_id") or region["regionId"] for region in regions] == sorted(worlds.ZONES)
    world.launch(tenant)
    listed = grpcurl(*bearer, world.address, "google.longrunning.Operations.ListOperations")
    (operation,) = json.loads(listed.stdout)["operations"]
    assert operation["metadata"]["@type"] == "type.googleapis.com/cunho.v1.OperationMetadata"
    assert operation["metadata"]["method"] == "CreateInstance"


@with_grpcurl
def test_grpcurl_shows_why_a_call_is_refused(world: World) -> None:
    bearer = ("-H", f"authorization: Bearer {world.token('acc-nobody')}")
    asked = ("-d", '{"image_id": "img-00000000"}', world.address, "cunho.v1.ImageService.GetImage")
    refused = grpcurl(*bearer, *asked)
    assert refused.returncode != 0
    for word in ("NotFound", "img-00000000", "IMAGE_NOT_FOUND", "SEL-2"):
        assert word in refused.stderr
