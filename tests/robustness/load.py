"""Calls at a given rate, whether or not they are answered: what offers a server more than it can take.

A program of its own, which takes no time from whoever measures. It speaks HTTP/2 by itself, because gRPC's client would
take more time for each call than the server for its refusal. Of an answer it looks at no more than the status.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.robustness.peers import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    call_headers,
    frame,
    message,
    settings,
)

#: Streams that a server lets a connection have at once; what is due beyond them waits for one of them to end.
STREAMS = 100

_STATUS = re.compile(rb"grpc-status[\x01\x02](\d+)")
_OK, _RESOURCE_EXHAUSTED = "0", "8"
_WINDOW_BYTES = 1 << 30


@dataclass
class Load:
    """What is sent.

    Attributes:
        request: the message, in hexadecimal digits.
        rate: calls each second, over all connections.
        streams: calls under way on each connection at most.
    """

    address: str
    path: str
    token: str
    request: str
    rate: float
    seconds: float
    connections: int = 4
    streams: int = STREAMS

    def start(self) -> "Running":
        """Begins to send."""
        return Running(self)


@dataclass
class Outcome:
    """What came of it, in seconds from when each call was sent; of what failed, how often each status."""

    due: int = 0
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)


class Running:
    """A load under way."""

    def __init__(self, load: Load) -> None:
        command = [sys.executable, "-m", "tests.robustness.load", json.dumps(asdict(load))]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)

    def outcome(self) -> Outcome:
        """What came of it, once it has ended."""
        told, _ = self._process.communicate()
        return Outcome(**json.loads(told))


class _Connection(asyncio.Protocol):
    """One connection of a load."""

    def __init__(self, load: Load, outcome: Outcome) -> None:
        self._headers = call_headers(load.path, load.token)
        self._data = message(bytes.fromhex(load.request))
        self._streams, self._outcome = load.streams, outcome
        self._sent: dict[int, float] = {}
        self._waiting, self._next, self._read_bytes = 0, 1, 0
        self._got = bytearray()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(PREFACE + settings(table=0, window=_WINDOW_BYTES) + self._window(_WINDOW_BYTES))

    def call(self, number: int) -> None:
        """So many calls are due."""
        self._waiting += number
        self._send()

    def data_received(self, data: bytes) -> None:
        self._got += data
        at = 0
        while len(self._got) - at >= 9:
            end = at + 9 + int.from_bytes(self._got[at : at + 3], "big")
            if end > len(self._got):
                break
            kind, flags = self._got[at + 3 : at + 5]
            self._take(kind, flags, int.from_bytes(self._got[at + 5 : at + 9], "big"), bytes(self._got[at + 9 : end]))
            at = end
        del self._got[:at]
        self._send()

    def _send(self) -> None:
        """Sends what is due, as far as there are streams."""
        frames: list[bytes] = []
        while self._waiting and len(self._sent) < self._streams:
            self._waiting -= 1
            self._sent[self._next] = time.perf_counter()
            frames.append(frame(HEADERS, END_HEADERS, self._next, self._headers))
            frames.append(frame(DATA, END_STREAM, self._next, self._data))
            self._next += 2
        self._transport.write(b"".join(frames))

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._read_bytes += len(payload)
            if self._read_bytes > _WINDOW_BYTES // 2:
                self._transport.write(self._window(self._read_bytes))
                self._read_bytes = 0
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self._transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == HEADERS and flags & END_STREAM:
            status = _STATUS.search(payload)
            self._end(stream, status[1].decode() if status else "none")
        elif kind == RST_STREAM:
            self._end(stream, f"reset {payload[3]}")

    def _end(self, stream: int, status: str) -> None:
        if stream not in self._sent:
            return
        seconds = time.perf_counter() - self._sent.pop(stream)
        if status == _OK:
            self._outcome.answered.append(seconds)
        elif status == _RESOURCE_EXHAUSTED:
            self._outcome.refused.append(seconds)
        else:
            self._outcome.failed[status] = self._outcome.failed.get(status, 0) + 1

    @staticmethod
    def _window(size_bytes: int) -> bytes:
        return frame(WINDOW_UPDATE, 0, 0, size_bytes.to_bytes(4, "big"))


async def _sent(load: Load) -> Outcome:
    loop, outcome = asyncio.get_running_loop(), Outcome()
    host, _, port = load.address.rpartition(":")
    made = [
        await loop.create_connection(lambda: _Connection(load, outcome), host, int(port))
        for _ in range(load.connections)
    ]
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < load.seconds:
        due = int(passed * load.rate) - outcome.due
        for index, (_, connection) in enumerate(made):  # as even as it goes: the first ones get what is left over
            connection.call(due // len(made) + ((outcome.due + index) % len(made) < due % len(made)))
        outcome.due += due
        await asyncio.sleep(0.002)
    for transport, _ in made:
        transport.close()
    return outcome


if __name__ == "__main__":
    json.dump(asdict(asyncio.run(_sent(Load(**json.loads(sys.argv[1]))))), sys.stdout)
