"""How the service is reached: with TLS or without, by whose certificates, with which token, and again when lost."""

import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import grpc
import pytest
from tests.client.certificates import Authority
from tests.client.conftest import FakeService, serving

from cunho import CHANNEL_OPTIONS, Client, Refused, Tls, TokenFile, aio, v1

HOST = "images.example"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def service() -> FakeService:
    """A service that answers, once it is on a port."""
    fake = FakeService()
    fake.answers["GetImage"] = lambda request, context: v1.Image(
        name=",".join(name.decode() for name in context.peer_identities() or [])
    )
    return fake


@contextmanager
def serving_tls(fake: FakeService, authority: Authority, name: str, *, mutual: bool = False) -> Iterator[None]:
    """The service on a port with TLS, by a certificate for that name."""
    trusted = authority.file.read_bytes() if mutual else None
    credentials = grpc.ssl_server_credentials([authority.signed(name).pem()], trusted, require_client_auth=mutual)
    with serving(fake, credentials=credentials):
        yield


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are not repeated, so that one that cannot succeed ends at once."""
    monkeypatch.setattr("cunho.connection.CHANNEL_OPTIONS", (("grpc.enable_retries", 0),))


def elsewhere(service: FakeService) -> str:
    """The service's address, as one that is not a loopback address; it leads to this machine all the same."""
    return service.address.replace("127.0.0.1", "0.0.0.0")


def called(client: Client) -> str:
    """Who the service says called."""
    with client:
        return client.get_image(image_id="img-00000001").name


def test_an_address_of_another_machine_is_called_with_tls_by_the_authorities_of_this_one(
    service: FakeService, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with serving_tls(service, authority, "0.0.0.0"):
        called(Client(elsewhere(service), token="secret"))
    assert service.calls[0].metadata["authorization"] == "Bearer secret"


@pytest.mark.usefixtures("once")
def test_an_address_of_another_machine_is_not_called_without_tls(service: FakeService) -> None:
    with serving(service), pytest.raises(Refused) as refused:
        called(Client(elsewhere(service), token="secret"))
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    assert service.calls == []


def test_an_address_of_another_machine_is_called_without_tls_if_that_is_said(service: FakeService) -> None:
    with serving(service):
        called(Client(elsewhere(service), token="secret", tls=False))
    assert len(service.calls) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_a_loopback_address_is_called_without_tls(service: FakeService, host: str) -> None:
    with serving(service):
        called(Client(service.address.replace("127.0.0.1", host), token="secret"))
    assert len(service.calls) == 1


def test_a_loopback_address_is_not_called_through_the_proxy_that_the_environment_names(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(service), socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("grpc_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with Client(service.address, token="secret", timeout_seconds=5) as client:
            client.get_image(image_id="img-00000001")
    assert len(service.calls) == 1


def test_a_unix_socket_is_called_without_tls(service: FakeService, tmp_path: Path) -> None:
    with serving(service, f"unix:{tmp_path}/socket"):
        called(Client(service.address, token="secret"))
    assert len(service.calls) == 1


def test_a_loopback_address_is_called_with_tls_if_that_is_said(
    service: FakeService, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with serving_tls(service, authority, "127.0.0.1"):
        called(Client(service.address, token="secret", tls=True))
    assert len(service.calls) == 1


def test_a_folder_of_authorities_serves_where_this_machine_has_no_file_of_them(
    service: FakeService, authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    (tmp_path / "12345678.0").write_bytes(authority.file.read_bytes())
    with serving_tls(service, authority, "127.0.0.1"):
        called(Client(service.address, token="secret", tls=True))
    assert len(service.calls) == 1


def test_an_authority_that_is_gone_from_the_folder_leaves_the_others(
    service: FakeService, authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    (tmp_path / "00000000.0").symlink_to(tmp_path / "gone.pem")
    (tmp_path / "12345678.0").write_bytes(authority.file.read_bytes())
    with serving_tls(service, authority, "127.0.0.1"):
        called(Client(service.address, token="secret", tls=True))
    assert len(service.calls) == 1


def test_an_authority_of_ones_own_and_a_name_other_than_the_address_are_trusted_if_named(
    service: FakeService, authority: Authority
) -> None:
    with serving_tls(service, authority, HOST):
        called(Client(service.address, token="secret", tls=Tls(ca_file=authority.file, server_name=HOST)))
    assert len(service.calls) == 1


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize("server_name", ["", "other.example"])
def test_a_certificate_for_another_name_is_not_trusted(
    service: FakeService, authority: Authority, server_name: str
) -> None:
    with serving_tls(service, authority, HOST), pytest.raises(Refused) as refused:
        called(Client(service.address, token="secret", tls=Tls(ca_file=authority.file, server_name=server_name)))
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    assert service.calls == []


@pytest.mark.usefixtures("once")
def test_a_certificate_of_another_authority_is_not_trusted(
    service: FakeService, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    with serving_tls(service, authority, HOST), pytest.raises(Refused, match="CERTIFICATE_VERIFY_FAILED"):
        called(Client(service.address, token="secret", tls=Tls(ca_file=other.file, server_name=HOST)))
    assert service.calls == []


def test_a_caller_may_be_known_by_its_certificate_and_send_no_token(service: FakeService, authority: Authority) -> None:
    own = authority.signed("acme.example")
    tls = Tls(authority.file, own.certificate, own.key, server_name=HOST)
    with serving_tls(service, authority, HOST, mutual=True):
        assert called(Client(service.address, tls=tls)) == "acme.example"
    assert "authorization" not in service.calls[0].metadata


@pytest.mark.usefixtures("once")
def test_a_caller_without_a_certificate_does_not_reach_a_service_that_demands_one(
    service: FakeService, authority: Authority
) -> None:
    with serving_tls(service, authority, HOST, mutual=True), pytest.raises(Refused):
        called(Client(service.address, tls=Tls(ca_file=authority.file, server_name=HOST)))
    assert service.calls == []


def pairs(authority: Authority, folder: Path) -> Iterator[tuple[str, Tls]]:
    """What is wrong, and how it is told."""
    own, other = authority.signed("own"), authority.signed("other")
    locked = authority.signed("locked", passphrase=b"secret")
    junk = folder / "junk.pem"
    junk.write_text("nothing")
    yield "go together", Tls(certificate_file=own.certificate)
    yield "go together", Tls(key_file=own.key)
    yield "holds no certificates in PEM", Tls(ca_file=junk)
    yield "are not a certificate and its private key", Tls(certificate_file=own.certificate, key_file=other.key)
    yield "without a passphrase", Tls(certificate_file=locked.certificate, key_file=locked.key)
    yield "junk.pem", Tls(certificate_file=junk, key_file=own.key)


def test_files_that_are_not_what_they_should_be_are_refused_before_any_call(
    authority: Authority, tmp_path: Path
) -> None:
    for told, tls in pairs(authority, tmp_path):
        with pytest.raises(ValueError, match=told):
            Client("127.0.0.1:1", tls=tls)


def test_files_that_are_not_there_are_named_before_any_call(authority: Authority, tmp_path: Path) -> None:
    own, none = authority.signed("own"), tmp_path / "none.pem"
    for tls in (Tls(ca_file=none), Tls(certificate_file=none, key_file=own.key), Tls(None, own.certificate, none)):
        with pytest.raises(FileNotFoundError, match=r"none\.pem"):
            Client("127.0.0.1:1", tls=tls)


def test_tls_is_not_for_a_channel_of_ones_own() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(ValueError, match="its own credentials"):
        Client(channel, tls=True)


@pytest.mark.parametrize("kind", [Client, aio.Client])
def test_an_empty_address_is_refused_before_any_call(kind: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="the address is empty: give "):
        kind("", token="secret")


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("http://localhost:50051", 'is a URL: give "host:port"'),
        ("https://images.example", 'is a URL: give "host:port"'),
        ("localhost:65536", "has a port above 65535"),
        ("[::1]:115587", "has a port above 65535"),
    ],
)
def test_an_address_that_would_be_taken_for_another_is_refused_before_any_call(address: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"the address {address} {problem}")):
        Client(address, token="secret")


@pytest.mark.parametrize("address", ["localhost:65535", "::1", "unix:/run/cunho:70000", "dns:///images.example:443"])
def test_an_address_that_grpc_knows_is_taken(address: str) -> None:
    Client(address, token="secret").close()


def test_a_token_that_is_renewed_in_its_file_is_used_at_once(service: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    with serving(service), Client(service.address, token=TokenFile(file)) as client:
        client.get_image(image_id="img-00000001")
        file.write_text("second\n")
        client.get_image(image_id="img-00000001")
    assert [call.metadata["authorization"] for call in service.calls] == ["Bearer first", "Bearer second"]


def test_a_file_without_a_token_is_refused_before_any_call(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        TokenFile(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="empty holds no token"):
        TokenFile(tmp_path / "empty")


@pytest.mark.parametrize("token", ["", " \n"])
def test_an_empty_token_is_refused_before_any_call(token: str) -> None:
    with pytest.raises(ValueError, match="the token is empty"):
        Client("127.0.0.1:1", token=token)
    with Client("127.0.0.1:1", token=lambda: token) as client, pytest.raises(ValueError, match="the token is empty"):
        client.get_image(image_id="img-00000001")


@pytest.mark.parametrize("text", ["sec\nret", "sécret"])
def test_a_token_or_an_account_that_cannot_be_sent_is_refused_before_any_call(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_bytes(text.encode("latin-1"))
    makers: dict[str, Callable[[], object]] = {
        "the token": lambda: Client("127.0.0.1:1", token=text),
        "the account": lambda: Client("127.0.0.1:1", token=lambda: "secret", account=text),
        f"the token in {file}": lambda: TokenFile(file),
    }
    for told, make in makers.items():
        with pytest.raises(ValueError, match=rf"^{re.escape(told)} cannot be sent: it has line breaks, or "):
            make()
    with Client("127.0.0.1:1", token=lambda: text) as client, pytest.raises(ValueError, match="token cannot be sent"):
        client.get_image(image_id="img-00000001")


def test_a_call_that_finds_the_service_gone_goes_on_when_it_is_there_again(service: FakeService) -> None:
    gone = Event()
    with serving(service):
        channel = grpc.insecure_channel(service.address, options=CHANNEL_OPTIONS)
        client = Client(channel, token="secret")
        client.get_image(image_id="img-00000001")
    channel.subscribe(lambda state: gone.set() if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE else None)
    with client, ThreadPoolExecutor() as threads:
        call = threads.submit(client.get_image, image_id="img-00000001")
        assert gone.wait(10)
        with serving(service, service.address):
            call.result(10)
    assert len(service.calls) == 2
