"""Issuers of tokens for tests: keys of every kind, their PEM files, and a key set served over HTTP. No test is here."""

import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm


def private_pem(key: Any, encryption: Any = None) -> bytes:
    """A private key as the content of its file."""
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return pem


def public_pem(*keys: Any) -> bytes:
    """The public keys of private ones, as the content of one file."""
    form = Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    return b"".join(key.public_key().public_bytes(*form) for key in keys)


def member(key: Any, key_id: str | None, **more: Any) -> dict[str, Any]:
    """The public key of a private one, as a member of a key set."""
    return private_member(key.public_key(), key_id, **more)


def private_member(key: Any, key_id: str | None, **more: Any) -> dict[str, Any]:
    """A key as it is, as a member of a key set."""
    writers: dict[type, Any] = {
        Ed25519PublicKey: OKPAlgorithm,
        Ed25519PrivateKey: OKPAlgorithm,
        EllipticCurvePublicKey: ECAlgorithm,
    }
    written = next((writer for kind, writer in writers.items() if isinstance(key, kind)), RSAAlgorithm)
    named = {"kid": key_id} if key_id is not None else {}
    return {**written.to_jwk(key, as_dict=True), **named, **more}


def key_set(*members: Mapping[str, Any]) -> bytes:
    """The content of a key set."""
    return json.dumps({"keys": members}).encode()


def signed(key: Any, claims: Mapping[str, Any], key_id: str | None = None) -> str:
    """A token."""
    algorithm = "EdDSA" if isinstance(key, Ed25519PrivateKey) else "RS256"
    return jwt.encode(dict(claims), key, algorithm=algorithm, headers={"kid": key_id} if key_id else None)


def rsa_key(size_bits: int = 2048) -> rsa.RSAPrivateKey:
    """A new RSA key."""
    return rsa.generate_private_key(65537, size_bits)


class Host:
    """Answers every request by HTTP on a loopback port, by HTTPS if it has a certificate.

    Attributes:
        content: what it answers.
        status: the code of its answers.
        requests: how often it was asked.
    """

    def __init__(self, content: bytes, certificate: Path | None = None, key: Path | None = None) -> None:
        self.content, self.status, self.requests = content, 200, 0
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.requests += 1
                self.send_response(host.status)
                if host.status == 302:
                    self.send_header("Location", "/elsewhere")
                    host.status = 200
                self.end_headers()
                self.wfile.write(host.content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self._server.server_port}/jwks.json"

    @contextmanager
    def serving(self) -> Iterator["Host"]:
        """Answers, within the block; until then it takes connections and is silent."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self.close()

    def close(self) -> None:
        """Refuses connections from now on."""
        self._server.server_close()
