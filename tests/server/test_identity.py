"""Only a token that is whole, current and signed with the right key tells who calls; every other gets one answer."""

import base64
import hashlib
import hmac
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cunho_rules.model import Caller, Role
from cunho_rules.refusals import Reason, Refusal
from cunho_server import identity, ids
from cunho_server.credentials import CallerRole
from cunho_server.identity import Identity
from cunho_server.keys import Key, Keys
from cunho_server.settings import Settings
from cunho_server.tokens import Signer

NOW = 1_800_000_000
AGE = 900
KEY = Ed25519PrivateKey.generate()
OTHER_KEY = Ed25519PrivateKey.generate()
PUBLIC_PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
HEADER = {"alg": "EdDSA", "typ": "JWT"}
CLAIMS = {"iss": "cunho", "aud": "cunho", "sub": "acme", "role": "account", "iat": NOW, "exp": NOW + AGE}
SERVICE = CLAIMS | {"sub": "deployer", "role": "service"}


class Clock:
    """Stands until it is set."""

    def __init__(self) -> None:
        self.now: float = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(clock: Clock) -> Identity:
    return identity_with(clock)


def identity_with(clock: Clock, **chosen: Any) -> Identity:
    """An identity with one key and these settings."""
    return Identity(Keys(lambda: (Key(KEY.public_key()),)), settings_with(**chosen), clock)


def settings_with(**chosen: Any) -> Settings:
    return Settings.model_validate({"token_age_max_seconds": AGE} | chosen)


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def forged(header: str, claims: str, key: Ed25519PrivateKey = KEY) -> str:
    """A token with any text as its header and claims."""
    signed = f"{encoded(header.encode())}.{encoded(claims.encode())}"
    return f"{signed}.{encoded(key.sign(signed.encode()))}"


def token(claims: Mapping[str, Any], *, key: Ed25519PrivateKey = KEY, **header: object) -> str:
    return forged(json.dumps(HEADER | header), json.dumps(claims), key)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CLAIMS.items() if key != name}


def hs256(secret: bytes) -> str:
    """A token signed with a secret, which a verifier that follows the header's algorithm would accept."""
    signed = f"{encoded(json.dumps(HEADER | {'alg': 'HS256'}).encode())}.{encoded(json.dumps(CLAIMS).encode())}"
    return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


def call(bearer: str, *more: tuple[str, str]) -> list[tuple[str, str | bytes]]:
    """The metadata of a call."""
    return [("user-agent", "test"), ("authorization", f"Bearer {bearer}"), *more]


def acting(account_id: str) -> tuple[str, str]:
    return ("cunho-account", account_id)


def refusal(known: Identity, metadata: list[tuple[str, str | bytes]]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        known.caller(metadata)
    return caught.value


def everything_told(refusal: Refusal) -> bytes:
    told = (refusal.reason, refusal.code, refusal.rule, str(refusal), refusal.remedy, dict(refusal.metadata))
    return repr((told, refusal.violations, refusal.retry, refusal.__cause__)).encode()


def test_an_account_calls_for_itself(known: Identity) -> None:
    assert known.caller(call(token(CLAIMS))) == Caller("acme", Role.ACCOUNT, "acme")


def test_an_operator_calls_for_no_account(known: Identity) -> None:
    assert known.caller(call(token(CLAIMS | {"role": "operator"}))) == Caller("", Role.OPERATOR, "acme")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_be_in_any_case(known: Identity, scheme: str) -> None:
    assert known.caller([("authorization", f"{scheme} {token(CLAIMS)}")]).account_id == "acme"


def test_a_token_may_be_for_several_services(known: Identity) -> None:
    assert known.caller(call(token(CLAIMS | {"aud": ["billing", "cunho"]}))).account_id == "acme"


@pytest.mark.parametrize("early_seconds", [60, 0, -AGE, -AGE - 59])
def test_clocks_may_differ_by_a_minute(known: Identity, early_seconds: int) -> None:
    times = {"iat": NOW + early_seconds, "nbf": NOW + early_seconds, "exp": NOW + early_seconds + AGE}
    assert known.caller(call(token(CLAIMS | times))).account_id == "acme"


def test_a_call_without_credentials_is_told_so(known: Identity) -> None:
    assert refusal(known, [("user-agent", "test")]).reason is Reason.CREDENTIALS_MISSING


WRONG_CLAIMS: dict[str, tuple[Mapping[str, object], str]] = {
    **{f"no {name}": (without(name), name) for name in CLAIMS},
    "wrong issuer": (CLAIMS | {"iss": "other"}, "issuer"),
    "issuers as a list": (CLAIMS | {"iss": ["cunho"]}, "Issuer"),
    "wrong audience": (CLAIMS | {"aud": "other"}, "Audience"),
    "audience that is a number": (CLAIMS | {"aud": 1}, "Invalid claim format"),
    "audiences that are numbers": (CLAIMS | {"aud": [1, "cunho"]}, "Invalid claim format"),
    "expired": (CLAIMS | {"iat": NOW - 60 - AGE, "exp": NOW - 60}, "expired"),
    "expires before it was issued": (CLAIMS | {"iat": NOW + 50, "exp": NOW + 40}, "from iat to exp"),
    "expires too late": (CLAIMS | {"exp": NOW + AGE + 1}, "CUNHO_TOKEN_AGE_MAX_SECONDS"),
    "expires too late, issued long ago": (CLAIMS | {"iat": NOW - AGE, "exp": NOW + 1}, "from iat to exp"),
    "issued in the future": (CLAIMS | {"iat": NOW + 61, "exp": NOW + 62}, "in the future"),
    "not valid yet": (CLAIMS | {"nbf": NOW + 61}, "not valid yet"),
    "expiry that is text": (CLAIMS | {"exp": str(NOW + AGE)}, "whole numbers"),
    "expiry with a fraction": (CLAIMS | {"exp": NOW + 0.5}, "whole numbers"),
    "expiry at infinity": (CLAIMS | {"exp": float("inf")}, "whole numbers"),
    "expiry that is no number": (CLAIMS | {"exp": float("nan")}, "whole numbers"),
    "issued at true": (CLAIMS | {"iat": True}, "whole numbers"),
    "valid from null": (CLAIMS | {"nbf": None}, "whole numbers"),
    "subject that is a number": (CLAIMS | {"sub": 7}, "Subject must be a string"),
    "empty subject": (CLAIMS | {"sub": ""}, "subject must not be empty"),
    "subject in upper case": (CLAIMS | {"sub": "Acme"}, "subject must be"),
    "subject with a control character": (CLAIMS | {"sub": "acme\x00"}, "subject must be"),
    "subject with a line end": (CLAIMS | {"sub": "acme\n"}, "subject must be"),
    "subject with another alphabet": (CLAIMS | {"sub": "аcme"}, "subject must be"),  # noqa: RUF001
    "subject with half a character": (CLAIMS | {"sub": "acme\ud800"}, "subject must be"),
    "long subject": (CLAIMS | {"sub": "a" * 61}, "subject must be"),
    "subject that poses as a service": (CLAIMS | {"sub": "service:deployer"}, "subject must be"),
    "unknown role": (CLAIMS | {"role": "root"}, "the role is none of account, operator, service"),
    "role in upper case": (CLAIMS | {"role": "OPERATOR"}, "the role is none of"),
    "roles as a list": (CLAIMS | {"role": ["operator"]}, "the role is none of"),
    "service without accounts": (SERVICE, "acts for is neither"),
    "service with an account as text": (SERVICE | {"acts_for": "acme"}, "acts for is neither"),
    "service with an account by number": (SERVICE | {"acts_for": ["acme", 7]}, "acts for is neither"),
    "service with a malformed account": (SERVICE | {"acts_for": ["Acme"]}, "acts for is neither"),
    "service with everything and more": (SERVICE | {"acts_for": ["*", "acme"]}, "acts for is neither"),
}


WRONG_TOKENS = {
    **{name: (token(claims), cause) for name, (claims, cause) in WRONG_CLAIMS.items()},
    "nothing": ("", "Not enough segments"),
    "no token": ("token", "Not enough segments"),
    "two parts": (token(CLAIMS).rpartition(".")[0], "Invalid|Not enough"),
    "four parts": (f"{token(CLAIMS)}.x", "Invalid"),
    "white space": (f" {token(CLAIMS)}", "Invalid header padding"),
    "not ASCII": (f"{token(CLAIMS)}é", "not ASCII"),
    "another key": (token(CLAIMS, key=OTHER_KEY), "Signature verification failed"),
    "other claims under the signature": (
        f"{token(CLAIMS).split('.')[0]}.{token(CLAIMS | {'sub': 'evil'}).split('.')[1]}.{token(CLAIMS).split('.')[2]}",
        "Signature verification failed",
    ),
    "no signature": (f"{token(CLAIMS).rpartition('.')[0]}.", "Signature verification failed"),
    "algorithm none": (jwt.encode(dict(CLAIMS), "", algorithm="none"), "alg value is not allowed"),
    "algorithm none over a valid signature": (token(CLAIMS, alg="none"), "alg value is not allowed"),
    "the public key as a secret": (hs256(PUBLIC_PEM), "alg value is not allowed"),
    "the raw public key as a secret": (hs256(KEY.public_key().public_bytes_raw()), "alg value is not allowed"),
    "algorithm as a list": (token(CLAIMS, alg=["EdDSA"]), "alg value is not allowed"),
    "a key of its own": (token(CLAIMS, key=OTHER_KEY, jwk={"kty": "OKP"}), "Signature verification failed"),
    "unknown critical extension": (token(CLAIMS, crit=["exp"]), "critical extension"),
    "known critical extension": (token(CLAIMS, crit=["b64"], b64=True), "critical extensions"),
    "claims outside of the token": (token(CLAIMS, crit=["b64"], b64=False), "Payload segment must be empty"),
    "header with a key twice": (
        forged('{"alg": "EdDSA", "typ": "JWT", "typ": "JWT"}', json.dumps(CLAIMS)),
        "a key is there twice",
    ),
    "claims with a key twice": (
        forged(json.dumps(HEADER), json.dumps(CLAIMS)[:-1] + ', "sub": "evil"}'),
        "a key is there twice",
    ),
    "claims with a key twice inside": (
        forged(json.dumps(HEADER), json.dumps(CLAIMS)[:-1] + ', "more": [{"a": 1, "a": 2}]}'),
        "a key is there twice",
    ),
    "claims that are a list": (forged(json.dumps(HEADER), "[]"), "must be a json object"),
    "claims that are no JSON": (forged(json.dumps(HEADER), "{"), "Invalid payload string"),
    "header that is a list": (forged("[]", json.dumps(CLAIMS)), "must be a json object"),
    "header nested deep": (forged("[" * 4000, json.dumps(CLAIMS)), "Invalid header string"),
    "padded": (f"{token(CLAIMS)}==", "another text for the same token"),
    "bits that stand for nothing": (token(CLAIMS)[:-1] + chr(ord(token(CLAIMS)[-1]) + 1), "Invalid crypto padding"),
    "another character in the signature": (f"{token(CLAIMS)[:-4]}!!!!{token(CLAIMS)[-4:]}", "Invalid crypto padding"),
    "too long": (token(CLAIMS | {"more": "x" * 8192}), "at most 8192 are allowed"),
}


@pytest.mark.parametrize(("bearer", "cause"), WRONG_TOKENS.values(), ids=WRONG_TOKENS)
def test_a_wrong_token_gets_the_one_answer_and_its_cause_goes_to_the_log(
    known: Identity, caplog: pytest.LogCaptureFixture, bearer: str, cause: str
) -> None:
    caplog.set_level(logging.INFO)
    wrong = refusal(known, call(bearer))
    assert everything_told(wrong) == everything_told(Refusal(Reason.CREDENTIALS_INVALID))
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert re.search(cause, record.getMessage())


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "")],
        [("authorization", f"Basic {token(CLAIMS)}")],
        [("authorization", token(CLAIMS))],
        [("authorization", f"Bearer {token(CLAIMS)}".encode())],
        [*call(token(CLAIMS)), *call(token(CLAIMS))],
        [*call(token(CLAIMS)), *call(token(CLAIMS | {"sub": "evil"}))],
    ],
    ids=["empty", "another scheme", "no scheme", "bytes", "twice", "two"],
)
def test_a_wrong_header_gets_the_same_answer(known: Identity, metadata: list[tuple[str, str | bytes]]) -> None:
    known.caller(call(token(CLAIMS)))  # a token that is known does not change the answer
    wrong = refusal(known, metadata)
    assert everything_told(wrong) == everything_told(Refusal(Reason.CREDENTIALS_INVALID))


def test_a_token_cannot_write_lines_into_the_log(known: Identity, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refusal(known, call(token(CLAIMS, crit=["x\nall is well" + "x" * 1000])))
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 300


def test_a_token_of_the_longest_size_is_accepted(known: Identity) -> None:
    room = 8192 - len(token(CLAIMS | {"more": ""}))
    longest = token(CLAIMS | {"more": "x" * (room * 3 // 4 - 2)})
    assert 8180 < len(longest) <= 8192
    assert known.caller(call(longest)).account_id == "acme"


def test_a_token_is_verified_once(known: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    first = known.caller(call(token(CLAIMS)))
    monkeypatch.delattr(jwt, "decode")
    assert known.caller(call(token(CLAIMS))) == first


def test_a_verified_token_expires_to_the_second(known: Identity, clock: Clock) -> None:
    known.caller(call(token(CLAIMS)))
    clock.now = NOW + AGE + 59.999
    known.caller(call(token(CLAIMS)))
    clock.now = NOW + AGE + 60
    wrong = refusal(known, call(token(CLAIMS)))
    assert everything_told(wrong) == everything_told(Refusal(Reason.CREDENTIALS_INVALID))


def test_the_token_used_longest_ago_is_forgotten_first(known: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_TOKENS_KEPT", 2)
    first, second, third = (token(CLAIMS | {"sub": name}) for name in ("first", "second", "third"))
    for bearer in (first, second, first, third):
        known.caller(call(bearer))
    monkeypatch.delattr(jwt, "decode")
    assert {known.caller(call(bearer)).account_id for bearer in (first, third)} == {"first", "third"}
    with pytest.raises(AttributeError, match="decode"):
        known.caller(call(second))


def test_a_refused_token_is_not_remembered(known: Identity, clock: Clock) -> None:
    early = token(CLAIMS | {"iat": NOW + 100, "exp": NOW + 200})
    refusal(known, call(early))
    clock.now = NOW + 100
    assert known.caller(call(early)).account_id == "acme"


@pytest.mark.parametrize("allowed", [["acme"], ["acme", "globex"], ["*"]])
def test_a_service_acts_for_an_account_that_it_may_act_for(known: Identity, allowed: list[str]) -> None:
    metadata = call(token(SERVICE | {"acts_for": allowed}), acting("acme"))
    expected = Caller("acme", Role.ACCOUNT, "service:deployer")
    assert [known.caller(metadata), known.caller(metadata)] == [expected, expected]


def test_one_token_of_a_service_acts_for_one_account_after_another(known: Identity) -> None:
    bearer = token(SERVICE | {"acts_for": ["*"]})
    named = ["acme", "globex", "acme"]
    assert [known.caller(call(bearer, acting(name))).account_id for name in named] == named


@pytest.mark.parametrize("allowed", [["acme"], ["*"], []])
@pytest.mark.parametrize("named", ["", "*", "Acme", "acme\n", "acme,acme", " acme", "a" * 61, "аcme"])  # noqa: RUF001
def test_a_service_cannot_act_for_a_malformed_account(known: Identity, allowed: list[str], named: str) -> None:
    wrong = refusal(known, call(token(SERVICE | {"acts_for": allowed}), acting(named)))
    assert wrong.reason is Reason.ACTING_NOT_ALLOWED
    assert wrong.metadata == {"account_id": named[:60]}


@pytest.mark.parametrize("allowed", [["acme"], ["*"], []])
def test_a_service_must_name_an_account(known: Identity, allowed: list[str]) -> None:
    wrong = refusal(known, call(token(SERVICE | {"acts_for": allowed})))
    assert wrong.reason is Reason.ACTING_NOT_ALLOWED


@pytest.mark.parametrize("allowed", [["acme"], []])
def test_a_service_cannot_act_for_other_accounts(known: Identity, allowed: list[str]) -> None:
    wrong = refusal(known, call(token(SERVICE | {"acts_for": allowed}), acting("globex")))
    assert (wrong.reason, wrong.metadata["account_id"]) == (Reason.ACTING_NOT_ALLOWED, "globex")


@pytest.mark.parametrize("allowed", [["acme", "globex"], ["*"]])
def test_a_service_cannot_name_two_accounts(known: Identity, allowed: list[str]) -> None:
    bearer = token(SERVICE | {"acts_for": allowed})
    assert refusal(known, call(bearer, acting("acme"), acting("globex"))).reason is Reason.ACTING_NOT_ALLOWED


def test_bytes_are_no_account(known: Identity) -> None:
    metadata = [*call(token(SERVICE | {"acts_for": ["*"]})), ("cunho-account", b"acme")]
    assert refusal(known, metadata).reason is Reason.ACTING_NOT_ALLOWED


def test_an_account_may_name_itself(known: Identity) -> None:
    assert known.caller(call(token(CLAIMS), acting("acme"))) == Caller("acme", Role.ACCOUNT, "acme")


@pytest.mark.parametrize("role", ["account", "operator"])
def test_only_services_act_for_others(known: Identity, role: str) -> None:
    metadata = call(token(CLAIMS | {"role": role, "acts_for": ["globex"]}), acting("globex"))
    assert refusal(known, metadata).reason is Reason.ACTING_NOT_ALLOWED


def test_an_operator_cannot_name_an_account(known: Identity) -> None:
    metadata = call(token(CLAIMS | {"role": "operator"}), acting("acme"))
    assert refusal(known, metadata).reason is Reason.ACTING_NOT_ALLOWED


def test_a_wrong_token_is_refused_before_the_account_it_names(known: Identity) -> None:
    metadata = call(token(CLAIMS, key=OTHER_KEY), acting("globex"))
    assert refusal(known, metadata).reason is Reason.CREDENTIALS_INVALID


@pytest.mark.parametrize(
    ("role", "caller"),
    [
        ("account", Caller("acme", Role.ACCOUNT, "acme")),
        ("operator", Caller("", Role.OPERATOR, "acme")),
        ("service", Caller("globex", Role.ACCOUNT, "service:acme")),
    ],
)
def test_what_is_signed_is_accepted(known: Identity, clock: Clock, role: CallerRole, caller: Caller) -> None:
    bearer = Signer(KEY, settings_with(), clock).token("acme", role, acts_for=["globex"], seconds=AGE)
    named = [acting("globex")] if role == "service" else []
    assert known.caller(call(bearer, *named)) == caller


def test_a_token_of_another_issuer_is_refused(known: Identity, clock: Clock) -> None:
    bearer = Signer(KEY, settings_with(token_issuer="other"), clock).token("acme", "account", seconds=AGE)
    assert refusal(known, call(bearer)).reason is Reason.CREDENTIALS_INVALID


@pytest.mark.parametrize(
    ("chosen", "claims"),
    [
        ({"token_issuer": "https://sso.example.org"}, CLAIMS | {"iss": "https://sso.example.org"}),
        ({"token_audience": "images"}, CLAIMS | {"aud": "images"}),
        ({"token_skew_seconds": 300}, CLAIMS | {"iat": NOW + 300, "exp": NOW + 600}),
        ({"token_age_max_seconds": AGE + 1}, CLAIMS | {"exp": NOW + AGE + 1}),
        ({"token_subject_claim": "account"}, CLAIMS | {"account": "acme", "sub": "8c1f Jane Doe"}),
        ({"token_role_claim": "https://example.org/kind"}, without("role") | {"https://example.org/kind": "account"}),
    ],
    ids=lambda each: next(iter(each)),
)
def test_the_settings_say_what_tokens_are_like(
    known: Identity, clock: Clock, chosen: dict[str, Any], claims: dict[str, Any]
) -> None:
    bearer = token(claims)
    assert identity_with(clock, **chosen).caller(call(bearer)) == Caller("acme", Role.ACCOUNT, "acme")
    assert refusal(known, call(bearer)).reason is Reason.CREDENTIALS_INVALID


@pytest.mark.parametrize("chosen", ["token_issuer", "token_audience", "token_subject_claim", "token_role_claim"])
def test_with_other_settings_the_usual_tokens_are_refused(clock: Clock, chosen: str) -> None:
    wrong = refusal(identity_with(clock, **{chosen: "other"}), call(token(CLAIMS)))
    assert wrong.reason is Reason.CREDENTIALS_INVALID


def test_without_skew_a_token_of_the_next_second_is_refused_and_an_expired_one(clock: Clock) -> None:
    exact = identity_with(clock, token_skew_seconds=0)
    assert refusal(exact, call(token(CLAIMS | {"iat": NOW - AGE, "exp": NOW}))).reason is Reason.CREDENTIALS_INVALID
    assert refusal(exact, call(token(CLAIMS | {"iat": NOW + 1}))).reason is Reason.CREDENTIALS_INVALID
    assert exact.caller(call(token(CLAIMS))).account_id == "acme"


def test_the_accounts_of_a_service_are_read_from_the_claim_of_the_settings(clock: Clock) -> None:
    known = identity_with(clock, token_acts_for_claim="https://example.org/accounts")
    bearer = token(SERVICE | {"https://example.org/accounts": ["acme"], "acts_for": ["*"]})
    assert known.caller(call(bearer, acting("acme"))).account_id == "acme"
    assert refusal(known, call(bearer, acting("globex"))).reason is Reason.ACTING_NOT_ALLOWED


def test_what_is_signed_with_the_settings_is_accepted_with_them(clock: Clock) -> None:
    chosen = {
        "token_issuer": "https://sso.example.org",
        "token_audience": "images",
        "token_subject_claim": "name",
        "token_role_claim": "kind",
        "token_acts_for_claim": "accounts",
    }
    bearer = Signer(KEY, settings_with(**chosen), clock).token("deployer", "service", acts_for=["acme"], seconds=AGE)
    assert identity_with(clock, **chosen).caller(call(bearer, acting("acme"))).actor == "service:deployer"


def test_ids_have_their_form_and_differ() -> None:
    made = {ids.new("img") for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch("img-[0-9a-z]{8}", each) for each in made)
    assert {each[position] for each in made for position in range(4, 12)} == {*"0123456789abcdefghijklmnopqrstuvwxyz"}
