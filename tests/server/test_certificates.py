"""Whom a client certificate names, by the one URI in it; and what a first installation makes."""

import datetime
import logging
import os
import re
import stat
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder, Store
from tests.server.issuers import private_pem, public_pem, rsa_key

from cunho_rules.model import Caller, Role
from cunho_rules.refusals import Reason, Refusal
from cunho_server import issuing, keys
from cunho_server.credentials import CallerRole
from cunho_server.identity import Identity
from cunho_server.keys import Key, KeyFileError, Keys
from cunho_server.settings import Settings, SettingsError
from cunho_server.tokens import Signer

KEY = Ed25519PrivateKey.generate()
CURVE = generate_private_key(SECP256R1())
ENDS = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
#: What a call without credentials says in its metadata.
NOTHING = [("user-agent", "test")]


def certificate(*uris: str, others: Sequence[x509.GeneralName] = ()) -> bytes:
    """A certificate with these URIs, in PEM."""
    name = x509.Name([])
    names = [*others, *map(x509.UniformResourceIdentifier, uris)]
    builder = x509.CertificateBuilder(name, name, CURVE.public_key(), 1, ENDS - datetime.timedelta(365), ENDS)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(CURVE, hashes.SHA256()).public_bytes(Encoding.PEM)


class Called:
    """Who calls, by the certificate of the connection and the metadata of the call."""

    def __init__(self) -> None:
        self.now = ENDS.timestamp() - 60
        settings = Settings.model_validate({})
        self.signer = Signer(KEY, settings, lambda: self.now)
        self._identity = Identity(Keys(lambda: (Key(KEY.public_key()),)), settings, lambda: self.now)

    def by(self, pem: bytes, *metadata: tuple[str, str]) -> Caller:
        return self._identity.caller([*NOTHING, *metadata], lambda: {"x509_pem_cert": [pem]})

    def reason(self, pem: bytes, *metadata: tuple[str, str]) -> Reason:
        with pytest.raises(Refusal) as caught:
            self.by(pem, *metadata)
        return caught.value.reason


@pytest.fixture
def called() -> Called:
    return Called()


def acting(account_id: str) -> tuple[str, str]:
    return ("cunho-account", account_id)


def test_the_uri_of_a_certificate_names_an_account(called: Called) -> None:
    pem = certificate("cunho://account/acme")
    assert called.by(pem) == called.by(pem, acting("acme")) == Caller("acme", Role.ACCOUNT, "acme")
    assert called.reason(pem, acting("globex")) is Reason.ACTING_NOT_ALLOWED


def test_the_uri_of_a_certificate_names_an_operator(called: Called) -> None:
    pem = certificate("cunho://operator/jane")
    assert called.by(pem) == Caller("", Role.OPERATOR, "jane")
    assert called.reason(pem, acting("acme")) is Reason.ACTING_NOT_ALLOWED


@pytest.mark.parametrize(("acts_for", "others"), [("acme,globex", False), ("globex", False), ("*", True)])
def test_the_uri_of_a_certificate_names_a_service(called: Called, acts_for: str, others: bool) -> None:
    pem = certificate(f"cunho://service/deployer?acts_for={acts_for}")
    assert called.by(pem, acting("globex")) == Caller("globex", Role.ACCOUNT, "service:deployer")
    assert called.reason(pem) is Reason.ACTING_NOT_ALLOWED
    if others:
        assert called.by(pem, acting("initech")).account_id == "initech"
    else:
        assert called.reason(pem, acting("initech")) is Reason.ACTING_NOT_ALLOWED


def test_other_names_in_a_certificate_do_not_count(called: Called) -> None:
    others = [x509.DNSName("globex"), x509.UniformResourceIdentifier("spiffe://example.org/globex")]
    assert called.by(certificate("cunho://account/acme", others=others)).account_id == "acme"


WRONG = {
    "no name": [],
    "another URI": ["spiffe://example.org/acme"],
    "two": ["cunho://account/acme", "cunho://account/globex"],
    "twice": ["cunho://account/acme", "cunho://account/acme"],
    "two, one in upper case": ["cunho://account/acme", "CUNHO://operator/jane"],
    "two, one without a host": ["cunho://account/acme", "cunho:account/acme"],
    "upper case": ["CUNHO://account/acme"],
    "no slashes": ["cunho:account/acme"],
    "unknown role": ["cunho://root/acme"],
    "no id": ["cunho://account/"],
    "no path": ["cunho://account"],
    "id in upper case": ["cunho://account/Acme"],
    "id with a line end": ["cunho://account/acme\n"],
    "id with an escape": ["cunho://account/ac%6de"],
    "longer path": ["cunho://account/acme/globex"],
    "long id": [f"cunho://account/{'a' * 61}"],
    "fragment": ["cunho://account/acme#x"],
    "port": ["cunho://account:1/acme"],
    "user": ["cunho://acme@account/acme"],
    "account that acts for others": ["cunho://account/acme?acts_for=globex"],
    "operator that acts for all": ["cunho://operator/jane?acts_for=*"],
    "service for nobody": ["cunho://service/deployer"],
    "service for the empty account": ["cunho://service/deployer?acts_for="],
    "service for all and one": ["cunho://service/deployer?acts_for=*,acme"],
    "service for a malformed account": ["cunho://service/deployer?acts_for=acme,"],
    "service with more": ["cunho://service/deployer?acts_for=acme&acts_for=*"],
    "service with another query": ["cunho://service/deployer?acts=acme"],
}


@pytest.mark.parametrize("uris", WRONG.values(), ids=WRONG)
def test_a_certificate_with_any_other_name_gets_the_one_answer(
    called: Called, caplog: pytest.LogCaptureFixture, uris: list[str]
) -> None:
    caplog.set_level(logging.INFO)
    pem = certificate(*uris)
    assert [called.reason(pem), called.reason(pem, acting("acme"))] == [Reason.CREDENTIALS_INVALID] * 2
    assert all(record.levelno == logging.INFO and "\n" not in record.getMessage() for record in caplog.records)


def test_a_certificate_that_cannot_be_read_gets_the_one_answer(called: Called) -> None:
    assert called.reason(b"certificate") is Reason.CREDENTIALS_INVALID


def test_a_connection_that_outlives_its_certificate_is_refused(called: Called) -> None:
    pem = certificate("cunho://account/acme")
    called.now = ENDS.timestamp() - 0.001
    called.by(pem)
    called.now = ENDS.timestamp()
    assert called.reason(pem) is Reason.CREDENTIALS_INVALID


def test_a_token_decides_over_the_certificate(called: Called) -> None:
    channel = certificate("cunho://service/proxy?acts_for=*")
    bearer = called.signer.token("acme", "account", seconds=60)
    assert called.by(channel, ("authorization", f"Bearer {bearer}")) == Caller("acme", Role.ACCOUNT, "acme")
    assert called.reason(channel, ("authorization", f"Bearer {bearer}"), acting("globex")) is Reason.ACTING_NOT_ALLOWED


@pytest.mark.parametrize("header", ["", "Bearer x", "Basic x"])
def test_a_wrong_token_is_refused_whatever_the_certificate(called: Called, header: str) -> None:
    pem = certificate("cunho://account/acme")
    assert called.reason(pem, ("authorization", header)) is Reason.CREDENTIALS_INVALID


def test_a_certificate_in_place_of_a_token_is_refused(called: Called) -> None:
    pem = certificate("cunho://account/acme")
    called.by(pem)
    assert called.reason(pem, ("authorization", pem.decode())) is Reason.CREDENTIALS_INVALID


# --- the first installation


def test_a_first_installation_has_an_authority_certificates_and_a_key_pair_of_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "keys"
    made = issuing.make(folder, hosts=["cunho.example.org", "10.0.0.7"], clients=["cunho://account/acme"])
    assert sorted(each.path.name for each in made) == sorted(os.listdir(folder))
    assert {each.name for each in folder.iterdir() if stat.S_IMODE(each.stat().st_mode) == 0o600} == {
        "ca-key.pem",
        "server-key.pem",
        "token-key.pem",
        "account-acme-key.pem",
    }
    (authority,) = x509.load_pem_x509_certificates((folder / "ca.pem").read_bytes())
    policy = PolicyBuilder().store(Store([authority]))
    server = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    for host in (x509.DNSName("cunho.example.org"), x509.IPAddress(ip_address("10.0.0.7"))):
        policy.build_server_verifier(host).verify(server, [])
    client = x509.load_pem_x509_certificate((folder / "account-acme.pem").read_bytes())
    (name,) = policy.build_client_verifier().verify(client, []).subjects or []
    assert name.value == "cunho://account/acme"
    (public,) = keys.public_keys(folder / "token-public.pem")
    assert keys.private_key(folder / "token-key.pem").public_key() == public.public


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_there_stays_and_what_is_missing_is_made(tmp_path: Path) -> None:
    issuing.make(tmp_path)
    before = contents(tmp_path)
    assert issuing.make(tmp_path) == []
    made = issuing.make(tmp_path, clients=["cunho://operator/jane", "cunho://service/api?acts_for=acme"])
    assert {each.path.stem for each in made} == {
        "operator-jane", "operator-jane-key", "service-api", "service-api-key",
    }  # fmt: skip
    assert contents(tmp_path).items() >= before.items()

    for name in ("server.pem", "server-key.pem"):
        (tmp_path / name).unlink()
    assert {each.path.stem for each in issuing.make(tmp_path, hosts=["db"])} == {"server", "server-key"}


@pytest.mark.parametrize(
    ("gone", "wanted", "told"),
    [
        ([], {"clients": ["cunho://account/acme"]}, "account-acme.pem is there already: move it"),
        ([], {"hosts": ["cunho.example.org"]}, "server.pem is there already: move it"),
        (["ca-key.pem"], {}, "ca.pem is there without its other half"),
        (["server.pem"], {}, "server-key.pem is there without its other half"),
        (["token-public.pem"], {}, "token-key.pem is there without its other half"),
        (["account-acme.pem"], {"clients": ["cunho://account/acme"]}, "acme-key.pem is there without its other half"),
    ],
)
def test_nothing_is_overwritten(tmp_path: Path, gone: list[str], wanted: dict[str, list[str]], told: str) -> None:
    issuing.make(tmp_path, clients=["cunho://account/acme"])
    for name in gone:
        (tmp_path / name).unlink()
    before = contents(tmp_path)
    with pytest.raises(KeyFileError, match=re.escape(told)):
        issuing.make(tmp_path, **wanted)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("ca.pem", b"x", "ca.pem or its key is not in PEM"),
        ("ca-key.pem", private_pem(KEY), "ca-key.pem is not the key of .*ca.pem"),
        ("ca.pem", certificate(), "ca-key.pem is not the key of .*ca.pem"),
    ],
)
def test_an_authority_that_is_none_is_told(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    issuing.make(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KeyFileError, match=told):
        issuing.make(tmp_path, clients=["cunho://account/acme"])


def test_every_wrong_host_and_client_is_told_and_nothing_made(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        issuing.make(
            tmp_path / "new",
            hosts=["ok.example.org", "Upper", "a/b", ""],
            clients=["acme", "cunho://account/Acme", "cunho://account/acme", "cunho://account/acme"],
        )
    assert [line.partition(" is ")[0] for line in str(caught.value).splitlines()][:4] == [
        "'Upper'",
        "'a/b'",
        "''",
        "--client: acme",
    ]
    assert "--client: the subject must be" in str(caught.value)
    assert "named twice" in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileError, match=r"file/keys cannot be made \(.+\)"):
        issuing.make(tmp_path / "file" / "keys")


def test_the_guide_names_every_file_and_the_settings(tmp_path: Path) -> None:
    made = issuing.make(tmp_path, clients=["cunho://account/acme"])
    text = issuing.guide(tmp_path, made)
    assert all(f"{each.path}\n    {each.purpose}\n" in text for each in made)
    chosen = dict(line.split("=") for line in text.splitlines() if line.startswith("CUNHO_"))
    names = {name.removeprefix("CUNHO_").lower(): Path(value) for name, value in chosen.items()}
    assert names.keys() == {"tls_certificate", "tls_key", "token_key", "tls_client_ca"}
    assert all(path.is_absolute() and path.exists() for path in names.values())
    assert "nothing was made" in issuing.guide(tmp_path, [])


# --- tokens


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    """The settings of a server whose private key of tokens is token-key.pem."""
    issuing.make(tmp_path)
    return Settings.model_validate({"token_key": tmp_path / "token-public.pem", "token_issuer": "ours"})


def caller(settings: Settings, bearer: str) -> Caller:
    return Identity(keys.verifying(settings), settings).caller([("authorization", f"Bearer {bearer}"), acting("acme")])


@pytest.mark.parametrize("role", ["account", "service"])
def test_a_token_of_a_private_key_is_accepted_by_its_server(tmp_path: Path, chosen: Settings, role: CallerRole) -> None:
    bearer = issuing.token(chosen, "acme", role, acts_for=["acme"], key=tmp_path / "token-key.pem")
    assert caller(chosen, bearer).account_id == "acme"


def test_a_token_of_an_rsa_key_is_accepted_by_its_server(tmp_path: Path) -> None:
    key = rsa_key()
    (tmp_path / "key.pem").write_bytes(private_pem(key))
    (tmp_path / "public.pem").write_bytes(public_pem(key))
    chosen = Settings.model_validate({"token_key": tmp_path / "public.pem"})
    assert caller(chosen, issuing.token(chosen, "acme", "account", key=tmp_path / "key.pem")).account_id == "acme"


def test_a_token_made_far_from_the_server_lives_no_longer_than_the_server_accepts(
    tmp_path: Path, chosen: Settings
) -> None:
    elsewhere = Settings.model_validate({"token_issuer": "ours"})
    bearer = issuing.token(elsewhere, "acme", "account", key=tmp_path / "token-key.pem")
    assert caller(chosen, bearer).account_id == "acme"


def test_the_development_key_signs_where_nothing_else_is_given(tmp_path: Path) -> None:
    chosen = Settings.model_validate({"data_dir": tmp_path})
    with pytest.raises(KeyFileError, match=r"the server makes it when it first starts; name .* with --data-dir"):
        issuing.token(chosen, "acme", "account")
    keys.development_key(chosen.development_key)
    assert caller(chosen, issuing.token(chosen, "acme", "account")).account_id == "acme"


def test_a_token_that_the_server_would_refuse_is_not_made(tmp_path: Path, chosen: Settings) -> None:
    (tmp_path / "other.pem").write_bytes(private_pem(KEY))
    with pytest.raises(SettingsError, match="the server accepts no tokens of the development key: name"):
        issuing.token(chosen, "acme", "account")
    with pytest.raises(SettingsError, match=r"other\.pem is the private key of none in .*token-public\.pem"):
        issuing.token(chosen, "acme", "account", key=tmp_path / "other.pem")
    with pytest.raises(KeyFileError, match=r"none\.pem cannot be read"):
        issuing.token(chosen, "acme", "account", key=tmp_path / "none.pem")
    for seconds in (0, 901):
        with pytest.raises(SettingsError, match=f"--seconds is {seconds}: must be a whole number from 1 to 900"):
            issuing.token(chosen, "acme", "account", key=tmp_path / "token-key.pem", seconds=seconds)
