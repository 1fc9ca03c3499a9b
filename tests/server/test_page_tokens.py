"""A page token continues the one list it was given for, for the one caller it was given to, and nothing else."""

import string
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import grpc
import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st
from tests.end_to_end.requests_of import BY_NAME, RPCS, Answer, Rpc, call
from tests.world import GUANGZHOU, Tenant, World

from cunho import v1 as pb
from cunho_rules.model import Caller, Role
from cunho_rules.refusals import Reason, Refusal
from cunho_server.page_tokens import PageTokens

# --- by itself

TOKENS = PageTokens(b"a key")
CALLER = Caller("acme", Role.ACCOUNT, "acme")
ASKED = pb.ListImagesRequest(region_id=GUANGZHOU, filter="kind = CUSTOM", order_by="create_time, name", page_size=2)
PLACE: list[Any] = ["a name", 7, "img-00000000"]


def continued(token: str, asked: Any = ASKED, caller: Caller = CALLER, tokens: PageTokens = TOKENS) -> list[Any] | None:
    """The cursor that the token continues from."""
    request = type(asked)()
    request.CopyFrom(asked)
    request.page_token = token
    return tokens.cursor(caller, request)


def refused(token: str, asked: Any = ASKED, caller: Caller = CALLER, tokens: PageTokens = TOKENS) -> bool:
    with pytest.raises(Refusal) as caught:
        continued(token, asked, caller, tokens)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]
    return caught.value.reason is Reason.INVALID_PAGE_TOKEN


def test_a_token_holds_the_cursor_it_was_made_of() -> None:
    assert continued(TOKENS.make(CALLER, ASKED, PLACE)) == PLACE


def test_without_a_token_there_is_no_cursor() -> None:
    assert continued("") is None


def test_a_time_comes_back_as_its_text_to_the_microsecond() -> None:
    time = datetime(2026, 1, 31, 12, 0, 0, 1, tzinfo=UTC)
    cursor = continued(TOKENS.make(CALLER, ASKED, [time]))
    assert cursor is not None
    assert datetime.fromisoformat(cursor[0]) == time


def test_the_page_size_may_change_from_page_to_page() -> None:
    asked = pb.ListImagesRequest()
    asked.CopyFrom(ASKED)
    asked.page_size = 500
    assert continued(TOKENS.make(CALLER, ASKED, PLACE), asked) == PLACE


@pytest.mark.parametrize(
    "changed",
    [
        pb.ListImagesRequest(region_id="-"),
        pb.ListImagesRequest(filter="kind = PUBLIC"),
        pb.ListImagesRequest(order_by="create_time desc, name"),
        pb.ListImagesRequest(usable_with_instance_type="S5.MEDIUM4"),
    ],
    ids=["region", "filter", "order", "instance type"],
)
def test_no_other_field_may_change(changed: pb.ListImagesRequest) -> None:
    asked = pb.ListImagesRequest()
    asked.CopyFrom(ASKED)
    asked.MergeFrom(changed)
    assert refused(TOKENS.make(CALLER, ASKED, PLACE), asked)


def test_another_list_with_the_same_fields_does_not_take_it() -> None:
    asked = pb.ListInstancesRequest(region_id=ASKED.region_id, filter=ASKED.filter, order_by=ASKED.order_by)
    assert (
        asked.SerializeToString()
        == pb.ListImagesRequest(
            region_id=ASKED.region_id, filter=ASKED.filter, order_by=ASKED.order_by
        ).SerializeToString()
    )
    assert refused(TOKENS.make(CALLER, ASKED, PLACE), asked)


@pytest.mark.parametrize(
    "caller",
    [Caller("acm", Role.ACCOUNT, "acm"), Caller("", Role.OPERATOR, "acme"), Caller("Acme", Role.ACCOUNT, "acme")],
)
def test_another_caller_may_not_use_it(caller: Caller) -> None:
    assert refused(TOKENS.make(CALLER, ASKED, PLACE), caller=caller)


def test_a_service_that_acts_for_the_account_may_use_it() -> None:
    service = CALLER._replace(actor="service:deployer")
    assert continued(TOKENS.make(CALLER, ASKED, PLACE), caller=service) == PLACE


def test_what_parts_the_bound_values_cannot_be_shifted() -> None:
    token = TOKENS.make(Caller("account", Role.ACCOUNT, ""), pb.ListRegionsRequest(), PLACE)
    assert refused(token, pb.ListRegionsRequest(), Caller("", Role.ACCOUNT, ""))


def test_servers_with_another_key_do_not_take_it() -> None:
    assert refused(TOKENS.make(CALLER, ASKED, PLACE), tokens=PageTokens(b"another key"))


@pytest.mark.parametrize("token", ["A", "AA", "AAAA", "A" * 22, "A" * 4096, "====", "-_-_", "e30"])
def test_what_no_server_made_is_refused(token: str) -> None:
    assert refused(token)


def test_no_token_that_was_cut_is_taken() -> None:
    token = TOKENS.make(CALLER, ASKED, PLACE)
    for length in range(1, len(token)):
        assert refused(token[:length])
        assert refused(token[length:])


@given(st.data())
def test_no_changed_token_is_taken_even_if_it_stands_for_the_same_bytes(data: st.DataObject) -> None:
    token = TOKENS.make(CALLER, ASKED, PLACE)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from(string.printable).filter(lambda other: other != token[at]))
    assert refused(token[:at] + other + token[at + 1 :])
    assert refused(token[:at] + other + token[at:])


@pytest.mark.parametrize("end", ["=", "==", "!", "\n", "é"])
def test_nothing_may_follow_a_token(end: str) -> None:
    assert refused(TOKENS.make(CALLER, ASKED, PLACE) + end)


@given(st.lists(st.text() | st.integers(-(2**63), 2**63 - 1), max_size=4))
def test_any_cursor_comes_back(cursor: list[Any]) -> None:
    assert continued(TOKENS.make(CALLER, ASKED, cursor)) == cursor


def test_the_longest_cursor_makes_a_token_that_requests_may_carry() -> None:
    token = TOKENS.make(
        CALLER, ASKED, [datetime.now(UTC), datetime.now(UTC), "\U0001f600" * 60, 2**63 - 1, "img-00000000"]
    )
    assert len(token) < 4096
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")


# --- in every list


class Lists(NamedTuple):
    """A service with at least three of everything, and who may list it."""

    world: World
    channel: grpc.Channel
    tenant: Tenant
    other: Tenant
    image_id: str

    def request(self, rpc: Rpc, **fields: Any) -> Any:
        """The first page, one thing long."""
        request: Any = rpc.request(page_size=1)
        if hasattr(request, "region_id"):
            request.region_id = "-"
        if hasattr(request, "image_id"):
            request.image_id = self.image_id
        if hasattr(request, "account_id"):
            request.account_id = self.tenant.account_id
        for name, value in fields.items():
            setattr(request, name, value)
        return request

    def token_of(self, rpc: Rpc) -> str:
        """Credentials of who may use the list."""
        if rpc.name == "ListAccounts":
            return self.world.token("operator", "operator")
        return self.world.token(self.tenant.account_id)

    def send(self, rpc: Rpc, request: Any, token: str = "") -> Answer:
        """What the service answers."""
        return call(self.channel, rpc.path, request.SerializeToString(), token or self.token_of(rpc))

    def next_page_token(self, rpc: Rpc) -> str:
        """The token of the second page."""
        answer: Any = rpc.response.FromString(self.send(rpc, self.request(rpc)).body)
        assert answer.next_page_token
        return str(answer.next_page_token)


LISTS = [rpc for rpc in RPCS if "page_token" in rpc.request.DESCRIPTOR.fields_by_name]
every_list = pytest.mark.parametrize("rpc", LISTS, ids=lambda rpc: rpc.name)


@pytest.fixture(scope="module")
def lists(world: World) -> Iterator[Lists]:
    tenant, other = world.tenant(), world.tenant()
    instance_id, _, _ = (world.launch(tenant).instance_id for _ in range(3))
    image_id = world.image(tenant, instance_id=instance_id).image_id
    tenant.share_image(
        image_id=image_id, account_ids=[other.account_id, *(world.tenant().account_id for _ in range(2))]
    )
    with grpc.insecure_channel(world.address) as channel:
        yield Lists(world, channel, tenant, other, image_id)


def items(rpc: Rpc, answer: Answer) -> list[Any]:
    """The things on the page."""
    message = rpc.response.FromString(answer.body)
    return [item for field, value in message.ListFields() if field.is_repeated for item in value]


@every_list
def test_pages_of_one_are_together_the_whole_list(lists: Lists, rpc: Rpc) -> None:
    whole = items(rpc, lists.send(rpc, lists.request(rpc, page_size=1000)))
    paged: list[Any] = []
    token = ""
    while token or not paged:
        answer = lists.send(rpc, lists.request(rpc, page_token=token))
        assert len(items(rpc, answer)) == 1
        paged += items(rpc, answer)
        message: Any = rpc.response.FromString(answer.body)
        token = message.next_page_token
    assert paged == whole
    assert len(whole) > 2


@every_list
def test_the_token_of_one_caller_is_refused_to_another(lists: Lists, rpc: Rpc) -> None:
    request = lists.request(rpc, page_token=lists.next_page_token(rpc))
    answer = lists.send(rpc, request, lists.world.token(lists.other.account_id))
    assert answer.reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize("rpc", [rpc for rpc in LISTS if rpc.name != "ListAccounts"], ids=lambda rpc: rpc.name)
def test_the_token_of_an_account_is_refused_to_the_operator(lists: Lists, rpc: Rpc) -> None:
    request = lists.request(rpc, page_token=lists.next_page_token(rpc))
    assert lists.send(rpc, request, lists.world.token("operator", "operator")).reason == "INVALID_PAGE_TOKEN"


@every_list
def test_the_token_of_one_list_is_refused_by_every_other(lists: Lists, rpc: Rpc) -> None:
    token = lists.next_page_token(rpc)
    for other in LISTS:
        answer = lists.send(other, lists.request(other, page_token=token))
        assert answer.reason == ("" if other is rpc else "INVALID_PAGE_TOKEN")


@every_list
def test_the_token_is_refused_if_any_argument_differs(lists: Lists, rpc: Rpc) -> None:
    token = lists.next_page_token(rpc)
    changed = {
        "region_id": GUANGZHOU,
        "filter": "create_time > 2026-01-31T12:00:00Z",
        "order_by": "create_time",
        "usable_with_instance_type": "S5.MEDIUM4",
        "image_id": lists.world.public_image().image_id,
        "account_id": lists.other.account_id,
        "name": "operations",
        "return_partial_success": True,
    }
    others = set(rpc.request.DESCRIPTOR.fields_by_name) - {"page_size", "page_token"}
    assert others <= changed.keys()
    for field in others:
        answer = lists.send(rpc, lists.request(rpc, page_token=token, **{field: changed[field]}))
        assert answer.reason == "INVALID_PAGE_TOKEN", field


@every_list
def test_a_token_cut_or_changed_is_refused_by_name(lists: Lists, rpc: Rpc) -> None:
    token = lists.next_page_token(rpc)
    for wrong in (token[:-1], token[1:], token[:22], token[4:] + token[:4], token + "AAAA", "AAAA", "A"):
        answer = lists.send(rpc, lists.request(rpc, page_token=wrong))
        assert (answer.code, answer.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")
        assert [field for field, _ in answer.violations] == ["page_token"]


def test_a_token_outlives_the_row_it_was_made_of(world: World) -> None:
    tenant = world.tenant()
    made = [world.image(tenant, name=name).image_id for name in ("a", "b", "c")]
    asked = pb.ListImagesRequest(region_id=GUANGZHOU, filter="kind = CUSTOM", order_by="name", page_size=1)
    with grpc.insecure_channel(world.address) as channel:
        rpc, token = BY_NAME["ListImages"], world.token(tenant.account_id)
        page = pb.ListImagesResponse.FromString(call(channel, rpc.path, asked.SerializeToString(), token).body)
        assert [image.image_id for image in page.images] == made[:1]
        tenant.delete_image(image_id=made[0])
        asked.page_token, asked.page_size = page.next_page_token, 2
        page = pb.ListImagesResponse.FromString(call(channel, rpc.path, asked.SerializeToString(), token).body)
    assert [image.image_id for image in page.images] == made[1:]
