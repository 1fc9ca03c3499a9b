"""Certificates for a run of the tests: an authority, and what it signs. Nobody else trusts it."""

import datetime
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path

    def pem(self) -> tuple[bytes, bytes]:
        """Both, in the order in which gRPC's servers take them."""
        return self.key.read_bytes(), self.certificate.read_bytes()


class Authority:
    """A certificate authority whose files are in a folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder, self._name = folder, _name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = _written(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))

    def signed(self, name: str, *, uri: str = "", passphrase: bytes = b"") -> Pair:
        """A certificate for a host or an address of that name, or for whom the URI names; and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) if uri else _alternative(name)])
        certificate = self._builder(_name(name), key.public_key()).add_extension(names, critical=False)
        encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        return Pair(
            _written(self._folder / f"{name}.pem", certificate.sign(self._key, hashes.SHA256()).public_bytes(pem)),
            _written(self._folder / f"{name}-key.pem", key.private_bytes(pem, pkcs8, encryption)),
        )

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file
