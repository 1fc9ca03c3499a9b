"""Tokens: JWTs, verified with one of the current keys and signed with a private one. Nothing here knows gRPC."""

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import jwt
from jwt.utils import base64url_decode, base64url_encode

from cunho_server.credentials import CallerRole, CredentialsError, Entitlement, entitlement
from cunho_server.keys import Key, Keys, PrivateKey, algorithm
from cunho_server.settings import Settings

_TIMES = ("iat", "exp", "nbf")
_TOKEN_SIZE_BYTES = 8192


class UnknownKeyError(CredentialsError):
    """The token names a key that is not among the current ones: it may be among the next."""


def verified(token: str, keys: Keys, settings: Settings, now: float) -> Entitlement:
    """What a token entitles to. Raises CredentialsError, UnknownKeyError.

    Args:
        now: seconds since the epoch.
    """
    if len(token) > _TOKEN_SIZE_BYTES:
        raise CredentialsError(f"{len(token)} bytes, at most {_TOKEN_SIZE_BYTES} are allowed")
    try:
        claims = _claims(token, keys, settings)
    except (jwt.PyJWTError, RecursionError) as error:
        raise CredentialsError(str(error)) from None
    role, subject = claims[settings.token_role_claim], claims[settings.token_subject_claim]
    return entitlement(role, subject, claims.get(settings.token_acts_for_claim), _expire_time(claims, settings, now))


def _claims(token: str, keys: Keys, settings: Settings) -> dict[str, Any]:
    """The claims of a token with a valid signature. Raises UnknownKeyError, PyJWTError."""
    header = jwt.get_unverified_header(token)
    if "crit" in header:
        raise jwt.InvalidTokenError("has critical extensions")
    candidates = keys.named(header.get("kid"))
    if not candidates:
        raise UnknownKeyError(f"signed with the key {header.get('kid')!r}, which is not known")
    claims = _first_verified(token, candidates, settings)
    decoded = [base64url_decode(part) for part in token.split(".")]
    if token != b".".join(map(base64url_encode, decoded)).decode():
        raise jwt.InvalidTokenError("is another text for the same token")
    for part in decoded[:2]:
        json.loads(part, object_pairs_hook=_no_key_twice)
    return claims


def _first_verified(token: str, candidates: Iterable[Key], settings: Settings) -> dict[str, Any]:
    wrong: jwt.PyJWTError = jwt.InvalidTokenError()
    for key in candidates:
        try:
            return _signed_claims(token, key, settings)
        except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError) as error:
            wrong = error
    raise wrong


def _signed_claims(token: str, key: Key, settings: Settings) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(
        token,
        key.public,
        algorithms=[algorithm(key.public)],
        audience=settings.token_audience,
        issuer=settings.token_issuer,
        # The times are compared in _expire_time: the library knows only its own clock, and takes text for numbers.
        options={
            "require": ["iss", "aud", "iat", "exp", settings.token_subject_claim, settings.token_role_claim],
            "verify_exp": False,
            "verify_iat": False,
            "verify_nbf": False,
        },
    )
    return claims


def _expire_time(claims: dict[str, Any], settings: Settings, now: float) -> int:
    """When the token has expired by any clock that is allowed, whether or not that is past.

    Raises CredentialsError if a time is not allowed.
    """
    if not all(type(claims[name]) is int for name in _TIMES if name in claims):
        raise CredentialsError(f"not all of {', '.join(_TIMES)} are whole numbers")
    issue_time, expire_time = claims["iat"], claims["exp"]
    if max(issue_time, claims.get("nbf", issue_time)) > now + settings.token_skew_seconds:
        raise CredentialsError("issued in the future, or not valid yet: see CUNHO_TOKEN_SKEW_SECONDS")
    if not 0 < expire_time - issue_time <= settings.token_age_max_seconds:
        allowed = f"1 to {settings.token_age_max_seconds} seconds, see CUNHO_TOKEN_AGE_MAX_SECONDS"
        raise CredentialsError(f"the time from iat to exp is not {allowed}")
    return int(expire_time) + settings.token_skew_seconds


def _no_key_twice(pairs: list[tuple[str, Any]]) -> None:
    """Raises InvalidTokenError if two readers of the same JSON object could see different values."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise jwt.InvalidTokenError("a key is there twice")


class Signer:
    """Makes tokens that a server with these settings and the matching public key accepts."""

    def __init__(self, private_key: PrivateKey, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._private_key = private_key
        self._settings = settings
        self._clock = clock

    def token(self, subject: str, role: CallerRole, *, acts_for: Iterable[str] = (), seconds: int) -> str:
        """A token.

        Args:
            subject: the account, or the name of the operator or service.
            acts_for: the accounts that a service may act for, or "*" alone for every account.
            seconds: how long it is valid from now.
        """
        settings, now = self._settings, int(self._clock())
        claims: dict[str, Any] = {
            "iss": settings.token_issuer,
            "aud": settings.token_audience,
            settings.token_subject_claim: subject,
            settings.token_role_claim: role,
            "iat": now,
            "exp": now + seconds,
        }
        if role == "service":
            claims[settings.token_acts_for_claim] = list(acts_for)
        return jwt.encode(claims, self._private_key, algorithm=algorithm(self._private_key))
