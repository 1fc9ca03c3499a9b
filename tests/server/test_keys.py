"""The keys that verify tokens decide by which algorithm, and are replaced while the server runs; no token has a say."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
from tests import world as worlds
from tests.end_to_end.steps import until
from tests.server.issuers import Host, key_set, member, private_member, private_pem, public_pem, rsa_key, signed
from tests.world import Postgres, World

from cunho import Client, Refused
from cunho_rules.refusals import Reason, Refusal
from cunho_server import issuing, keys
from cunho_server.identity import Identity
from cunho_server.keys import Key, KeyFileError, Keys
from cunho_server.settings import Settings

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
RSA, OTHER_RSA, SHORT_RSA = rsa_key(), rsa_key(), rsa_key(1024)
CURVE = ec.generate_private_key(ec.SECP256R1())


def claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    return {"iss": "cunho", "aud": "cunho", "sub": "acme", "role": "account", "iat": now, "exp": now + 3600} | more


def settings(**chosen: Any) -> Settings:
    return Settings.model_validate(chosen)


def known(*public: Key) -> Identity:
    return Identity(Keys(lambda: public), settings())


def accepted(identity: Identity, bearer: str) -> bool:
    """Whether a token tells who calls."""
    try:
        return identity.caller([("authorization", f"Bearer {bearer}")]).account_id == "acme"
    except Refusal as refused:
        if refused.reason is Reason.CREDENTIALS_INVALID:
            return False
        raise


# --- the algorithm


def forged(algorithm: str, sign: Callable[[bytes], bytes], **header: Any) -> str:
    """A token with any algorithm in its header and anything as its signature."""
    parts = [json.dumps({"alg": algorithm, "typ": "JWT"} | header).encode(), json.dumps(claims()).encode()]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    return f"{text.decode()}.{base64.urlsafe_b64encode(sign(text)).rstrip(b'=').decode()}"


def by_secret(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda text: hmac.digest(secret, text, hashlib.sha256)


def rs256(text: bytes) -> bytes:
    return RSA.sign(text, padding.PKCS1v15(), hashes.SHA256())


FORGED = {
    "no algorithm": forged("none", lambda text: b""),
    "no algorithm over a signature": forged("none", KEY.sign),
    "a public RSA key as the secret": forged("HS256", by_secret(public_pem(RSA))),
    "a public Ed25519 key as the secret": forged("HS256", by_secret(KEY.public_key().public_bytes_raw())),
    "Ed25519 as RS256": forged("RS256", KEY.sign),
    "RSA as EdDSA": forged("EdDSA", rs256),
    "RSA by another hash": jwt.encode(claims(), RSA, algorithm="RS512"),
    "RSA by another padding": jwt.encode(claims(), RSA, algorithm="PS256"),
    "an elliptic curve": jwt.encode(claims(), CURVE, algorithm="ES256"),
    "another Ed25519 key": signed(OTHER, claims()),
    "another RSA key": signed(OTHER_RSA, claims()),
    "a key of its own": forged("EdDSA", OTHER.sign, jwk=member(OTHER, None)),
    "a key set of its own": forged("EdDSA", OTHER.sign, jku="http://127.0.0.1:1/jwks.json", kid="a"),
}


@pytest.mark.parametrize("bearer", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("key_id", [None, "a"])
def test_a_forged_token_is_refused_whatever_it_says_of_itself(bearer: str, key_id: str | None) -> None:
    identity = known(Key(KEY.public_key(), key_id), Key(RSA.public_key(), key_id))
    good = [signed(key, claims(), key_id) for key in (KEY, RSA)]
    assert [accepted(identity, each) for each in [*good, bearer]] == [True, True, False]


@pytest.mark.parametrize("key_id", [7, None, ["a"]])
def test_a_token_names_its_key_by_text(key_id: Any) -> None:
    assert not accepted(known(Key(KEY.public_key(), "a")), forged("EdDSA", KEY.sign, kid=key_id))


def test_a_token_without_a_key_id_is_refused_where_keys_have_ids() -> None:
    assert not accepted(known(Key(KEY.public_key(), "a")), signed(KEY, claims()))


def test_a_token_is_verified_with_the_key_that_it_names_alone() -> None:
    identity = known(Key(KEY.public_key(), "a"), Key(OTHER.public_key(), "b"))
    tokens = [signed(key, claims(), key_id) for key, key_id in [(KEY, "a"), (OTHER, "b"), (OTHER, "a"), (KEY, "c")]]
    assert [accepted(identity, each) for each in tokens] == [True, True, False, False]


def test_two_keys_may_share_an_id() -> None:
    identity = known(Key(RSA.public_key(), "a"), Key(KEY.public_key(), "a"))
    assert all(accepted(identity, signed(key, claims(), "a")) for key in (KEY, RSA))


# --- files


def test_a_file_may_have_several_public_keys(tmp_path: Path) -> None:
    (tmp_path / "public.pem").write_bytes(b"the new one\n" + public_pem(KEY) + b"\nthe old one\n" + public_pem(RSA))
    assert keys.public_keys(tmp_path / "public.pem") == (Key(KEY.public_key()), Key(RSA.public_key()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"key",
        private_pem(KEY),
        public_pem(KEY) + private_pem(KEY),
        public_pem(CURVE),
        public_pem(KEY) + public_pem(CURVE),
        public_pem(KEY) + public_pem(OTHER)[:-30],
        public_pem(KEY) * 17,
    ],
    ids=["empty", "no PEM", "private", "a private one too", "curve", "a curve too", "half a key", "too many"],
)
def test_a_file_without_public_keys_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "public.pem").write_bytes(content)
    told = r"public\.pem is not a PEM file of 1 to 16 public keys, Ed25519 or RSA: .*-pubout"
    with pytest.raises(KeyFileError, match=told):
        keys.public_keys(tmp_path / "public.pem")


@pytest.mark.parametrize(
    "content",
    [b"", public_pem(KEY), private_pem(KEY, BestAvailableEncryption(b"secret")), private_pem(CURVE)],
    ids=["empty", "public", "encrypted", "curve"],
)
def test_a_file_without_a_private_key_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "private.pem").write_bytes(content)
    with pytest.raises(KeyFileError, match=r"private\.pem is not a PEM file of an unencrypted private key, Ed25519"):
        keys.private_key(tmp_path / "private.pem")


@pytest.mark.parametrize("read", [keys.public_keys, keys.private_key])
def test_a_short_rsa_key_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    content = public_pem(SHORT_RSA) if read is keys.public_keys else private_pem(SHORT_RSA)
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(KeyFileError, match=r"key\.pem has an RSA key of 1024 bits: make one of at least 2048 bits"):
        read(tmp_path / "key.pem")


def test_a_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"none\.pem cannot be read \(No such file"):
        keys.public_keys(tmp_path / "none.pem")


# --- the development key


def test_the_development_key_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key.pem"
    made = keys.development_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.development_key(path).private_bytes_raw() == made.private_bytes_raw()
    assert list(path.parent.iterdir()) == [path]


def test_of_two_servers_that_start_at_once_both_use_the_first_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key.pem"
    first = keys.development_key(path)
    monkeypatch.setattr(Path, "exists", lambda path: False)  # as the second saw it before the first was done
    assert keys.development_key(path).private_bytes_raw() == first.private_bytes_raw()
    assert list(tmp_path.iterdir()) == [path]


def test_a_development_key_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileError, match=r"development key .*/file/key\.pem cannot be made \(.+\)"):
        keys.development_key(tmp_path / "file" / "key.pem")


def test_a_development_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(private_pem(RSA))
    with pytest.raises(KeyFileError, match=r"key\.pem is not of Ed25519: remove it"):
        keys.development_key(tmp_path / "key.pem")


def test_where_clients_show_certificates_there_is_no_development_key(tmp_path: Path) -> None:
    files = dict.fromkeys(("tls_certificate", "tls_key", "tls_client_ca"), "file.pem")
    chosen = settings(data_dir=tmp_path, **files)
    assert keys.verifying(chosen).current == ()
    assert list(tmp_path.iterdir()) == []


# --- key sets


def test_of_a_key_set_those_keys_count_that_verify_tokens(tmp_path: Path) -> None:
    content = key_set(
        member(KEY, "ed"),
        member(RSA, "rsa", use="sig", alg="RS256", key_ops=["verify"], x5t="x"),
        member(CURVE, "curve"),
        member(RSA, "encrypts", use="enc"),
        member(RSA, "wraps", key_ops=["wrapKey"]),
        member(RSA, "another algorithm", alg="PS256"),
        member(RSA, "no algorithm", alg="none"),
        member(KEY, None),
        member(KEY, "") | {"kid": 7},
        {"kty": "oct", "kid": "secret", "k": "c2VjcmV0"},
        {"kty": "RSA", "kid": "half"},
        {"kid": "nothing"},
    )
    (tmp_path / "jwks.json").write_bytes(content)
    assert keys.key_set(str(tmp_path / "jwks.json")) == (Key(KEY.public_key(), "ed"), Key(RSA.public_key(), "rsa"))


@pytest.mark.parametrize("operations", [None, 7, "verify"])
def test_a_key_whose_uses_are_no_list_is_left_out_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, operations: object
) -> None:
    file = str(tmp_path / "jwks.json")
    Path(file).write_bytes(key_set(member(RSA, "odd", key_ops=operations), member(KEY, "ed")))
    assert [keys.key_set(file) for _ in range(2)] == 2 * [(Key(KEY.public_key(), "ed"),)]
    assert caplog.messages == [f"the key 'odd' of the key set {file} is left out: its key_ops are no list"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not a key set (JWKS)"),
        (b"[]", "is not a key set (JWKS)"),
        (b'{"keys": 7}', "is not a key set (JWKS)"),
        (b'{"keys": [7]}', "is not a key set (JWKS)"),
        (b'{"keys": [{"kid": "a", "key_ops": 7}]}', "has no key for us"),
        (b"[" * 100_000, "is not a key set (JWKS)"),
        (b"\xff", "is not a key set (JWKS)"),
        (public_pem(KEY), "is not a key set (JWKS)"),
        (key_set(), "has no key for us"),
        (key_set(member(CURVE, "a")), "has no key for us"),
        (key_set(member(SHORT_RSA, "a")), "has an RSA key of 1024 bits"),
        (key_set(private_member(KEY, "a")), "shows the private key 'a'"),
        (key_set(private_member(RSA, "a")), "shows the private key 'a'"),
    ],
)
def test_an_unusable_key_set_stops_the_start(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "jwks.json").write_bytes(content)
    with pytest.raises(KeyFileError) as caught:
        keys.verifying(settings(token_jwks=str(tmp_path / "jwks.json")))
    assert "jwks.json" in str(caught.value)
    assert told in str(caught.value)


def test_a_key_set_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"none\.json cannot be read \(No such file"):
        keys.verifying(settings(token_jwks=str(tmp_path / "none.json")))


@pytest.fixture
def host() -> Iterator[Host]:
    with Host(key_set(member(KEY, "a"))).serving() as serving:
        yield serving


def test_a_key_set_is_fetched(host: Host) -> None:
    assert keys.key_set(host.url) == (Key(KEY.public_key(), "a"),)


@pytest.mark.parametrize("status", [302, 404, 503])
def test_another_answer_than_a_key_set_stops_the_start(host: Host, status: int) -> None:
    host.status = status
    with pytest.raises(KeyFileError, match=f"the key set {host.url} cannot be fetched .*: check CUNHO_TOKEN_JWKS"):
        keys.verifying(settings(token_jwks=host.url))
    assert host.requests == 1


def test_a_key_set_without_end_is_refused(host: Host) -> None:
    host.content += b" " * (256 << 10)
    with pytest.raises(KeyFileError, match="is larger than 262144 bytes"):
        keys.verifying(settings(token_jwks=host.url))


def test_a_key_set_is_fetched_from_a_host_that_a_trusted_authority_vouches_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuing.make(tmp_path)
    content = key_set(member(KEY, "a"))
    with Host(content, tmp_path / "server.pem", tmp_path / "server-key.pem").serving() as host:
        with pytest.raises(KeyFileError, match=r"cannot be fetched .*certificate verify failed"):
            keys.key_set(host.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert keys.key_set(host.url) == (Key(KEY.public_key(), "a"),)


def test_a_host_that_cannot_be_one_stops_the_start() -> None:
    with pytest.raises(KeyFileError, match=r"https://a\.\.b/jwks\.json cannot be fetched"):
        keys.key_set("https://a..b/jwks.json")


def test_a_host_that_is_down_or_silent_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_FETCH_SECONDS", 0.05)
    silent = Host(b"")  # takes connections, and answers none of them
    for told in ("timed out", "Connection refused"):
        with pytest.raises(KeyFileError, match=f"cannot be fetched .*{told}"):
            keys.verifying(settings(token_jwks=silent.url))
        silent.close()


@contextmanager
def trickling(said: bytes) -> Iterator[str]:
    """The URL of a host that says this, and then a blank every hundredth of a second, for five seconds."""

    def trickle() -> None:
        connection, _ = listening.accept()
        with connection, suppress(ConnectionError):
            for part in (said, *500 * [b" "]):
                connection.sendall(part)
                time.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=trickle)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/jwks.json"
        thread.join()


@pytest.mark.parametrize("said", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["headers", "content"])
def test_a_host_that_says_a_little_again_and_again_is_not_heard_to_the_end(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(keys, "_FETCH_SECONDS", 0.2)
    with trickling(said) as url, pytest.raises(KeyFileError, match=r"cannot be fetched \(timed out\)"):
        keys.key_set(url)


# --- looking for an unknown key


class Source:
    """Where keys are read, which a test may hold up."""

    def __init__(self, *read: Key) -> None:
        self.keys, self.reads = read, 0
        self.open = threading.Event()
        self.open.set()

    def __call__(self) -> tuple[Key, ...]:
        self.reads += 1
        assert self.open.wait(10)
        return self.keys


def call(key: Ed25519PrivateKey, key_id: str) -> list[tuple[str, str | bytes]]:
    return [("authorization", f"Bearer {signed(key, claims(), key_id)}")]


async def test_callers_with_a_new_key_wait_for_one_reading_and_hold_up_nobody() -> None:
    source = Source(Key(KEY.public_key(), "a"))
    identity = Identity(Keys(source, every_seconds=100), settings())
    source.keys, source.reads = (*source.keys, Key(OTHER.public_key(), "b")), 0
    source.open.clear()
    hangs_up, *patient = [asyncio.create_task(identity.verify(call(OTHER, "b"))) for _ in range(20)]
    async with asyncio.timeout(10):
        while not source.reads:
            await asyncio.sleep(0.001)
    hangs_up.cancel()
    assert (await identity.verify(call(KEY, "a"))).account_id == "acme"
    assert not any(each.done() for each in patient)
    source.open.set()
    assert {caller.account_id for caller in await asyncio.gather(*patient)} == {"acme"}
    assert source.reads == 1


async def test_unknown_keys_are_looked_for_every_ten_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(keys, "time", SimpleNamespace(monotonic=lambda: now))
    source = Source(Key(KEY.public_key(), "a"))
    identity = Identity(Keys(source, every_seconds=100), settings())
    source.reads = 0
    for moment, reads in [(1000.0, 1), (1009.9, 1), (1010.0, 2), (1011.0, 2)]:
        now = moment
        for key_id in "bcd":
            with pytest.raises(Refusal):
                await identity.verify(call(OTHER, key_id))
        assert source.reads == reads


async def test_without_another_key_there_is_nothing_to_look_for() -> None:
    source = Source(Key(KEY.public_key(), "a"))
    identity = Identity(Keys(source), settings())
    with pytest.raises(Refusal):
        await identity.verify(call(OTHER, "b"))
    assert source.reads == 1


async def test_a_wrong_token_of_a_known_key_looks_for_none() -> None:
    source = Source(Key(KEY.public_key(), "a"))
    identity = Identity(Keys(source, every_seconds=100), settings())
    with pytest.raises(Refusal):
        await identity.verify(call(OTHER, "a"))
    assert source.reads == 1


# --- over a real server


def may_call(world: World, bearer: str) -> bool:
    """Whether the server accepts a token."""
    with Client(world.address, token=bearer) as client:
        try:
            list(client.list_regions())
        except Refused as refused:
            if refused.reason == "CREDENTIALS_INVALID":
                return False
            raise
        return True


def token(key: Any, key_id: str | None = None) -> str:
    return signed(key, claims(exp=int(time.time()) + 800), key_id)


def test_a_new_key_of_the_issuer_is_found_when_a_token_names_it(postgres: Postgres, host: Host) -> None:
    a, b, c = token(KEY, "a"), token(RSA, "b"), token(OTHER, "c")
    with worlds.world(postgres, token_jwks=host.url) as world:
        assert (may_call(world, a), may_call(world, b), host.requests) == (True, False, 2)
    with worlds.world(postgres, token_jwks=host.url) as world:
        host.content = key_set(member(KEY, "a"), member(RSA, "b"))
        assert (may_call(world, b), may_call(world, a), host.requests) == (True, True, 4)
        host.content = key_set(member(KEY, "a"), member(RSA, "b"), member(OTHER, "c"))
        assert (may_call(world, c), host.requests) == (False, 4)  # so soon after the last time


def test_a_key_that_the_issuer_removed_is_refused_and_an_outage_changes_nothing(
    postgres: Postgres, host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "KEY_SET_SECONDS", 0.02)
    a, b = token(KEY, "a"), token(OTHER, "b")
    with worlds.world(postgres, token_jwks=host.url) as world:
        assert may_call(world, a)
        host.content = key_set(member(OTHER, "b"))
        until(lambda: not may_call(world, a))
        assert may_call(world, b)

        host.status = 503
        asked = host.requests
        until(lambda: host.requests > asked + 3)
        assert may_call(world, b)
        (warned,) = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert re.search("verified with the keys read before: .* cannot be fetched", warned.getMessage())

        host.status, host.content = 200, key_set(member(KEY, "a"))
        until(lambda: may_call(world, a))
        assert not may_call(world, b)
        host.content = key_set()
        until(lambda: not may_call(world, a))


def test_the_keys_of_a_file_are_replaced_while_the_server_runs(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "FILE_SECONDS", 0.02)
    file = tmp_path / "public.pem"
    file.write_bytes(public_pem(KEY))
    old, new = token(KEY), token(RSA)
    with worlds.world(postgres, token_key=file) as world:
        assert (may_call(world, old), may_call(world, new)) == (True, False)
        file.write_bytes(public_pem(KEY, RSA))
        until(lambda: may_call(world, new))
        assert may_call(world, old)
        file.write_bytes(public_pem(RSA))
        until(lambda: not may_call(world, old))
        file.write_bytes(public_pem(KEY)[:50])
        assert may_call(world, new)


def test_with_a_key_that_was_given_tokens_of_the_development_key_are_refused(
    postgres: Postgres, tmp_path: Path
) -> None:
    (tmp_path / "public.pem").write_bytes(public_pem(KEY))
    with worlds.world(postgres, token_key=tmp_path / "public.pem") as world:
        assert not may_call(world, world.token("operator", "operator"))
