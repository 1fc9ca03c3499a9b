"""Many clients at once over a small world: few accounts, few images, few names and low quotas, so that calls collide.

Everything that they do is recorded as a history. Nothing here judges what they are told.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import grpc
from tests.robustness import history
from tests.robustness.history import AMBIGUOUS, OPERATOR, Call, History
from tests.world import GUANGZHOU, SHANGHAI, ZONES

from cunho import CHANNEL_OPTIONS, Refused, aio, v1

REGION_IDS = (GUANGZHOU, SHANGHAI)

_NAMES = [f"name {number}" for number in range(8)]
_CROWD = 50
_INSTANCES_MAX = 4
_MOVES = ("StartInstance", "StopInstance", "DeleteInstance")
_WAIT_SECONDS = 10

Arguments = Mapping[str, Any]


class Server(NamedTuple):
    """A server that is called."""

    address: str
    #: Gives a token of an account, or of OPERATOR.
    token: Callable[[str], str]


async def run(
    servers: Sequence[Server], *, operations: int, clients: int = 24, seed: int = 1, timeout_seconds: float = 30
) -> History:
    """What clients did and were told, in a world of new accounts.

    A call that nothing is known of when its time is up is recorded as such, and its client goes on: servers may be
    killed under the traffic.

    Args:
        servers: of one database; the clients are spread over them.
        operations: how many calls are made, about.
        clients: how many make them, one call at a time each.
        seed: of what is called. How calls meet is never the same.
        timeout_seconds: how long each call may take.
    """
    async with _connected(servers, timeout_seconds) as connect:
        traffic = await _begun(connect, random.Random(seed), operations)
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                client = traffic.client(number, random.Random(f"{seed} {number}"))
                tasks.create_task(client.go_on())
            for number in (-2, -1):
                tasks.create_task(traffic.client(number, random.Random(f"{seed} {number}")).go_on())
    return traffic.history


#: Gives the client of an account on the server of that number, the same one each time it is asked for.
_Connect = Callable[[str, int], aio.Client]


@asynccontextmanager
async def _connected(servers: Sequence[Server], timeout_seconds: float) -> AsyncIterator[_Connect]:
    async with AsyncExitStack() as stack:

        def connect(account_id: str, number: int) -> aio.Client:
            server = servers[number % len(servers)]
            options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
            channel = grpc.aio.insecure_channel(server.address, options)
            client = aio.Client(channel, token=server.token(account_id), timeout_seconds=timeout_seconds)
            stack.push_async_callback(client.close)
            return client

        yield connect


async def _begun(connect: _Connect, chance: random.Random, operations: int) -> "_Traffic":
    """The world before the traffic: accounts, and public images to launch from."""
    tag = f"{chance.getrandbits(40):010x}"
    accounts = tuple(f"{name}-{tag}" for name in ("ann", "bob", "cat", "dan"))
    guests = tuple(f"{name}-{tag}" for name in ("eve", "fay"))
    crowd = tuple(f"crowd-{number:02}-{tag}" for number in range(_CROWD))
    operator = connect(OPERATOR, 0)
    for account_id in (*accounts, *guests, *crowd):
        await operator.register_account(account_id=account_id, region_ids=REGION_IDS)
    public = {region_id: await _public_id(operator, region_id) for region_id in REGION_IDS}
    return _Traffic(connect, History(accounts, REGION_IDS, crowd, guests, tuple(public.values())), operations, public)


async def _public_id(operator: aio.Client, region_id: str) -> str:
    found = operator.list_images(region_id=region_id, filter='name = "Debian 12 64bit"')
    return [image.image_id async for image in found].pop()


@dataclass
class _Board:
    """What the clients know of the world, of which some is out of date."""

    #: By id: owner and region.
    images: dict[str, tuple[str, str]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    gone: deque[str] = field(default_factory=lambda: deque(maxlen=10))
    instances: dict[str, dict[str, str]] = field(default_factory=dict)
    #: What each account was last shown of others, by the account and the region: ids and owners.
    received: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)
    #: Mutations that may be sent again, or whose request ids are used for something else: the last ones.
    sent: deque[Call] = field(default_factory=lambda: deque(maxlen=60))

    def learn(self, call: Call) -> None:
        """Learns what the call told."""
        arguments, answer = call.arguments, call.answer or {}
        for image_id in answer.get("target_ids", ()):
            if image_id.startswith("img-"):
                self.images[image_id] = (call.caller, arguments["region_id"])
            elif call.method == "CreateInstance":
                self.instances.setdefault(call.caller, {})[image_id] = arguments["region_id"]
        if call.method == "DeleteImage" and answer:
            self.images.pop(arguments["image_id"], None)
            self.gone.append(arguments["image_id"])
        if call.method == "DeleteInstance" and answer:
            self.instances.get(call.caller, {}).pop(arguments["instance_id"], None)
        if call.method == "ListImages" and answer:
            shown = [(each["image_id"], each["owner_account_id"]) for each in answer["images"]]
            self.received[call.caller, arguments["region_id"]] = [each for each in shown if each[1] != call.caller]
        for kind in ("image", "instance", "account"):
            one = [answer[kind]] if kind in answer else []
            for each in (*one, *answer.get(f"{kind}s", ())):
                self.versions[each[f"{kind}_id"]] = each["version"]
        if call.request_id and answer:
            self.sent.append(call)


class _Traffic:
    """The world that the clients share, and the history that they write."""

    def __init__(self, connect: _Connect, history: History, operations: int, public: Mapping[str, str]) -> None:
        self.history, self.board, self.public = history, _Board(), public
        self._connect, self._operations = connect, operations
        self._witnesses = {account_id: connect(account_id, 0) for account_id in (*history.accounts, *history.guests)}

    def client(self, number: int, chance: random.Random) -> "_Client":
        """A client of one of the accounts, on two of the servers; of the operator, if its number is negative."""
        caller = OPERATOR if number < 0 else self.history.accounts[number % len(self.history.accounts)]
        # Clients of one account are on all servers.
        first = number // len(self.history.accounts)
        return _Client(self, caller, (self._connect(caller, first), self._connect(caller, first + 1)), chance)

    async def call_from_elsewhere(self, caller: str, method: str, arguments: Arguments, request_id: str) -> Call:
        """Makes a call of an account that is not one of its clients', which make one at a time."""
        return await self.call(caller, self._witnesses[caller], method, arguments, request_id)

    async def witness(self, chance: random.Random, call: Call) -> None:
        """Lists the instances of an account, right after an image was taken from it."""
        assert call.answer is not None
        lost = {*call.arguments.get("account_ids", ())} & {*self.history.accounts}
        account_id = chance.choice(sorted(lost) or self.history.accounts)
        arguments = {"region_id": call.answer["image"]["region_id"]}
        await self.call_from_elsewhere(account_id, "ListInstances", arguments, "")

    async def visit(self, chance: random.Random) -> None:
        """Lists what a guest sees, who calls nothing else: what nobody sees may be whatever it likes."""
        account_id = chance.choice(self.history.guests)
        arguments = {"region_id": chance.choice(REGION_IDS)}
        await self.call_from_elsewhere(account_id, "ListImages", arguments, "")

    @property
    def over(self) -> bool:
        """Whether enough calls were made."""
        return len(self.history.calls) >= self._operations

    async def call(self, caller: str, client: aio.Client, method: str, arguments: Arguments, request_id: str) -> Call:
        """Makes a call and records it."""
        call = Call(len(self.history.calls), caller, method, arguments, request_id, time.monotonic_ns())
        self.history.calls.append(call)
        try:
            call.answer = await _SEND[method](client, arguments, request_id)
        except Refused as refused:
            call.reason, call.metadata = refused.reason, refused.metadata
        if call.reason not in AMBIGUOUS:
            call.end_ns = time.monotonic_ns()
        self.board.learn(call)
        return call


class _Client:
    """One caller, which makes one call after the other."""

    def __init__(
        self, traffic: _Traffic, caller: str, clients: tuple[aio.Client, aio.Client], chance: random.Random
    ) -> None:
        self._traffic, self._board = traffic, traffic.board
        self._caller, self._clients, self._chance = caller, clients, chance
        self._others = [each for each in traffic.history.accounts if each != caller]

    async def go_on(self) -> None:
        """Makes random calls until enough are made."""
        choices = _OPERATOR_CHOICES if self._caller == OPERATOR else _CHOICES
        if self._caller == OPERATOR:
            await self._lower_limits()
        while not self._traffic.over:
            (choose,) = self._chance.choices([*choices], [*choices.values()])
            if chosen := choose(self):
                await self._do(*chosen)
            else:
                await asyncio.sleep(0)

    async def _lower_limits(self) -> None:
        for account_id in self._traffic.history.accounts[1:]:
            for region_id in REGION_IDS:
                arguments = {"account_id": account_id, "region_id": region_id, "limit": self._chance.randint(2, 4)}
                await self._do("SetQuotaLimit of images", arguments)

    async def _do(self, method: str, arguments: Arguments) -> None:
        mutates = method not in _READS
        request_id = str(UUID(int=self._chance.getrandbits(128), version=4)) if mutates else ""
        if mutates and self._chance.random() < 0.03:
            return await self._again(method, arguments, request_id)
        call, *rivals = await asyncio.gather(self._call(method, arguments, request_id), *self._rival(method, arguments))
        for each in (call, *rivals):
            if each.answer is not None and "operation" in each.answer:
                await self._see_through(each.answer["operation"])
        if call.answer is not None and method in ("UnshareImage", "DeleteImage", "DeprecateImage"):
            await self._traffic.witness(self._chance, call)
        if self._caller == OPERATOR:
            await self._traffic.visit(self._chance)
        return None

    async def _again(self, method: str, arguments: Arguments, request_id: str) -> None:
        """The call twice at once by one request id, on two servers; or a request id that was used before."""
        if self._chance.random() < 0.5 and self._board.sent:
            await self._reuse(method, arguments)
            return
        calls = (self._call(method, arguments, request_id, client) for client in self._clients)
        for call in await asyncio.gather(*calls):
            if call.answer is not None and "operation" in call.answer:
                await self._see_through(call.answer["operation"])

    async def _reuse(self, method: str, arguments: Arguments) -> None:
        """The call by the request id of another one; or that one again, by who made it or by another account."""
        alike = [each for each in self._board.sent if (each.caller, each.method) == (self._caller, method)]
        sent = self._chance.choice(alike if alike and self._chance.random() < 0.6 else self._board.sent)
        if OPERATOR in (sent.caller, self._caller) or self._chance.random() < 0.6:
            await self._call(method, arguments, sent.request_id)
        else:
            await self._call(sent.method, sent.arguments, sent.request_id)

    def _rival(self, method: str, arguments: Arguments) -> list[Awaitable[Call]]:
        """What is asked of the same image meanwhile, now and then, so that the call loses what it relies on.

        The owner copies it, or deletes it, or takes it back from who launches from it or lists it; launches from it
        while deprecating it, renames it twice or another one alike, and shares it twice, or just when the operator says
        with how many. An instance, too, is renamed twice, or moved by two.
        """
        received = method == "ListImages" and self._board.received.get((self._caller, arguments["region_id"]))
        if received and self._chance.random() < 0.3:
            return [self._taken_back(*self._chance.choice(received))]
        if method == "UpdateInstance" and self._chance.random() < 0.5:
            return [self._meanwhile(self._caller, method, {**arguments, "name": self._name(), "etag": None})]
        if method in _MOVES and self._chance.random() < 0.5:
            return [self._meanwhile(self._caller, self._chance.choice(_MOVES), arguments)]
        owner, _ = self._board.images.get(arguments.get("image_id", ""), ("", ""))
        if owner == self._caller:
            return self._rival_of_owner(method, arguments)
        if owner and method == "CreateInstance" and self._chance.random() < 0.5:
            return [self._meanwhile(owner, *self._take_back(arguments["image_id"]))]
        if owner and method == "SetQuotaLimit of shares" and self._chance.random() < 0.5:
            guests = {"account_ids": self._traffic.history.guests, "etag": None}
            return [self._meanwhile(owner, "ShareImage", {"image_id": arguments["image_id"], **guests})]
        return []

    def _rival_of_owner(self, method: str, arguments: Arguments) -> list[Awaitable[Call]]:
        """The same, of what an owner asks: some of it is asked for together with what it would collide with."""
        image_id = arguments["image_id"]
        rivals, often = [self.copy_image(image_id), self.delete_image(image_id)], 0.1
        if method == "CopyImage":
            rivals, often = rivals[1:], 0.5
        elif method == "DeprecateImage":
            _, region_id = self._board.images[image_id]
            launch = "CreateInstance", {"region_id": region_id, "image_id": image_id, "etag": None}
            rivals, often = [*rivals, *3 * [launch]], 0.4
        elif method == "UpdateImage":
            again = {**arguments, "name": self._name()}
            same_name = {**arguments, "image_id": self._image_id(own=1) or image_id, "etag": None}
            rivals, often = [*rivals, *2 * [(method, again)], *4 * [(method, same_name)]], 0.6
        elif method == "ShareImage":
            rivals, often = [*rivals, *3 * [(method, {**arguments, "account_ids": self._some()})]], 0.4
        chosen = self._chance.choice(rivals)
        return [self._meanwhile(self._caller, *chosen)] if self._chance.random() < often else []

    def _take_back(self, image_id: str) -> Any:
        return "UnshareImage", {"image_id": image_id, "account_ids": (self._caller,), "etag": None}

    async def _taken_back(self, image_id: str, owner: str) -> Call:
        """The owner takes the image back and renames it: who sees its new name sees what was never shared."""
        await self._meanwhile(owner, *self._take_back(image_id))
        return await self._meanwhile(owner, "UpdateImage", {"image_id": image_id, "name": self._name(), "etag": None})

    async def _meanwhile(self, caller: str, method: str, arguments: Arguments) -> Call:
        await asyncio.sleep(self._chance.uniform(0, self._chance.choice((0, 0.02, 0.3))))
        request_id = str(UUID(int=self._chance.getrandbits(128), version=4))
        call = await self._traffic.call_from_elsewhere(caller, method, arguments, request_id)
        if call.answer is not None and "image" in call.answer:
            await self._traffic.witness(self._chance, call)
        return call

    async def _see_through(self, name: str) -> None:
        if self._chance.random() < 0.03:
            await self._call("CancelOperation", {"name": name}, "")
        if self._chance.random() < 0.3:
            await self._call("GetOperation", {"name": name}, "")
        for _ in range(3):
            call = await self._call("WaitOperation", {"name": name}, "", self._chance.choice(self._clients))
            if call.answer is not None and call.answer["done"]:
                return

    async def _call(self, method: str, arguments: Arguments, request_id: str, client: aio.Client | None = None) -> Call:
        return await self._traffic.call(self._caller, client or self._clients[0], method, arguments, request_id)

    # --- what is called next, and with what; None if there is nothing to call it with

    def _image_id(self, *, own: float) -> str | None:
        """An image, with that chance one of the caller's, and seldom one that is gone."""
        if self._board.gone and self._chance.random() < 0.05:
            return self._chance.choice(self._board.gone)
        mine = self._chance.random() < own
        found = [image_id for image_id, (owner, _) in self._board.images.items() if (owner == self._caller) == mine]
        return self._chance.choice(found[: self._chance.choice((2, 8))]) if found else None

    def _etag(self, of: str) -> int | None:
        return self._board.versions.get(of) if self._chance.random() < 0.3 else None

    def _region(self) -> str:
        return self._chance.choice((GUANGZHOU, GUANGZHOU, GUANGZHOU, SHANGHAI))

    def _name(self) -> str:
        return self._chance.choice(_NAMES)

    def _some(self) -> tuple[str, ...]:
        """Accounts to share with."""
        known = [*self._others, *self._traffic.history.guests]
        some = self._chance.sample(known, self._chance.choice((1, 1, 2)))
        if self._chance.random() < 0.1:
            some += self._chance.sample(self._traffic.history.crowd, self._chance.randint(20, 49))
        return tuple(some)

    def import_image(self) -> Any:
        return "ImportImage", {"region_id": self._region(), "name": self._name()}

    def create_image(self) -> Any:
        if not (instances := self._board.instances.get(self._caller)):
            return None
        instance_id = self._chance.choice([*instances])
        arguments = {"region_id": instances[instance_id], "instance_id": instance_id, "name": self._name()}
        return "CreateImage", arguments

    def copy_image(self, image_id: str | None = None) -> Any:
        image_id = image_id or self._image_id(own=0.9)
        if image_id not in self._board.images:
            return None
        _, region_id = self._board.images[image_id]
        to = SHANGHAI if region_id == GUANGZHOU else GUANGZHOU
        return "CopyImage", {"image_id": image_id, "region_id": to, "name": self._name()}

    def update_image(self) -> Any:
        if image_id := self._image_id(own=0.9):
            return "UpdateImage", {"image_id": image_id, "name": self._name(), "etag": self._etag(image_id)}
        return None

    def deprecate_image(self) -> Any:
        if image_id := self._image_id(own=0.9):
            state = self._chance.choice(("CURRENT", "DEPRECATED", "OBSOLETE"))
            return "DeprecateImage", {"image_id": image_id, "state": state, "etag": self._etag(image_id)}
        return None

    def delete_image(self, image_id: str | None = None) -> Any:
        if image_id := image_id or self._image_id(own=0.95):
            force = self._chance.random() < 0.7
            return "DeleteImage", {"image_id": image_id, "force": force, "etag": self._etag(image_id)}
        return None

    def share_image(self) -> Any:
        return self._sharing("ShareImage")

    def set_image_shares(self) -> Any:
        return self._sharing("SetImageShares")

    def unshare_image(self) -> Any:
        return self._sharing("UnshareImage")

    def _sharing(self, method: str) -> Any:
        if image_id := self._image_id(own=0.95):
            return method, {"image_id": image_id, "account_ids": self._some(), "etag": self._etag(image_id)}
        return None

    def leave_image_share(self) -> Any:
        image_id = self._image_id(own=0.05)
        return ("LeaveImageShare", {"image_id": image_id}) if image_id else None

    def launch(self) -> Any:
        if len(self._board.instances.get(self._caller, ())) >= _INSTANCES_MAX:
            return self.delete_instance()
        image_id = self._image_id(own=0.2) if self._chance.random() < 0.8 else None
        region_id = self._region()
        if image_id is None or image_id not in self._board.images:
            return "CreateInstance", {"region_id": region_id, "image_id": self._traffic.public[region_id], "etag": None}
        _, region_id = self._board.images[image_id]
        return "CreateInstance", {"region_id": region_id, "image_id": image_id, "etag": self._etag(image_id)}

    def delete_instance(self) -> Any:
        return self._moving("DeleteInstance")

    def stop_instance(self) -> Any:
        return self._moving("StopInstance")

    def start_instance(self) -> Any:
        return self._moving("StartInstance")

    def update_instance(self) -> Any:
        if not (chosen := self._moving("UpdateInstance")):
            return None
        method, arguments = chosen
        return method, {**arguments, "name": self._name(), "etag": self._etag(arguments["instance_id"])}

    def get_instance(self) -> Any:
        return self._moving("GetInstance")

    def _moving(self, method: str) -> Any:
        instances = self._board.instances.get(self._caller)
        return (method, {"instance_id": self._chance.choice([*instances])}) if instances else None

    def get_image(self) -> Any:
        image_id = self._image_id(own=0.4)
        return ("GetImage", {"image_id": image_id}) if image_id else None

    def list_images(self) -> Any:
        return "ListImages", {"region_id": self._region()}

    def list_shares(self) -> Any:
        image_id = self._image_id(own=0.9)
        return ("ListImageShares", {"image_id": image_id}) if image_id else None

    def list_instances(self) -> Any:
        return "ListInstances", {"region_id": self._region()}

    def image_quota(self) -> Any:
        return "GetQuota of images", {"region_id": self._region()}

    def share_quota(self) -> Any:
        image_id = self._image_id(own=0.95)
        return ("GetQuota of shares", {"image_id": image_id}) if image_id else None

    def image_limit(self) -> Any:
        account_id = self._chance.choice(self._traffic.history.accounts)
        limit = self._chance.choice((2, 3, 4, 10))
        return "SetQuotaLimit of images", {"account_id": account_id, "region_id": self._region(), "limit": limit}

    def update_account(self) -> Any:
        account_id = self._chance.choice(self._traffic.history.guests)
        region_ids = self._chance.choice((REGION_IDS, REGION_IDS[:1], REGION_IDS[1:]))
        return "UpdateAccount", {"account_id": account_id, "region_ids": region_ids, "etag": self._etag(account_id)}

    def get_account(self) -> Any:
        return "GetAccount", {"account_id": self._chance.choice(self._traffic.history.guests)}

    def share_limit(self) -> Any:
        if image_id := self._image_id(own=0):
            limit = self._chance.choice((1, 1, 2, 50))
            return "SetQuotaLimit of shares", {"image_id": image_id, "limit": limit}
        return None


#: What an account calls, with its weight.
_CHOICES: Mapping[Callable[[_Client], Any], int] = {
    _Client.import_image: 9,
    _Client.create_image: 4,
    _Client.copy_image: 6,
    _Client.update_image: 9,
    _Client.deprecate_image: 8,
    _Client.delete_image: 9,
    _Client.share_image: 12,
    _Client.set_image_shares: 4,
    _Client.unshare_image: 8,
    _Client.leave_image_share: 4,
    _Client.launch: 14,
    _Client.delete_instance: 5,
    _Client.stop_instance: 3,
    _Client.start_instance: 3,
    _Client.update_instance: 3,
    _Client.get_instance: 4,
    _Client.get_image: 8,
    _Client.list_images: 10,
    _Client.list_shares: 3,
    _Client.list_instances: 3,
    _Client.image_quota: 4,
    _Client.share_quota: 2,
}
_OPERATOR_CHOICES: Mapping[Callable[[_Client], Any], int] = {
    _Client.image_limit: 4,
    _Client.share_limit: 6,
    _Client.update_account: 4,
    _Client.get_account: 1,
}


# --- how each is sent, and its answer as plain values

_READS = frozenset("GetAccount GetImage ListImages ListImageShares GetInstance ListInstances".split()) | {
    "GetOperation",
    "WaitOperation",
    "CancelOperation",
    "GetQuota of images",
    "GetQuota of shares",
}

_IMPORT: dict[str, Any] = {
    "uri": "https://cloud.debian.org/images/cloud/bookworm/debian-12.qcow2",
    "format": v1.ImportImageRequest.FORMAT_QCOW2,
    "os": v1.OperatingSystem(family=v1.OsFamily.OS_FAMILY_LINUX, platform="debian", version="12"),
    "architecture": v1.Architecture.ARCHITECTURE_X86_64,
    "size_bytes": 1 << 30,
    "min_disk_bytes": 8 << 30,
}

_Send = Callable[[aio.Client, Arguments, str], Awaitable[Mapping[str, Any]]]
_SEND: dict[str, _Send] = {}


def _sends(method: str) -> Callable[[Callable[[aio.Client, Arguments], Any]], Callable[[aio.Client, Arguments], Any]]:
    """Makes a function how a method is sent, if it only has to say the call without the request id."""

    def make(send: Callable[[aio.Client, Arguments], Any]) -> Callable[[aio.Client, Arguments], Any]:
        async def sent(client: aio.Client, arguments: Arguments, request_id: str) -> Mapping[str, Any]:
            call, named = send(client, arguments)
            more = {"request_id": request_id} if request_id else {}
            return history.plain(method, await call(**named, **more))

        _SEND[method] = sent
        return send

    return make


@_sends("ImportImage")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.import_image, {**of, **_IMPORT}


@_sends("CreateImage")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.create_image, {**of, "consistency": v1.CreateImageRequest.CONSISTENCY_CRASH_CONSISTENT}


@_sends("CopyImage")
def _(client: aio.Client, of: Arguments) -> Any:
    destination = v1.CopyImageRequest.Destination(region_id=of["region_id"], name=of["name"])
    return client.copy_image, {"image_id": of["image_id"], "destinations": [destination]}


@_sends("UpdateImage")
def _(client: aio.Client, of: Arguments) -> Any:
    image = v1.Image(image_id=of["image_id"], name=of["name"], etag=_etag(of))
    return client.update_image, {"image": image, "update_mask": ["name"]}


@_sends("DeprecateImage")
def _(client: aio.Client, of: Arguments) -> Any:
    deprecation = v1.Deprecation(state=v1.Deprecation.State.Value(f"STATE_{of['state']}"))
    return client.deprecate_image, {"image_id": of["image_id"], "deprecation": deprecation, "etag": _etag(of)}


@_sends("DeleteImage")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.delete_image, {**of, "etag": _etag(of)}


@_sends("ShareImage")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.share_image, {**of, "etag": _etag(of)}


@_sends("SetImageShares")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.set_image_shares, {**of, "etag": _etag(of)}


@_sends("UnshareImage")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.unshare_image, {**of, "etag": _etag(of)}


@_sends("LeaveImageShare")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.leave_image_share, of


@_sends("CreateInstance")
def _(client: aio.Client, of: Arguments) -> Any:
    named = {"region_id": of["region_id"], "image_id": of["image_id"], "expected_image_etag": _etag(of)}
    return client.create_instance, {**named, "zone_id": ZONES[of["region_id"]], "instance_type": "S5.MEDIUM4"}


@_sends("StartInstance")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.start_instance, of


@_sends("StopInstance")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.stop_instance, of


@_sends("DeleteInstance")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.delete_instance, of


@_sends("GetImage")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.get_image, of


@_sends("GetInstance")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.get_instance, of


@_sends("UpdateInstance")
def _(client: aio.Client, of: Arguments) -> Any:
    instance = v1.Instance(instance_id=of["instance_id"], name=of["name"], etag=_etag(of))
    return client.update_instance, {"instance": instance, "update_mask": ["name"]}


@_sends("UpdateAccount")
def _(client: aio.Client, of: Arguments) -> Any:
    account = v1.Account(account_id=of["account_id"], region_ids=of["region_ids"], etag=_etag(of))
    return client.update_account, {"account": account, "update_mask": ["region_ids"]}


@_sends("GetAccount")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.get_account, of


@_sends("GetQuota of images")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.get_quota, {**of, "quota_id": v1.QuotaId.QUOTA_ID_CUSTOM_IMAGES}


@_sends("GetQuota of shares")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.get_quota, {**of, "quota_id": v1.QuotaId.QUOTA_ID_SHARES_PER_IMAGE}


@_sends("SetQuotaLimit of images")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.set_quota_limit, {**of, "quota_id": v1.QuotaId.QUOTA_ID_CUSTOM_IMAGES}


@_sends("SetQuotaLimit of shares")
def _(client: aio.Client, of: Arguments) -> Any:
    return client.set_quota_limit, {**of, "quota_id": v1.QuotaId.QUOTA_ID_SHARES_PER_IMAGE}


async def _wait(client: aio.Client, of: Arguments, _: str) -> Mapping[str, Any]:
    operation = await client.wait_operation(name=of["name"], timeout_seconds=_WAIT_SECONDS)
    return history.ended(operation._operation)


async def _get_operation(client: aio.Client, of: Arguments, _: str) -> Mapping[str, Any]:
    operation = await client.get_operation(name=of["name"])
    return history.ended(operation._operation)


async def _cancel(client: aio.Client, of: Arguments, _: str) -> Mapping[str, Any]:
    await client.cancel_operation(name=of["name"])
    return {}


async def _list_images(client: aio.Client, of: Arguments, _: str) -> Mapping[str, Any]:
    found = client.list_images(region_id=of["region_id"], filter="kind != PUBLIC", page_size=1000)
    return history.listed("images", [each async for each in found])


async def _list_shares(client: aio.Client, of: Arguments, _: str) -> Mapping[str, Any]:
    found = client.list_image_shares(image_id=of["image_id"], page_size=1000)
    return history.listed("shared_with", [each async for each in found])


async def _list_instances(client: aio.Client, of: Arguments, _: str) -> Mapping[str, Any]:
    found = client.list_instances(region_id=of["region_id"], page_size=1000)
    return history.listed("instances", [each async for each in found])


_SEND |= {
    "GetOperation": _get_operation,
    "WaitOperation": _wait,
    "CancelOperation": _cancel,
    "ListImages": _list_images,
    "ListImageShares": _list_shares,
    "ListInstances": _list_instances,
}


def _etag(of: Arguments) -> str:
    return "" if of["etag"] is None else f"v{of['etag']}"
