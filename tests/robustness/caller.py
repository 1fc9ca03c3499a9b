"""A caller with the client of any release, as a program of its own: of ours it knows the package `cunho` alone.

    python caller.py methods | tour | everything | traffic

What to do is told as a line of JSON on standard input; what came of it is printed as one.
"""

import json
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import grpc
from google.longrunning import operations_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from cunho import Client, Operation, Refused, v1
from cunho.methods import Methods
from cunho.v1 import account_service_pb2, image_service_pb2, instance_service_pb2, quota_service_pb2, region_service_pb2

GIB = 1 << 30
GUANGZHOU, SHANGHAI = "ap-guangzhou", "ap-shanghai"
PLACE: dict[str, Any] = {"region_id": GUANGZHOU, "zone_id": "ap-guangzhou-3", "instance_type": "S5.MEDIUM4"}
DISK: dict[str, Any] = {
    "region_id": GUANGZHOU,
    "os": v1.OperatingSystem(family=v1.OsFamily.OS_FAMILY_LINUX, platform="debian", version="12"),
    "architecture": v1.Architecture.ARCHITECTURE_X86_64,
    "size_bytes": GIB,
    "min_disk_bytes": 8 * GIB,
}
FILE: dict[str, Any] = {"uri": "https://cloud.debian.org/disk.qcow2", "format": v1.ImportImageRequest.FORMAT_QCOW2}
SUPPORT = v1.Support(kind=v1.Support.KIND_COMMUNITY, contact_uri="https://www.debian.org/support")

#: Options of a channel that sends calls to each server in turn, and repeats them as the clients of all releases do.
BALANCED = (
    (
        "grpc.service_config",
        json.dumps(
            {
                "loadBalancingConfig": [{"round_robin": {}}],
                "methodConfig": [
                    {
                        "name": [{}],
                        "retryPolicy": {
                            "maxAttempts": 4,
                            "initialBackoff": "0.2s",
                            "maxBackoff": "2s",
                            "backoffMultiplier": 3,
                            # A server that stops cancels calls which it had not taken up.
                            "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                        },
                    }
                ],
            }
        ),
    ),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
)

#: Rounds of traffic that leave their image; two more may, begun meanwhile. All must fit an account's quota of 10.
_KEPT = 4

_MODULES = (image_service_pb2, instance_service_pb2, quota_service_pb2, account_service_pb2, region_service_pb2)
RPCS = {
    method.name: method
    for module in (*_MODULES, operations_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def methods() -> list[str]:
    """The methods that the client has for calls."""
    return [name for name in vars(Methods) if not name.startswith("_")]


def said(answer: Any) -> Any:
    """What an answer says to this client, to compare: without the wording of explanations, which may be bettered."""
    if isinstance(answer, Operation):
        return [answer.name, MessageToDict(answer.metadata)]
    if isinstance(answer, v1.CheckImageActionsResponse | v1.CheckInstanceActionsResponse):
        return [[decision.action, decision.allowed] for decision in answer.decisions]
    if isinstance(answer, Message):
        return MessageToDict(answer)
    return [said(item) for item in answer] if isinstance(answer, list) else answer


class Caller:
    """The clients of one account, one for each server of one database, which must all say the same."""

    def __init__(self, addresses: Sequence[str], account_id: str, token: str) -> None:
        self.account_id, self.called = account_id, set[str]()
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._channels = [grpc.insecure_channel(address) for address in addresses]
        self._clients = [Client(address, token=token) for address in addresses]

    def begin_with(self, server: int) -> None:
        """Has that server asked before the others."""
        self._channels = self._channels[server:] + self._channels[:server]
        self._clients = self._clients[server:] + self._clients[:server]

    def read(self, method: str, **given: Any) -> Any:
        """What every server answers."""
        self.called.add(method)
        answers = [getattr(client, method)(**given) for client in self._clients]
        answers = [[*answer] if hasattr(answer, "__next__") else answer for answer in answers]
        assert all(said(answer) == said(answers[0]) for answer in answers), f"{method} {given}: {answers}"
        return answers[0]

    def write(self, method: str, **given: Any) -> Any:
        """What the first server answers, and the others to the same request id; of an operation, what it made."""
        given["request_id"] = str(uuid4())
        answer = self.read(method, **given)
        self.begin_with(1)
        return self.result(answer.name) if isinstance(answer, Operation) else answer

    def once(self, method: str, **given: Any) -> Any:
        """What the first server answers."""
        self.called.add(method)
        return getattr(self._clients[0], method)(**given)

    def result(self, name: str) -> Any:
        """What an operation made, as all servers tell."""
        results = [client.get_operation(name=name).result(30) for client in self._clients]
        assert all(said(result) == said(results[0]) for result in results), results
        return results[0]

    def pages(self, rpc: str, **given: Any) -> list[Message]:
        """The items of a list, one on each page, each page from another server than the one before."""
        request: Any = GetMessageClass(RPCS[rpc].input_type)(**given, page_size=1)
        found: list[Message] = []
        while True:
            page = self._send(RPCS[rpc], request)
            self.begin_with(1)
            items = next(field.name for field in page.DESCRIPTOR.fields if field.is_repeated)
            found += getattr(page, items)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def _send(self, rpc: Any, request: Any) -> Any:
        path = f"/{rpc.containing_service.full_name}/{rpc.name}"
        answered: Any = GetMessageClass(rpc.output_type)
        method: Any = self._channels[0].unary_unary(path, type(request).SerializeToString, answered.FromString)
        return method(request, metadata=self._metadata, timeout=20)


class Tour:
    """Every call once or more, through all the servers in turn; after each, they must tell the same of everything.

    Args:
        told: "addresses"; "accounts" and "tokens" of operator, owner and recipient; the server to "begin_with"; the
            "methods" that client and servers all have: what calls a later one asks first whether it is among them.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        self.methods = {*told["methods"]}
        made = [Caller(told["addresses"], told["accounts"][who], told["tokens"][who]) for who in told["accounts"]]
        self.operator, self.owner, self.recipient = self._callers = made
        self._first = told["begin_with"]
        self._suffix = uuid4().hex[:8]

    def go(self) -> list[str]:
        """The methods that were not called."""
        for part in (self.accounts, self.choosing, self.public, self.instances, self.images, self.shares, self.rest):
            for caller in self._callers:
                caller.begin_with(self._first)
            part()
            for method in ("list_operations", "list_quotas"):
                self.owner.read(method)
        return sorted(self.methods - {method for caller in self._callers for method in caller.called})

    def look(self) -> None:
        """Compares what the servers tell of what the accounts have."""
        for caller in (self.owner, self.recipient):
            caller.read("list_instances", region_id="-")
            images = caller.read("list_images", region_id="-", filter="kind != PUBLIC")
            if images:
                caller.read("batch_get_images", image_ids=[image.image_id for image in images])

    def write(self, caller: Caller, method: str, **given: Any) -> Any:
        """What `Caller.write` does, and a look at what came of it."""
        answer = caller.write(method, **given)
        self.look()
        return answer

    def accounts(self) -> None:
        """Accounts are registered and changed."""
        for caller in (self.owner, self.recipient):
            regions = [GUANGZHOU, SHANGHAI]
            self.operator.write("register_account", account_id=caller.account_id, region_ids=regions)
        for name in ("One", "Other"):
            account = v1.Account(account_id=self.owner.account_id, display_name=name)
            self.operator.write("update_account", account=account, update_mask=["display_name"])
            assert self.owner.read("get_account", account_id=self.owner.account_id).display_name == name
        self.operator.read("list_accounts")

    def choosing(self) -> None:
        """Public images are found."""
        self.owner.read("list_regions")
        self.owner.read("list_instance_types")
        found = self.owner.read(
            "list_images",
            region_id=GUANGZHOU,
            filter="kind = PUBLIC AND os.family = LINUX AND architecture = X86_64",
            order_by="name desc",
        )
        self.debian = self.owner.read(
            "resolve_image",
            region_id=GUANGZHOU,
            family="debian-12",
            architecture=v1.Architecture.ARCHITECTURE_X86_64,
        )
        assert self.debian in found
        self.owner.read("batch_get_images", image_ids=[image.image_id for image in found])

    def public(self) -> None:
        """Public images are published, changed and retired."""
        for number in range(2):
            image = self.operator.write(
                "publish_image",
                name=f"published {number} {self._suffix}",
                content=v1.ImageContent(uri="store:debian-12.qcow2"),
                support=SUPPORT,
                **DISK,
            )
            changed = v1.Image(image_id=image.image_id, description="changed")
            obsolete = v1.Deprecation(state=v1.Deprecation.STATE_OBSOLETE)
            for method, given in (
                ("update_image", {"image": changed, "update_mask": ["description"]}),
                ("deprecate_image", {"image_id": image.image_id, "deprecation": obsolete}),
                ("delete_image", {"image_id": image.image_id}),
            ):
                self.operator.write(method, **given)
                self.owner.read("list_images", region_id=GUANGZHOU, filter="kind = PUBLIC")

    def instances(self) -> None:
        """Instances go through their life, each step of it begun by another server."""
        launch = partial(self.write, self.owner, "create_instance", image_id=self.debian.image_id, **PLACE)
        self.running = [launch(name=f"web {number}").instances[0].instance_id for number in range(2)]
        for instance_id in self.running:
            renamed = v1.Instance(instance_id=instance_id, name="renamed")
            self.write(self.owner, "update_instance", instance=renamed, update_mask=["name"])
            for method in ("stop_instance", "start_instance", "reboot_instance", "reinstall_instance"):
                self.write(self.owner, method, instance_id=instance_id)
                self.owner.read("check_instance_actions", instance_id=instance_id)
            state = self.owner.read("get_instance", instance_id=instance_id).state
            assert state == v1.Instance.STATE_RUNNING
        self.owner.begin_with(1)
        self.write(self.owner, "delete_instance", instance_id=launch().instances[0].instance_id)

    def images(self) -> None:
        """Images are made in every way, and changed."""
        consistency = v1.CreateImageRequest.CONSISTENCY_CRASH_CONSISTENT
        self.made = []
        for number, instance_id in enumerate(self.running):
            of_it = {"instance_id": instance_id, "consistency": consistency, "region_id": GUANGZHOU}
            self.made.append(self.write(self.owner, "create_image", name=f"made {number}", **of_it).image_id)
            self.made.append(self.write(self.owner, "import_image", name=f"got {number}", **FILE, **DISK).image_id)
        for image_id in self.made:
            renamed = v1.Image(image_id=image_id, name=f"renamed {image_id}", labels={"env": "test"})
            self.write(self.owner, "update_image", image=renamed, update_mask=["name", "labels"])
            deprecated = v1.Deprecation(state=v1.Deprecation.STATE_DEPRECATED, message="old")
            self.write(self.owner, "deprecate_image", image_id=image_id, deprecation=deprecated)
            there = v1.CopyImageRequest.Destination(region_id=SHANGHAI)
            self.write(self.owner, "copy_image", image_id=image_id, destinations=[there])
            self.owner.read("check_image_actions", image_id=image_id)
            assert self.owner.read("get_image", image_id=image_id).name == f"renamed {image_id}"
            found = self.owner.read("list_images", region_id="-", filter=f'name = "renamed {image_id}"')
            assert [image.region_id for image in found] == [SHANGHAI, GUANGZHOU]

    def shares(self) -> None:
        """Images are shared, launched from, and taken back; limits are set."""
        first, *_, last = self.made
        recipient = [self.recipient.account_id]
        for image_id in (first, last):
            for method in ("share_image", "unshare_image", "set_image_shares"):
                self.write(self.owner, method, image_id=image_id, account_ids=recipient)
            assert self.owner.read("list_image_shares", image_id=image_id)
            assert self.recipient.read("list_images", region_id="-", filter="kind = SHARED")
            self.write(self.recipient, "create_instance", image_id=image_id, **PLACE)
            self.write(self.recipient, "leave_image_share", image_id=image_id)
            shares, custom = v1.QuotaId.QUOTA_ID_SHARES_PER_IMAGE, v1.QuotaId.QUOTA_ID_CUSTOM_IMAGES
            self.write(self.operator, "set_quota_limit", quota_id=shares, image_id=image_id, limit=7)
            owned = {"account_id": self.owner.account_id, "region_id": GUANGZHOU}
            self.write(self.operator, "set_quota_limit", quota_id=custom, limit=19, **owned)
            assert self.owner.read("get_quota", quota_id=custom, region_id=GUANGZHOU).limit == 19
            self.owner.begin_with(1)
        self.write(self.owner, "share_image", image_id=first, account_ids=recipient)
        for image_id in self.made[1:3]:
            self.write(self.owner, "delete_image", image_id=image_id)

    def rest(self) -> None:
        """Operations are looked at; lists are read page by page, each page from another server."""
        for operation in self.owner.read("list_operations")[:2]:
            self.owner.read("get_operation", name=operation.name)
            self.owner.read("wait_operation", name=operation.name)
            self.owner.once("cancel_operation", name=operation.name)
            self.owner.once("delete_operation", name=operation.name)
            self.owner.begin_with(1)
        here = {"region_id": "-"}
        for rpc, method, given in (
            ("ListImages", "list_images", here | {"order_by": "name desc"}),
            ("ListImages", "list_images", here | {"filter": "kind = CUSTOM"}),
            ("ListInstances", "list_instances", here),
            ("ListInstanceTypes", "list_instance_types", {}),
            ("ListImageShares", "list_image_shares", {"image_id": self.made[0]}),
            ("ListQuotas", "list_quotas", {}),
            ("ListRegions", "list_regions", {}),
        ):
            assert said(self.owner.pages(rpc, **given)) == said(self.owner.read(method, **given)), rpc
        assert len(self.operator.pages("ListAccounts")) == len(self.operator.read("list_accounts"))
        operations = [operation.name for operation in self.owner.read("list_operations")]
        assert [each.name for each in self.owner.pages("ListOperations", name="operations")] == operations  # type: ignore[attr-defined]


def everything(told: dict[str, Any]) -> Any:
    """What the servers tell the accounts of what they have."""
    asked = ("list_images", "list_instances", "list_operations", "list_quotas")
    found = {}
    for who, account_id in told["accounts"].items():
        caller = Caller(told["addresses"], account_id, told["tokens"][who])
        for method in asked:
            given = {"region_id": "-"} if method in ("list_images", "list_instances") else {}
            if who != "operator":
                found[f"{who} {method}"] = said(caller.read(method, **given))
    return found


class Traffic:
    """Threads that go on calling whatever server answers, as a balancer sends them, until standard input ends.

    A line is printed for each round; calls that failed, and what was not as answered before, are told in the end.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        channel = grpc.insecure_channel(f"ipv4:{','.join(told['addresses'])}", BALANCED)
        self._owner, self._recipient = (Client(channel, token=told["tokens"][who]) for who in ("owner", "recipient"))
        self._recipient_id = told["accounts"]["recipient"]
        self._stopped = threading.Event()
        self._wrong: list[str] = []
        #: The name that each image was last answered to have; None of a deleted one.
        self._names: dict[str, str | None] = {}

    def go(self) -> dict[str, Any]:
        """Calls until it is told to stop; what went wrong."""
        threads = [threading.Thread(target=self._thread, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        self._stopped.set()
        for thread in threads:
            thread.join()
        self._compare()
        return {"images": len(self._names), "wrong": self._wrong}

    def _thread(self, number: int) -> None:
        try:
            while not self._stopped.is_set():
                self._round(f"thread {number}", keep=len(self._names) < _KEPT)
                print("round", flush=True)
        except (Refused, TimeoutError, AssertionError) as error:
            self._wrong.append(f"{type(error).__name__}: {error}")

    def _round(self, name: str, *, keep: bool) -> None:
        owner, name = self._owner, f"{name} {uuid4().hex[:8]}"
        image_id = owner.import_image(name=name, **FILE, **DISK).result(30).image_id
        self._names[image_id] = name
        instance = owner.create_instance(image_id=image_id, **PLACE).result(30).instances[0]
        owner.share_image(image_id=image_id, account_ids=[self._recipient_id])
        shared = self._recipient.list_images(region_id=GUANGZHOU, filter="kind = SHARED")
        assert image_id in {image.image_id for image in shared}, f"{image_id} was shared and is not seen"
        renamed = owner.update_image(image=v1.Image(image_id=image_id, name=f"{name} again"), update_mask=["name"])
        self._names[image_id] = renamed.name
        assert owner.get_image(image_id=image_id).name == renamed.name, f"{image_id} was renamed and is not"
        owner.stop_instance(instance_id=instance.instance_id).result(30)
        owner.delete_instance(instance_id=instance.instance_id).result(30)
        owner.unshare_image(image_id=image_id, account_ids=[self._recipient_id])
        if not keep:
            owner.delete_image(image_id=image_id)
            self._names[image_id] = None

    def _compare(self) -> None:
        told = {image.image_id: image.name for image in self._owner.list_images(region_id="-", filter="kind = CUSTOM")}
        kept = {image_id: name for image_id, name in self._names.items() if name}
        if told != kept:
            self._wrong.append(f"told {told}, answered {kept}")


def main(what: str) -> None:
    """Does what is told and prints what came of it."""
    does: dict[str, Callable[[dict[str, Any]], Any]] = {
        "methods": lambda _: methods(),
        "tour": lambda told: Tour(told).go(),
        "everything": everything,
        "traffic": lambda told: Traffic(told).go(),
    }
    print(json.dumps(does[what](json.loads(sys.stdin.readline()))))


if __name__ == "__main__":
    main(sys.argv[1])
