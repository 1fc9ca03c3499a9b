"""The client: how calls are sent and refused. Which calls there are is in methods.py."""

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from cunho.connection import CLOSED, Caller, Tls, opened
from cunho.methods import Item, Methods, Request, Response
from cunho.refused import Refused


class Client(Methods):
    """A connection to the service with a method for each RPC.

    A method returns what was asked for or raises `Refused`. Methods that list return an iterator over the results of
    all pages, which fetches each page when it is reached. Methods for slow work return an `Operation`.

        with Client("127.0.0.1:50051", token=token) as client:
            for image in client.list_images(region_id="ap-guangzhou"):
                print(image.image_id, image.name)

    It may be used by many threads at once. After `close` every call raises ValueError. `cunho.aio.Client` is the same
    for asyncio.

    Args:
        address_or_channel: "host:port" or "unix:PATH" of a service; or a channel, which is closed with the client. Give
            a channel of your own `CHANNEL_OPTIONS`, or its calls are not repeated.
        token: Bearer token of every call, or what returns one, as `TokenFile` does; it is asked for each call.
            Default: none, for a caller whose identity is its certificate.
        tls: Authorities, certificate and name for TLS; True for TLS with the authorities that this machine trusts;
            False for none, where a proxy or a mesh on this machine does it: otherwise the token crosses the network for
            everybody to read. Default: TLS as by True, but none to a loopback address or a Unix socket.
        account: Account to act for; for the service role only. Default: empty, the token's own.
        timeout_seconds: Deadline of each call that is given none; `math.inf` for none at all. Default: 30.

    Raises:
        OSError: A file of `tls` cannot be read.
        ValueError: The address is none, as a URL; a file of `tls` is not what it should be, or `tls` was given with a
            channel; the token is empty, or it or the account cannot be sent; or `timeout_seconds` is NaN.
    """

    def __init__(
        self,
        address_or_channel: str | grpc.Channel,
        *,
        token: str | Callable[[], str] | None = None,
        tls: Tls | bool | None = None,
        account: str = "",
        timeout_seconds: float = 30,
    ) -> None:
        self._caller = Caller(token, account, timeout_seconds)
        self._channel: grpc.Channel = opened(grpc, address_or_channel, tls)
        super().__init__(self._channel)

    def close(self) -> None:
        """Closes the channel; calls under way are refused as CANCELLED."""
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
        seconds, metadata = self._caller.seconds(request, timeout_seconds), self._caller.metadata(request)
        try:
            return method(request, timeout=seconds, metadata=metadata)
        except grpc.RpcError as error:
            raise Refused.from_call(error) from error
        except ValueError as error:  # of gRPC's own, and what the call carries has been checked
            raise ValueError(CLOSED) from error

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
