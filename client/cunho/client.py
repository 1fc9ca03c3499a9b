"""The connection to the service: how calls are sent, retried and refused. Which calls there are is in methods.py."""

import json
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc
from google.longrunning.operations_pb2 import WaitOperationRequest

from cunho.methods import Item, Methods, Request, Response
from cunho.refused import Refused

# No `timeout` in here: it would end calls early and the server would not know of it.
SERVICE_CONFIG: dict[str, object] = {
    "methodConfig": [
        {
            "name": [{}],  # every RPC: mutations carry request ids, so they are as safe to repeat as reads
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
CHANNEL_OPTIONS = (("grpc.service_config", json.dumps(SERVICE_CONFIG)),)
"""Options that make a channel of your own retry calls that find the service UNAVAILABLE."""

WAIT_MARGIN_SECONDS = 5
"""How much longer than the wait itself a WaitOperation call may take, so that its answer can arrive."""


class Client(Methods):
    """A connection to the service with a method for each RPC.

    A method returns what was asked for or raises `Refused`. Methods that list return an iterator over the results of
    all pages, which fetches each page when it is reached. Methods for slow work return an `Operation`.

        with Client("127.0.0.1:50051", token=token) as client:
            for image in client.list_images(region_id="ap-guangzhou"):
                print(image.image_id, image.name)

    Args:
        address_or_channel: "host:port" of a service without TLS, or a channel, which is closed with the client. Give a
            channel of your own CHANNEL_OPTIONS, or its calls are not retried.
        token: Bearer token of every call, or what returns one; it is asked for each call.
        account: Account to act for; for the service role only. Default: empty, the token's own.
        timeout_seconds: Deadline of each call that is given none. Default: 30.
    """

    def __init__(
        self,
        address_or_channel: str | grpc.Channel,
        *,
        token: str | Callable[[], str],
        account: str = "",
        timeout_seconds: float = 30,
    ) -> None:
        if isinstance(address_or_channel, str):
            address_or_channel = grpc.insecure_channel(address_or_channel, options=CHANNEL_OPTIONS)
        super().__init__(address_or_channel)
        self._channel = address_or_channel
        self._token = token
        self._account = account
        self._timeout_seconds = timeout_seconds

    def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        timeout_seconds: float | None,
    ) -> Response:
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        if isinstance(request, WaitOperationRequest):
            seconds += WAIT_MARGIN_SECONDS
        try:
            return method(request, timeout=seconds, metadata=self._metadata())
        except grpc.RpcError as error:
            raise Refused.from_call(error) from error

    def _pages(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Any, Any]",
        request: Any,
        items: Callable[[Any], Iterable[Item]],
        timeout_seconds: float | None,
    ) -> Iterator[Item]:
        while True:
            page = self._call(method, request, timeout_seconds)
            yield from items(page)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        # Call credentials would need a channel with TLS, which a service on loopback has not.
        token = self._token if isinstance(self._token, str) else self._token()
        account = (("cunho-account", self._account),) if self._account else ()
        return (("authorization", f"Bearer {token.strip()}"), *account)
