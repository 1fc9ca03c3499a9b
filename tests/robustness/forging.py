"""Authorization headers that entitle to nothing, each one step from a right one. Knows tokens, but no server."""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.server.issuers import key_set, member, public_pem, rsa_key, signed
from tests.server.test_identity import CLAIMS, KEY, NOW, OTHER_KEY, WRONG_CLAIMS, encoded, forged

#: A second key that is trusted, of another algorithm.
RSA = rsa_key()

#: What servers here trust: each key by its own id.
KEY_SET = key_set(member(KEY, "a"), member(RSA, "r"))

_HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}


def right(now: int, **claims: Any) -> str:
    """A token that is accepted."""
    return forged(json.dumps(_header()), json.dumps(current(CLAIMS, now) | claims))


def current(claims: Mapping[str, Any], now: int) -> dict[str, Any]:
    """Claims about NOW as they are now."""
    return {
        name: value + now - NOW if name in ("iat", "exp", "nbf") and type(value) is int else value
        for name, value in claims.items()
    }


def forgeries(now: int) -> dict[str, str]:
    """Tokens that must be refused, by what is wrong with each."""
    claims = current(CLAIMS, now)
    return {
        **{name: _token(claims=current(WRONG_CLAIMS[name][0], now)) for name in WRONG_CLAIMS.keys() - _SOON_RIGHT},
        **{f"claims {more}": _token(claims=claims | more) for more in _more_wrong_claims(now)},
        **_unsigned(claims),
        **_signed_with_what_is_public(claims),
        **_signed_with_another_key(claims),
        **_with_header(claims),
        **_of_another_form(claims),
    }


#: Of a clock that stands: a second later these are right.
_SOON_RIGHT = {"issued in the future", "not valid yet"}


def _header(**more: Any) -> dict[str, Any]:
    return {"alg": "EdDSA", "typ": "JWT", "kid": "a"} | more


def _token(header: Mapping[str, Any] = _header(), *, claims: Mapping[str, Any], key: Any = KEY) -> str:
    return forged(json.dumps(header), json.dumps(claims), key)


def _more_wrong_claims(now: int) -> list[dict[str, Any]]:
    return [
        {"exp": 10**400},
        {"exp": -1},
        {"exp": [now + 60]},
        {"iat": -(10**30), "exp": now + 60},
        {"iat": now + 3600, "exp": now + 3660},
        {"nbf": now + 3600},
        {"aud": []},
        {"aud": ["cunho ", "CUNHO"]},
        {"aud": {"cunho": "cunho"}},
        {"aud": None},
        {"iss": "cunho\0"},
        {"iss": "https://cunho"},
        {"sub": None},
        {"sub": ["acme"]},
        {"sub": {"account": "acme"}},
        {"sub": "acme\r\nrole: operator"},
        {"sub": "acme "},
        {"sub": "acme\u200b"},
        {"sub": "*"},
        {"role": "admin"},
        {"role": "operator "},
        {"role": "account,operator"},
        {"role": None},
        {"role": True},
        {"role": {"operator": True}},
        {"role": "service", "acts_for": {"acme": True}},
        {"role": "service", "acts_for": [["acme"]]},
        {"role": "service", "acts_for": [None]},
        {"role": "service", "acts_for": "*"},
        {"role": "service", "acts_for": ["*", "*"]},
    ]


def _unsigned(claims: dict[str, Any]) -> dict[str, str]:
    """With no algorithm in every spelling, and with each signature that there could be for it."""
    made: dict[str, str] = {}
    for alg in ("none", "None", "NONE", "nOnE", "none ", "", None, 0, False, [], ["none"], {"none": 1}):
        token = _token(_header(alg=alg), claims=claims)
        unsigned = token.rpartition(".")[0]
        made |= {f"alg {alg!r}, {what}": each for what, each in (("signed", token), ("unsigned", f"{unsigned}."))}
        made[f"alg {alg!r}, two parts"] = unsigned
    bare = _header()
    del bare["alg"]
    return made | {"no alg": _token(bare, claims=claims)}


def _signed_with_what_is_public(claims: dict[str, Any]) -> dict[str, str]:
    """With the public key as a secret, in every form that a verifier could have it in."""
    form = PublicFormat.SubjectPublicKeyInfo
    secrets = {
        "PEM": public_pem(KEY),
        "PEM without its last line end": public_pem(KEY).rstrip(),
        "DER": KEY.public_key().public_bytes(Encoding.DER, form),
        "raw": KEY.public_key().public_bytes_raw(),
        "JWK": json.dumps(member(KEY, "a")).encode(),
        "x of the JWK": member(KEY, "a")["x"].encode(),
        "PEM of RSA": public_pem(RSA),
        "key set": KEY_SET,
        "nothing": b"",
        "key id": b"a",
    }
    return {
        f"{alg} with the {what} of the key, kid {kid}": _hmac_token(_header(alg=alg, kid=kid), claims, secret)
        for what, secret in secrets.items()
        for alg in _HASHES
        for kid in ("a", "r")
    }


def _hmac_token(header: Mapping[str, Any], claims: Mapping[str, Any], secret: bytes) -> str:
    told = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims).encode())}"
    return f"{told}.{encoded(hmac.digest(secret, told.encode(), _HASHES[header['alg']]))}"


def _signed_with_another_key(claims: dict[str, Any]) -> dict[str, str]:
    strange_rsa = rsa_key()
    return {
        "another key, the same kid": _token(claims=claims, key=OTHER_KEY),
        "another RSA key, the same kid": signed(strange_rsa, claims, "r"),
        "a trusted key, the kid of the other": signed(RSA, claims, "a"),
        "a trusted key, the kid of the other too": signed(KEY, claims, "r"),
        "a trusted key, alg of the other": _token(_header(alg="RS256"), claims=claims),
        "a trusted key, alg and kid of the other": _token(_header(alg="RS256", kid="r"), claims=claims),
        "a trusted key by another algorithm": jwt.encode(dict(claims), RSA, "PS256", {"kid": "r"}),
        "a trusted key by a longer hash": jwt.encode(dict(claims), RSA, "RS512", {"kid": "r"}),
        "no signature": _token(claims=claims).rpartition(".")[0] + ".",
        "a signature of zeroes": f"{_token(claims=claims).rpartition('.')[0]}.{encoded(bytes(64))}",
        "the signature of another token": _token(claims=claims | {"sub": "evil"}).rpartition(".")[0]
        + "."
        + _token(claims=claims).rpartition(".")[2],
    }


def _with_header(claims: dict[str, Any]) -> dict[str, str]:
    """With headers that name the key, or where it is, as the sender wishes."""
    own = member(OTHER_KEY, "a")
    kids = (
        "../../../../dev/null",
        "/dev/null",
        "a\0",
        "a' OR '1'='1",
        "A",
        " a",
        "",
        None,
        7,
        ["a"],
        {"a": 1},
        "a" * 4000,
    )
    headers: dict[str, dict[str, Any]] = {
        "jwk": {"jwk": own},
        "jku": {"jku": JKU},
        "x5u": {"x5u": JKU},
        "x5c": {"x5c": [base64.b64encode(public_pem(OTHER_KEY)).decode()]},
        "jku and an unknown kid": {"jku": JKU, "kid": "mine"},
    }
    bare = _header()
    del bare["kid"]
    return {
        **{f"header {name}": _token(_header(**more), claims=claims, key=OTHER_KEY) for name, more in headers.items()},
        **{f"kid {str(kid)[:20]!r}, own key": _token(_header(kid=kid), claims=claims, key=OTHER_KEY) for kid in kids},
        **{f"kid {str(kid)[:20]!r}": _token(_header(kid=kid), claims=claims) for kid in kids},
        **{f"crit {crit}": _token(_header(crit=crit), claims=claims) for crit in ([], ["exp"], ["x"], "exp", None)},
        "claims apart": _token(_header(b64=False, crit=["b64"]), claims=claims),
        "no kid": _token(bare, claims=claims),
    }


#: Where a key of the sender's could be fetched, if anybody did; the port of no service.
JKU = "http://127.0.0.1:9/jwks.json"


def _of_another_form(claims: dict[str, Any]) -> dict[str, str]:
    header, told, token = json.dumps(_header()), json.dumps(claims), _token(claims=claims)
    parts = token.split(".")
    return {
        "header with a key twice": forged(header[:-1] + ', "kid": "a"}', told),
        "claims with a key twice": forged(header, told[:-1] + ', "role": "operator"}'),
        "claims with a key twice inside": forged(header, told[:-1] + ', "x": {"a": 1, "a": 2}}'),
        "claims that end too soon": forged(header, told[:-1]),
        "claims nested deep": forged(header, '{"x":' + "[" * 3000),
        "header that is text": forged('"EdDSA"', told),
        "header nested deep": forged("[" * 4000, told),
        "longer than 8 KiB": _token(claims=claims | {"more": "x" * 8192}),
        "five parts": f"{token}.x.y",
        "as JSON": json.dumps(dict(zip(("protected", "payload", "signature"), parts, strict=True))),
        "padded": f"{token}=",
        "padded twice": f"{token}==",
        "of the other alphabet": token.replace("-", "+").replace("_", "/") + "+",
        "followed by a comma": f"{token},",
        "twice": f"{token} {token}",
        "after two blanks": f" {token}",
        "nothing": "",
    }
