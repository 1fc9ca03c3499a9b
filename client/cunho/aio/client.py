"""The client for asyncio: how calls are sent and refused. Which calls there are is in methods.py."""

from asyncio import CancelledError, current_task
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self

import grpc

from cunho.aio.methods import Item, Methods, Request, Response
from cunho.connection import CLOSED, Caller, Tls, opened
from cunho.refused import Refused


class Client(Methods):
    """A connection to the service with a coroutine for each RPC; `cunho.Client` for asyncio.

    A method returns what was asked for or raises `cunho.Refused`. Methods that list return an asynchronous iterator
    over the results of all pages, which fetches each page when it is reached. Methods for slow work return an
    `Operation`. A task that is cancelled cancels its call.

        async with Client("127.0.0.1:50051", token=token) as client:
            async for image in client.list_images(region_id="ap-guangzhou"):
                print(image.image_id, image.name)

    It belongs to the event loop in which it is made. Its arguments are those of `cunho.Client`; a function that
    returns the token must not block.
    """

    def __init__(
        self,
        address_or_channel: str | grpc.aio.Channel,
        *,
        token: str | Callable[[], str] | None = None,
        tls: Tls | bool | None = None,
        account: str = "",
        timeout_seconds: float = 30,
    ) -> None:
        self._caller = Caller(token, account, timeout_seconds)
        self._channel: grpc.aio.Channel = opened(grpc.aio, address_or_channel, tls)
        super().__init__(self._channel)

    async def close(self) -> None:
        """Closes the channel; calls under way are refused as CANCELLED."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        timeout_seconds: float | None,
    ) -> Response:
        seconds, metadata = self._caller.seconds(request, timeout_seconds), self._caller.metadata(request)
        try:
            return await method(request, timeout=seconds, metadata=metadata)
        except grpc.RpcError as error:
            raise Refused.from_call(error) from error
        except grpc.aio.UsageError as error:
            raise ValueError(CLOSED) from error
        except CancelledError as error:
            if (task := current_task()) and task.cancelling():
                raise
            raise Refused(grpc.StatusCode.CANCELLED, CLOSED) from error  # or the task would seem to be cancelled

    async def _pages(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Any, Any]",
        request: Any,
        items: Callable[[Any], Iterable[Item]],
        timeout_seconds: float | None,
    ) -> AsyncIterator[Item]:
        while True:
            page = await self._call(method, request, timeout_seconds)
            for item in items(page):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
