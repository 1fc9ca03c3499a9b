"""What a URL answers, within a time and a size: it takes no redirects, and no proxy to this machine itself.

Nothing here knows what is fetched.
"""

import time
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from io import BufferedReader, RawIOBase
from socket import socket
from typing import Any
from urllib.request import (
    BaseHandler,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)


class FetchError(Exception):
    """There is no answer that can be used; the message says why."""


def fetched(url: str, timeout_seconds: float, size_max_bytes: int) -> bytes:
    """The content of the answer. Raises FetchError.

    Args:
        timeout_seconds: for connecting, and again for the whole of the answer.
    """
    try:
        with _opener(url).open(url, timeout=timeout_seconds) as response:
            content: bytes = response.read(size_max_bytes + 1)
    except (OSError, HTTPException, UnicodeError) as error:  # the last for a host that cannot be one
        wrong = getattr(error, "reason", error)  # what urllib wraps
        raise FetchError(getattr(wrong, "strerror", None) or str(wrong) or type(wrong).__name__) from error
    if len(content) > size_max_bytes:
        raise FetchError(f"it is larger than {size_max_bytes} bytes")
    return content


def _opener(url: str) -> OpenerDirector:
    handlers: list[BaseHandler] = [_NoRedirects(), _InTime()]
    if url.startswith("http:"):
        handlers.append(ProxyHandler({}))
    return build_opener(*handlers)


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        """Nowhere: the answer stands as an error."""


class _InTime(HTTPHandler, HTTPSHandler):
    def http_open(self, req: Request) -> HTTPResponse:
        """Its answer, if that ends in time."""
        return self.do_open(_Connection, req)

    def https_open(self, req: Request) -> HTTPResponse:
        """Its answer, if that ends in time."""
        return self.do_open(_SecureConnection, req)


class _Response(HTTPResponse):
    def __init__(self, connected: socket, *arguments: Any, **options: Any) -> None:
        super().__init__(connected, *arguments, **options)
        self.fp = BufferedReader(_UntilTheEnd(self.fp, connected))


class _Connection(HTTPConnection):
    response_class = _Response


class _SecureConnection(HTTPSConnection):
    response_class = _Response


class _UntilTheEnd(RawIOBase):
    """What a connection says before the time is over: by itself, it has that time for each part of it."""

    def __init__(self, said: BufferedReader, connected: socket) -> None:
        self._said, self._connected = said, connected
        self._end_time = time.monotonic() + (connected.gettimeout() or 0)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The length of the next part. Raises TimeoutError."""
        remaining_seconds = self._end_time - time.monotonic()
        if remaining_seconds <= 0:
            raise TimeoutError("timed out")
        self._connected.settimeout(remaining_seconds)
        return self._connected.recv_into(buffer)

    def close(self) -> None:
        """Ends the connection."""
        self._said.close()
        super().close()
