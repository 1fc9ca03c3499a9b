"""What a history is: every call that clients made, when it began and ended, and what it was told, as plain values.

Nothing here judges. Messages become plain values here alone, whether a client received them or the service stored them.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.message import Message

from cunho import Refused, v1
from cunho.operation import OperationState

OPERATOR = "operator"

#: Refusals that leave open whether the call had its effect. Without a reason: no answer of the service arrived at all.
AMBIGUOUS = frozenset({"", "CALL_TIMED_OUT", "DATABASE_UNAVAILABLE", "INTERNAL_ERROR"})

#: Refusals by which a call was turned away whatever is stored. They say nothing of any object.
TURNED_AWAY = frozenset({"TRANSACTION_CONFLICT", "TOO_MANY_CALLS", "SERVICE_STOPPING"})

Answer = Mapping[str, Any]


@dataclass(slots=True)
class Call:
    """One call of one client."""

    number: int
    #: The account that called, or OPERATOR.
    caller: str
    #: The RPC's name; of SetQuotaLimit and GetQuota, whose quota as well: "GetQuota of images".
    method: str
    #: What was asked, by names of ours: what a message has beyond them is the same in every call.
    arguments: Mapping[str, Any]
    #: Of a mutation.
    request_id: str
    begin_ns: int
    #: When its outcome was known; None if it never was.
    end_ns: int | None = None
    answer: Answer | None = None
    #: Why it was refused, or why it is not known whether it was: one of AMBIGUOUS.
    reason: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether it is known that the call had its effect, or that it had none."""
        return self.answer is not None or self.reason not in (None, *AMBIGUOUS)

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items() if value not in ("", None))
        outcome = self.answer if self.answer is not None else f"{self.reason or 'no answer'} {dict(self.metadata)}"
        when = f"{self.begin_ns / 1e6:.1f} to {'?' if self.end_ns is None else f'{self.end_ns / 1e6:.1f}'} ms"
        return f"call {self.number}, {when}: {self.caller} {self.method}({arguments}) -> {outcome}"


@dataclass(slots=True)
class History:
    """Calls, and the small world that they were made in.

    Attributes:
        accounts: those that call, all active in every region.
        crowd: further accounts, which images are shared with.
        guests: further ones, which leave regions and come back.
        public_ids: images that everybody may launch from.
    """

    accounts: tuple[str, ...]
    region_ids: tuple[str, ...]
    crowd: tuple[str, ...] = ()
    guests: tuple[str, ...] = ()
    public_ids: tuple[str, ...] = ()
    calls: list[Call] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it took."""
        ends = [call.end_ns or call.begin_ns for call in self.calls]
        return (max(ends) - self.calls[0].begin_ns) / 1e9 if ends else 0

    def reasons(self) -> Counter[str]:
        """How many calls ended how: "OK", the reason of a refusal, or "?" where it is not known."""
        return Counter("OK" if call.answer is not None else call.reason or "?" for call in self.calls)

    def meetings(self) -> Counter[frozenset[str]]:
        """How often calls of one or two methods were under way at once that were about the same image."""
        met: Counter[frozenset[str]] = Counter()
        about: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            if "image_id" in call.arguments and call.arguments["image_id"] not in self.public_ids:
                others = about[call.arguments["image_id"]]
                others[:] = [other for other in others if other.end_ns is None or other.end_ns > call.begin_ns]
                met.update(frozenset([call.method, other.method]) for other in others)
                others.append(call)
        return met


# --- messages as plain values


def image(message: v1.Image) -> dict[str, Any]:
    """What a caller reads of an image, by the paths of cunho.v1.Image; its etag as the version that it is of."""
    return {
        "image_id": message.image_id,
        "name": message.name,
        "region_id": message.region_id,
        "owner_account_id": message.owner_account_id,
        "kind": _short(v1.ImageKind.Name(message.kind), "IMAGE_KIND_"),
        "state": _short(v1.Image.State.Name(message.state), "STATE_"),
        "deprecation.state": _short(v1.Deprecation.State.Name(message.deprecation.state), "STATE_"),
        "trust": _short(v1.Image.Trust.Name(message.trust), "TRUST_"),
        "sharing.account_count": message.sharing.account_count,
        "sharing.account_limit": message.sharing.account_limit,
        "version": _version(message.etag),
    }


def instance(message: v1.Instance) -> dict[str, Any]:
    """What a caller reads of an instance."""
    return {
        "instance_id": message.instance_id,
        "image_id": message.image_id,
        "account_id": message.account_id,
        "name": message.name,
        "state": _short(v1.Instance.State.Name(message.state), "STATE_"),
        "operation": message.operation,
        "version": _version(message.etag),
        "launch_image.name": message.launch_image.name,
        "launch_image.trust": _short(v1.Image.Trust.Name(message.launch_image.trust), "TRUST_"),
        "launch_image.still_available": message.launch_image.still_available,
    }


def account(message: v1.Account) -> dict[str, Any]:
    """What the operator reads of an account."""
    return {
        "account_id": message.account_id,
        "region_ids": tuple(message.region_ids),
        "version": _version(message.etag),
    }


def _operation(operation: OperationState[Message]) -> dict[str, Any]:
    metadata = operation.metadata
    return {
        "operation": operation.name,
        "target_ids": tuple(metadata.target_ids),
        "warnings": tuple(each.reason for each in metadata.warnings),
    }


def ended(raw: operations_pb2.Operation) -> dict[str, Any]:
    """What an operation came to: its error, or what it made or changed."""
    error = Refused.from_status(raw.error).reason if raw.HasField("error") else ""
    images: list[v1.Image] = []
    instances: list[v1.Instance] = []
    for kind in (v1.Image, v1.CopyImageResponse, v1.CreateInstanceResponse, v1.Instance):
        message = kind()
        if not raw.response.Unpack(message):
            continue
        match message:
            case v1.Image():
                images.append(message)
            case v1.CopyImageResponse():
                images += [result.image for result in message.results if result.HasField("image")]
            case v1.CreateInstanceResponse():
                instances += message.instances
            case v1.Instance():
                instances.append(message)
    return {
        "operation": raw.name,
        "done": raw.done,
        "error": error,
        "images": tuple(map(image, images)),
        "instances": tuple(map(instance, instances)),
    }


def _quota(message: v1.Quota) -> dict[str, Any]:
    return {"limit": message.limit, "usage": message.usage + message.reserved}


def _shared(message: v1.ShareImageResponse | v1.SetImageSharesResponse) -> dict[str, Any]:
    return {"image": image(message.image), "shared_with": tuple(share.account_id for share in message.shares)}


def _unshared(message: v1.UnshareImageResponse) -> dict[str, Any]:
    return {"image": image(message.image), "lost": tuple(message.account_ids)}


def _one(message: v1.Image) -> dict[str, Any]:
    return {"image": image(message)}


def _instance(message: v1.Instance) -> dict[str, Any]:
    return {"instance": instance(message)}


def _account(message: v1.Account) -> dict[str, Any]:
    return {"account": account(message)}


def _raw(message: operations_pb2.Operation) -> dict[str, Any]:
    return _operation(OperationState[Message](message))


#: The answer of each mutation: its message, and the plain value of that.
_PLAIN: dict[str, tuple[type[Any], Callable[[Any], dict[str, Any]]]] = {
    "ShareImage": (v1.ShareImageResponse, _shared),
    "SetImageShares": (v1.SetImageSharesResponse, _shared),
    "UnshareImage": (v1.UnshareImageResponse, _unshared),
    "LeaveImageShare": (v1.LeaveImageShareResponse, lambda message: {}),
    "SetQuotaLimit": (v1.Quota, _quota),
    "UpdateAccount": (v1.Account, _account),
    "UpdateInstance": (v1.Instance, _instance),
    **dict.fromkeys(("UpdateImage", "DeprecateImage", "DeleteImage"), (v1.Image, _one)),
    **dict.fromkeys(
        (
            "CreateImage",
            "ImportImage",
            "CopyImage",
            "CreateInstance",
            "ReinstallInstance",
            "StartInstance",
            "StopInstance",
            "DeleteInstance",
        ),
        (operations_pb2.Operation, _raw),
    ),
}


def plain(method: str, message: Any) -> dict[str, Any]:
    """The plain value of an answer, as a client of ours gives it."""
    if isinstance(message, OperationState):
        return _operation(message)
    match message:
        case v1.Image():
            return _one(message)
        case v1.Instance():
            return _instance(message)
        case v1.Quota():
            return _quota(message)
        case v1.Account():
            return _account(message)
    return _PLAIN[method][1](message)


def stored(method: str, data: bytes) -> dict[str, Any]:
    """The plain value of an answer, as the service stored it."""
    kind, value = _PLAIN[method]
    message = kind()
    message.ParseFromString(data)
    return value(message)


def listed(name: str, messages: Iterable[Any]) -> dict[str, Any]:
    """The plain value of a list: of "images" or "instances", or the accounts that an image is "shared_with"."""
    each: dict[str, Callable[[Any], Any]] = {
        "images": image,
        "instances": instance,
        "shared_with": lambda share: share.account_id,
    }
    return {name: tuple(map(each[name], messages))}


def _short(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)


def _version(etag: str) -> int:
    return int(etag.removeprefix("v"))
