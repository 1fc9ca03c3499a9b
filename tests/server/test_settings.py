"""Settings come from flags, variables and defaults; each wrong one is told in a sentence, under the name it came by."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from cunho_server import settings
from cunho_server.settings import Settings, SettingsError
from cunho_storage.embedded import default_folder

LOOPBACK_ONLY = (
    "calls and tokens would cross the network in clear; listen on a loopback address, as 127.0.0.1:50051 is, "
    "and put a proxy that terminates TLS in front of it, on this machine"
)
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
        "database_url": "",
        "data_dir": default_folder(),
        "token_key": None,
        "token_age_max_seconds": 86400,
        "catalog": None,
        "import_hosts": "cloud-images.ubuntu.com,cloud.debian.org,download.rockylinux.org,repo.almalinux.org,"
        "download.fedoraproject.org,download.opensuse.org",
        "connections": 16,
        "workers": 4,
        "ledger_seconds": 0,
        "lease_seconds": 15,
        "shutdown_seconds": 10,
        "log_format": "console",
        "reflection": True,
    }


def test_every_setting_can_be_a_variable_or_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {
        "address": "[::1]:0",
        "database_url": "postgresql://cunho:secret@db/cunho",
        "data_dir": "/srv/cunho",
        "token_key": "/etc/cunho/key.pem",
        "token_age_max_seconds": "60",
        "catalog": "/etc/cunho/catalog.toml",
        "import_hosts": "example.org, *.example.com",
        "connections": "100",
        "workers": "0",
        "ledger_seconds": "0.5",
        "lease_seconds": "1",
        "shutdown_seconds": "600",
        "log_format": "json",
        "reflection": "false",
    }
    assert chosen.keys() == Settings.model_fields.keys()
    by_default, by_flag = settings.load(), settings.load(chosen)
    for name, value in chosen.items():
        monkeypatch.setenv(f"CUNHO_{name.upper()}", value)
    assert settings.load() == by_flag
    assert [name for name in chosen if getattr(by_flag, name) == getattr(by_default, name)] == []
    assert by_flag.import_host_list == ("example.org", "*.example.com")
    assert by_flag.development_key.parent == Path("/srv/cunho")


def test_a_flag_wins_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUNHO_WORKERS", "1")
    assert settings.load({"workers": "2"}).workers == 2


def test_with_a_token_key_tokens_live_shorter() -> None:
    assert settings.load({"token_key": "key.pem"}).token_age_max_seconds == 900
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


@pytest.mark.parametrize(
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
def test_any_other_address_is_refused(address: str) -> None:
    assert refused(address=address) == [f"--address is {address!r}: {LOOPBACK_ONLY}"]


@pytest.mark.parametrize("address", ["", "localhost", ":50051", "127.0.0.1:", "::1:1", "127.0.0.1:65536", "a@[::1]:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    assert refused(address=address) == [f"--address is {address!r}: {NO_ADDRESS}"]


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("data_dir", "", "must name a folder"),
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
        "postgresql://cunho:sec%40ret@one:5432,two:5433,[::1]:5434/cunho",
    ],
)
def test_a_database_url_is_accepted(url: str) -> None:
    assert settings.load({"database_url": url}).database_url == url


@pytest.mark.parametrize(
    "url", ["mysql://cunho:secret@db", "db/cunho", "postgresql:", "postgresql://cunho:secret@db:port/cunho"]
)
def test_a_wrong_database_url_is_refused_without_its_password(url: str) -> None:
    wrong = "must be a URL such as postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
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
