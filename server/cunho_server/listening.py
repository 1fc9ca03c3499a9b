"""Where and how connections are taken: the address, and TLS with certificates that may change."""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cunho_server.address import AddressError
from cunho_server.keys import KeyFileError
from cunho_server.settings import Settings

log = logging.getLogger(__name__)

Read = TypeVar("Read")


def listen(servers: Sequence[grpc.aio.Server], settings: Settings) -> int:
    """Takes connections on the address of the settings; the port. Raises AddressError, KeyFileError.

    Args:
        servers: several only if they share a port that is known.
    """
    address, pair = settings.address, None
    if settings.tls_certificate and settings.tls_key:
        pair = Certificate(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    try:
        ports = [
            server.add_secure_port(address, pair.credentials()) if pair else server.add_insecure_port(address)
            for server in servers
        ]
    except RuntimeError:
        raise AddressError(
            f"cannot listen on {address}: stop what listens there, or choose another address with CUNHO_ADDRESS"
        ) from None
    return ports[0]


class Certificate:
    """The server's certificate with its key and the authorities of clients, as their files are at each handshake.

    Raises KeyFileError where they cannot be used from the start; later, the ones read before go on.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._lock = threading.Lock()  # gRPC shakes hands in several threads
        self._told = ""
        self._seen = self._stamps()
        self._configuration = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """What a server shakes hands with. Where there are authorities of clients, every client shows a certificate."""
        given = self._configuration

        def changed() -> grpc.ServerCertificateConfiguration | None:
            """The new configuration; None to go on with the one before."""
            nonlocal given
            before, given = given, self._current()
            return None if given is before else given

        shown = self._client_ca is not None
        return grpc.dynamic_ssl_server_credentials(given, changed, shown)  # type: ignore[arg-type]

    def _current(self) -> grpc.ServerCertificateConfiguration:
        with self._lock:
            stamps = self._stamps()
            if stamps != self._seen:
                try:
                    self._configuration = self._read()
                except KeyFileError as error:
                    self._warn(f"TLS goes on with the certificate read before: {error}")
                else:
                    self._seen, self._told = stamps, ""
                    log.info("TLS goes on with what is new in %s", ", ".join(map(str, self._files())))
            return self._configuration

    def _warn(self, text: str) -> None:
        if text != self._told:
            self._told = text
            log.warning("%s", text)

    def _files(self) -> list[Path]:
        return [path for path in (self._certificate, self._key, self._client_ca) if path]

    def _stamps(self) -> list[object]:
        """Something else when a file is changed or replaced."""
        return [_stamp(path) for path in self._files()]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        chain, certificates = _pem(self._certificate, x509.load_pem_x509_certificates, "certificates")
        secret, key = _pem(self._key, _private_key, "an unencrypted private key, RSA or elliptic curve")
        if key.public_key() != certificates[0].public_key():
            raise KeyFileError(
                f"the key {self._key} is not that of the certificate {self._certificate}, whose first one must be the "
                "server's own: give a pair that was made together"
            )
        _refuse_out_of_date(certificates[:1], self._certificate)
        roots = None
        if self._client_ca:
            roots, authorities = _pem(self._client_ca, x509.load_pem_x509_certificates, "certificates")
            _refuse_out_of_date(authorities, self._client_ca)
        return grpc.ssl_server_certificate_configuration([(secret, chain)], roots)


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _pem(path: Path, load: Callable[[bytes], Read], kind: str) -> tuple[bytes, Read]:
    """A file's content, as it is and loaded. Raises KeyFileError."""
    try:
        content = path.read_bytes()
        return content, load(content)
    except OSError as error:
        told = f"{path} cannot be read ({error.strerror})"
        raise KeyFileError(f"{told}: TLS takes a PEM file of {kind} there, which the server's user may read") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(
            f"{path} is not a PEM file of {kind}: put one there, which `cunho-server keys` makes too"
        ) from error


def _private_key(pem: bytes) -> EllipticCurvePrivateKey | RSAPrivateKey:
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, EllipticCurvePrivateKey | RSAPrivateKey):
        raise TypeError(type(key))  # clients would not agree on another
    return key


def _refuse_out_of_date(certificates: Sequence[x509.Certificate], path: Path) -> None:
    """Raises KeyFileError if none of them is valid now."""
    now = datetime.now(UTC)
    if any(each.not_valid_before_utc <= now <= each.not_valid_after_utc for each in certificates):
        return
    first, last = certificates[0].not_valid_before_utc, certificates[0].not_valid_after_utc
    raise KeyFileError(
        f"the certificate {path} is valid from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, and now it is "
        f"{now:%Y-%m-%d %H:%M}: renew it, or set the clock"
    )
