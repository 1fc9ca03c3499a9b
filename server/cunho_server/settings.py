"""What can be chosen about a server: every setting, its bounds and its default, by flag or environment variable.

A wrong setting stops the start. Nothing is looked up here: neither files nor hosts. What an address or a URL must be,
`forms` knows.
"""

import difflib
import os
import reprlib
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from cunho_server import forms
from cunho_storage.embedded import default_folder

_PREFIX = "CUNHO_"
#: The longest time from a token's issue to its expiry, if no other is set: with a key that was given, and without.
TOKEN_AGE_SECONDS, _DEVELOPMENT_TOKEN_AGE_SECONDS = 900, 86400
#: Variables with our prefix that are read by clients.
OF_CLIENTS = {
    "CUNHO_ACCOUNT",
    "CUNHO_TIMEOUT",
    "CUNHO_TLS",
    "CUNHO_TLS_CA",
    "CUNHO_TLS_CLIENT_CERTIFICATE",
    "CUNHO_TLS_CLIENT_KEY",
    "CUNHO_TLS_SERVER_NAME",
    "CUNHO_TOKEN",
    "CUNHO_TOKEN_FILE",
}


class SettingsError(Exception):
    """Settings that cannot be used; the message has one line for each."""


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_File = Annotated[Path | None, BeforeValidator(forms.none_if_empty)]


class Settings(BaseSettings):
    """Every setting of a server."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid")

    address: Annotated[str, AfterValidator(forms.host_and_port)] = Field(
        "127.0.0.1:50051",
        description="Where calls are answered, HOST:PORT. Port 0 takes a free one. Any address but a loopback one "
        "takes TLS, and keys of tokens or authorities of clients.",
    )
    tls_certificate: _File = Field(
        None,
        description="PEM file of the server's certificate and those up to its authority. Read again when it changes.",
    )
    tls_key: _File = Field(None, description="PEM file of the private key of the certificate.")
    tls_client_ca: _File = Field(
        None,
        description="PEM file of the authorities whose certificates clients must show; a client without a token is "
        "known by its certificate. If empty, clients show none.",
    )
    database_url: Annotated[str, AfterValidator(forms.postgresql)] = Field(
        "",
        description="The PostgreSQL to store everything in, postgresql://USER:PASSWORD@HOST:PORT/DATABASE. If empty, "
        "the server runs one of its own in the data folder. A password belongs in the variable: flags are seen by "
        "every user of the machine.",
        repr=False,
    )
    data_dir: Annotated[Path, BeforeValidator(forms.named), AfterValidator(Path.absolute)] = Field(
        default_factory=default_folder,
        description="The data folder: the server's own PostgreSQL and the development key. Made where missing.",
    )
    token_key: _File = Field(
        None,
        description="PEM file of the public keys (Ed25519, or RSA of 2048 bits or more) that tokens are verified with; "
        "several while one replaces another. Read again when it changes. If there is neither this nor a key set nor "
        "authorities of clients, the server makes a development key in the data folder, with which `cunho-server "
        "token` signs.",
    )
    token_jwks: Annotated[str, AfterValidator(forms.key_set)] = Field(
        "",
        description="Key set (JWKS) that tokens are verified with: an https:// URL, or a file. Tokens name their key "
        "by `kid`. A URL is read again every 100 s, a file every second, and either when a token names a key that is "
        "not in it. SSL_CERT_FILE names the authorities of the URL's host where they are not the system's.",
    )
    token_issuer: str = Field("cunho", min_length=1, description="What the claim `iss` of a token must be.")
    token_audience: str = Field("cunho", min_length=1, description="What the claim `aud` of a token must be or have.")
    token_subject_claim: str = Field(
        "sub", min_length=1, description="Claim that names the account, operator or service."
    )
    token_role_claim: str = Field(
        "role", min_length=1, description="Claim that says which it is: account, operator or service."
    )
    token_acts_for_claim: str = Field(
        "acts_for",
        min_length=1,
        description='Claim of a service that lists the accounts that it may act for; ["*"] means every account.',
    )
    token_skew_seconds: int = Field(
        60, ge=0, le=300, description="How far the clocks of the issuer and of this machine may be apart."
    )
    token_age_max_seconds: int = Field(
        default_factory=lambda given: (
            TOKEN_AGE_SECONDS if given.get("token_key") or given.get("token_jwks") else _DEVELOPMENT_TOKEN_AGE_SECONDS
        ),
        ge=1,
        le=604800,
        description="Longest time from a token's issue to its expiry; longer ones are refused. With a token key or a "
        "key set the default is 900.",
    )
    catalog: _File = Field(
        None,
        description="Catalogue file with the regions, instance types and public images of a new database. If empty, "
        "the built-in one.",
    )
    import_hosts: Annotated[str, AfterValidator(forms.hosts)] = Field(
        "cloud-images.ubuntu.com,cloud.debian.org,download.rockylinux.org,repo.almalinux.org,"
        "download.fedoraproject.org,download.opensuse.org",
        description="Hosts that images may be imported from, separated by commas; *.example.org allows all hosts below "
        "example.org. If empty, no imports.",
    )
    processes: int = Field(
        default_factory=lambda: min(_cores(), 64),
        ge=1,
        le=64,
        description="Processes that answer calls, all on the same port. Default: one for each core.",
    )
    connections: int = Field(16, ge=1, le=100, description="Connections to PostgreSQL of each process.")
    workers: int = Field(
        4,
        ge=0,
        le=64,
        description="Operations that each process carries out at once; 0 leaves them to other servers.",
    )
    calls_max: int = Field(
        500, ge=1, le=100000, description="Calls that each process answers at once; more are refused at once."
    )
    calls_per_account_max: int = Field(
        40, ge=1, le=100000, description="Calls of one account that each process answers at once."
    )
    calls_per_peer_max: int = Field(
        400, ge=1, le=100000, description="Calls from one network address that each process answers at once."
    )
    calls_per_second_per_account_max: int = Field(
        10000,
        ge=1,
        le=1000000,
        description="Calls a second of one account that each process answers; one that falls behind lets those who "
        "call most make fewer.",
    )
    calls_per_second_per_account_min: int = Field(
        10,
        ge=1,
        le=1000000,
        description="Calls a second of one account that each process answers even while it falls behind; if "
        "CUNHO_CALLS_PER_SECOND_PER_ACCOUNT_MAX is not above this, nobody is slowed.",
    )
    waits_max: int = Field(
        10000, ge=1, le=1000000, description="Calls that wait for operations, in each process; they count apart."
    )
    call_seconds_max: float = Field(
        30, ge=1, le=3600, description="Longest that a call may take, whatever deadline it came with."
    )
    keepalive_seconds: float = Field(
        10, ge=1, le=3600, description="Silence on a connection after which its peer is asked for a sign of life."
    )
    connection_age_seconds: float = Field(
        1800, ge=1, le=86400, description="Age at which a client is asked to connect anew, so that load spreads."
    )
    ledger_seconds: float = Field(
        0, ge=0, le=3600, description="How long the `ledger` compute driver takes for each action."
    )
    lease_seconds: float = Field(
        15,
        ge=1,
        le=600,
        description="Silence after which a worker is taken for dead and its operation given to another.",
    )
    shutdown_seconds: float = Field(
        10, ge=0, le=600, description="How long calls under way may go on after SIGTERM or SIGINT."
    )
    log_format: Literal["console", "json"] = Field("console", description="Form of the log's lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is logged. Mutations are logged at info."
    )
    metrics_address: Annotated[str, AfterValidator(forms.none_or_address)] = Field(
        "", description="Where metrics are told to Prometheus over HTTP, HOST:PORT. If empty, nowhere."
    )
    traces: bool = Field(
        False,
        description="Whether calls are traced by OpenTelemetry, which the extra `cunho-server[tracing]` installs; its "
        "own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT, say where to.",
    )
    reflection: bool = Field(True, description="Whether the server describes its API to tools such as grpcurl.")
    admin_address: Annotated[str, AfterValidator(forms.none_or_address), AfterValidator(forms.loopback)] = Field(
        "",
        description="Where the first process shows its channels (channelz) and describes its API, HOST:PORT on a "
        "loopback address; the next process at the next port, and so on. If empty, nowhere.",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if wrong := [*self._incomplete(), *self._in_clear(), *self._in_the_way()]:
            raise ValueError("\n".join(wrong))
        return self

    def _incomplete(self) -> Iterator[str]:
        if bool(self.tls_certificate) != bool(self.tls_key):
            yield "CUNHO_TLS_CERTIFICATE and CUNHO_TLS_KEY need each other"
        if self.tls_client_ca and not (self.tls_certificate or self.tls_key):
            yield "CUNHO_TLS_CLIENT_CA needs CUNHO_TLS_CERTIFICATE and CUNHO_TLS_KEY"
        if self.token_key and self.token_jwks:
            yield "CUNHO_TOKEN_KEY and CUNHO_TOKEN_JWKS exclude each other"

    def _in_clear(self) -> Iterator[str]:
        """What is missing where others than this machine reach the address."""
        if forms.is_loopback(self.address):
            return
        lacks = []
        if not (self.tls_certificate or self.tls_key):
            lacks.append(
                "TLS, or calls and tokens would cross the network in clear: give CUNHO_TLS_CERTIFICATE and "
                "CUNHO_TLS_KEY"
            )
        if self.development:
            lacks.append(
                "what tells who calls, since the development key is not meant for others: give CUNHO_TOKEN_KEY, "
                "CUNHO_TOKEN_JWKS or CUNHO_TLS_CLIENT_CA"
            )
        if lacks:
            yield (
                f"{self.address} is reached by other machines and takes {'; and '.join(lacks)} "
                "(`cunho-server keys` makes what a first installation needs)"
            )

    def _in_the_way(self) -> Iterator[str]:
        """What would take some of the calls, since processes share their ports; and ports that there are not."""
        first, port = (int(address.rpartition(":")[2] or 0) for address in (self.admin_address, self.address))
        ports = range(first, first + self.processes)
        if ports[-1] > 65535:
            yield (
                f"CUNHO_ADMIN_ADDRESS takes the ports {ports[0]} to {ports[-1]}, one for each process, and the last is "
                "65535: give it lower ones"
            )
        if first and port in ports and forms.meet(self.admin_address, self.address):
            yield (
                f"CUNHO_ADMIN_ADDRESS takes the ports {ports[0]} to {ports[-1]}, one for each process, and {port} is "
                "that of CUNHO_ADDRESS: give it others"
            )

    @property
    def development(self) -> bool:
        """Whether the server makes a key of its own, since nothing was given that tells who calls."""
        return not (self.token_key or self.token_jwks or self.tls_client_ca)

    @property
    def fetches_keys(self) -> bool:
        """Whether the key set is at a URL, and not in a file."""
        return "://" in self.token_jwks

    def admin_address_of(self, index: int) -> str:
        """Where the process with that many before it shows itself; "" for nowhere."""
        host, _, port = self.admin_address.rpartition(":")
        return f"{host}:{int(port) + index if int(port) else 0}" if port else ""

    @property
    def import_host_list(self) -> tuple[str, ...]:
        """The hosts that images may be imported from."""
        return forms.split(self.import_hosts)

    @property
    def development_key(self) -> Path:
        """The file of the development key."""
        return self.data_dir / "development-key.pem"


_SCHEMA: dict[str, dict[str, Any]] = Settings.model_json_schema()["properties"]


def load(flags: Mapping[str, str] | None = None) -> Settings:
    """The settings, from flags, where there is none from the environment, else their defaults.

    Args:
        flags: text by setting.
    Raises SettingsError.
    """
    flags = dict(flags or {})
    problems = list(_unknown_variables(os.environ))
    try:
        settings = Settings.model_validate(flags)
    except ValidationError as error:
        settings = None
        # A default that depends on other settings is not made when one of them is wrong: that is no second mistake.
        mistakes = [each for each in error.errors() if each["type"] != "default_factory_not_called"]
        problems += [_wrong(each, flags) for each in mistakes]
    if settings is None or problems:
        raise SettingsError("\n".join(problems))
    return settings


def _unknown_variables(names: Iterable[str]) -> Iterator[str]:
    known = {_variable(name) for name in Settings.model_fields} | OF_CLIENTS
    for name in sorted(names):
        if name.upper().startswith(_PREFIX) and name not in known:
            hint = meant(name.upper(), known, "cunho-server serve --help lists them all", _PREFIX)
            yield f"{name} is not a setting: {hint}"


def _wrong(error: ErrorDetails, flags: Mapping[str, str]) -> str:
    """What is wrong with a setting, under the name that it was given by, or with several together."""
    if not error["loc"]:
        return str(error.get("ctx", {})["error"])
    name = str(error["loc"][0])
    called = flag(name) if name in flags else _variable(name)
    wrong = error["ctx"]["error"] if error["type"] == "value_error" and "ctx" in error else f"must be {_form(name)}"
    if not Settings.model_fields[name].repr:  # may hold a password
        return f"{called}: {wrong}"
    return f"{called} is {reprlib.repr(error['input'])}: {wrong}"


def meant(wrong: str, known: Iterable[str], hint: str, prefix: str = "") -> str:
    """What the one who wrote a wrong word may have meant, or the hint if it is like none of the known.

    Args:
        prefix: what all of them begin with, which makes none of them alike.
    """
    near = difflib.get_close_matches(wrong.removeprefix(prefix), [each.removeprefix(prefix) for each in known], n=1)
    return f"did you mean {prefix}{near[0]}?" if near else hint


def explained(name: str) -> str:
    """Lines that explain a setting: its variable with the default, what it means and what it takes."""
    field = Settings.model_fields[name]
    default = field.get_default(call_default_factory=True, validated_data={})
    shown = "" if default is None else str(default).lower() if isinstance(default, bool) else default
    form = _form(name)
    meaning = f"{field.description} Takes {form}." if form else field.description or ""
    return f"{_variable(name)}={shown}\n{textwrap.fill(meaning, 90)}"


def flag(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{_PREFIX}{name.upper()}"


def _form(name: str) -> str:
    """What values a setting takes, in words; "" where its description says so."""
    match _SCHEMA[name]:
        case {"type": "integer", "minimum": least, "maximum": most}:
            return f"a whole number from {least} to {most}"
        case {"type": "number", "minimum": least, "maximum": most}:
            return f"a number from {least:g} to {most:g}"
        case {"enum": values}:
            return ", ".join(values[:-1]) + f" or {values[-1]}"
        case {"type": "boolean"}:
            return "true or false"
        case {"type": "string", "minLength": 1}:
            return "text"
    return ""
