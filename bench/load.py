"""The load: HTTP/2 written by hand, because any gRPC client would cost more than the server that it measures.

A connection's requests are frames made beforehand; of the answers only what tells them right from wrong is read: the
status, and whether the message is whole. Some messages are kept, for the parent to look into.
"""

import random
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import NamedTuple
from uuid import uuid4

from bench.child import Parent

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_WINDOW_BYTES = 1 << 30

#: No table for the headers of answers, so that they come as they are, and windows that no answer fills.
_SETTINGS_OF_OURS = b"\0\1" + bytes(4) + b"\0\4" + _WINDOW_BYTES.to_bytes(4, "big")

#: Indexes of HPACK's static table.
_PATH, _AUTHORITY, _AUTHORIZATION, _CONTENT_TYPE, _USER_AGENT = 4, 1, 23, 31, 58
_POST_HTTP = b"\x83\x86"
#: How many of the headers the first request enters into the table, and their indexes from then on.
_ENTERED = 6
_REPEATED = _POST_HTTP + bytes(0x80 | index for index in range(61 + _ENTERED, 61, -1))

#: Every how many answers one is kept, and how many at most.
_KEPT_EVERY, _KEPT_MAX = 50, 20

#: How long answers may take before they are given up.
_ANSWER_SECONDS = 60


class Lane(NamedTuple):
    """One connection: who calls, and requests to go through."""

    token: str
    payloads: Sequence[bytes]


class Load(NamedTuple):
    """Calls of one method, each connection having as many under way as told, or at a rate of their own."""

    port: int
    path: str
    lanes: Sequence[Lane]
    seconds: float
    warm_up_seconds: float
    #: Each payload is sent once, and a connection that has none left makes no more calls.
    once: bool = False
    #: What comes before the request id, which is made for each call; b"" for calls that have none.
    request_id_tag: bytes = b""
    #: Calls a second in total, at random moments; None for as many as are answered.
    rate: float | None = None
    #: Calls under way on each connection.
    streams: int = 1


class Loaded(NamedTuple):
    """What came of it."""

    calls: int
    errors: int
    seconds: float
    #: CPU time of this process.
    cpu_seconds: float
    #: How long each answer took, in seconds.
    latencies: "array[float]"
    #: Some of the answers.
    answers: Sequence[bytes]
    #: The first error, in words.
    error: str


class _Lost(Exception):
    """The server closed the connection, or said what this client does not understand."""


class _Connection:
    """A connection with calls under way."""

    def __init__(self, load: Load, lane: Lane) -> None:
        self._socket = socket.create_connection(("127.0.0.1", load.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        window = _frame(_WINDOW_UPDATE, 0, 0, (_WINDOW_BYTES - 65535).to_bytes(4, "big"))
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, _SETTINGS_OF_OURS) + window)
        self._headers = _first_headers(load.path, lane.token, load.port)
        self._payloads = iter(lane.payloads) if load.once else cycle(lane.payloads)
        self._request_id_tag = load.request_id_tag
        self._stream = -1
        self._rest = b""
        self._consumed_bytes = 0
        #: When each call under way began, and what came of its answer.
        self._began: dict[int, float] = {}
        self._bodies: dict[int, bytes] = {}

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def under_way(self) -> int:
        """How many calls are under way."""
        return len(self._began)

    def send(self, began: float) -> bool:
        """Makes the next call; False if there is none.

        Args:
            began: when the call was due.
        """
        payload = next(self._payloads, None)
        if payload is None:
            return False
        if self._request_id_tag:
            payload += self._request_id_tag + str(uuid4()).encode()
        self._stream += 2
        message = b"\0" + len(payload).to_bytes(4, "big") + payload
        headers = _frame(_HEADERS, _END_HEADERS, self._stream, self._headers)
        self._began[self._stream] = began
        self._socket.sendall(headers + _frame(_DATA, _END_STREAM, self._stream, message))
        self._headers = _REPEATED
        return True

    def receive(self) -> Iterator[tuple[float, bytes, str]]:
        """Of each call that was answered: when it began, the message, and what is wrong, "" if nothing."""
        data = self._socket.recv(1 << 18)
        if not data:
            raise _Lost("the connection was closed")
        data, at = self._rest + data, 0
        while len(data) >= at + 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if end > len(data):
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            yield from self._frame(data[at + 3], data[at + 4], stream, data[at + 9 : end])
            at = end
        self._rest = data[at:]

    def _frame(self, kind: int, flags: int, stream: int, body: bytes) -> Iterator[tuple[float, bytes, str]]:
        if kind == _DATA:
            self._bodies[stream] = self._bodies.get(stream, b"") + body
            self._consume(len(body))
        elif kind == _HEADERS and flags & _END_STREAM:
            message = self._bodies.pop(stream, b"")
            yield self._began.pop(stream), message[5:], _wrong(body, message)
        elif kind == _SETTINGS and not flags & _ACK:
            self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._socket.sendall(_frame(_PING, _ACK, 0, body))
        elif kind == _RST_STREAM:
            yield self._began.pop(stream), b"", f"reset with {body.hex()}"
        elif kind == _GOAWAY:
            raise _Lost(f"the server goes away: {body[8:].decode(errors='replace')}")

    def _consume(self, size_bytes: int) -> None:
        """Opens the window of the connection again before it closes."""
        self._consumed_bytes += size_bytes
        if self._consumed_bytes > _WINDOW_BYTES // 2:
            self._socket.sendall(_frame(_WINDOW_UPDATE, 0, 0, self._consumed_bytes.to_bytes(4, "big")))
            self._consumed_bytes = 0

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body


def _first_headers(path: str, token: str, port: int) -> bytes:
    """The headers of a connection's first request; they enter the table, so that later ones name them by index."""
    named = ((_PATH, path), (_AUTHORITY, f"127.0.0.1:{port}"))
    others = ((_CONTENT_TYPE, "application/grpc"), (_USER_AGENT, "cunho-bench"), (_AUTHORIZATION, f"Bearer {token}"))
    te = b"\x40" + _text("te") + _text("trailers")
    return (
        _POST_HTTP
        + b"".join(bytes((0x40 | index,)) + _text(value) for index, value in named)
        + te
        + b"".join(bytes((0x40 | index,)) + _text(value) for index, value in others)
    )


def _text(value: str) -> bytes:
    """A string of HPACK: its length in seven bits, or in as many bytes as it takes, then itself."""
    length, data = len(value), value.encode()
    if length < 127:
        return bytes((length,)) + data
    length, head = length - 127, b"\x7f"
    while length >= 128:
        head += bytes((length & 127 | 128,))
        length >>= 7
    return head + bytes((length,)) + data


def _wrong(trailers: bytes, message: bytes) -> str:
    """What is wrong with an answer; "" if nothing."""
    if b"grpc-status\x010" not in trailers:
        return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in trailers)
    if len(message) < 5 or len(message) - 5 != int.from_bytes(message[1:5], "big"):
        return f"a message of {len(message)} bytes is not whole"
    return ""


class _Run:
    """The calls of a load, from connections that are open."""

    def __init__(self, load: Load, connections: Sequence[_Connection]) -> None:
        self._load, self._connections = load, connections
        self._by_file = {connection.fileno(): connection for connection in connections}
        self._poll = select.epoll()
        for number in self._by_file:
            self._poll.register(number, select.EPOLLIN)
        self._idle = deque(connection for connection in connections for _ in range(load.streams))
        self._forget()

    def _forget(self) -> None:
        self._latencies = array("d")
        self._errors = 0
        self._error = ""
        self._answers: list[bytes] = []

    def run(self, seconds: float) -> Loaded:
        """Calls for so long, and then waits for what is under way."""
        self._forget()
        cpu, begin = time.process_time(), time.perf_counter()
        going = self._at_a_rate if self._load.rate else self._at_once
        going(begin, begin + seconds)
        while self._under_way():
            if time.perf_counter() > begin + seconds + _ANSWER_SECONDS:
                raise TimeoutError(f"{self._load.path}: no answer within {_ANSWER_SECONDS} s")
            self._receive(1)
        seconds, calls = time.perf_counter() - begin, len(self._latencies)
        cpu = time.process_time() - cpu
        return Loaded(calls, self._errors, seconds, cpu, self._latencies, self._answers, self._error)

    def _under_way(self) -> bool:
        return any(connection.under_way for connection in self._connections)

    def _at_once(self, begin: float, end: float) -> None:
        while (now := time.perf_counter()) < end:
            while self._idle:
                self._idle.popleft().send(now)
            if not self._under_way():  # there is nothing left to ask for
                return
            self._receive(end - now)

    def _at_a_rate(self, begin: float, end: float) -> None:
        """Calls are due whether or not earlier ones are answered; that they wait for a connection is their latency."""
        assert self._load.rate
        due = begin
        while due < end and (self._idle or self._under_way()):
            now = time.perf_counter()
            if due > now or not self._idle:
                self._receive(due - now if self._idle else 1)
            elif self._idle.popleft().send(due):
                due += random.expovariate(self._load.rate)

    def _receive(self, timeout_seconds: float) -> None:
        # select and not the poll itself, whose time is in milliseconds.
        if not select.select([self._poll], [], [], max(0, timeout_seconds))[0]:
            return
        for number, _ in self._poll.poll(0):
            connection = self._by_file[number]
            for began, message, wrong in connection.receive():
                self._latencies.append(time.perf_counter() - began)
                self._idle.append(connection)
                if wrong:
                    self._errors += 1
                    self._error = self._error or wrong
                elif len(self._latencies) % _KEPT_EVERY == 1 and len(self._answers) < _KEPT_MAX:
                    self._answers.append(message)


def main(parent: Parent) -> None:
    """Makes the loads that it is told."""
    while True:
        load: Load = parent.told()
        connections = [_Connection(load, lane) for lane in load.lanes]
        try:
            run = _Run(load, connections)
            if load.warm_up_seconds:
                run.run(load.warm_up_seconds)
            parent.tell("ready")
            parent.told()
            parent.tell(run.run(load.seconds))
        finally:
            for connection in connections:
                connection.close()
