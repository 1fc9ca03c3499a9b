"""A server as others reach it: on every address, by mutual TLS, with tokens of an issuer whose keys change."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.server.issuers import Host, key_set, member, rsa_key, signed
from tests.server_process import Server, serving
from tests.world import Postgres

from cunho import Client, Refused, Tls, aio
from cunho_server import issuing

GRPCURL = shutil.which("grpcurl") or shutil.which("grpcurl", path=Path(sys.executable).parent)

FIRST, NEXT = Ed25519PrivateKey.generate(), rsa_key()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    issuing.make(made, clients=["cunho://operator/ops", "cunho://account/acme"])
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def issuer() -> Iterator[Host]:
    """The issuer of tokens, with the key set that it publishes."""
    with Host(key_set(member(FIRST, "first"))).serving() as host:
        yield host


@pytest.fixture(scope="module")
def server(folder: Path, issuer: Host, postgres: Postgres) -> Iterator[Server]:
    settings: dict[str, Any] = {
        "DATABASE_URL": postgres.database(),
        "PROCESSES": 2,
        "TLS_CERTIFICATE": folder / "server.pem",
        "TLS_KEY": folder / "server-key.pem",
        "TLS_CLIENT_CA": folder / "ca.pem",
        "TOKEN_JWKS": issuer.url,
    }
    with serving(folder / "data", "0.0.0.0", **settings) as running:
        yield running


def tls(folder: Path, name: str) -> Tls:
    """How the client connects whose certificate has that name."""
    return Tls(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}-key.pem")


def token(key: Any, key_id: str, subject: str, role: str = "account") -> str:
    """A token of the issuer."""
    now = int(time.time())
    claims = {"iss": "cunho", "aud": "cunho", "sub": subject, "role": role, "iat": now, "exp": now + 600}
    return signed(key, claims, key_id)


@pytest.fixture(scope="module")
def acme(server: Server, folder: Path) -> Tls:
    """How an account connects that the operator, known by a certificate alone, has registered."""
    with Client(server.address, tls=tls(folder, "operator-ops")) as operator:
        operator.register_account(account_id="acme", region_ids=["ap-guangzhou"])
    return tls(folder, "account-acme")


def test_a_caller_is_known_by_its_certificate_alone(server: Server, acme: Tls) -> None:
    with Client(server.address, tls=acme) as client:
        assert client.get_account(account_id="acme").account_id == "acme"


async def test_both_clients_call_with_tokens_of_the_key_set(server: Server, acme: Tls) -> None:
    options: dict[str, Any] = {"tls": acme, "token": token(FIRST, "first", "acme")}
    with Client(server.address, **options) as client:
        assert client.get_account(account_id="acme").account_id == "acme"
    async with aio.Client(server.address, **options) as other:
        assert (await other.get_account(account_id="acme")).account_id == "acme"


@pytest.mark.skipif(not GRPCURL, reason="there is no grpcurl, neither on PATH nor beside Python")
@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("with_token", [True, False], ids=["token", "certificate"])
def test_grpcurl_calls_by_mutual_tls(server: Server, folder: Path, with_token: bool) -> None:
    assert GRPCURL
    files = {"-cacert": "ca.pem", "-cert": "account-acme.pem", "-key": "account-acme-key.pem"}
    flags = [word for flag, name in files.items() for word in (flag, str(folder / name))]
    headers = ["-H", f"authorization: Bearer {token(FIRST, 'first', 'acme')}"] if with_token else []
    call = [*flags, *headers, "-d", '{"account_id": "acme"}', server.address, "cunho.v1.AccountService/GetAccount"]
    answer = subprocess.run([GRPCURL, *call], capture_output=True, text=True, check=False)
    assert answer.stderr == ""
    assert json.loads(answer.stdout)["account_id"] == "acme"


def test_a_new_key_of_the_issuer_is_taken_without_a_restart(server: Server, acme: Tls, issuer: Host) -> None:
    issuer.content = key_set(member(FIRST, "first"), member(NEXT, "next"))
    processes = server.processes()
    for key, key_id in ((NEXT, "next"), (FIRST, "first")):
        with Client(server.address, tls=acme, token=token(key, key_id, "acme")) as client:
            assert client.get_account(account_id="acme").account_id == "acme"
    assert server.processes() == processes


def test_a_token_of_another_issuer_is_refused(server: Server, acme: Tls) -> None:
    forged = token(Ed25519PrivateKey.generate(), "first", "acme")
    with Client(server.address, tls=acme, token=forged) as client, pytest.raises(Refused) as refused:
        client.get_account(account_id="acme")
    assert refused.value.reason == "CREDENTIALS_INVALID"


def test_without_a_certificate_nobody_gets_in(server: Server, folder: Path) -> None:
    trusting, valid = Tls(folder / "ca.pem"), token(FIRST, "first", "acme")
    with Client(server.address, tls=trusting, token=valid) as client, pytest.raises(Refused) as refused:
        client.get_account(account_id="acme", timeout_seconds=5)
    assert refused.value.reason == ""  # it is TLS that refuses
