"""Asks the server on this machine how it is, as its own settings say it is reached: for probes, and people at night."""

from typing import Any

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cunho_server.forms import host_of
from cunho_server.settings import Settings

_SECONDS = 5


class ProbeError(Exception):
    """The server is not healthy; the message says what is known about it."""


def health(settings: Settings) -> None:
    """Returns if the server serves. Raises ProbeError."""
    address = _reached_at(settings.address)
    with _channel(address, settings) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
        except grpc.RpcError as error:
            raise ProbeError(f"{address} does not answer: {error.details()}") from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise ProbeError(f"{address} answers, and is not serving: its database is unavailable, or it is stopping")


def _reached_at(address: str) -> str:
    """The address as it is reached on this machine: not by names for all interfaces."""
    host, port = host_of(address), address.rpartition(":")[2]
    return {"0.0.0.0": f"127.0.0.1:{port}", "::": f"[::1]:{port}"}.get(host, address)


def _channel(address: str, settings: Settings) -> grpc.Channel:
    """A channel that trusts the certificate of the settings alone, and shows it where clients have to show one."""
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if not settings.tls_certificate or not settings.tls_key:
        return grpc.insecure_channel(address, options)
    try:
        chain, key = settings.tls_certificate.read_bytes(), settings.tls_key.read_bytes()
        options.append(("grpc.ssl_target_name_override", _name(x509.load_pem_x509_certificate(chain))))
    except (OSError, ValueError) as error:
        raise ProbeError(f"the certificate {settings.tls_certificate} or its key cannot be read: {error}") from error
    shown = (key, chain) if settings.tls_client_ca else (None, None)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(chain, *shown), options)


def _name(certificate: x509.Certificate) -> str:
    """A name that the certificate is for; its common name, which gRPC takes too, if it is for no other."""
    found = [each.value for each in certificate.extensions if isinstance(each.value, x509.SubjectAlternativeName)]
    dns = [name.replace("*", "any") for names in found for name in names.get_values_for_type(x509.DNSName)]
    addresses = [str(each) for names in found for each in names.get_values_for_type(x509.IPAddress)]
    common = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return next(iter([*dns, *addresses, *common]), "")
