"""Settings come from flags, variables and defaults; each wrong one is told in a sentence, under the name it came by."""

import os
import re
import reprlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from cunho_server import settings
from cunho_server.settings import Settings, SettingsError
from cunho_storage.embedded import default_folder

NO_TLS = "TLS, or calls and tokens would cross the network in clear: give CUNHO_TLS_CERTIFICATE and CUNHO_TLS_KEY"
NO_KEY = (
    "what tells who calls, since the development key is not meant for others: give CUNHO_TOKEN_KEY, "
    "CUNHO_TOKEN_JWKS or CUNHO_TLS_CLIENT_CA"
)
NO_LOOPBACK = "must be on a loopback address, as 127.0.0.1:50061 is: whoever reaches it sees every call"
NO_KEY_SET = (
    "must be a file or an https:// URL without a password, the port up to 65535 (http:// on this machine alone, as "
    "http://127.0.0.1:8080/jwks.json is): who changes it on its way makes tokens of anybody"
)
TLS = {"tls_certificate": "server.pem", "tls_key": "server-key.pem"}
NO_ADDRESS = "must be HOST:PORT, as in 127.0.0.1:50051 or [::1]:50051"
NO_HOST = 'is neither a host name in lower case, as example.org is, nor one after "*."'


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("CUNHO_"):
            monkeypatch.delenv(name)


def refused(**flags: str) -> list[str]:
    """What is told about flags and variables, line by line."""
    with pytest.raises(SettingsError) as caught:
        settings.load(flags)
    return str(caught.value).splitlines()


def test_nothing_has_to_be_set() -> None:
    chosen = settings.load()
    assert chosen.model_dump() == {
        "address": "127.0.0.1:50051",
        "tls_certificate": None,
        "tls_key": None,
        "tls_client_ca": None,
        "database_url": "",
        "data_dir": default_folder(),
        "token_key": None,
        "token_jwks": "",
        "token_issuer": "cunho",
        "token_audience": "cunho",
        "token_subject_claim": "sub",
        "token_role_claim": "role",
        "token_acts_for_claim": "acts_for",
        "token_skew_seconds": 60,
        "token_age_max_seconds": 86400,
        "catalog": None,
        "import_hosts": "cloud-images.ubuntu.com,cloud.debian.org,download.rockylinux.org,repo.almalinux.org,"
        "download.fedoraproject.org,download.opensuse.org",
        "processes": len(os.sched_getaffinity(0)),
        "connections": 16,
        "workers": 4,
        "calls_max": 500,
        "calls_per_account_max": 40,
        "calls_per_peer_max": 400,
        "calls_per_second_per_account_max": 10000,
        "calls_per_second_per_account_min": 10,
        "waits_max": 10000,
        "call_seconds_max": 30,
        "keepalive_seconds": 10,
        "connection_age_seconds": 1800,
        "ledger_seconds": 0,
        "lease_seconds": 15,
        "shutdown_seconds": 10,
        "log_format": "console",
        "log_level": "info",
        "metrics_address": "",
        "traces": False,
        "reflection": True,
        "admin_address": "",
    }


def test_every_setting_can_be_a_variable_or_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {
        "address": "[::1]:0",
        "tls_certificate": "/etc/cunho/server.pem",
        "tls_key": "/etc/cunho/server-key.pem",
        "tls_client_ca": "/etc/cunho/ca.pem",
        "database_url": "postgresql://cunho:secret@db/cunho",
        "data_dir": "/srv/cunho",
        "token_key": "/etc/cunho/key.pem",
        "token_issuer": "https://sso.example.org",
        "token_audience": "images",
        "token_subject_claim": "account",
        "token_role_claim": "kind",
        "token_acts_for_claim": "accounts",
        "token_skew_seconds": "0",
        "token_age_max_seconds": "60",
        "catalog": "/etc/cunho/catalog.toml",
        "import_hosts": "example.org, *.example.com",
        "processes": "64",
        "connections": "100",
        "workers": "0",
        "calls_max": "1",
        "calls_per_account_max": "1",
        "calls_per_peer_max": "1",
        "calls_per_second_per_account_max": "1",
        "calls_per_second_per_account_min": "1",
        "waits_max": "1",
        "call_seconds_max": "1",
        "keepalive_seconds": "1",
        "connection_age_seconds": "1",
        "ledger_seconds": "0.5",
        "lease_seconds": "1",
        "shutdown_seconds": "600",
        "log_format": "json",
        "log_level": "error",
        "metrics_address": "0.0.0.0:9090",
        "traces": "true",
        "reflection": "false",
        "admin_address": "127.0.0.1:50061",
    }
    excluded = {"token_jwks"}  # by token_key; below
    assert chosen.keys() | excluded == Settings.model_fields.keys()
    by_default, by_flag = settings.load(), settings.load(chosen)
    for name, value in chosen.items():
        monkeypatch.setenv(f"CUNHO_{name.upper()}", value)
    assert settings.load() == by_flag
    assert [name for name in chosen if getattr(by_flag, name) == getattr(by_default, name)] == []
    assert by_flag.import_host_list == ("example.org", "*.example.com")
    assert by_flag.development_key.parent == Path("/srv/cunho")


def test_a_key_set_can_be_a_variable_or_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings.load({"token_jwks": "https://sso.example.org/jwks.json"})
    assert chosen.token_jwks == "https://sso.example.org/jwks.json"
    monkeypatch.setenv("CUNHO_TOKEN_JWKS", "https://sso.example.org/jwks.json")
    assert settings.load() == chosen


def test_a_flag_wins_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUNHO_WORKERS", "1")
    assert settings.load({"workers": "2"}).workers == 2


def test_with_a_token_key_tokens_live_shorter() -> None:
    assert settings.load({"token_key": "key.pem"}).token_age_max_seconds == 900
    assert settings.load({"token_jwks": "jwks.json"}).token_age_max_seconds == 900
    assert settings.load({"token_key": ""}).token_age_max_seconds == 86400
    assert settings.load({"token_key": "key.pem", "token_age_max_seconds": "3600"}).token_age_max_seconds == 3600


def test_a_relative_data_folder_is_where_the_process_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings.load({"data_dir": "data"}).data_dir == tmp_path / "data"


def test_no_hosts_allow_no_imports() -> None:
    assert settings.load({"import_hosts": ""}).import_host_list == ()


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "127.8.9.10:1", "localhost:0", "[::1]:65535"])
def test_a_loopback_address_is_accepted(address: str) -> None:
    assert settings.load({"address": address}).address == address


OF_OTHERS = pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:50051",
        "[::]:50051",
        "10.0.0.1:50051",
        "128.0.0.1:50051",
        "[::ffff:7f00:1]:50051",
        "example.org:50051",
        "localhost.example.org:50051",
        "127.0.0.1.example.org:50051",
        "0177.0.0.1:50051",
        "2130706433:50051",
    ],
)


@OF_OTHERS
def test_an_address_that_others_reach_takes_tls_and_who_tells_who_calls(address: str) -> None:
    hint = "(`cunho-server keys` makes what a first installation needs)"
    start = f"{address} is reached by other machines and takes"
    assert refused(address=address) == [f"{start} {NO_TLS}; and {NO_KEY} {hint}"]
    assert refused(address=address, **TLS) == [f"{start} {NO_KEY} {hint}"]
    for given in ({"token_key": "key.pem"}, {"token_jwks": "jwks.json"}):
        assert refused(address=address, **given) == [f"{start} {NO_TLS} {hint}"]
    for given in ({"token_key": "key.pem"}, {"token_jwks": "jwks.json"}, {"tls_client_ca": "ca.pem"}):
        assert settings.load(TLS | given | {"address": address}).address == address


@OF_OTHERS
def test_what_shows_every_call_is_for_this_machine_alone(address: str) -> None:
    assert refused(admin_address=address) == [f"--admin-address is {address!r}: {NO_LOOPBACK}"]


@pytest.mark.parametrize("address", ["127.0.0.1:50052", "localhost:50052", "127.0.0.1:50050"])
def test_what_shows_every_call_does_not_take_the_port_of_calls(address: str) -> None:
    first = int(address.rpartition(":")[2])
    wrong = (
        f"CUNHO_ADMIN_ADDRESS takes the ports {first} to {first + 2}, one for each process, and 50052 is that of "
        "CUNHO_ADDRESS: give it others"
    )
    assert refused(address="127.0.0.1:50052", admin_address=address, processes="3") == [wrong]


def test_there_is_a_port_for_each_process_that_shows_its_calls() -> None:
    wrong = (
        "CUNHO_ADMIN_ADDRESS takes the ports 65534 to 65536, one for each process, and the last is 65535: "
        "give it lower ones"
    )
    assert refused(admin_address="127.0.0.1:65534", processes="3") == [wrong]
    assert settings.load({"admin_address": "127.0.0.1:65534", "processes": "2"}).processes == 2


@pytest.mark.parametrize("address", ["127.0.0.1:50053", "127.0.0.1:50049", "127.0.0.2:50052", "[::1]:50052", ""])
def test_what_shows_every_call_may_have_any_other_port(address: str) -> None:
    chosen = settings.load({"address": "127.0.0.1:50052", "admin_address": address, "processes": "3"})
    assert chosen.admin_address == address


def test_what_belongs_together_is_told_at_once() -> None:
    pair = "CUNHO_TLS_CERTIFICATE and CUNHO_TLS_KEY need each other"
    keys = "CUNHO_TOKEN_KEY and CUNHO_TOKEN_JWKS exclude each other"
    assert refused(tls_key="key.pem") == [pair]
    assert refused(tls_certificate="server.pem", address="0.0.0.0:1", token_key="key.pem", token_jwks="x") == [
        pair,
        keys,
    ]
    assert refused(tls_client_ca="ca.pem") == ["CUNHO_TLS_CLIENT_CA needs CUNHO_TLS_CERTIFICATE and CUNHO_TLS_KEY"]


@pytest.mark.parametrize(
    "where",
    [
        "https://sso.example.org/realms/cloud/certs?x=1",
        "https://10.0.0.1:8443/jwks.json",
        "http://127.0.0.1:8080/jwks.json",
        "http://[::1]:8080/jwks.json",
        "http://localhost/jwks.json",
        "/etc/cunho/jwks.json",
        "jwks.json",
    ],
)
def test_a_key_set_is_at_a_safe_url_or_in_a_file(where: str) -> None:
    chosen = settings.load({"token_jwks": where})
    assert (chosen.token_jwks, chosen.fetches_keys, chosen.development) == (where, "://" in where, False)


@pytest.mark.parametrize(
    "where",
    [
        "http://sso.example.org/jwks.json",
        "http://10.0.0.1/jwks.json",
        "http://localhost.example.org/jwks.json",
        "http://127.0.0.1@example.org/jwks.json",
        "https://user:secret@sso.example.org/jwks.json",
        "https:///jwks.json",
        "https://sso.example.org:65979/jwks.json",
        "http://127.0.0.1:65536/jwks.json",
        "https://sso.example.org:https/jwks.json",
        "https://[::1/jwks.json",
        "file:///etc/cunho/jwks.json",
        "ftp://127.0.0.1/jwks.json",
        "data://127.0.0.1/,x",
    ],
)
def test_a_key_set_at_any_other_url_is_refused(where: str) -> None:
    assert refused(token_jwks=where) == [f"--token-jwks is {reprlib.repr(where)}: {NO_KEY_SET}"]


@pytest.mark.parametrize(
    "address",
    ["", "localhost", ":50051", "127.0.0.1:", "::1:1", "127.0.0.1:65536", "a@[::1]:1", "a..b:1"],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    assert refused(address=address) == [f"--address is {address!r}: {NO_ADDRESS}"]


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("data_dir", "", "must name a folder"),
        ("token_issuer", "", "must be text"),
        ("token_audience", "", "must be text"),
        ("token_subject_claim", "", "must be text"),
        ("token_role_claim", "", "must be text"),
        ("token_acts_for_claim", "", "must be text"),
        ("token_skew_seconds", "-1", "must be a whole number from 0 to 300"),
        ("token_skew_seconds", "301", "must be a whole number from 0 to 300"),
        ("processes", "0", "must be a whole number from 1 to 64"),
        ("processes", "65", "must be a whole number from 1 to 64"),
        ("calls_max", "0", "must be a whole number from 1 to 100000"),
        ("calls_per_account_max", "100001", "must be a whole number from 1 to 100000"),
        ("calls_per_peer_max", "0", "must be a whole number from 1 to 100000"),
        ("waits_max", "1000001", "must be a whole number from 1 to 1000000"),
        ("call_seconds_max", "0.5", "must be a number from 1 to 3600"),
        ("keepalive_seconds", "0", "must be a number from 1 to 3600"),
        ("connection_age_seconds", "86401", "must be a number from 1 to 86400"),
        ("log_level", "trace", "must be debug, info, warning or error"),
        ("metrics_address", "9090", NO_ADDRESS),
        ("metrics_address", "a..b:9090", NO_ADDRESS),
        ("metrics_address", ".:9090", NO_ADDRESS),
        ("admin_address", "9090", NO_ADDRESS),
        ("traces", "maybe", "must be true or false"),
        ("token_age_max_seconds", "0", "must be a whole number from 1 to 604800"),
        ("token_age_max_seconds", "604801", "must be a whole number from 1 to 604800"),
        ("import_hosts", "Example.org", f"'Example.org' {NO_HOST}"),
        ("import_hosts", "a.org,https://b", f"'https://b' {NO_HOST}"),
        ("import_hosts", "*", f"'*' {NO_HOST}"),
        ("connections", "0", "must be a whole number from 1 to 100"),
        ("connections", "101", "must be a whole number from 1 to 100"),
        ("connections", "many", "must be a whole number from 1 to 100"),
        ("connections", "1.5", "must be a whole number from 1 to 100"),
        ("connections", "", "must be a whole number from 1 to 100"),
        ("workers", "-1", "must be a whole number from 0 to 64"),
        ("workers", "65", "must be a whole number from 0 to 64"),
        ("ledger_seconds", "3600.1", "must be a number from 0 to 3600"),
        ("ledger_seconds", "nan", "must be a number from 0 to 3600"),
        ("lease_seconds", "0.9", "must be a number from 1 to 600"),
        ("lease_seconds", "inf", "must be a number from 1 to 600"),
        ("shutdown_seconds", "601", "must be a number from 0 to 600"),
        ("log_format", "xml", "must be console or json"),
        ("reflection", "maybe", "must be true or false"),
    ],
)
def test_a_wrong_value_is_told_under_the_name_it_was_given_by(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, wrong: str
) -> None:
    assert refused(**{name: value}) == [f"--{name.replace('_', '-')} is {value!r}: {wrong}"]
    monkeypatch.setenv(f"CUNHO_{name.upper()}", value)
    assert refused() == [f"CUNHO_{name.upper()} is {value!r}: {wrong}"]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://cunho:secret@db:5432/cunho?sslmode=require",
        "postgres://db",
        "postgresql://cunho@/cunho?host=%2Frun%2Fpostgresql",
        "postgresql://cunho@%2Frun%2Fa..b:65535/cunho",
        "postgresql://cunho@/cunho?host=/run/a..b,db_1.Example.&port=1,2",
        "postgresql://cunho:sec%40ret@one:5432,two:5433,[::1]:5434/cunho",
    ],
)
def test_a_database_url_is_accepted(url: str) -> None:
    assert settings.load({"database_url": url}).database_url == url


@pytest.mark.parametrize(
    "url",
    [
        "mysql://cunho:secret@db",
        "db/cunho",
        "postgresql:",
        "postgresql://cunho:secret@db:port/cunho",
        "postgresql://cunho:sec#ret@db/cunho",
        "postgresql://cunho:sec\N{ACCOUNT OF}ret@db/cunho",
        "postgresql://cunho:secret@[db]/cunho",
        "postgresql://cunho:sec@ret@db/cunho",
        "postgresql://cunho:secret@db:65536/cunho",
        "postgresql://cunho:secret@one,a..b:5433/cunho",
        "postgresql://cunho:secret@a%2E%2Eb/cunho",
        f"postgresql://cunho:secret@{64 * 'a'}/cunho",
        "postgresql://cunho:secret@/cunho?host=one,a..b",
        "postgresql://cunho:secret@/cunho?host=db&port=5432,65536",
        "postgresql://cunho@db/cunho?password=sec&ret",
    ],
)
def test_a_wrong_database_url_is_refused_without_its_password(url: str) -> None:
    wrong = (
        "must be a URL such as postgresql://USER:PASSWORD@HOST:PORT/DATABASE, the port up to 65535, what is no letter "
        "or digit in the password percent-encoded, as %23 for #"
    )
    assert refused(database_url=url) == [f"--database-url: {wrong}"]


def test_the_password_of_the_database_is_not_shown() -> None:
    assert "secret" not in repr(settings.load({"database_url": "postgresql://cunho:secret@db/cunho"}))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CUNHO_WORKER", "did you mean CUNHO_WORKERS?"),
        ("CUNHO_ADRESS", "did you mean CUNHO_ADDRESS?"),
        ("CUNHO_DATABASEURL", "did you mean CUNHO_DATABASE_URL?"),
        ("cunho_workers", "did you mean CUNHO_WORKERS?"),
        ("CUNHO_SOMETHING_ELSE", "cunho-server serve --help lists them all"),
    ],
)
def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, hint: str) -> None:
    monkeypatch.setenv(name, "1")
    assert refused() == [f"{name} is not a setting: {hint}"]


def test_variables_of_clients_and_of_others_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUNHO_TOKEN", "secret")
    monkeypatch.setenv("WORKERS", "1")
    assert settings.load().workers == 4


def test_everything_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUNHO_WORKER", "1")
    monkeypatch.setenv("CUNHO_REFLECTION", "maybe")
    assert refused(connections="0") == [
        "CUNHO_WORKER is not a setting: did you mean CUNHO_WORKERS?",
        "--connections is '0': must be a whole number from 1 to 100",
        "CUNHO_REFLECTION is 'maybe': must be true or false",
    ]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_explained(name: str) -> None:
    variable, *meaning = settings.explained(name).splitlines()
    assert variable.startswith(f"CUNHO_{name.upper()}=")
    assert len(" ".join(meaning)) > 20
    assert all(len(line) <= 90 for line in meaning)


def test_an_explanation_has_default_meaning_and_bounds() -> None:
    assert settings.explained("shutdown_seconds") == (
        "CUNHO_SHUTDOWN_SECONDS=10\n"
        "How long calls under way may go on after SIGTERM or SIGINT. Takes a number from 0 to 600."
    )
    assert settings.explained("reflection").splitlines()[0] == "CUNHO_REFLECTION=true"
    assert settings.explained("token_key").splitlines()[0] == "CUNHO_TOKEN_KEY="


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings.load().workers = 5


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_test_beside_these_sets_every_setting(name: str) -> None:
    set_ = re.compile(rf"\b{name}=|\b{name.upper()}=|[\"']({name}|{name.upper()})[\"']|--{settings.flag(name)[2:]}\b")
    tests = Path(__file__).parents[1].rglob("test_*.py")
    assert any(set_.search(path.read_text()) for path in tests if path.name != Path(__file__).name)
