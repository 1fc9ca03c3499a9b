"""What a first installation needs, made: an authority, certificates, a key pair for tokens, and tokens. A larger one
has an authority and an issuer of its own, and needs nothing of this. Nothing here serves calls."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cunho_server import certificates, keys
from cunho_server.credentials import CallerRole, CredentialsError
from cunho_server.keys import KeyFileError, PrivateKey
from cunho_server.settings import TOKEN_AGE_SECONDS, Settings, SettingsError
from cunho_server.tokens import Signer

#: What clients reach the server by where nothing else is given.
HOSTS = ("localhost", "127.0.0.1", "::1")

_NAME = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9-]{0,62})(\.[a-z0-9][a-z0-9-]{0,62})*")
_AUTHORITY_DAYS, _SERVER_DAYS, _CLIENT_DAYS = 3650, 365, 365
_CLOCKS_APART = timedelta(minutes=5)


class Made(NamedTuple):
    """A file that was made."""

    path: Path
    purpose: str


class _Pair(NamedTuple):
    """A certificate with its key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey


def make(folder: Path, *, hosts: Sequence[str] = HOSTS, clients: Sequence[str] = ()) -> list[Made]:
    """Makes what is missing in the folder, and a certificate for each client; the files made. Overwrites nothing.

    Args:
        hosts: the names and addresses that clients reach the server by.
        clients: cunho:// URIs, each naming who calls with the certificate.
    Raises SettingsError, KeyFileError.
    """
    _refuse_malformed(hosts, clients)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [*_made(folder, hosts, clients)]
    except OSError as error:
        raise KeyFileError(f"{error.filename or folder} cannot be made ({error.strerror})") from error


def guide(folder: Path, made: Sequence[Made]) -> str:
    """What to tell about files that were made: what each is for, and the settings that name those of the server."""
    folder = folder.absolute()
    files = (
        "\n".join(f"{each.path.absolute()}\n    {each.purpose}" for each in made)
        or "everything was there: nothing was made"
    )
    return f"""{files}

The server takes these settings:
CUNHO_TLS_CERTIFICATE={folder / "server.pem"}
CUNHO_TLS_KEY={folder / "server-key.pem"}
CUNHO_TOKEN_KEY={folder / "token-public.pem"}

With this too, every client has to show a certificate of the authority:
CUNHO_TLS_CLIENT_CA={folder / "ca.pem"}

A token for an account:
cunho-server token --key {folder / "token-key.pem"} --account acme"""


def token(
    settings: Settings,
    subject: str,
    role: CallerRole,
    *,
    acts_for: Iterable[str] = (),
    seconds: int | None = None,
    key: Path | None = None,
) -> str:
    """A token that a server with these settings accepts.

    Args:
        acts_for: the accounts that a service may act for, or "*" alone for every account.
        seconds: how long it is valid. Default: as long as a server accepts by default.
        key: the file of the private key to sign with, for a server elsewhere too. Default: the development key.
    Raises SettingsError, KeyFileError.
    """
    most = settings.token_age_max_seconds
    if seconds is None:
        seconds = min(most, TOKEN_AGE_SECONDS) if key else most
    if not 1 <= seconds <= most:
        raise SettingsError(f"--seconds is {seconds}: must be a whole number from 1 to {most}")
    return Signer(_signing_key(settings, key), settings).token(subject, role, acts_for=acts_for, seconds=seconds)


def _signing_key(settings: Settings, path: Path | None) -> PrivateKey:
    if path is None and not settings.development:
        raise SettingsError(
            "with CUNHO_TOKEN_KEY, CUNHO_TOKEN_JWKS or CUNHO_TLS_CLIENT_CA the server accepts no tokens of the "
            "development key: name the private key to sign with by --key"
        )
    try:
        key = keys.private_key(path or settings.development_key)
    except KeyFileError as error:
        if path:
            raise
        hint = "the server makes it when it first starts; name the server's data folder with --data-dir"
        raise KeyFileError(f"{error}: {hint}") from error
    verifying = keys.public_keys(settings.token_key) if path and settings.token_key else ()
    if verifying and key.public_key() not in [each.public for each in verifying]:
        raise SettingsError(f"{path} is the private key of none in {settings.token_key}: the server would refuse it")
    return key


# --- what is made


def _made(folder: Path, hosts: Sequence[str], clients: Sequence[str]) -> Iterator[Made]:
    names = {uri: _file_name(uri) for uri in clients}
    for name in names.values():
        if not _missing(folder, name):
            raise _in_the_way(folder / f"{name}.pem")
    if _missing(folder, "ca"):
        yield from _write_pair(
            folder, "ca", _new_authority(), "the authority of all certificates here, which clients trust"
        )
    authority = _authority(folder)
    if _missing(folder, "server"):
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]  # it asks itself for its health
        pair = _issued(authority, hosts[0], map(_host, hosts), purposes, _SERVER_DAYS)
        yield from _write_pair(folder, "server", pair, f"the server's certificate, for {', '.join(hosts)}")
    elif tuple(hosts) != HOSTS:
        raise _in_the_way(folder / "server.pem")
    if _missing(folder, "token", "-public"):
        yield from _write_token_key(folder)
    for uri, name in names.items():
        uris = [x509.UniformResourceIdentifier(uri)]
        pair = _issued(authority, name, uris, [ExtendedKeyUsageOID.CLIENT_AUTH], _CLIENT_DAYS)
        yield from _write_pair(folder, name, pair, f"a client's certificate: who shows it is {uri}")


def _refuse_malformed(hosts: Sequence[str], clients: Sequence[str]) -> None:
    """Raises SettingsError."""
    wrong = [
        f"{host!r} is neither a host name in lower case, as cunho.example.org is, nor an IP address"
        for host in hosts
        if not isinstance(_host(host), x509.IPAddress) and not _NAME.fullmatch(host)
    ]
    for uri in clients:
        try:
            certificates.named(uri, 0)
        except CredentialsError as error:
            wrong.append(f"--client: {error}")
    if len({*map(_file_name, clients)}) < len(clients):
        wrong.append("--client: somebody is named twice")
    if wrong:
        raise SettingsError("\n".join(wrong))


def _file_name(uri: str) -> str:
    return uri.partition("://")[2].partition("?")[0].replace("/", "-")


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _new_authority() -> _Pair:
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Cunho authority")])
    builder = _builder(name, name, key, _AUTHORITY_DAYS).add_extension(x509.BasicConstraints(True, 0), critical=True)
    builder = builder.add_extension(_usage(certificates=True), critical=True)
    return _Pair(builder.sign(key, hashes.SHA256()), key)


def _issued(
    authority: _Pair,
    name: str,
    subjects: Iterable[x509.GeneralName],
    purposes: Iterable[x509.ObjectIdentifier],
    days: int,
) -> _Pair:
    """A certificate of the authority's."""
    key = generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    issuer = authority.certificate
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        _builder(subject, issuer.subject, key, days, issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(subjects), critical=False)
        .add_extension(by, critical=False)
    )
    return _Pair(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int, latest: datetime | None = None
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    end = now + timedelta(days)
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_APART)
        .not_valid_after(min(end, latest or end))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    """What a key may sign: certificates, or the handshakes of its owner."""
    return x509.KeyUsage(not certificates, False, False, False, False, certificates, certificates, False, False)


# --- files


def _missing(folder: Path, name: str, public: str = "") -> bool:
    """Whether a pair is to be made. Raises KeyFileError if half of it is there."""
    halves = folder / f"{name}{public}.pem", folder / f"{name}-key.pem"
    there = [path for path in halves if path.exists()]
    if len(there) == 1:
        raise KeyFileError(f"{there[0]} is there without its other half: bring that back, or move this away")
    return not there


def _in_the_way(path: Path) -> KeyFileError:
    return KeyFileError(f"{path} is there already: move it and its key away to have another made")


def _authority(folder: Path) -> _Pair:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = load_pem_private_key((folder / "ca-key.pem").read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"{folder / 'ca.pem'} or its key is not in PEM: bring back the two as they were") from error
    if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise KeyFileError(f"{folder / 'ca-key.pem'} is not the key of {folder / 'ca.pem'}: bring back the right one")
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise KeyFileError(f"the authority {folder / 'ca.pem'} has expired: make a new one in another folder")
    return _Pair(certificate, key)


def _write_pair(folder: Path, name: str, pair: _Pair, purpose: str) -> Iterator[Made]:
    pem = pair.certificate.public_bytes(Encoding.PEM)
    end = f"{pair.certificate.not_valid_after_utc:%Y-%m-%d}"
    yield _write(folder / f"{name}.pem", pem, f"{purpose}; until {end}")
    yield _write(folder / f"{name}-key.pem", _private(pair.key), "its private key, for nobody else")


def _write_token_key(folder: Path) -> Iterator[Made]:
    key = Ed25519PrivateKey.generate()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    yield _write(folder / "token-public.pem", pem, "the server verifies tokens with it")
    yield _write(folder / "token-key.pem", _private(key), "signs tokens: keep it off the server, which never needs it")


def _private(key: EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes, purpose: str) -> Made:
    """Writes a new file; a private key is its owner's alone."""
    mode = 0o600 if path.stem.endswith("-key") else 0o644
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    return Made(path, purpose)
