"""What can be chosen about a server: every setting, its bounds and its default, by flag or environment variable.

A wrong setting stops the start. Nothing is looked up here: neither files nor hosts.
"""

import difflib
import os
import re
import reprlib
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from cunho_storage.embedded import default_folder

_PREFIX = "CUNHO_"
#: Variables with our prefix that are read by clients.
_OF_CLIENTS = {"CUNHO_TOKEN"}
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9a-f:]+)\]|(?P<name>[a-z0-9.-]+)):(?P<port>[0-9]{1,5})")
_PLACE = r"(\[[^\]]*\]|[^][:,@/?]*)(:[0-9]{1,5})?"
_POSTGRESQL = re.compile(rf"postgres(ql)?://([^/?]*@)?{_PLACE}(,{_PLACE})*([/?].*)?")
_HOST = re.compile(r"(\*\.)?([a-z0-9-]{1,63}\.)+[a-z0-9-]{1,63}")


class SettingsError(Exception):
    """Settings that cannot be used; the message has one line for each."""


def _loopback(address: str) -> str:
    parts = _ADDRESS.fullmatch(address)
    if not parts or int(parts["port"]) > 65535:
        raise ValueError("must be HOST:PORT, as in 127.0.0.1:50051 or [::1]:50051")
    host = parts["v6"] or parts["name"]
    try:
        is_loopback = ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback:
        raise ValueError(
            "calls and tokens would cross the network in clear; listen on a loopback address, as 127.0.0.1:50051 is, "
            "and put a proxy that terminates TLS in front of it, on this machine"
        )
    return address


def _postgresql(url: str) -> str:
    if url and not _POSTGRESQL.fullmatch(url):
        raise ValueError("must be a URL such as postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    return url


def _hosts(hosts: str) -> str:
    for host in _split(hosts):
        if not _HOST.fullmatch(host):
            raise ValueError(f'{host!r} is neither a host name in lower case, as example.org is, nor one after "*."')
    return hosts


def _split(hosts: str) -> tuple[str, ...]:
    return tuple(host.strip() for host in hosts.split(",") if host.strip())


def _named(path: object) -> object:
    if path == "":  # which would be the current folder
        raise ValueError("must name a folder")
    return path


def _none_if_empty(path: object) -> object:
    return None if path == "" else path


_File = Annotated[Path | None, BeforeValidator(_none_if_empty)]


class Settings(BaseSettings):
    """Every setting of a server."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid")

    address: Annotated[str, AfterValidator(_loopback)] = Field(
        "127.0.0.1:50051",
        description="Where calls are answered, HOST:PORT on a loopback address. Port 0 takes a free one.",
    )
    database_url: Annotated[str, AfterValidator(_postgresql)] = Field(
        "",
        description="The PostgreSQL to store everything in, postgresql://USER:PASSWORD@HOST:PORT/DATABASE. If empty, "
        "the server runs one of its own in the data folder. A password belongs in the variable: flags are seen by "
        "every user of the machine.",
        repr=False,
    )
    data_dir: Annotated[Path, BeforeValidator(_named), AfterValidator(Path.absolute)] = Field(
        default_factory=default_folder,
        description="The data folder: the server's own PostgreSQL and the development key. Made where missing.",
    )
    token_key: _File = Field(
        None,
        description="PEM file of the Ed25519 public key that tokens are verified with. If empty, the server makes a "
        "development key in the data folder, with which `cunho-server token` signs.",
    )
    token_age_max_seconds: int = Field(
        default_factory=lambda given: 900 if given.get("token_key") else 86400,
        ge=1,
        le=604800,
        description="Longest time from a token's issue to its expiry; longer ones are refused. With a token key the "
        "default is 900.",
    )
    catalog: _File = Field(
        None,
        description="Catalogue file with the regions, instance types and public images of a new database. If empty, "
        "the built-in one.",
    )
    import_hosts: Annotated[str, AfterValidator(_hosts)] = Field(
        "cloud-images.ubuntu.com,cloud.debian.org,download.rockylinux.org,repo.almalinux.org,"
        "download.fedoraproject.org,download.opensuse.org",
        description="Hosts that images may be imported from, parted by commas; *.example.org allows all hosts below "
        "example.org. If empty, no imports.",
    )
    connections: int = Field(16, ge=1, le=100, description="Connections to PostgreSQL.")
    workers: int = Field(
        4,
        ge=0,
        le=64,
        description="Operations that this process carries out at once; 0 leaves them to other processes.",
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
    reflection: bool = Field(True, description="Whether the server describes its API to tools such as grpcurl.")

    @property
    def import_host_list(self) -> tuple[str, ...]:
        """The hosts that images may be imported from."""
        return _split(self.import_hosts)

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
    known = {_variable(name) for name in Settings.model_fields} | _OF_CLIENTS
    for name in sorted(names):
        if name.upper().startswith(_PREFIX) and name not in known:
            yield f"{name} is not a setting: {meant(name.upper(), known, 'cunho-server serve --help lists them all')}"


def _wrong(error: ErrorDetails, flags: Mapping[str, str]) -> str:
    """What is wrong with a setting, under the name that it was given by."""
    name = str(error["loc"][0])
    called = flag(name) if name in flags else _variable(name)
    wrong = error["ctx"]["error"] if error["type"] == "value_error" and "ctx" in error else f"must be {_form(name)}"
    if not Settings.model_fields[name].repr:  # may hold a password
        return f"{called}: {wrong}"
    return f"{called} is {reprlib.repr(error['input'])}: {wrong}"


def meant(wrong: str, known: Iterable[str], hint: str) -> str:
    """What the one who wrote a wrong word may have meant, or the hint if it is like none of the known."""
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {near[0]}?" if near else hint


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
            return " or ".join(values)
        case {"type": "boolean"}:
            return "true or false"
    return ""
