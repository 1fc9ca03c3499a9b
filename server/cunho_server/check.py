"""Whether an installation is sound: its database, its certificates and its keys. It changes nothing.

What is compared in the database, `cunho_storage.installation` knows.
"""

import asyncio
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.x509 import load_pem_x509_certificates

from cunho_server import keys
from cunho_server.keys import KeyFileError
from cunho_server.listening import Certificate
from cunho_server.opening import connections_max, postgresql
from cunho_server.settings import Settings
from cunho_storage import installation
from cunho_storage.installation import Finding

_SOON = timedelta(days=30)


async def check(settings: Settings) -> list[Finding]:
    """What is found; the installation is sound if none of it is a problem."""
    found = [*_certificates(settings), *await asyncio.to_thread(lambda: [*_keys(settings)])]
    with postgresql(settings) as dsn:
        return found + await installation.examine(dsn, connections=connections_max(settings))


def _certificates(settings: Settings) -> Iterator[Finding]:
    """What is wrong, or soon will be, with what TLS takes."""
    if not settings.tls_certificate or not settings.tls_key:
        return
    try:
        Certificate(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    except KeyFileError as error:
        yield _unusable(error)
        return
    yield from _privacy(settings.tls_key)
    for path in filter(None, (settings.tls_certificate, settings.tls_client_ca)):
        end = min(each.not_valid_after_utc for each in load_pem_x509_certificates(path.read_bytes()))
        if end < datetime.now(UTC) + _SOON:
            remedy = "put a new one in its place: it is read again without a restart"
            yield Finding(f"a certificate in {path} ends at {end:%Y-%m-%d %H:%M} UTC", remedy, False)


def _keys(settings: Settings) -> Iterator[Finding]:
    """What is wrong with what verifies tokens."""
    if not settings.development:
        try:
            keys.verifying(settings)
        except KeyFileError as error:
            yield _unusable(error)
        return
    told = f"tokens are signed with the development key: whoever reads {settings.development_key} can call as anybody"
    yield Finding(told, "give the public key of your issuer with CUNHO_TOKEN_KEY or CUNHO_TOKEN_JWKS", False)
    if settings.development_key.exists():
        yield from _privacy(settings.development_key)


def _unusable(error: KeyFileError) -> Finding:
    message, _, remedy = str(error).rpartition(": ")
    return Finding(message, remedy) if message else Finding(remedy, "servers do not start with it")


def _privacy(path: Path) -> Iterator[Finding]:
    """What is wrong with the mode of a private key's file."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o007:
        yield Finding(f"every user of this machine may use the private key {path} (mode {mode:o})", f"chmod 600 {path}")
