"""Who calls, from the client certificate of a connection: TLS has verified it, and one URI in it names the caller."""

import re
from functools import lru_cache

from cryptography import x509

from cunho_server.credentials import CredentialsError, Entitlement, entitlement

#: The forms of the URI, for people.
FORMS = (
    "cunho://account/ID, cunho://operator/NAME, cunho://service/NAME?acts_for=ID,ID or cunho://service/NAME?acts_for=*"
)

_URI = re.compile(r"cunho://(?P<role>[a-z]+)/(?P<subject>[^/?#]+)(\?acts_for=(?P<acts_for>[^?#]+))?")
_CERTIFICATES_KEPT = 10_000


@lru_cache(_CERTIFICATES_KEPT)
def entitled(pem: bytes) -> Entitlement:
    """What a verified certificate entitles to. Raises CredentialsError."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CredentialsError(f"the certificate names nobody: {error}") from None
    ours = [uri for uri in uris if uri.lower().startswith("cunho:")]
    if len(ours) != 1:
        raise CredentialsError(f"the certificate has {len(ours)} cunho:// URIs, and takes one")
    return named(ours[0], certificate.not_valid_after_utc.timestamp())


def named(uri: str, expire_time: float) -> Entitlement:
    """What the one whom the URI names is entitled to. Raises CredentialsError."""
    parts = _URI.fullmatch(uri)
    if not parts or (parts["acts_for"] is None) is (parts["role"] == "service"):
        raise CredentialsError(f"{uri} is none of {FORMS}")
    return entitlement(parts["role"], parts["subject"], (parts["acts_for"] or "").split(","), expire_time)
