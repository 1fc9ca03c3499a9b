"""The service against the model: any sequence of calls gets the answers, and leaves the state, that the model has.

Before each mutation the same call is made with validate_only, and its decision asked for: all three must agree, and
only the real call may write. HYPOTHESIS_PROFILE=long looks further.
"""

import asyncio
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar
from uuid import uuid4

import asyncpg
import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, invariant, rule
from tests.end_to_end import model
from tests.end_to_end.model import GIB, OPERATOR, Image, Instance, Model
from tests.end_to_end.steps import STOCK_URI, Held
from tests.world import FRANKFURT, GUANGZHOU, SHANGHAI, ZONES, World

from cunho import CHANNEL_OPTIONS, Client, Operation, Refused
from cunho import v1 as pb
from cunho_rules.refusals import Reason, Refusal

# Few examples in a run, but several runs: after some examples a run mostly varies those that it had.
_UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
_BOTH = settings(max_examples=10, deadline=None, suppress_health_check=_UNHURRIED, report_multiple_bugs=False)
settings.register_profile("moderate", _BOTH, stateful_step_count=40, database=None)
settings.register_profile("long", _BOTH, stateful_step_count=60, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "moderate")
SEEDS = random.sample(range(10**9), 50) if PROFILE == "long" else range(3)


# --- the service


#: Every write leaves another newest transaction or another number of rows.
_WRITTEN = " UNION ALL ".join(
    f"SELECT '{table}', count(*), max(xmin::text::bigint) FROM {table}"
    for table in ("account", "account_region", "image", "image_share", "instance", "operation", "request_log")
)
#: Counters of some accounts that are not the number of rows, or are over their limit.
_MISCOUNTED = """
    SELECT account_id, region_id, images_used, images_limit FROM account_region WHERE account_id = ANY($1) AND (
        images_used > images_limit OR images_used <> (
            SELECT count(*) FROM image WHERE owner_account_id = account_id
               AND image.region_id = account_region.region_id AND state NOT IN ('FAILED', 'DELETED')))
    UNION ALL
    SELECT image_id, state, share_count, share_limit FROM image WHERE owner_account_id = ANY($1) AND (
        share_count > share_limit OR share_count <> (
            SELECT count(*) FROM image_share WHERE image_share.image_id = image.image_id))
"""
_FAILURE = Refusal(Reason.IMAGE_FORMAT_MISMATCH, format="QCOW2", found="VHDX")


@dataclass(frozen=True)
class Service:
    """The service under test, with what the examples share."""

    world: World
    driver: Held
    #: One channel for the clients of all examples.
    channel: grpc.Channel
    #: The rows of a query; `world.sql` with one connection for all.
    sql: Callable[..., list[tuple[Any, ...]]]

    def written(self) -> list[tuple[Any, ...]]:
        """What is the same as before if nothing was written."""
        return sorted(self.sql(_WRITTEN))


@pytest.fixture(scope="module")
def service(world: World, driver: Held) -> Iterator[Service]:
    with (
        grpc.insecure_channel(world.address, options=CHANNEL_OPTIONS) as channel,
        asyncio.Runner() as runner,
    ):
        connection = runner.run(asyncpg.connect(world.dsn))

        def sql(query: str, *arguments: Any) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in runner.run(connection.fetch(query, *arguments))]

        yield Service(world, driver, channel, sql)
        runner.run(connection.close())
        runner.run(asyncio.sleep(0))  # which lets the transport close too


# --- answers, made comparable


def outcome(call: Callable[[], Any]) -> Any:
    """What the call returns, or the Refused that it raises."""
    try:
        return call()
    except Refused as refused:
        return refused


class Verdict(NamedTuple):
    """A refusal, wherever it was told."""

    reason: str
    metadata: Mapping[str, str]


def verdict(answer: Any) -> Verdict | None:
    """What refuses in a call's outcome or in a decision; None if nothing does."""
    if isinstance(answer, Refused):
        return Verdict(answer.reason, answer.metadata)
    if not isinstance(answer, pb.Decision):
        return None
    denied = [each for each in answer.outcomes if each.outcome == pb.RuleOutcome.OUTCOME_DENIED]
    assert answer.allowed == (not denied)
    return Verdict(denied[0].reason, dict(denied[0].metadata)) if denied else None


def fields(message: Message, paths: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the message at the paths; enums by their short names."""
    return {path: _field(message, path) for path in paths}


def _field(value: Any, path: str) -> Any:
    *parts, name = path.split(".")
    for part in parts:
        value = getattr(value, part)
    enum = value.DESCRIPTOR.fields_by_name[name].enum_type
    value = getattr(value, name)
    if enum is None:
        return value
    return enum.values_by_number[value].name.removeprefix(enum.values_by_number[0].name.removesuffix("UNSPECIFIED"))


def bare(answer: Any) -> Any:
    """The answer as validate_only can give it too: without times, and without the ids of what is made."""
    message = answer.metadata if isinstance(answer, Operation) else answer
    return _bare(MessageToDict(message)) if isinstance(message, Message) else None


def _bare(value: Any) -> Any:
    if isinstance(value, list):
        return [_bare(each) for each in value]
    if not isinstance(value, dict):
        return value
    new = ("imageId", "targetId", "targetIds", "requestId")
    return {key: _bare(each) for key, each in value.items() if not key.endswith("Time") and key not in new}


# --- what is drawn

ANN, BOB, CAT, DAN, EVE = ALIASES = "ann", "bob", "cat", "dan", "eve"
"""Accounts. Dan may be registered in the course of an example, Eve never is."""

OWNER, RECIPIENT = "owner", "recipient"
"""Whoever owns the image or instance, and an account that the image is shared with."""

callers = st.sampled_from([OWNER] * 11 + [RECIPIENT] * 3 + [ANN, BOB, CAT, DAN, OPERATOR])
makers = st.sampled_from([ANN] * 4 + [BOB] * 3 + [CAT, DAN, OPERATOR])
launchers = st.sampled_from([ANN] * 3 + [RECIPIENT] * 3 + [OWNER, OWNER, BOB, CAT, DAN, OPERATOR])
operators = st.sampled_from([OPERATOR] * 5 + [ANN])
regions = st.sampled_from([GUANGZHOU, GUANGZHOU, GUANGZHOU, SHANGHAI, FRANKFURT])
region_sets = st.lists(st.sampled_from([*ZONES]), min_size=1, unique=True)
names = st.sampled_from(["base", "cache", "db", "web"])
sharings: st.SearchStrategy[tuple[str, list[str]]] = st.one_of(
    st.tuples(
        st.sampled_from(["ShareImage"] * 3 + ["SetImageShares"] * 2 + ["UnshareImage"]),
        st.lists(st.sampled_from([BOB, CAT, DAN]) | st.sampled_from(ALIASES), min_size=1, max_size=3, unique=True),
    ),
    st.tuples(st.sampled_from(["ShareImage", "SetImageShares", "UnshareImage"]), st.sampled_from([[BOB], [CAT]])),
    st.just(("SetImageShares", [])),
)
destinations = st.lists(
    st.tuples(st.sampled_from([SHANGHAI, FRANKFURT] * 5 + [GUANGZHOU, "nowhere"]), st.just("") | names),
    min_size=1,
    max_size=2,
    unique_by=lambda destination: destination[0],
)
etags = st.sampled_from([""] * 8 + ["right", "right", "stale"])
rarely = st.sampled_from([False] * 5 + [True])
instance_types = st.sampled_from(["S5.MEDIUM4", "S5.MEDIUM4", "S5.SMALL1"])

DEBIAN = pb.OperatingSystem(family=pb.OsFamily.OS_FAMILY_LINUX, platform="debian", version="12")
CONTENTS: dict[str, Any] = {
    "os": DEBIAN,
    "architecture": pb.Architecture.ARCHITECTURE_X86_64,
    "size_bytes": GIB,
    "min_disk_bytes": 8 * GIB,
}


Thing = TypeVar("Thing", Image, Instance)


def _one_of(things: Callable[[Model], Iterable[Thing]], weight: Callable[[Thing], int]) -> st.SearchStrategy[Thing]:
    """One of the model's things, drawn as often as it is weighty."""

    def drawn(machine: Any) -> st.SearchStrategy[Thing]:
        found = [thing for thing in things(machine.model) for _ in range(weight(thing))]
        return st.integers(0, len(found) - 1).map(lambda number: found[number])

    return st.runner().flatmap(drawn)


images = _one_of(
    lambda model: model.images.values(), lambda image: 1 if image.state == "DELETED" else 2 if image.public else 6
)
instances = _one_of(lambda model: model.instances.values(), lambda instance: 1 if instance.state == "DELETED" else 4)


class Done(NamedTuple):
    """A mutation that was done."""

    #: What the service answered, or the result of the operation that it answered with.
    result: Any
    #: What the model's call returned.
    said: Any
    #: Ids of what was made or changed by an operation, or was published.
    ids: list[str]


class Machine(RuleBasedStateMachine):
    """Makes the same calls of the service and of the model, and compares."""

    service: ClassVar[Service]

    def __init__(self) -> None:
        super().__init__()
        tag = uuid4().hex[:10]
        self.model = Model()
        self.family = f"family-{tag}"
        self.account_ids = {alias: f"{alias}-{tag}" for alias in ALIASES}
        self.clients: dict[str, Client] = {OPERATOR: self.service.world.operator} | {
            account_id: Client(self.service.channel, token=self.service.world.token(account_id))
            for account_id in self.account_ids.values()
        }
        #: What was written when all was last compared.
        self.compared: list[tuple[Any, ...]] = []
        #: The etag of each version of each thing, and the other way round.
        self.etags: dict[tuple[str, int], str] = {}
        self.versions: dict[tuple[str, str], int] = {}
        #: Arguments and request id of the last success of each caller with each method.
        self.answered: dict[tuple[str, str], tuple[dict[str, Any], str]] = {}
        self._begin()

    def _begin(self) -> None:
        """Ann has an instance, an image of it that is shared with Bob, and a copy in a region where nobody else is.

        Cat, who has an instance and an image as well, is suspended. One of two public images is obsolete.
        """
        for alias, region_ids in {ANN: [*ZONES], BOB: [GUANGZHOU, SHANGHAI], CAT: [GUANGZHOU]}.items():
            self.register_account(OPERATOR, alias, region_ids)
            self.set_images_limit(OPERATOR, alias, GUANGZHOU, 2)
        for name in ("base", "cache"):
            self.publish_image(OPERATOR, GUANGZHOU, name)
        old, new = self.model.images.values()
        for alias in (ANN, CAT):
            self.create_instance(alias, new, "", "", "S5.MEDIUM4", 1, fails=False)
            self.create_image(alias, [*self.model.instances.values()][-1], "", "web", 0, fails=False)
        image = [*self.model.images.values()][2]
        self.set_shares_limit(OPERATOR, image, 1)
        self.share_image(ANN, image, "", ("ShareImage", [BOB]))
        self.copy_image(ANN, image, [(FRANKFURT, "")])
        self.update_account(OPERATOR, CAT, {"state": "SUSPENDED"})
        self.deprecate_image(OPERATOR, old, "", "OBSOLETE", new)

    def teardown(self) -> None:
        operator = self.service.world.operator
        for image in operator.list_images(region_id="-", filter=f'kind = PUBLIC AND family = "{self.family}"'):
            operator.delete_image(image_id=image.image_id)

    # --- one mutation

    def _mutate(
        self,
        caller: str,
        method: str,
        expected: Callable[[list[str]], Any],
        explain: Callable[[], list[Any]] = list,
        *,
        failing: str = "",
        **arguments: Any,
    ) -> Done | None:
        """What was done; None if the service and the model both refuse.

        Args:
            expected: makes the model's call, given the ids of what the service made.
            explain: asks for the decisions on the call, one of which must be its own; none if it cannot be explained.
            failing: the action that fails, which the operation begins; empty if none does.
        """
        call = partial(getattr(self.clients[caller], method), **arguments)
        before = self.service.written()
        rehearsed, explained = outcome(partial(call, validate_only=True)), [verdict(each) for each in explain()]
        self._reuse_request_id(caller, method, arguments)
        assert self.service.written() == before, f"{method}: validate_only, a decision or a reuse has written"

        request_id = str(uuid4())
        with self.service.driver.failing(failing, _FAILURE):
            answer = outcome(partial(call, request_id=request_id))
            begun, ids = bare(answer), _ids(answer)
            result = outcome(partial(answer.result, timeout_seconds=20)) if isinstance(answer, Operation) else answer

        assert verdict(rehearsed) == verdict(answer), f"{method}: validate_only says otherwise"
        if explained and not (_malformed(answer) and _hidden(explained[0])):
            assert verdict(answer) in explained, f"{method}: the decision says otherwise"
        try:
            said = expected(ids or ["none", "none"])
        except model.Refused as refused:
            _check_refusal(method, answer, refused.refusals)
            assert self.service.written() == before, f"{method} was refused and has written"
            return None
        assert not isinstance(answer, Refused), f"{method} is refused, the model allows it: {answer.reason} {answer}"
        assert isinstance(result, Refused) == (failing != "")
        assert bare(rehearsed) == begun
        after = self.service.written()
        assert _same(call(request_id=request_id), answer), f"{method} is answered otherwise when repeated"
        assert self.service.written() == after, f"{method} was repeated and has written"
        self.answered[caller, method] = arguments, request_id
        return Done(result, said, ids)

    def _reuse_request_id(self, caller: str, method: str, arguments: dict[str, Any]) -> None:
        """Makes the call with the request id of one that had other arguments."""
        others, request_id = self.answered.get((caller, method), (arguments, ""))
        if others != arguments:
            reused = outcome(partial(getattr(self.clients[caller], method), **arguments, request_id=request_id))
            assert isinstance(reused, Refused)
            assert (reused.code.name, reused.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")

    def _explain(
        self, caller: str, thing: Image | Instance, action: str, *, version: int | None = None, **targets: Any
    ) -> Callable[[], list[Any]]:
        """What asks for the decision on an action, and returns it or what refuses to tell.

        Args:
            version: what the call's etag is of. Decisions know nothing of etags: of another version, none is asked for.
        """
        client = self.clients[caller]
        ask: Callable[[], Any]
        if isinstance(thing, Image):
            ask = partial(client.check_image_actions, image_id=thing.image_id, actions=[action], **targets)
        else:
            ask = partial(client.check_instance_actions, instance_id=thing.instance_id, actions=[action], **targets)

        def explain() -> list[Any]:
            answer = outcome(ask)
            return [answer] if isinstance(answer, Refused) else [*answer.decisions]

        return explain if version in (None, thing.version) else list

    def _caller(self, alias: str, thing: Image | Instance | None = None) -> str:
        """Whoever calls, by the id that the model knows."""
        if alias == RECIPIENT and isinstance(thing, Image):
            return min(thing.shares, default=thing.owner)
        if alias in (OWNER, RECIPIENT):
            assert thing is not None
            return thing.owner
        return self.account_ids.get(alias, alias)

    def _etag(self, thing: Image | Instance, wanted: str) -> tuple[str, int | None]:
        """An etag of the thing, none or the right one or a stale one, and the version that it is of."""
        version = thing.version - (wanted == "stale")
        return (self.etags.get((_id(thing), version), "stale"), version) if wanted else ("", None)

    # --- accounts and quotas

    @rule(caller=operators, alias=st.sampled_from([DAN, DAN, DAN, BOB]), region_ids=region_sets)
    def register_account(self, caller: str, alias: str, region_ids: list[str]) -> None:
        caller, account_id = self._caller(caller), self.account_ids[alias]
        self._mutate(
            caller,
            "register_account",
            lambda _: self.model.register_account(caller, account_id, region_ids),
            account_id=account_id,
            region_ids=region_ids,
        )

    @rule(
        caller=operators,
        alias=st.sampled_from([ANN, BOB, CAT, DAN]),
        change=st.fixed_dictionaries({"state": st.sampled_from(["SUSPENDED", "ACTIVE", "ACTIVE"])})
        | st.fixed_dictionaries({"region_ids": region_sets}),
    )
    def update_account(self, caller: str, alias: str, change: dict[str, Any]) -> None:
        caller, account_id = self._caller(caller), self.account_ids[alias]
        given: dict[str, Any] = {"state": f"STATE_{change['state']}"} if "state" in change else change
        self._mutate(
            caller,
            "update_account",
            lambda _: self.model.update_account(caller, account_id, **change),
            account=pb.Account(account_id=account_id, **given),
            update_mask=[*given],
        )

    @rule(caller=operators, alias=makers, region_id=regions, limit=st.integers(0, 3))
    def set_images_limit(self, caller: str, alias: str, region_id: str, limit: int) -> None:
        caller, account_id = self._caller(caller), self._caller(alias)
        self._mutate(
            caller,
            "set_quota_limit",
            lambda _: self.model.set_images_limit(caller, account_id, region_id, limit),
            quota_id=pb.QuotaId.QUOTA_ID_CUSTOM_IMAGES,
            account_id=account_id,
            region_id=region_id,
            limit=limit,
        )

    @rule(caller=operators, image=images, limit=st.integers(0, 2))
    def set_shares_limit(self, caller: str, image: Image, limit: int) -> None:
        caller = self._caller(caller)
        self._mutate(
            caller,
            "set_quota_limit",
            lambda _: self.model.set_shares_limit(caller, image.image_id, limit),
            quota_id=pb.QuotaId.QUOTA_ID_SHARES_PER_IMAGE,
            image_id=image.image_id,
            limit=limit,
        )

    # --- making images

    @rule(caller=operators, region_id=regions, name=names)
    def publish_image(self, caller: str, region_id: str, name: str) -> None:
        caller = self._caller(caller)
        self._mutate(
            caller,
            "publish_image",
            lambda ids: self.model.publish_image(caller, region_id, name, self.family, ids[0]),
            region_id=region_id,
            name=name,
            family=self.family,
            content=pb.ImageContent(uri="store:debian.qcow2"),
            support=pb.Support(kind=pb.Support.KIND_COMMUNITY, contact_uri="https://www.debian.org/support"),
            **CONTENTS,
        )

    @rule(
        caller=callers,
        instance=instances,
        region_id=st.sampled_from(["", "", "", SHANGHAI]),
        name=names,
        consistency=st.sampled_from(pb.CreateImageRequest.Consistency.values()),
        fails=rarely,
    )
    def create_image(
        self, caller: str, instance: Instance, region_id: str, name: str, consistency: int, fails: bool
    ) -> None:
        caller, region_id = self._caller(caller, instance), region_id or instance.region_id
        explain = self._explain(caller, instance, "CreateImage", image_name=name)
        self._mutate(
            caller,
            "create_image",
            lambda ids: self.model.create_image(caller, region_id, instance.instance_id, name, ids[0], fails=fails),
            explain if region_id == instance.region_id else list,
            failing="capture" if fails else "",
            region_id=region_id,
            instance_id=instance.instance_id,
            name=name,
            consistency=consistency,
        )

    @rule(caller=makers, region_id=regions, name=names, fails=rarely)
    def import_image(self, caller: str, region_id: str, name: str, fails: bool) -> None:
        caller = self._caller(caller)
        self._mutate(
            caller,
            "import_image",
            lambda ids: self.model.import_image(caller, region_id, name, ids[0], fails=fails),
            failing="import" if fails else "",
            region_id=region_id,
            name=name,
            uri=STOCK_URI,
            format=pb.ImportImageRequest.FORMAT_QCOW2,
            **CONTENTS,
        )

    @rule(caller=callers, image=images, wanted=destinations)
    def copy_image(self, caller: str, image: Image, wanted: list[tuple[str, str]]) -> None:
        caller = self._caller(caller, image)
        explains = [self._explain(caller, image, "CopyImage", target_region_id=to, name=name) for to, name in wanted]
        decisions = [explain()[0] for explain in explains]
        done = self._mutate(
            caller,
            "copy_image",
            lambda ids: self.model.copy_image(caller, image.image_id, wanted, iter(ids)),
            lambda: decisions,
            image_id=image.image_id,
            destinations=[pb.CopyImageRequest.Destination(region_id=to, name=name) for to, name in wanted],
        )
        if done:
            assert [result.region_id for result in done.result.results] == [to for to, _ in wanted]
            for result, decision, refusal in zip(done.result.results, decisions, done.said, strict=True):
                refused = Refused.from_status(result.error) if result.HasField("error") else None
                assert verdict(refused) == verdict(decision)
                _check_refusal("copy_image", refused, [refusal] if refusal else [])

    # --- changing images

    @rule(
        caller=callers,
        image=images,
        etag=etags,
        change=st.fixed_dictionaries({"name": names}, optional={"min_memory_bytes": st.sampled_from([0, 2 * GIB])})
        | st.fixed_dictionaries({"min_memory_bytes": st.sampled_from([0, 2 * GIB])}),
    )
    def update_image(self, caller: str, image: Image, etag: str, change: dict[str, Any]) -> None:
        caller, (etag, version) = self._caller(caller, image), self._etag(image, etag)
        explain = self._explain(caller, image, "UpdateImage", version=version, name=change.get("name", ""))
        self._mutate(
            caller,
            "update_image",
            lambda _: self.model.update_image(caller, image.image_id, version, **change),
            explain,
            image=pb.Image(image_id=image.image_id, etag=etag, **change),
            update_mask=[*change],
        )

    @rule(
        caller=callers,
        image=images,
        etag=etags,
        state=st.sampled_from(["CURRENT", "DEPRECATED", "OBSOLETE"]),
        replacement=st.none() | images,
    )
    def deprecate_image(self, caller: str, image: Image, etag: str, state: str, replacement: Image | None) -> None:
        caller, (etag, version) = self._caller(caller, image), self._etag(image, etag)
        # Its own one is malformed, and no request of that kind gets as far as the model.
        replacement_id = replacement.image_id if replacement and replacement.image_id != image.image_id else ""
        self._mutate(
            caller,
            "deprecate_image",
            lambda _: self.model.deprecate_image(caller, image.image_id, version, state, replacement_id),
            list if replacement_id else self._explain(caller, image, "DeprecateImage", version=version),
            image_id=image.image_id,
            etag=etag,
            deprecation=pb.Deprecation(
                state=pb.Deprecation.State.Value(f"STATE_{state}"), replacement_image_id=replacement_id
            ),
        )

    @rule(caller=callers, image=images, etag=etags, force=st.booleans())
    def delete_image(self, caller: str, image: Image, etag: str, force: bool) -> None:
        caller, (etag, version) = self._caller(caller, image), self._etag(image, etag)
        explain = self._explain(caller, image, "DeleteImage", version=version, force=force)
        self._mutate(
            caller,
            "delete_image",
            lambda _: self.model.delete_image(caller, image.image_id, version, force=force),
            explain,
            image_id=image.image_id,
            etag=etag,
            force=force,
        )

    # --- sharing

    @rule(
        caller=callers,
        image=images,
        etag=etags,
        sharing=sharings,
    )
    def share_image(self, caller: str, image: Image, etag: str, sharing: tuple[str, list[str]]) -> None:
        action, aliases = sharing
        account_ids = [self.account_ids[alias] for alias in aliases]
        caller, (etag, version) = self._caller(caller, image), self._etag(image, etag)
        method = {"ShareImage": "share_image", "SetImageShares": "set_image_shares", "UnshareImage": "unshare_image"}
        explain = self._explain(caller, image, action, version=version, target_account_ids=account_ids)
        done = self._mutate(
            caller,
            method[action],
            lambda _: getattr(self.model, method[action])(caller, image.image_id, account_ids, version),
            explain,
            image_id=image.image_id,
            account_ids=account_ids,
            etag=etag,
        )
        if done and action == "UnshareImage":
            assert [*done.result.account_ids] == done.said

    @rule(caller=callers, image=images)
    def leave_image_share(self, caller: str, image: Image) -> None:
        caller = self._caller(caller, image)
        self._mutate(
            caller,
            "leave_image_share",
            lambda _: self.model.leave_image_share(caller, image.image_id),
            self._explain(caller, image, "LeaveImageShare"),
            image_id=image.image_id,
        )

    # --- instances

    @rule(
        caller=launchers,
        image=images,
        region_id=st.just("") | regions,
        etag=etags,
        instance_type=instance_types,
        count=st.integers(0, 2),
        fails=rarely,
    )
    def create_instance(
        self, caller: str, image: Image, region_id: str, etag: str, instance_type: str, count: int, fails: bool
    ) -> None:
        caller, (etag, version) = self._caller(caller, image), self._etag(image, etag)
        region_id = region_id or image.region_id
        targets = {"zone_id": ZONES[region_id], "instance_type": instance_type}
        explain = self._explain(caller, image, "CreateInstance", version=version, **targets)
        done = self._mutate(
            caller,
            "create_instance",
            lambda ids: self.model.create_instance(
                caller, region_id, image.image_id, version, "worker", instance_type, ids, fails=fails
            ),
            explain if region_id == image.region_id else list,
            failing="launch" if fails else "",
            region_id=region_id,
            image_id=image.image_id,
            expected_image_etag=etag,
            name="worker",
            count=count,
            **targets,
        )
        if done:
            assert len(done.ids) == max(count, 1)
            assert fails or [warning.reason for warning in done.result.warnings] == done.said

    @rule(
        caller=callers,
        instance=instances,
        action=st.sampled_from(["StartInstance", "StopInstance", "StopInstance", "RebootInstance", "DeleteInstance"]),
        etag=etags,
    )
    def act_on_instance(self, caller: str, instance: Instance, action: str, etag: str) -> None:
        caller, (etag, version) = self._caller(caller, instance), self._etag(instance, etag)
        self._mutate(
            caller,
            action.removesuffix("Instance").lower() + "_instance",
            lambda _: self.model.act_on_instance(caller, action, instance.instance_id, version),
            self._explain(caller, instance, action, version=version),
            instance_id=instance.instance_id,
            etag=etag,
        )

    @rule(caller=callers, instance=instances, image=st.none() | images, etag=etags)
    def reinstall_instance(self, caller: str, instance: Instance, image: Image | None, etag: str) -> None:
        caller, (etag, version) = self._caller(caller, instance), self._etag(instance, etag)
        image_id = image.image_id if image else ""
        explain = self._explain(caller, instance, "ReinstallInstance", version=version, target_image_id=image_id)
        self._mutate(
            caller,
            "reinstall_instance",
            lambda _: self.model.reinstall_instance(caller, instance.instance_id, image_id, version),
            explain,
            instance_id=instance.instance_id,
            image_id=image_id,
            etag=etag,
        )

    # --- looking

    @rule(
        alias=st.sampled_from([ANN, BOB, CAT, DAN]),
        region_id=st.just("-") | regions,
        kind=st.sampled_from(["", "PUBLIC", "CUSTOM", "SHARED"]),
        name=st.sampled_from(["", "", "b*"]) | names,
        instance_type=st.just("") | instance_types,
    )
    def list_images(self, alias: str, region_id: str, kind: str, name: str, instance_type: str) -> None:
        caller = self._caller(alias)
        terms = [f"kind = {kind}"] * (kind != "") + [f'name = "{name}"'] * (name != "")
        listed = self.clients[caller].list_images(
            region_id=region_id,
            page_size=2,
            filter=" AND ".join(terms),
            order_by="name",
            usable_with_instance_type=instance_type,
        )
        expected = [
            image
            for image in self.model.images_seen(caller)
            if region_id in ("-", image.region_id)
            and kind in ("", self.model.kind(caller, image))
            and (image.name.startswith(name[:-1]) if name.endswith("*") else name in ("", image.name))
            and (instance_type == "" or (image.usable and image.fits(instance_type)))
        ]
        ours = [image.image_id for image in listed if image.image_id in self.model.images]
        assert ours == [image.image_id for image in sorted(expected, key=lambda image: (image.name, image.image_id))]

    @rule(
        alias=st.sampled_from([*ALIASES, OPERATOR]),
        image=images,
        of_alias=st.sampled_from(ALIASES),
        region_id=regions,
    )
    def look(self, alias: str, image: Image, of_alias: str, region_id: str) -> None:
        """An image with its shares and its quota, the quota of an account, and the family, as one caller reads them."""
        caller, account_id = self._caller(alias), self._caller(of_alias)
        client = self.clients[caller]
        (result,) = client.batch_get_images(image_ids=[image.image_id]).results
        assert result.HasField("image") == (self.model.kind(caller, image) != "")
        _read_alike(
            lambda: self.model.list_image_shares(caller, image.image_id),
            lambda: [share.account_id for share in client.list_image_shares(image_id=image.image_id)],
        )
        of_image = partial(client.get_quota, quota_id=pb.QuotaId.QUOTA_ID_SHARES_PER_IMAGE, image_id=image.image_id)
        _read_alike(lambda: self.model.shares_quota(caller, image.image_id), lambda: fields(of_image(), _USAGE))
        of_account = partial(client.get_quota, quota_id=pb.QuotaId.QUOTA_ID_CUSTOM_IMAGES, account_id=account_id)
        _read_alike(
            lambda: self.model.images_quota(caller, account_id, region_id),
            lambda: fields(of_account(region_id=region_id), _USAGE),
        )
        _read_alike(
            lambda: self.model.resolve_image(region_id, self.family).image_id,
            lambda: client.resolve_image(region_id=region_id, family=self.family).image_id,
        )

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        if self.compared == (written := self.service.written()):
            return
        self.compared = written
        assert self.service.sql(_MISCOUNTED, [*self.account_ids.values()]) == []
        owners = " OR ".join(f'owner_account_id = "{account_id}"' for account_id in self.account_ids.values())
        filter = f'family = "{self.family}" OR {owners}'
        for caller, client in self.clients.items():
            listed = client.list_images(region_id="-", page_size=1000, filter=filter)
            images = {image.image_id: image for image in self.model.images_seen(caller)}
            self._compare(
                {image.image_id: image for image in listed},
                {image_id: self.model.image_fields(caller, image) for image_id, image in images.items()},
                images,
            )
            if caller == OPERATOR:  # sees the instances of every example
                continue
            launched = client.list_instances(region_id="-", page_size=1000)
            instances = {instance.instance_id: instance for instance in self.model.instances_seen(caller)}
            self._compare(
                {instance.instance_id: instance for instance in launched},
                {instance_id: self.model.instance_fields(instance) for instance_id, instance in instances.items()},
                instances,
            )

    def _compare(
        self, seen: dict[str, Any], expected: dict[str, dict[str, Any]], things: Mapping[str, Image | Instance]
    ) -> None:
        assert seen.keys() == expected.keys()
        assert {thing_id: fields(message, expected[thing_id]) for thing_id, message in seen.items()} == expected
        for thing_id, message in seen.items():
            # Each version has an etag of its own, the same for everybody.
            version = things[thing_id].version
            assert self.etags.setdefault((thing_id, version), message.etag) == message.etag
            assert self.versions.setdefault((thing_id, message.etag), version) == version


_USAGE = {"limit": 0, "usage": 0, "reserved": 0}


def _id(thing: Image | Instance) -> str:
    return thing.image_id if isinstance(thing, Image) else thing.instance_id


def _ids(answer: Any) -> list[str]:
    if isinstance(answer, Operation):
        return [*answer.metadata.target_ids]
    return [answer.image_id] if isinstance(answer, pb.Image) else []


def _same(answer: Any, other: Any) -> bool:
    return bool(answer.name == other.name if isinstance(answer, Operation) else answer == other)


def _malformed(answer: Any) -> bool:
    """True if a call was refused before it was asked whether the caller sees the image."""
    return isinstance(answer, Refused) and answer.code is grpc.StatusCode.INVALID_ARGUMENT


def _hidden(decision: Verdict | None) -> bool:
    """True if there is no decision, as it is of an image that the caller does not see."""
    return decision is not None and decision.reason == "IMAGE_NOT_FOUND"


def _read_alike(expected: Callable[[], Any], read: Callable[[], Any]) -> None:
    """Makes a call that only reads, of the model and of the service."""
    answer = outcome(read)
    try:
        assert answer == expected()
    except model.Refused as refused:
        _check_refusal("a read", answer, refused.refusals)


def _check_refusal(method: str, answer: Any, refusals: list[model.Refusal]) -> None:
    """Checks that the answer is one of the refusals; none, that it is no refusal."""
    if not refusals:
        assert answer is None
        return
    assert isinstance(answer, Refused), f"{method} is done, the model refuses it: {refusals}"
    assert any(
        (answer.code.name, answer.reason) == (refusal.code, refusal.reason)
        and refusal.metadata.items() <= answer.metadata.items()
        for refusal in refusals
    ), f"{method} is refused: {answer.code} {answer.reason} {answer.metadata}; the model says: {refusals}"


@pytest.mark.parametrize("random_seed", SEEDS)
def test_any_sequence_of_calls_gives_what_the_model_gives(service: Service, random_seed: int) -> None:
    class Begun(Machine):
        pass

    Begun.service = service
    seed(random_seed)(get_state_machine_test(Begun, settings=settings.get_profile(PROFILE)))()
