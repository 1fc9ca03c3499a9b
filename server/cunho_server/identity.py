"""Who calls, from the signed token that a call carries, and the keys that tokens are signed and verified with.

Nothing here knows gRPC or what a caller may do. Whatever is wrong with a token, its sender gets the same answer; the
cause goes to the log.
"""

import base64
import json
import logging
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from cunho_rules.model import Caller, Role
from cunho_rules.refusals import Reason, Refusal
from cunho_rules.shapes import account_id as account_id_problem

log = logging.getLogger(__name__)

#: Metadata key by which a service names the account that it acts for.
ACTING_KEY = "cunho-account"

TokenRole = Literal["account", "operator", "service"]
ROLES: tuple[TokenRole, ...] = get_args(TokenRole)

_ALGORITHM = "EdDSA"
_CLAIMS = ("iss", "aud", "sub", "iat", "exp", "role")
_TIMES = ("iat", "exp", "nbf")
_TOKEN_SIZE_BYTES = 8192
_CLOCK_SKEW_SECONDS = 60
_TOKENS_KEPT = 10_000
_ID_SHOWN_LENGTH = 60


class KeyFileError(Exception):
    """A file that should hold a key and cannot be used; the message says why and what to do."""


class _Credentials(NamedTuple):
    """What a verified token entitles to."""

    expire_time: int
    actor: str
    #: Who calls if no account is named; None if one must be.
    caller: Caller | None
    #: The accounts that may be named; None for every account.
    acts_for: frozenset[str] | None

    def may_act_for(self, account_id: str | bytes) -> bool:
        """Whether the account may be named."""
        return _is_account_id(account_id) if self.acts_for is None else account_id in self.acts_for


class Identity:
    """Tells from a call's metadata who calls.

    Args:
        public_key: verifies the tokens.
        issuer: what their `iss` must be.
        audience: what their `aud` must be or contain.
        token_age_max_seconds: longest time from `iat` to `exp`.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        public_key: Ed25519PublicKey,
        *,
        issuer: str = "cunho",
        audience: str = "cunho",
        token_age_max_seconds: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._public_key = public_key
        self._issuer = issuer
        self._audience = audience
        self._token_age_max_seconds = token_age_max_seconds
        self._clock = clock
        #: By the whole value of the header, the one used last at the end.
        self._verified: OrderedDict[str | bytes, _Credentials] = OrderedDict()

    def caller(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Who calls. Refuses: CREDENTIALS_MISSING, CREDENTIALS_INVALID, ACTING_NOT_ALLOWED. Source: ALL-1."""
        authorization, account_id = _sent(metadata)
        credentials = self._verified.get(authorization) or self._verify(authorization)
        if credentials.expire_time <= self._clock():
            raise _invalid("expired")
        self._verified.move_to_end(authorization)
        if account_id is None and credentials.caller:
            return credentials.caller
        if account_id is None or not credentials.may_act_for(account_id):
            raise Refusal(Reason.ACTING_NOT_ALLOWED, account_id=str(account_id or "")[:_ID_SHOWN_LENGTH])
        return credentials.caller or Caller(str(account_id), Role.ACCOUNT, credentials.actor)

    def _verify(self, authorization: str | bytes) -> _Credentials:
        """What a token not seen before, or forgotten, entitles to. Refuses: CREDENTIALS_INVALID."""
        try:
            credentials = self._entitlement(self._claims(_bearer(authorization)))
        except jwt.InvalidTokenError as error:
            raise _invalid(str(error)) from None
        self._verified[authorization] = credentials
        if len(self._verified) > _TOKENS_KEPT:
            self._verified.popitem(last=False)
        return credentials

    def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a token with a valid signature. Raises InvalidTokenError."""
        decoded = jwt.decode_complete(
            token,
            self._public_key,
            algorithms=[_ALGORITHM],
            audience=self._audience,
            issuer=self._issuer,
            # The times are compared in _entitlement: the library knows only its own clock, and takes text for numbers.
            options={"require": list(_CLAIMS), "verify_exp": False, "verify_iat": False, "verify_nbf": False},
        )
        if "crit" in decoded["header"]:
            raise jwt.InvalidTokenError("has critical extensions")
        for part in token.split(".")[:2]:
            json.loads(base64.urlsafe_b64decode(f"{part}=="), object_pairs_hook=_no_key_twice)
        claims: dict[str, Any] = decoded["payload"]
        return claims

    def _expire_time(self, claims: dict[str, Any]) -> int:
        """When the token expires, whether or not that is past. Raises InvalidTokenError if a time is not allowed."""
        if not all(type(claims[name]) is int for name in _TIMES if name in claims):
            raise jwt.InvalidTokenError(f"not all of {', '.join(_TIMES)} are whole numbers")
        issue_time, expire_time = claims["iat"], claims["exp"]
        if max(issue_time, claims.get("nbf", issue_time)) > self._clock() + _CLOCK_SKEW_SECONDS:
            raise jwt.InvalidTokenError("issued in the future, or not valid yet")
        if not 0 < expire_time - issue_time <= self._token_age_max_seconds:
            allowed = f"1 to {self._token_age_max_seconds} seconds, see CUNHO_TOKEN_AGE_MAX_SECONDS"
            raise jwt.InvalidTokenError(f"the time from iat to exp is not {allowed}")
        return int(expire_time)

    def _entitlement(self, claims: dict[str, Any]) -> _Credentials:
        """What the claims entitle to. Raises InvalidTokenError."""
        subject, expire_time = claims["sub"], self._expire_time(claims)
        if problem := account_id_problem(subject):
            raise jwt.InvalidTokenError(f"sub {problem}")
        match claims:
            case {"role": "account"}:
                caller = Caller(subject, Role.ACCOUNT, subject)
                return _Credentials(expire_time, subject, caller, frozenset({subject}))
            case {"role": "operator"}:
                return _Credentials(expire_time, subject, Caller("", Role.OPERATOR, subject), frozenset())
            case {"role": "service", "acts_for": ["*"]}:
                return _Credentials(expire_time, f"service:{subject}", None, None)
            case {"role": "service", "acts_for": [*ids]} if all(_is_account_id(each) for each in ids):
                return _Credentials(expire_time, f"service:{subject}", None, frozenset(ids))
            case {"role": "service"}:
                raise jwt.InvalidTokenError('acts_for is neither a list of account ids nor ["*"]')
        raise jwt.InvalidTokenError(f"role is none of {', '.join(ROLES)}")


def _invalid(cause: str) -> Refusal:
    log.info("credentials refused: %.200r", cause)  # in quotes: a cause may hold what the sender wrote
    return Refusal(Reason.CREDENTIALS_INVALID)


def _sent(metadata: Iterable[tuple[str, str | bytes]]) -> tuple[str | bytes, str | bytes | None]:
    """The authorization header and the account named. Refuses: CREDENTIALS_MISSING, CREDENTIALS_INVALID."""
    authorization = account_id = None
    for key, value in metadata:
        if key == "authorization":
            if authorization is not None:
                raise _invalid("two authorization headers")
            authorization = value
        elif key == ACTING_KEY:
            # Two accounts are none: what they make together is no id.
            account_id = value if account_id is None else f"{account_id!s},{value!s}"
    if authorization is None:
        raise Refusal(Reason.CREDENTIALS_MISSING)
    return authorization, account_id


def _bearer(authorization: str | bytes) -> str:
    """The token of an authorization header. Raises InvalidTokenError."""
    if not isinstance(authorization, str) or not authorization.isascii():
        raise jwt.InvalidTokenError("the header is not ASCII text")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise jwt.InvalidTokenError("the header is not of the form: Bearer TOKEN")
    if len(token) > _TOKEN_SIZE_BYTES:
        raise jwt.InvalidTokenError(f"{len(token)} bytes, at most {_TOKEN_SIZE_BYTES} are allowed")
    return token


def _no_key_twice(pairs: list[tuple[str, Any]]) -> None:
    """Raises InvalidTokenError if two readers of the same JSON object could see different values."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise jwt.InvalidTokenError("a key is there twice")


def _is_account_id(value: object) -> bool:
    return isinstance(value, str) and account_id_problem(value) is None


class Signer:
    """Makes tokens that an Identity with the matching public key accepts."""

    def __init__(
        self,
        private_key: Ed25519PrivateKey,
        *,
        issuer: str = "cunho",
        audience: str = "cunho",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._private_key = private_key
        self._claims = {"iss": issuer, "aud": audience}
        self._clock = clock

    def token(
        self,
        subject: str,
        role: TokenRole,
        *,
        acts_for: Iterable[str] = (),
        seconds: int,
    ) -> str:
        """A token.

        Args:
            subject: the account, or the name of the operator or service.
            acts_for: the accounts that a service may act for, or "*" alone for every account.
            seconds: how long it is valid from now.
        """
        now = int(self._clock())
        claims = self._claims | {"sub": subject, "role": role, "iat": now, "exp": now + seconds}
        if role == "service":
            claims |= {"acts_for": list(acts_for)}
        return jwt.encode(claims, self._private_key, algorithm=_ALGORITHM)


def public_key(path: Path) -> Ed25519PublicKey:
    """The key in a PEM file, to verify tokens with. Raises KeyFileError."""
    with _pem(path, "a public") as pem:
        key = load_pem_public_key(pem)
        if not isinstance(key, Ed25519PublicKey):
            raise TypeError(type(key))
        return key


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key in a PEM file, to sign tokens with. Raises KeyFileError."""
    with _pem(path, "an unencrypted private") as pem:
        key = load_pem_private_key(pem, password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise TypeError(type(key))
        return key


@contextmanager
def _pem(path: Path, kind: str) -> Iterator[bytes]:
    """A file's content, whose reading and parsing fail as KeyFileError."""
    try:
        yield path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"the key {path} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(
            f"{path} is not the PEM file of {kind} Ed25519 key: `openssl genpkey -algorithm ed25519` makes a private "
            "key, `openssl pkey -pubout` its public one"
        ) from error


def development_key(path: Path) -> Ed25519PrivateKey:
    """The key in a PEM file of the server's own, which is made where missing. Raises KeyFileError."""
    try:
        if not path.exists():
            _make_key(path)
    except OSError as error:
        raise KeyFileError(f"the development key {path} cannot be made ({error.strerror})") from error
    return private_key(path)


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
