"""How both clients reach the service: TLS, tokens, and the channel's options. Nothing in here sends a call."""

import json
import os
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from glob import glob
from ipaddress import ip_address
from math import isnan
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from uuid import uuid4

import grpc
from google.longrunning.operations_pb2 import CancelOperationRequest, DeleteOperationRequest, WaitOperationRequest

# No `timeout` in here: it would end calls early and the server would not know of it.
_SERVICE_CONFIG: dict[str, object] = {
    "methodConfig": [
        {
            "name": [{}],  # every RPC: mutations carry request ids, so they are as safe to repeat as reads
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                # The service says when, or never, in grpc-retry-pushback-ms, which gRPC obeys: a spent quota is not
                # asked for again. A server that stops answers CANCELLED to calls that it had not begun; what the
                # caller cancels itself is never repeated.
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
            },
        }
    ]
}
CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
"""Options for a channel of your own: its calls are repeated, and a connection that is lost is noticed and made anew."""

CLOSED = "the client is closed, or the channel that it was given: make a new one"
"""What whoever calls by a client without a channel is told."""

#: How much longer than the wait itself a WaitOperation call may take, so that its answer can arrive.
_WAIT_MARGIN_SECONDS = 5

_PORT_MAX = 65_535  # gRPC takes more, for that of the last 16 bits

_SECONDS_MAX = 1e9  # gRPC takes more, as what has no end, for a time that is over

_WITHOUT_REQUEST_ID = (CancelOperationRequest, DeleteOperationRequest)  # mutations whose messages are not ours

File: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True)
class TokenFile:
    """A bearer token in a file, which is read for each call: a token that is renewed there is used at once.

    Raises:
        OSError: The file cannot be read; here, or by the call that needs the token.
        ValueError: It is empty, or holds what is no token.
    """

    path: File

    def __post_init__(self) -> None:
        self()

    def __call__(self) -> str:
        """The token that the file holds now."""
        if not (token := Path(self.path).read_text(errors="replace").strip()):
            raise ValueError(f"{os.fspath(self.path)} holds no token: write one into it")
        return _sendable(f"the token in {os.fspath(self.path)}", token)


@dataclass(frozen=True)
class Tls:
    """How the service and its caller prove who they are, by PEM files. A client reads them once, when it is made."""

    ca_file: File | None = None
    """Certificates of the authorities to trust. Default: those that this machine trusts."""

    certificate_file: File | None = None
    """The caller's own certificate, with those between it and its authority. Default: none."""

    key_file: File | None = None
    """The private key of that certificate, without a passphrase."""

    server_name: str = ""
    """Name that the service's certificate must have. Default: empty, the host of the address."""


@dataclass(frozen=True)
class Caller:
    """Who sends calls, and how long they may take."""

    token: str | Callable[[], str] | None
    account: str
    timeout_seconds: float

    def __post_init__(self) -> None:
        bounded(self.timeout_seconds)
        _sendable("the account", self.account)
        if isinstance(self.token, str):
            _sent(self.token)

    def metadata(self, request: object) -> tuple[tuple[str, str], ...]:
        """What a call carries besides its request."""
        # Not call credentials: they need a channel with TLS, which a service on loopback has not.
        token = self.token() if callable(self.token) else self.token
        authorization = () if token is None else (("authorization", f"Bearer {_sent(token)}"),)
        account = (("cunho-account", self.account),) if self.account else ()
        key = (("idempotency-key", str(uuid4())),) if isinstance(request, _WITHOUT_REQUEST_ID) else ()
        return authorization + account + key

    def seconds(self, request: object, timeout_seconds: float | None) -> float:
        """The deadline of a call."""
        seconds = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        return bounded(seconds) + (_WAIT_MARGIN_SECONDS if isinstance(request, WaitOperationRequest) else 0)


def bounded(timeout_seconds: float) -> float:
    """A time as it can be sent: below zero none is left, and infinity is very long. Raises ValueError if it is NaN."""
    if isnan(timeout_seconds):
        raise ValueError("timeout_seconds is NaN: give a number of seconds, or math.inf for as long as it takes")
    return min(max(timeout_seconds, 0), _SECONDS_MAX)


def duration(timeout_seconds: float | None) -> timedelta | None:
    """A time as the field of a request; None if none is given. Raises ValueError if it is NaN."""
    return None if timeout_seconds is None else timedelta(seconds=bounded(timeout_seconds))


def texts(name: str, given: Iterable[str]) -> Iterable[str]:
    """The texts of a field. Raises TypeError if one stands for a list, which would be taken letter by letter."""
    if isinstance(given, str | bytes):
        raise TypeError(f"{name} is a list, and was given {given!r}: give [{given!r}]")
    return given


def _sent(token: str) -> str:
    """A token as it is sent. Raises ValueError, as `_sendable` does."""
    if not (token := token.strip()):
        raise ValueError("the token is empty: give one, or None where a certificate says who calls")
    return _sendable("the token", token)


def _sendable(what: str, text: str) -> str:
    """The text, which shall be sent beside a request. Raises ValueError, which does not tell it: it may be a secret."""
    if not (text.isascii() and text.isprintable()):
        raise ValueError(f"{what} cannot be sent: it has line breaks, or characters other than those of ASCII")
    return text


def opened(grpc_or_aio: Any, address_or_channel: Any, tls: Tls | bool | None) -> Any:
    """The channel to the service.

    Args:
        grpc_or_aio: The module whose channel it is.
        address_or_channel: "host:port" or "unix:PATH"; or a channel, which is returned.
        tls: As the clients take it.
    """
    if not isinstance(address_or_channel, str):
        if tls is not None:
            raise ValueError("tls is for an address; the channel that was given has its own credentials")
        return address_or_channel
    _require_address(address_or_channel)
    here = _on_this_machine(address_or_channel)
    # a proxy that the environment names is mostly another machine, and would read what goes there without TLS
    options = CHANNEL_OPTIONS + ((("grpc.enable_http_proxy", 0),) if here else ())
    if tls is None:
        tls = not here
    if not tls:
        return grpc_or_aio.insecure_channel(address_or_channel, options=options)
    tls = Tls() if tls is True else tls
    name = (("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else ()
    return grpc_or_aio.secure_channel(address_or_channel, _credentials(tls), options=options + name)


def _require_address(address: str) -> None:
    """Raises ValueError for what gRPC would take for another address, or look for in vain."""
    form = 'give "host:port" or "unix:PATH"'
    if not address:
        raise ValueError(f"the address is empty: {form}")
    if address.startswith(("http://", "https://")):
        raise ValueError(f"the address {address} is a URL: {form}")
    port = address.rpartition(":")[2]
    if port.isdecimal() and int(port) > _PORT_MAX and not address.startswith("unix:"):
        raise ValueError(f"the address {address} has a port above {_PORT_MAX}")


def _on_this_machine(address: str) -> bool:
    host = urlsplit(f"//{address}").hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or address.startswith("unix:")


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    if (tls.certificate_file is None) != (tls.key_file is None):
        raise ValueError("certificate_file and key_file go together: give both, or neither")
    roots = _system_roots() if tls.ca_file is None else _authorities(tls.ca_file)
    if tls.certificate_file is None or tls.key_file is None:
        return grpc.ssl_channel_credentials(roots)
    return grpc.ssl_channel_credentials(roots, *_identity(tls.certificate_file, tls.key_file))


def _system_roots() -> bytes | None:
    """What this machine trusts; None where it does not say, and gRPC takes the authorities that it brings."""
    paths = ssl.get_default_verify_paths()
    files = [paths.cafile] if paths.cafile else filter(os.path.isfile, sorted(glob(f"{paths.capath}/*.[0-9]")))
    return b"".join(Path(file).read_bytes() for file in files) or None


# gRPC says nothing of what is wrong with a file but that it cannot connect; so the standard library tries them first.


def _authorities(ca_file: File) -> bytes:
    roots = Path(ca_file).read_bytes()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_file)
    except ssl.SSLError as error:
        raise ValueError(f"ca_file {os.fspath(ca_file)} holds no certificates in PEM: {error}") from error
    return roots


def _identity(certificate_file: File, key_file: File) -> tuple[bytes, bytes]:
    certificate, key = Path(certificate_file).read_bytes(), Path(key_file).read_bytes()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate_file, key_file, password="")
    except ssl.SSLError as error:
        raise ValueError(
            f"certificate_file {os.fspath(certificate_file)} and key_file {os.fspath(key_file)} are not a certificate "
            f"and its private key without a passphrase, in PEM: {error}"
        ) from error
    return key, certificate
