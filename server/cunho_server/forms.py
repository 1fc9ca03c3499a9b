"""The forms of what settings hold: addresses, URLs, hosts and paths.

A check returns what it is given, or raises ValueError, which says what it must be. Nothing is looked up here, and no
setting is known.
"""

import re
from ipaddress import ip_address
from urllib.parse import parse_qsl, unquote, urlsplit

_LABEL = "[a-z0-9-]{1,63}"
_ADDRESS = re.compile(rf"(?:\[(?P<v6>[0-9a-f:]+)\]|(?P<name>{_LABEL}(?:\.{_LABEL})*\.?)):(?P<port>[0-9]{{1,5}})")
_POSTGRESQL = re.compile(r"postgres(ql)?://([^/?#@]*@)?(?P<hosts>[^/?#@]*)([/?].*)?")
_HOST_OF_POSTGRESQL = re.compile(r"(/.*|\[[^][]*\]|(?P<host>[^][:@/?#]*))(:(?P<port>[0-9]{1,5}))?")
_HOST = re.compile(rf"(\*\.)?({_LABEL}\.)+{_LABEL}")
_NO_POSTGRESQL = (
    "must be a URL such as postgresql://USER:PASSWORD@HOST:PORT/DATABASE, the port up to 65535, what is no letter or "
    "digit in the password percent-encoded, as %23 for #"
)


def host_and_port(address: str) -> str:
    """HOST:PORT."""
    host_of(address)
    return address


def none_or_address(address: str) -> str:
    """HOST:PORT, or nothing."""
    return address and host_and_port(address)


def loopback(address: str) -> str:
    """HOST:PORT that only this machine reaches, or nothing."""
    if address and not is_loopback(address):
        raise ValueError("must be on a loopback address, as 127.0.0.1:50061 is: whoever reaches it sees every call")
    return address


def host_of(address: str) -> str:
    """The host of HOST:PORT. Raises ValueError if it is not of this form."""
    parts = _ADDRESS.fullmatch(address)
    if not parts or int(parts["port"]) > 65535:
        raise ValueError("must be HOST:PORT, as in 127.0.0.1:50051 or [::1]:50051")
    return parts["v6"] or parts["name"]


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches HOST:PORT. Raises ValueError if it is not of this form."""
    return _names_this_machine(host_of(address))


def meet(one: str, other: str) -> bool:
    """Whether HOST:PORT and another with the same port may be one socket."""
    hosts = {host_of(one), host_of(other)}
    return len(hosts) == 1 or not hosts.isdisjoint({"localhost", "0.0.0.0", "::"})


def _names_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def key_set(where: str) -> str:
    """A file, or a URL whose answer nobody changes on its way."""
    if "://" in where and not _is_secure(where):
        raise ValueError(
            "must be a file or an https:// URL without a password, the port up to 65535 (http:// on this machine "
            "alone, as http://127.0.0.1:8080/jwks.json is): who changes it on its way makes tokens of anybody"
        )
    return where


def _is_secure(address: str) -> bool:
    """Whether nobody changes on its way what a URL answers; False for what is no URL, such as one of port 65536."""
    try:
        url = urlsplit(address)
        _ = url.port  # which the connection would take modulo 65536
    except ValueError:
        return False
    secure = url.scheme == "https" or (url.scheme == "http" and _names_this_machine(url.hostname or ""))
    return secure and bool(url.hostname) and "@" not in url.netloc


def postgresql(url: str) -> str:
    """The URL of a PostgreSQL, or nothing."""
    if url and not _is_postgresql(url):
        raise ValueError(_NO_POSTGRESQL)
    return url


def _is_postgresql(url: str) -> bool:
    """Whether the driver can read a URL: its own error would show the password."""
    if not (found := _POSTGRESQL.fullmatch(url)):
        return False
    try:
        query = urlsplit(url).query
        asked = dict(parse_qsl(query, strict_parsing=bool(query)))
        hosts = [*found["hosts"].split(","), *asked.get("host", "").split(",")]
        ports = [f":{port}" for port in asked.get("port", "0").split(",")]
        return all(_is_host(unquote(each)) for each in hosts + ports)
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    """Whether text is HOST, :PORT, both or a folder. Raises ValueError for a host that cannot be looked up."""
    if not (parts := _HOST_OF_POSTGRESQL.fullmatch(text)):
        return False
    (parts["host"] or "").encode("idna")
    return int(parts["port"] or 0) <= 65535


def hosts(hosts: str) -> str:
    """Names of hosts, separated by commas."""
    for host in split(hosts):
        if not _HOST.fullmatch(host):
            raise ValueError(f'{host!r} is neither a host name in lower case, as example.org is, nor one after "*."')
    return hosts


def split(hosts: str) -> tuple[str, ...]:
    """Each of the hosts that commas separate."""
    return tuple(host.strip() for host in hosts.split(",") if host.strip())


def named(path: object) -> object:
    """A path."""
    if path == "":  # which would be the current folder
        raise ValueError("must name a folder")
    return path


def none_if_empty(path: object) -> object:
    """The path, or None for nothing."""
    return None if path == "" else path
