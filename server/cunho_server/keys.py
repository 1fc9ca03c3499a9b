"""The keys that tokens are signed and verified with: read from files or a key set, kept current, made for development.

The algorithm is decided here, by the key: what a token says of itself decides nothing. Nothing here knows gRPC.
"""

import asyncio
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from cunho_server import fetching
from cunho_server.settings import Settings

log = logging.getLogger(__name__)

PublicKey: TypeAlias = Ed25519PublicKey | RSAPublicKey
PrivateKey: TypeAlias = Ed25519PrivateKey | RSAPrivateKey
AnyKey = TypeVar("AnyKey", PublicKey, PrivateKey)

#: How often key files and key sets are read again.
FILE_SECONDS = 1.0
KEY_SET_SECONDS = 100.0  # so that, one failed time included, a removed key is accepted for less than 300 s
#: How often, at most, a key set is read because a token names a key that is not in it.
UNKNOWN_KEY_SECONDS = 10.0
_WARNING_SECONDS = 300.0

_FETCH_SECONDS = 5.0
_KEY_SET_SIZE_BYTES = 256 << 10
_KEYS_PER_FILE = 16
_RSA_SIZE_BITS = 2048
_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)
_HINT = (
    "`openssl genpkey -algorithm ed25519` makes a private key, `openssl pkey -pubout` its public one, and "
    "`cunho-server keys` both"
)
_USABLE = "it takes Ed25519 (EdDSA) or RSA (RS256) keys that verify signatures and are named by `kid`"


class KeyFileError(Exception):
    """Keys or certificates that cannot be used; the message says which file, why, and what to do."""


class Key(NamedTuple):
    """A key that verifies tokens."""

    public: PublicKey
    #: What tokens name it by; None if it is tried whatever key they name.
    key_id: str | None = None


class Keys:
    """The keys that verify tokens, as they are now.

    Args:
        read: reads them; raises KeyFileError.
        every_seconds: how often they are read again; None if they never change.

    Attributes:
        current: the keys; another object once they changed.
    """

    def __init__(self, read: Callable[[], tuple[Key, ...]], every_seconds: float | None = None) -> None:
        self._read = read
        self._every_seconds = every_seconds
        self._reading: asyncio.Task[None] | None = None
        self._look_time = self._warn_time = 0.0
        self.current = read()

    def named(self, key_id: object) -> list[Key]:
        """The keys to try for a token that names a key, or none."""
        return [key for key in self.current if key.key_id is None or key.key_id == key_id]

    async def keep_current(self) -> None:
        """Reads the keys again and again, until cancelled."""
        while self._every_seconds is not None:
            await asyncio.sleep(self._every_seconds)
            await asyncio.shield(self._once())

    async def look_again(self) -> None:
        """Reads the keys for one that was not among them, unless that was done a moment ago."""
        now = time.monotonic()
        if self._every_seconds is not None and now >= self._look_time:
            self._look_time = now + UNKNOWN_KEY_SECONDS
            self._once()
        if self._reading:
            await asyncio.shield(self._reading)  # a caller that hangs up must not cancel it for the others

    def _once(self) -> "asyncio.Task[None]":
        """The reading under way; one begins if there is none."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._renew())
        return self._reading

    async def _renew(self) -> None:
        try:
            keys = await asyncio.to_thread(self._read)
        except KeyFileError as error:
            if time.monotonic() >= self._warn_time:
                self._warn_time = time.monotonic() + _WARNING_SECONDS
                log.warning("tokens are verified with the keys read before: %s", error)
            return
        self._warn_time = 0.0
        if keys != self.current:
            self.current = keys
            log.log(logging.INFO if keys else logging.WARNING, "the keys that verify tokens changed: %d", len(keys))


def verifying(settings: Settings) -> Keys:
    """The keys that verify tokens by the settings. Raises KeyFileError."""
    if settings.token_key:
        return Keys(partial(public_keys, settings.token_key), FILE_SECONDS)
    if settings.token_jwks:
        keys = Keys(partial(key_set, settings.token_jwks), KEY_SET_SECONDS if settings.fetches_keys else FILE_SECONDS)
        if not keys.current:
            raise KeyFileError(f"the key set {settings.token_jwks} has no key for us: {_USABLE}")
        return keys
    if not settings.development:
        return Keys(tuple)  # clients are known by their certificates alone
    own = Key(development_key(settings.development_key).public_key())
    return Keys(lambda: (own,))


def algorithm(key: PublicKey | PrivateKey) -> str:
    """The one algorithm that a key signs and verifies by."""
    return "EdDSA" if isinstance(key, Ed25519PublicKey | Ed25519PrivateKey) else "RS256"


def private_key(path: Path) -> PrivateKey:
    """The key in a PEM file, to sign tokens with. Raises KeyFileError."""
    with _content(path, "an unencrypted private key") as content:
        key = load_pem_private_key(content, password=None)
        if not isinstance(key, PrivateKey):
            raise TypeError(type(key))
    return _long_enough(key, str(path))


def public_keys(path: Path) -> tuple[Key, ...]:
    """The keys in a PEM file, to verify tokens with. Raises KeyFileError."""
    with _content(path, f"1 to {_KEYS_PER_FILE} public keys") as content:
        blocks = [match[0] for match in _PEM.finditer(content)]
        if not 0 < len(blocks) <= _KEYS_PER_FILE or len(blocks) < content.count(b"-----BEGIN"):
            raise ValueError(len(blocks))
        loaded = [load_pem_public_key(block) for block in blocks]
        keys = [key for key in loaded if isinstance(key, PublicKey)]
        if len(keys) < len(loaded):
            raise TypeError
    return tuple(Key(_long_enough(key, str(path))) for key in keys)


@contextmanager
def _content(path: Path, kind: str) -> Iterator[bytes]:
    """A file's content, whose reading and parsing fail as KeyFileError."""
    try:
        yield path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"the key {path} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} is not a PEM file of {kind}, Ed25519 or RSA: {_HINT}") from error


def _long_enough(key: AnyKey, where: str) -> AnyKey:
    if isinstance(key, RSAPublicKey | RSAPrivateKey) and key.key_size < _RSA_SIZE_BITS:
        raise KeyFileError(f"{where} has an RSA key of {key.key_size} bits: make one of at least {_RSA_SIZE_BITS} bits")
    return key


def development_key(path: Path) -> Ed25519PrivateKey:
    """The key in a PEM file of the server's own, which is made where missing. Raises KeyFileError."""
    try:
        if not path.exists():
            _make_key(path)
    except OSError as error:
        raise KeyFileError(f"the development key {path} cannot be made ({error.strerror})") from error
    key = private_key(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"the development key {path} is not of Ed25519: remove it, and the server makes another")
    return key


def _make_key(path: Path) -> None:
    # Entered by others, not listed: the embedded PostgreSQL below it may run as another user.
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with tempfile.NamedTemporaryFile(dir=path.parent) as file:  # nobody else may read it
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
        # A link and not a rename: of two servers that start at once, both take the key of the first.
        with suppress(FileExistsError):
            os.link(file.name, path)


# Key sets


def key_set(where: str) -> tuple[Key, ...]:
    """The keys of a JWKS, at a URL or in a file, that verify tokens; those for other uses are passed over.

    Raises KeyFileError.
    """
    content = _fetched(where) if "://" in where else _read(where)
    try:
        found = [_member(member, where) for member in json.loads(content)["keys"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise KeyFileError(f"{where} is not a key set (JWKS): check CUNHO_TOKEN_JWKS") from error
    return tuple(key for key in found if key)


def _member(member: Any, where: str) -> Key | None:
    """The key of a member of a set, None if it is for other uses. Raises KeyFileError."""
    if not isinstance(member, dict):
        raise TypeError(member)
    key_id = member.get("kid")
    if "d" in member:
        raise KeyFileError(f"the key set {where} shows the private key {key_id!r}: anybody could sign with it")
    if not isinstance(member.get("key_ops", []), list):
        _warn_once(f"the key {key_id!r} of the key set {where} is left out: its key_ops are no list")
        return None
    if not isinstance(key_id, str) or not _verifies(member):
        return None
    try:
        read = jwt.PyJWK(member)
    except jwt.PyJWTError:
        return None
    if not isinstance(read.key, PublicKey) or read.algorithm_name != algorithm(read.key):
        return None
    return Key(_long_enough(read.key, f"the key set {where}"), key_id)


@lru_cache
def _warn_once(text: str) -> None:
    """Logs it, though not again at every reading."""
    log.warning("%s", text)


def _verifies(member: dict[str, Any]) -> bool:
    uses = member.get("use", "sig") == "sig" and "verify" in member.get("key_ops", ["verify"])
    return uses and member.get("alg", "EdDSA") in ("EdDSA", "RS256")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise KeyFileError(f"the key set {path} cannot be read ({error.strerror})") from error


def _fetched(url: str) -> bytes:
    """What a URL answers. Raises KeyFileError."""
    try:
        return fetching.fetched(url, _FETCH_SECONDS, _KEY_SET_SIZE_BYTES)
    except fetching.FetchError as error:
        raise KeyFileError(f"the key set {url} cannot be fetched ({error}): check CUNHO_TOKEN_JWKS") from error
