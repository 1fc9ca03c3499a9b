"""Nobody gets in with credentials that were made up, and no page token serves any but the list and the caller it is of.

All of it goes over the wire. What each check refuses, tests/server/test_identity.py, test_keys.py and
test_page_tokens.py say one by one.
"""

import string
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import pytest
from grpc import StatusCode
from tests import world as worlds
from tests.end_to_end.requests_of import BY_NAME, Answer, Rpc, call, valid
from tests.end_to_end.steps import until
from tests.robustness.forging import KEY_SET, RSA, current, forgeries, right
from tests.server.issuers import signed
from tests.server.test_identity import CLAIMS
from tests.server.test_page_tokens import LISTS, Lists, every_list, lists  # noqa: F401  # pytest looks for it here
from tests.world import Postgres, World

from cunho_server.settings import Settings

READ, CHANGE = BY_NAME["ListRegions"], BY_NAME["ShareImage"]


class Gate(NamedTuple):
    """A service that trusts a key set, and how to come before it."""

    world: World
    channel: grpc.Channel
    now: int

    def answer(self, *headers: tuple[str, str], rpc: Rpc = READ) -> Answer:
        """What is answered to a valid request with these headers."""
        return call(self.channel, rpc.path, valid(rpc).SerializeToString(), "", *headers)

    def bearing(self, token: str, *headers: tuple[str, str], rpc: Rpc = READ) -> Answer:
        """What is answered to who bears that token."""
        return self.answer(("authorization", f"Bearer {token}"), *headers, rpc=rpc)


@pytest.fixture(scope="module")
def gate(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    file = tmp_path_factory.mktemp("issuer") / "jwks.json"
    file.write_bytes(KEY_SET)
    with (
        worlds.world(postgres, token_jwks=str(file)) as world,
        grpc.insecure_channel(world.address) as channel,
    ):
        yield Gate(world, channel, int(time.time()))


# --- tokens


def test_what_forgeries_are_made_of_is_accepted(gate: Gate) -> None:
    assert gate.bearing(right(gate.now)).code is StatusCode.OK
    assert gate.bearing(signed(RSA, current(CLAIMS, gate.now), "r")).code is StatusCode.OK


def test_every_forgery_gets_the_same_answer(gate: Gate) -> None:
    refused = gate.bearing("x")
    assert (refused.code, refused.reason) == (StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")
    tokens = forgeries(gate.now)
    assert len(tokens) > 200
    answers = {
        (name, rpc.name): gate.bearing(token, rpc=rpc) for name, token in tokens.items() for rpc in (READ, CHANGE)
    }
    assert [which for which, answer in answers.items() if answer != refused] == []


def test_a_token_with_any_one_character_changed_is_refused(gate: Gate) -> None:
    token = right(gate.now)
    for at, character in enumerate(token):
        for other in {chr(ord(character) ^ 1), chr(ord(character) ^ 4), "A", ".", "="} - {character}:
            assert gate.bearing(token[:at] + other + token[at + 1 :]).code is StatusCode.UNAUTHENTICATED, (at, other)


def test_a_token_cut_anywhere_is_refused(gate: Gate) -> None:
    token = right(gate.now)
    for length in range(len(token)):
        assert gate.bearing(token[:length]).code is StatusCode.UNAUTHENTICATED
        assert gate.bearing(token[length + 1 :]).code is StatusCode.UNAUTHENTICATED


def test_one_authorization_header_counts_and_no_second(gate: Gate) -> None:
    bearer = f"Bearer {right(gate.now)}"
    for second in (bearer, "", "Bearer x", "Basic eDp4", f"Bearer {right(gate.now, role='operator')}"):
        for headers in ((bearer, second), (second, bearer)):
            assert gate.answer(*(("authorization", each) for each in headers)).reason == "CREDENTIALS_INVALID"


@pytest.mark.parametrize("scheme", ["", "Basic", "Token", "Bearer:", "Bearer,", "BearerBearer", "Bearer Bearer"])
def test_no_other_scheme_is_taken(gate: Gate, scheme: str) -> None:
    assert gate.answer(("authorization", f"{scheme} {right(gate.now)}")).reason == "CREDENTIALS_INVALID"


@pytest.mark.parametrize("key", ["proxy-authorization", "x-authorization", "cookie", "token", "authorization2"])
def test_no_other_header_is_taken_for_credentials(gate: Gate, key: str) -> None:
    assert gate.answer((key, f"Bearer {right(gate.now)}")).reason == "CREDENTIALS_MISSING"


def test_a_token_that_was_accepted_is_refused_once_it_expires(gate: Gate) -> None:
    now = int(time.time())
    token = right(now - 100, exp=now + 3 - Settings.model_fields["token_skew_seconds"].default)
    assert gate.bearing(token).code is StatusCode.OK
    until(lambda: gate.bearing(token).reason == "CREDENTIALS_INVALID", 10)


ACTING = [
    ({"role": "service", "acts_for": ["acme"]}, ("globex",)),
    ({"role": "service", "acts_for": ["acme"]}, ("ACME",)),
    ({"role": "service", "acts_for": ["acme"]}, ("acme,globex",)),
    ({"role": "service", "acts_for": ["acme"]}, ("acme", "acme")),
    ({"role": "service", "acts_for": ["acme"]}, ("*",)),
    ({"role": "service", "acts_for": ["acme"]}, ()),
    ({"role": "service", "acts_for": ["*"]}, ("*",)),
    ({"role": "service", "acts_for": ["*"]}, ("operator:acme",)),
    ({"role": "service", "acts_for": ["*"]}, ("",)),
    ({"role": "service", "acts_for": []}, ("deployer",)),
    ({"role": "account", "acts_for": ["globex"]}, ("globex",)),
    ({"role": "account", "acts_for": ["*"]}, ("globex",)),
    ({"role": "operator", "acts_for": ["*"]}, ("globex",)),
]


@pytest.mark.parametrize(("claims", "named"), ACTING)
def test_nobody_acts_for_an_account_by_naming_it(gate: Gate, claims: dict[str, Any], named: tuple[str, ...]) -> None:
    answer = gate.bearing(right(gate.now, **claims), *(("cunho-account", each) for each in named))
    assert (answer.code, answer.reason) == (StatusCode.PERMISSION_DENIED, "ACTING_NOT_ALLOWED")


# --- page tokens

#: What page tokens are written in, and a little that they are not.
_CHARACTERS = string.ascii_letters + string.digits + "-_" + "=+/ "


@every_list
def test_a_page_token_with_any_one_character_changed_is_refused(lists: Lists, rpc: Rpc) -> None:  # noqa: F811
    token = lists.next_page_token(rpc)
    assert lists.send(rpc, lists.request(rpc, page_token=token)).code is StatusCode.OK
    last = len(token) - 1
    for at, character in enumerate(token):
        others = _CHARACTERS if at == last else (chr(ord(character) ^ 1), chr(ord(character) ^ 2), "A", "_")
        for other in {*others} - {character}:
            changed = token[:at] + other + token[at + 1 :]
            answer = lists.send(rpc, lists.request(rpc, page_token=changed))
            assert answer.code is StatusCode.INVALID_ARGUMENT, (at, other)


def test_a_page_token_of_another_database_is_refused(postgres: Postgres, lists: Lists) -> None:  # noqa: F811
    with worlds.world(postgres) as other, grpc.insecure_channel(other.address) as channel:
        for rpc in LISTS:
            request = lists.request(rpc, page_token=lists.next_page_token(rpc))
            answer = call(channel, rpc.path, request.SerializeToString(), lists.token_of(rpc))
            assert answer.reason == "INVALID_PAGE_TOKEN"
