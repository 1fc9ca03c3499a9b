"""Which URIs may be imported. Looks at the URI's text alone: no name is resolved and nothing is fetched here."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

#: Endings of file names that tell a format. ".img" tells none: both RAW and QCOW2 files are named so.
IMPORTABLE_ENDINGS = {".raw": "RAW", ".qcow2": "QCOW2", ".vmdk": "VMDK", ".vhd": "VHD", ".vhdx": "VHDX"}

#: Names of hosts that everybody reads alike: others take a backslash or a "%2f" for the end of the host.
_PLAIN_NAME = re.compile(r"([a-z0-9-]+\.)+[a-z0-9-]+")

_SHOWN = 100  # characters of the URI that a problem quotes


def uri_problem(uri: str, allowed_hosts: Iterable[str]) -> str | None:
    """What is wrong with importing from `uri`, in words; None if nothing is. Source: CUS-10."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "it is not a well-formed URI"
    if parts.scheme != "https":
        return f'its scheme is "{parts.scheme[:_SHOWN]}", not "https"'
    if parts.username is not None or parts.password is not None:
        return "it carries credentials"
    if not host:
        return "it names no host"
    if port not in (None, 443):
        return f"its port is {port}, not 443"
    if not _PLAIN_NAME.fullmatch(host) or not any(_allows(pattern, host) for pattern in allowed_hosts):
        return f'host "{host[:_SHOWN]}" is not allowed'
    return None


def _allows(pattern: str, host: str) -> bool:
    """True if `host` is the pattern, or below it if the pattern starts with "*."."""
    return host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:]))
