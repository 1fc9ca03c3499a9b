"""The calls that are measured: what is asked for, and with which arguments the bare statements of `yardstick` run."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, NamedTuple

import asyncpg
import grpc
from google.longrunning.operations_pb2 import Operation
from google.protobuf.message import Message

from bench import yardstick
from bench.data import RECIPIENT_IDS
from bench.statements import FRESH, Arguments
from bench.yardstick import PAGE_SIZE
from cunho import v1 as pb
from cunho_server.tokens import Signer

_TOKEN_SECONDS = 36_000
_INSTANCE_TYPE = "S5.MEDIUM4"
_STEPS = '[{"name": "launch", "region_id": "ap-guangzhou", "target_id": "", "state": "PENDING", "error": null}]'
_DIGEST, _ANSWER = bytes(32), bytes(300)


class Account(NamedTuple):
    """One that calls, with what it sees beside public images."""

    account_id: str
    token: str
    #: Ids and regions of its images.
    images: Sequence[tuple[str, str]]
    received: Sequence[str]
    #: Images and accounts that do not have them; each pair is taken out for use.
    shareable: list[tuple[str, str]]

    @property
    def region_ids(self) -> list[str]:
        """Where it has images."""
        return sorted({region_id for _, region_id in self.images})


class Scene:
    """A server with its data: who calls, and what there is to ask for."""

    def __init__(self, dsn: str, port: int, signer: Signer) -> None:
        self.dsn, self.port = dsn, port
        self._signer = signer
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._accounts: list[Account] = []
        #: A zone of each region.
        self.zone_ids: dict[str, str] = {}

    async def load(self) -> None:
        """Reads who there is, in random order."""
        connection = await asyncpg.connect(self.dsn)
        try:
            zones = await connection.fetch("SELECT region_id, min(zone_id) FROM zone GROUP BY 1")
            owners = await connection.fetch(
                "SELECT owner_account_id, array_agg(image_id || ' ' || region_id) FROM image"
                " WHERE owner_account_id IS NOT NULL GROUP BY 1 ORDER BY random() LIMIT 1000"
            )
            received = await connection.fetch(
                "SELECT recipient_account_id, array_agg(image_id) FROM image_share"
                " WHERE recipient_account_id = ANY($1) GROUP BY 1",
                [account_id for account_id, _ in owners],
            )
        finally:
            await connection.close()
        self.zone_ids = {region_id: zone_id for region_id, zone_id in zones}
        of = {account_id: image_ids for account_id, image_ids in received}
        self._accounts = [
            self._account(account_id, images, of[account_id]) for account_id, images in owners if account_id in of
        ]

    def _account(self, account_id: str, images: list[str], received: list[str]) -> Account:
        owned = [(image_id, region_id) for image_id, region_id in map(str.split, images)]
        shareable = [(image_id, recipient_id) for image_id, _ in owned for recipient_id in RECIPIENT_IDS]
        random.shuffle(shareable)
        return Account(account_id, self.token(account_id), owned, received, shareable)

    def token(self, account_id: str) -> str:
        """A token of the account."""
        return self._signer.token(account_id, "account", seconds=_TOKEN_SECONDS)

    def accounts(self, count: int) -> list[Account]:
        """The next accounts to call: others each time, until all had their turn."""
        chosen = [self._accounts[index % len(self._accounts)] for index in range(count)]
        turned = count % len(self._accounts)
        self._accounts = self._accounts[turned:] + self._accounts[:turned]
        return chosen

    def answer(self, path: str, account: Account, request: Message, answer: type[Message]) -> Any:
        """What the server answers to one request."""
        method = self._channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
        )
        return method(request, metadata=(("authorization", f"Bearer {account.token}"),), timeout=30)

    def close(self) -> None:
        """Ends the connection to the server."""
        self._channel.close()


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call that is measured."""

    name: str
    path: str
    request: type[Message]
    answer: type[Message]
    #: What an account asks for, at most so many requests of it.
    requests: Callable[[Scene, Account, int], Sequence[Message]]
    #: Whether an answer is a right one.
    right: Callable[[Any], object]
    statements: Sequence[str]
    arguments: Callable[[Scene, Account], Sequence[Arguments]]
    #: The most that it may cost, as a multiple of the limit; None if nothing was set.
    target: float | None = None

    @property
    def request_id_tag(self) -> bytes:
        """What comes before a request id of 36 characters; b"" if the request has none."""
        field = self.request.DESCRIPTOR.fields_by_name.get("request_id")
        return bytes((field.number << 3 | 2, 36)) if field else b""


# --- reading one image


def _get(name: str, image_ids: Callable[[Account], Sequence[str]]) -> Call:
    return Call(
        name=name,
        path="/cunho.v1.ImageService/GetImage",
        request=pb.GetImageRequest,
        answer=pb.Image,
        requests=lambda _, account, __: [pb.GetImageRequest(image_id=image_id) for image_id in image_ids(account)],
        right=lambda image: image.image_id and image.name,
        statements=[yardstick.GET],
        arguments=lambda _, account: [[(account.account_id, image_id)] for image_id in image_ids(account)],
        target=1.25,
    )


def _owned(account: Account) -> list[str]:
    return [image_id for image_id, _ in account.images]


def _received(account: Account) -> Sequence[str]:
    return account.received


# --- reading pages

_LIST_IMAGES = "/cunho.v1.ImageService/ListImages"

#: Of each request of a page: what is asked for, and what the condition of the statement compares with.
_Asked = Sequence[tuple[pb.ListImagesRequest, Sequence[Any]]]


def _list(name: str, asked: Callable[[Scene, Account], _Asked], condition: str, right: Callable[[Any], object]) -> Call:
    return Call(
        name=name,
        path=_LIST_IMAGES,
        request=pb.ListImagesRequest,
        answer=pb.ListImagesResponse,
        requests=lambda scene, account, _: [request for request, _ in asked(scene, account)],
        right=right,
        statements=[yardstick.page(condition)],
        arguments=lambda scene, account: [
            [(account.account_id, request.region_id, *values)] for request, values in asked(scene, account)
        ],
        target=1.0,
    )


def _first(filter: str = "", *values: str) -> Callable[[Scene, Account], _Asked]:
    """The first page, in each region that the account has images in."""
    return lambda _, account: [
        (pb.ListImagesRequest(region_id=region_id, page_size=PAGE_SIZE, filter=filter), values)
        for region_id in account.region_ids
    ]


def _deep(scene: Scene, account: Account) -> _Asked:
    """The page after the first two, in one region."""
    request = pb.ListImagesRequest(region_id=account.region_ids[0], page_size=2 * PAGE_SIZE)
    before = scene.answer(_LIST_IMAGES, account, request, pb.ListImagesResponse)
    request.page_size, request.page_token = PAGE_SIZE, before.next_page_token
    last = before.images[-1]
    return [(request, (last.create_time.ToDatetime(UTC), last.image_id))]


def _full(page: Any) -> object:
    return len(page.images) == PAGE_SIZE and page.next_page_token


# --- writing


def _launches(scene: Scene, account: Account, most: int) -> list[Message]:
    asked = [
        pb.CreateInstanceRequest(
            region_id=region_id,
            zone_id=scene.zone_ids[region_id],
            instance_type=_INSTANCE_TYPE,
            image_id=image_id,
            name="web",
        )
        for image_id, region_id in account.images
    ]
    return [asked[index % len(asked)] for index in range(most)]


def _launch_arguments(scene: Scene, account: Account) -> list[Arguments]:
    key = (account.account_id, "CreateInstance", FRESH)
    return [
        [
            (*key, _DIGEST),
            (image_id,),
            (account.account_id, image_id, _INSTANCE_TYPE),
            (*key, _ANSWER, region_id, _STEPS, "web", scene.zone_ids[region_id], _INSTANCE_TYPE, image_id),
        ]
        for image_id, region_id in account.images
    ]


def _dealt(account: Account, most: int) -> list[tuple[str, str]]:
    """Pairs that nobody else will be dealt."""
    dealt, account.shareable[:most] = account.shareable[:most], []
    return dealt


def _shares(_: Scene, account: Account, most: int) -> list[Message]:
    return [
        pb.ShareImageRequest(image_id=image_id, account_ids=[recipient_id])
        for image_id, recipient_id in _dealt(account, most)
    ]


def _share_arguments(_: Scene, account: Account) -> list[Arguments]:
    key = (account.account_id, "ShareImage", FRESH)
    return [
        [
            (*key, _DIGEST),
            (image_id,),
            (account.account_id, image_id, recipient_id),
            (*key, _ANSWER, image_id, recipient_id),
        ]
        for image_id, recipient_id in _dealt(account, 250)
    ]


CALLS = (
    _get("GetImage", _owned),
    _get("GetImage by a recipient", _received),
    _list("ListImages", _first(), "true", _full),
    _list("ListImages, deep", _deep, "(image.create_time, image.image_id) < ($3, $4)", _full),
    _list(
        "ListImages, filtered",
        _first("os.platform = ubuntu AND architecture = X86_64", "ubuntu", "X86_64"),
        "image.os_platform = $3 AND image.architecture = $4",
        lambda page: page.images and all(image.os.platform == "ubuntu" for image in page.images),
    ),
    _list(
        "ListImages, by prefix",
        _first('name = "Ubuntu*"', "Ubuntu", "Ubuntv"),
        "image.name >= $3 AND image.name < $4",
        lambda page: page.images and all(image.name.startswith("Ubuntu") for image in page.images),
    ),
    Call(
        name="CheckImageActions",
        path="/cunho.v1.ImageService/CheckImageActions",
        request=pb.CheckImageActionsRequest,
        answer=pb.CheckImageActionsResponse,
        requests=lambda _, account, __: [pb.CheckImageActionsRequest(image_id=each) for each in _owned(account)],
        right=lambda answer: any(decision.allowed for decision in answer.decisions),
        statements=[yardstick.GET],
        arguments=lambda _, account: [[(account.account_id, image_id)] for image_id in _owned(account)],
    ),
    Call(
        name="CreateInstance",
        path="/cunho.v1.InstanceService/CreateInstance",
        request=pb.CreateInstanceRequest,
        answer=Operation,
        requests=_launches,
        right=lambda operation: operation.name and not operation.HasField("error"),
        statements=yardstick.LAUNCH,
        arguments=_launch_arguments,
        target=1.6,
    ),
    Call(
        name="ShareImage",
        path="/cunho.v1.ImageService/ShareImage",
        request=pb.ShareImageRequest,
        answer=pb.ShareImageResponse,
        requests=_shares,
        right=lambda answer: len(answer.shares) == 1 and answer.image.sharing.account_count > 0,
        statements=yardstick.SHARE,
        arguments=_share_arguments,
        target=1.6,
    ),
)
