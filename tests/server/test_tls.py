"""TLS and mTLS over a real server: who may connect, who a certificate makes of them, and files that change."""

import json
import logging
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, load_pem_private_key
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests import world as worlds
from tests.server.issuers import private_pem
from tests.world import GUANGZHOU, ZONES, Postgres, World

from cunho import Client, Refused, Tls
from cunho.v1 import Architecture
from cunho_server import issuing, listening
from cunho_server.keys import KeyFileError

GRPCURL = shutil.which("grpcurl") or shutil.which("grpcurl", path=Path(sys.executable).parent)
CLIENTS = {
    "account-acme": "cunho://account/acme",
    "operator-jane": "cunho://operator/jane",
    "service-deployer": "cunho://service/deployer?acts_for=acme",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of a first installation."""
    folder = tmp_path_factory.mktemp("keys")
    issuing.make(folder, clients=[*CLIENTS.values()])
    return folder


def files(folder: Path) -> dict[str, Any]:
    """The settings of a server with the keys of a folder, whose clients show certificates."""
    names = {"tls_certificate": "server.pem", "tls_key": "server-key.pem", "tls_client_ca": "ca.pem"}
    return {setting: folder / name for setting, name in names.items()}


@pytest.fixture(scope="module")
def world(postgres: Postgres, folder: Path) -> Iterator[World]:
    """A service whose clients show certificates, and whose tokens are verified too."""
    with worlds.world(postgres, **files(folder), token_key=folder / "token-public.pem") as running:
        with client(running, folder, "operator-jane") as operator:
            operator.register_account(account_id="acme", region_ids=[GUANGZHOU])
        yield running


def client(world: World, folder: Path, name: str = "", token: str | None = None, account: str = "") -> Client:
    """A client that trusts the authority in the folder, and shows the certificate of that name."""
    tls = Tls(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}-key.pem") if name else Tls(folder / "ca.pem")
    return Client(world.address, token=token, tls=tls, account=account)


def reason(client: Client) -> str | None:
    """Why a call is refused; None if it is not."""
    with client:
        try:
            list(client.list_images(region_id=GUANGZHOU))
        except Refused as refused:
            return refused.reason
        return None


def asked(channel: grpc.Channel) -> bool:
    """Whether a server answers, tried once."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return False
        raise
    return True


def connects(world: World, authority: Path, shown: Path | None = None) -> bool:
    """Whether there is a connection, with the authority to trust and the certificate to show."""
    pair = [(shown.with_name(f"{shown.stem}-key.pem")).read_bytes(), shown.read_bytes()] if shown else []
    tls = grpc.ssl_channel_credentials(authority.read_bytes(), *pair)
    with grpc.secure_channel(world.address, tls) as channel:
        return asked(channel)


def signed(world: World, folder: Path, subject: str) -> str:
    return issuing.token(world.settings, subject, "account", key=folder / "token-key.pem")


def test_a_certificate_makes_an_account_of_its_client(world: World, folder: Path) -> None:
    with client(world, folder, "account-acme") as acme:
        image = acme.resolve_image(
            region_id=GUANGZHOU, family="debian-12", architecture=Architecture.ARCHITECTURE_X86_64
        )
        launch = acme.create_instance(
            region_id=GUANGZHOU, zone_id=ZONES[GUANGZHOU], instance_type="S5.MEDIUM4", image_id=image.image_id
        )
        assert launch.result(timeout_seconds=20).instances[0].account_id == "acme"
        with pytest.raises(Refused) as refused:
            acme.register_account(account_id="globex", region_ids=[GUANGZHOU])
    assert refused.value.reason == "OPERATOR_ROLE_REQUIRED"


def test_a_certificate_of_a_service_acts_for_the_accounts_in_it(world: World, folder: Path) -> None:
    assert reason(client(world, folder, "service-deployer", account="acme")) is None
    assert reason(client(world, folder, "service-deployer", account="globex")) == "ACTING_NOT_ALLOWED"
    assert reason(client(world, folder, "service-deployer")) == "ACTING_NOT_ALLOWED"


def test_a_token_decides_over_the_certificate_of_its_connection(world: World, folder: Path) -> None:
    assert reason(client(world, folder, "operator-jane", signed(world, folder, "acme"))) is None
    assert reason(client(world, folder, "operator-jane", "x")) == "CREDENTIALS_INVALID"
    with client(world, folder, "operator-jane", signed(world, folder, "acme")) as acme, pytest.raises(Refused):
        acme.register_account(account_id="globex", region_ids=[GUANGZHOU])


def test_only_a_certificate_of_the_authority_makes_a_connection(world: World, folder: Path, tmp_path: Path) -> None:
    issuing.make(tmp_path, clients=["cunho://account/acme"])
    assert connects(world, folder / "ca.pem", folder / "account-acme.pem")
    assert not connects(world, folder / "ca.pem")
    assert not connects(world, folder / "ca.pem", tmp_path / "account-acme.pem")
    assert not connects(world, tmp_path / "ca.pem", folder / "account-acme.pem")


def test_without_tls_there_is_no_connection(world: World) -> None:
    with grpc.insecure_channel(world.address) as channel:
        assert not asked(channel)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"])
def test_tls_is_1_2_or_newer(world: World, folder: Path, version: str) -> None:
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.load_cert_chain(folder / "account-acme.pem", folder / "account-acme-key.pem")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    host, _, port = world.address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        if version < "TLSv1_2":
            with pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(connection, server_hostname=host)
            return
        with context.wrap_socket(connection, server_hostname=host) as secured:
            assert secured.version() == version.replace("_", ".")


@pytest.mark.skipif(GRPCURL is None, reason="there is no grpcurl here")
def test_grpcurl_calls_with_a_certificate(world: World, folder: Path) -> None:
    shown = ["-cacert", "ca.pem", "-cert", "account-acme.pem", "-key", "account-acme-key.pem"]
    asked = [str(GRPCURL), *shown, "-d", json.dumps({"region_id": GUANGZHOU, "page_size": 1}), world.address]
    ended = subprocess.run(
        [*asked, "cunho.v1.ImageService/ListImages"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["images"]


# --- files that change


def served(world: World) -> str:
    """The certificate that the server shows."""
    host, _, port = world.address.rpartition(":")
    return ssl.get_server_certificate((host, int(port))).replace("\r", "")


def renewed(folder: Path, *names: str) -> None:
    """Other pairs in place of the ones of those names, each file by a rename."""
    other = folder / "other"
    other.mkdir()
    for path in ("ca.pem", "ca-key.pem"):
        if "ca" not in names:
            shutil.copy(folder / path, other / path)
    issuing.make(other, clients=[*CLIENTS.values()])
    for name in names:
        for path in (f"{name}-key.pem", f"{name}.pem"):
            (other / path).rename(folder / path)
    shutil.rmtree(other)


def test_certificates_are_replaced_while_the_server_runs(
    postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    issuing.make(tmp_path, clients=[*CLIENTS.values()])
    with worlds.world(postgres, **files(tmp_path)) as world, client(world, tmp_path, "account-acme") as connected:
        first = served(world)
        assert first == (tmp_path / "server.pem").read_text()
        list(connected.list_regions())
        renewed(tmp_path, "server")
        second = served(world)
        assert first != second == (tmp_path / "server.pem").read_text()
        list(connected.list_regions())  # on its old connection

        whole = (tmp_path / "server.pem").read_text()
        (tmp_path / "server.pem").write_text(whole[:-40])
        caplog.clear()
        assert [served(world), served(world)] == [second, second]
        (warned,) = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert re.search(r"certificate read before: .*server\.pem is not a PEM file", warned.getMessage())
        (tmp_path / "server.pem").unlink()
        assert served(world) == second
        (tmp_path / "server.pem").write_text(whole)
        assert served(world) == second

        renewed(tmp_path, "server", "ca", "operator-jane")
        assert reason(client(world, tmp_path, "operator-jane")) is None
        assert not connects(world, tmp_path / "ca.pem", tmp_path / "account-acme.pem")  # of the authority before


# --- files that cannot be used from the start


def swap(folder: Path) -> None:
    shutil.copy(folder / "ca-key.pem", folder / "server-key.pem")


def encrypt(folder: Path) -> None:
    key = load_pem_private_key((folder / "server-key.pem").read_bytes(), None)
    (folder / "server-key.pem").write_bytes(private_pem(key, BestAvailableEncryption(b"secret")))


WRONG = {
    "no certificate": (lambda folder: (folder / "server.pem").unlink(), r"server\.pem cannot be read \(No such file"),
    "no key": (lambda folder: (folder / "server-key.pem").unlink(), r"server-key\.pem cannot be read \(No such file"),
    "no authorities": (lambda folder: (folder / "ca.pem").unlink(), r"ca\.pem cannot be read \(No such file"),
    "empty certificate": (lambda folder: (folder / "server.pem").write_bytes(b""), r"server\.pem is not a PEM file"),
    "empty key": (lambda folder: (folder / "server-key.pem").write_bytes(b""), r"server-key\.pem is not a PEM file"),
    "empty authorities": (lambda folder: (folder / "ca.pem").write_bytes(b""), r"ca\.pem is not a PEM file"),
    "folder": (lambda folder: ((folder / "ca.pem").unlink(), (folder / "ca.pem").mkdir()), r"ca\.pem cannot be read"),
    "encrypted key": (encrypt, r"server-key\.pem is not a PEM file of an unencrypted private key"),
    "key of a kind that clients refuse": (
        lambda folder: (folder / "server-key.pem").write_bytes(private_pem(Ed25519PrivateKey.generate())),
        r"server-key\.pem is not a PEM file of an unencrypted private key, RSA or elliptic curve",
    ),
    "key of another": (swap, r"server-key\.pem is not that of the certificate .*server\.pem"),
}


@pytest.mark.parametrize(("spoil", "told"), WRONG.values(), ids=WRONG)
def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path, spoil: object, told: str) -> None:
    issuing.make(tmp_path)
    assert callable(spoil)
    spoil(tmp_path)
    with pytest.raises(KeyFileError, match=told) as caught:
        listening.Certificate(*files(tmp_path).values())
    assert ": " in str(caught.value)  # and then what to do


@pytest.mark.parametrize(("days", "apart"), [(-1, timedelta(days=2)), (10, timedelta(days=-1))], ids=["past", "future"])
def test_certificates_that_are_not_valid_now_stop_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, apart: timedelta
) -> None:
    issuing.make(tmp_path)
    whole = (tmp_path / "ca.pem").read_bytes()
    monkeypatch.setattr(issuing, "_CLOCKS_APART", apart)
    monkeypatch.setattr(issuing, "_AUTHORITY_DAYS", days)
    (tmp_path / "ca.pem").write_bytes(issuing._new_authority().certificate.public_bytes(Encoding.PEM))
    with pytest.raises(KeyFileError, match=r"certificate .*ca\.pem is valid from .* UTC, and now it is .*: renew it"):
        listening.Certificate(*files(tmp_path).values())

    (tmp_path / "ca.pem").write_bytes(whole)
    monkeypatch.setattr(issuing, "_SERVER_DAYS", days)
    for name in ("server.pem", "server-key.pem"):
        (tmp_path / name).unlink()
    issuing.make(tmp_path)
    with pytest.raises(
        KeyFileError, match=r"certificate .*server\.pem is valid from .* UTC, and now it is .*: renew it"
    ):
        listening.Certificate(*files(tmp_path).values())
