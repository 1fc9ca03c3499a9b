"""A run of a command: the flags that every command has, and the client that they make. Shows nothing."""

import os
from collections.abc import Callable
from dataclasses import Field, dataclass, fields
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self, cast

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from cyclopts import ArgumentCollection

    from cunho import Client, Tls

DAY_SECONDS = 86_400
_SHARED = Group("Every command", sort_key=9)
_TLS_FLAGS = ("--tls-ca", "--tls-certificate", "--tls-key", "--tls-server-name")
_RIVALS = {
    "--token": ("--token-file",),
    "--token-file": ("--token",),
    "--no-tls": _TLS_FLAGS,
    **dict.fromkeys(_TLS_FLAGS, ("--tls",)),
}

Json = Annotated[
    bool,
    Parameter(group=_SHARED, help="Print JSON: one object, or for a list one array, with the field names of the API."),
]


class MisuseError(Exception):
    """The words cannot be carried out; the message says why and what to do."""


def _is_time(_: type, seconds: Any) -> None:
    if not 0 < seconds <= DAY_SECONDS:
        raise ValueError("must be over 0 seconds, and a day at most")


def flags_go_first(_: object, __: object, arguments: "ArgumentCollection") -> None:
    """Forgets what variables say where a flag says something that does not go together with it."""
    flags = [token.keyword for argument in arguments for token in argument.tokens if token.source == "cli"]
    beaten = {rival for flag in flags if flag for rival in _RIVALS.get(flag, ())}
    for argument in arguments:
        if argument.name in beaten:
            argument.tokens = [token for token in argument.tokens if token.source == "cli"]


@Parameter(name="*", group=_SHARED)
@dataclass(frozen=True)
class Connection:
    """How the service is reached, and as whom."""

    address: Annotated[str, Parameter(env_var="CUNHO_ADDRESS")] = "127.0.0.1:50051"
    """Where the service answers, HOST:PORT."""

    token: Annotated[str, Parameter(env_var="CUNHO_TOKEN")] = ""
    """Token that says who you are. Prefer the variable, or a file: every user of this machine sees flags."""

    token_file: Annotated[Path | None, Parameter(env_var="CUNHO_TOKEN_FILE")] = None
    """File with the token; it is read for each call."""

    account: Annotated[str, Parameter(env_var="CUNHO_ACCOUNT")] = ""
    """Account to act for; for services alone."""

    tls: Annotated[bool | None, Parameter(env_var="CUNHO_TLS", negative="--no-tls")] = None
    """Whether to use TLS. Default: on, but off for an address of this machine."""

    tls_ca: Annotated[Path | None, Parameter(env_var="CUNHO_TLS_CA")] = None
    """PEM file of the authorities to trust. Default: those that this machine trusts."""

    tls_certificate: Annotated[Path | None, Parameter(env_var="CUNHO_TLS_CLIENT_CERTIFICATE")] = None
    """PEM file of your own certificate, which may take the place of a token."""

    tls_key: Annotated[Path | None, Parameter(env_var="CUNHO_TLS_CLIENT_KEY")] = None
    """PEM file of its private key."""

    tls_server_name: Annotated[str, Parameter(env_var="CUNHO_TLS_SERVER_NAME")] = ""
    """Name that the service's certificate must have. Default: the host of the address."""

    timeout: Annotated[float, Parameter(env_var="CUNHO_TIMEOUT", validator=_is_time)] = 30
    """The longest that one call may take, in seconds."""

    @property
    def flags(self) -> list[str]:
        """The flags that say which service and who asks, as far as variables do not; of a token, that there is one."""
        values = [(field, getattr(self, field.name)) for field in fields(self) if field.name != "timeout"]
        said = [(field.name, value) for field, value in values if value not in (None, "") and _differs(field, value)]
        return [word for name, value in said for word in _flag(name, value)]

    def client(self) -> "Client":
        """A client of the service. Raises MisuseError."""
        from cunho import Client

        try:
            return Client(
                self.address,
                token=self._token_source(),
                tls=self._tls(),
                account=self.account,
                timeout_seconds=self.timeout,
            )
        except (OSError, ValueError) as error:
            raise MisuseError(str(error)) from error

    def _token_source(self) -> str | Callable[[], str] | None:
        if self.token and self.token_file:
            raise MisuseError("a token and a token file are given: give one of them")
        if self.token_file:
            return _read_anew(self.token_file)
        if not self.token and not self.tls_certificate:
            raise MisuseError("who are you? Set CUNHO_TOKEN to your token, or name a file that holds it: --token-file")
        return self.token or None

    def _tls(self) -> "Tls | bool | None":
        from cunho import Tls

        if not (self.tls_ca or self.tls_certificate or self.tls_key or self.tls_server_name):
            return self.tls
        if self.tls is False:
            raise MisuseError("--no-tls does not go together with --tls-ca, -certificate, -key and -server-name")
        return Tls(self.tls_ca, self.tls_certificate, self.tls_key, self.tls_server_name)


def _differs(field: "Field[Any]", value: object) -> bool:
    """Whether a value of the connection is another than it would be without a flag."""
    (variable,) = cast(Any, field.type).__metadata__[0].env_var
    return str(value) != os.environ.get(variable, str(field.default))


def _flag(name: str, value: object) -> list[str]:
    """The words that give a value of the connection. A token is not told: it may be seen or kept by others."""
    flag = f"{'--no-' if value is False else '--'}{name.replace('_', '-')}"
    return [flag] if isinstance(value, bool) else [flag, "TOKEN" if name == "token" else str(value)]


def _read_anew(file: Path) -> Callable[[], str]:
    """What reads the token of each call. It raises MisuseError, and OSError or ValueError if there is none yet."""
    from cunho import TokenFile

    token_file = TokenFile(file)

    def token() -> str:
        try:
            return token_file()
        except (OSError, ValueError) as error:
            raise MisuseError(str(error)) from error

    return token


@Parameter(parse=False)
@dataclass(frozen=True)
class Session:
    """What a command works with; the client is made when it is first asked for, and closed at the end.

    Attributes:
        connection: How the service is reached.
        json: Whether answers are shown as JSON.
    """

    connection: Connection
    json: bool

    @property
    def flags(self) -> list[str]:
        """The flags with which another command asks the same service as the same caller, and shows answers so."""
        return [*self.connection.flags, *(["--json"] if self.json else [])]

    @cached_property
    def client(self) -> "Client":
        """The client. Raises MisuseError."""
        return self.connection.client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "client" in vars(self):
            self.client.close()
