"""The examples in the client's README run as they stand there, but for the address."""

import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from google.type.money_pb2 import Money
from tests.client.certificates import Authority
from tests.client.conftest import Answer, FakeService, packed, refusing

from cunho import v1

README = Path(__file__).parents[2] / "client/README.md"
SHARED = Status(
    code=grpc.StatusCode.FAILED_PRECONDITION.value[0],
    message="The image is shared with 1 account.",
    details=[
        packed(ErrorInfo(domain="cunho.v1", reason="IMAGE_SHARED", metadata={"account_ids": "acme-test"})),
        packed(v1.Advice(remedy="Take it back first.", retry=v1.Advice.RETRY_NOTHING)),
    ],
)
BUSY = Status(
    code=grpc.StatusCode.ABORTED.value[0],
    details=[
        packed(v1.Advice(retry=v1.Advice.RETRY_CALL)),
        packed(RetryInfo(retry_delay=Duration(nanos=1))),
    ],
)


def create_image(request: v1.CreateImageRequest, context: grpc.ServicerContext) -> operations_pb2.Operation:
    if request.validate_only:
        quote = v1.PriceQuote(monthly_total=Money(currency_code="EUR", units=1, nanos=250_000_000))
        return operations_pb2.Operation(metadata=packed(v1.OperationMetadata(quotes=[quote])))
    image = v1.Image(image_id="img-00000001")
    return operations_pb2.Operation(name="operations/op-00000001", done=True, response=packed(image))


def test_the_examples_do_what_they_say(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stops: list[Answer] = [lambda request, context: operations_pb2.Operation(), refusing(BUSY)]
    service.answers = {
        "ListImages": lambda request, context: v1.ListImagesResponse(images=[v1.Image(image_id="i", name="ubuntu")]),
        "CreateImage": create_image,
        "ShareImage": lambda request, context: v1.ShareImageResponse(),
        "DeleteImage": refusing(SHARED),
        "StopInstance": lambda request, context: stops.pop()(request, context),
    }
    monkeypatch.setenv("CUNHO_TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    authority, acme = Authority(tmp_path, "ca"), Authority(tmp_path).signed("acme")
    assert [file.name for file in (authority.file, acme.certificate, acme.key)] == [
        "ca.pem",
        "acme.pem",
        "acme-key.pem",
    ]
    Path("token").write_text("secret")
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL))
    code = code.replace("127.0.0.1:50051", service.address).replace("/run/secrets/cunho-token", "token")
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102
    for name in ("client", "remote", "certified", "proxied"):
        names[name].close()
    assert capsys.readouterr().out.splitlines() == [
        "i ubuntu",
        "['ubuntu']",
        "1.25 EUR a month",
        "The image is shared with 1 account. Take it back first.",
        "acme-test",
    ]
    first, second = (call.request.request_id for call in service.calls if call.rpc == "StopInstance")
    assert first == second
