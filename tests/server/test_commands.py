"""The commands: what they print, what they hand on, and how they end when something is wrong."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import cunho_server
from cunho_rules.model import Caller, Role
from cunho_rules.refusals import Reason, Refusal
from cunho_server import keys, opening, supervisor
from cunho_server.__main__ import main
from cunho_server.address import AddressError
from cunho_server.apply import Applied
from cunho_server.catalog import CatalogError
from cunho_server.identity import Identity
from cunho_server.keys import Key, KeyFileError, Keys
from cunho_server.settings import Settings, load
from cunho_storage.embedded import EmbeddedError
from cunho_storage.migrations import MigrationError

BUILT_IN = Path(cunho_server.__file__).with_name("catalog.toml")
RUN = [sys.executable, "-m", "cunho_server"]


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.upper().startswith("CUNHO_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
    monkeypatch.setenv("CUNHO_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def key(data_dir: Path) -> Identity:
    """What verifies the tokens of the data folder's development key."""
    made = keys.development_key(data_dir / "development-key.pem")
    return Identity(Keys(lambda: (Key(made.public_key()),)), Settings.model_validate({}))


class Called:
    """Stands in for the server: keeps what it was called with, and fails as told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.error: BaseException | None = None
        self.migrations: list[str] = []

    async def pending(self, settings: Settings) -> list[str]:
        self._keep("pending", settings)
        return self.migrations

    def _keep(self, *call: object) -> None:
        self.calls.append(call)
        if self.error:
            raise self.error

    async def serve(self, settings: Settings) -> None:
        self._keep("serve", settings)

    async def migrate(self, settings: Settings) -> list[str]:
        self._keep("migrate", settings)
        return self.migrations

    async def apply_catalog(self, settings: Settings, path: Path) -> Applied:
        self._keep("apply_catalog", settings, path)
        return Applied(1, 2, 3)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Called:
    called = Called()
    monkeypatch.setattr(supervisor, "serve", called.serve)
    for name in ("migrate", "pending", "apply_catalog"):
        monkeypatch.setattr(opening, name, getattr(called, name))
    return called


Ended = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Ended:
    """Runs a command; its exit code, output and errors."""

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = main(words)
        except SystemExit as exit:
            code = int(exit.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_serving_takes_settings_from_flags_and_variables(
    server: Called, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUNHO_CONNECTIONS", "3")
    assert ended("serve", "--workers", "2", "--address=localhost:0") == (0, "", "")
    ((called, chosen),) = server.calls
    assert called == "serve"
    assert isinstance(chosen, Settings)
    assert (chosen.workers, chosen.address, chosen.connections) == (2, "localhost:0", 3)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_help_of_serve_names_every_setting(ended: Ended, name: str) -> None:
    code, out, _ = ended("serve", "--help")
    assert code == 0
    assert f"\n  --{name.replace('_', '-')} " in out
    assert f"\n        CUNHO_{name.upper()}=" in out


COMMANDS = {
    "": "serve health check accounts quotas catalog keys token migrate protoset version",
    "accounts": "list show register update suspend activate",
    "quotas": "list show-image set set-image",
    "catalog": "check apply show",
}


@pytest.mark.parametrize(("group", "command"), [(name, word) for name in COMMANDS for word in COMMANDS[name].split()])
def test_the_help_names_every_command_and_each_has_help_of_its_own(ended: Ended, group: str, command: str) -> None:
    above = [group] if group else []
    code, out, _ = ended(*above, "--help")
    assert code == 0
    assert re.search(rf"\n    {command} +[a-z]", out)
    code, out, _ = ended(*above, command, "--help")
    assert code == 0
    assert out.startswith(f"usage: {' '.join(['cunho-server', *above, command])} ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["accout"], "cunho-server: 'accout' is no command: did you mean accounts?"),
        (["accounts", "regster"], "cunho-server accounts: 'regster' is no command: did you mean register?"),
        (["catalog", "zzz"], "cunho-server catalog: 'zzz' is no command: there are check, apply, show"),
    ],
)
def test_an_unknown_command_is_told_what_was_meant(ended: Ended, words: list[str], told: str) -> None:
    prog = told.partition(":")[0]
    assert ended(*words) == (2, "", f"{told} ({prog} --help says more)\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workers", "65"], "--workers is '65': must be a whole number from 0 to 64"),
        (["--worker", "6"], "cunho-server serve takes no --worker: did you mean --workers?"),
        (["--databas-url=x"], "cunho-server serve takes no --databas-url: did you mean --database-url?"),
        (["--work", "6"], "cunho-server serve takes no --work: did you mean --workers?"),
        (["--zzz"], "cunho-server serve takes no --zzz: cunho-server serve --help lists what it takes"),
        (["now"], "cunho-server serve takes no now: cunho-server serve --help lists what it takes"),
        (
            ["--workers"],
            "cunho-server serve: argument --workers: expected one argument (cunho-server serve --help says more)",
        ),
    ],
)
def test_a_wrong_flag_stops_the_start(server: Called, ended: Ended, words: list[str], told: str) -> None:
    assert ended("serve", *words) == (2, "", f"{told}\n")
    assert server.calls == []


def test_an_unknown_variable_stops_the_start(server: Called, ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUNHO_WORKER", "1")
    assert ended("serve") == (2, "", "CUNHO_WORKER is not a setting: did you mean CUNHO_WORKERS?\n")
    assert server.calls == []


def test_each_wrong_setting_has_its_line(server: Called, ended: Ended) -> None:
    code, out, err = ended("serve", "--workers", "65", "--connections", "0", "--reflection", "maybe")
    assert (code, out, len(err.splitlines())) == (2, "", 3)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["catalog"],
        ["catalog", "check"],
        ["token"],
        ["accounts", "show"],
        ["quotas", "set", "acme", "here"],
        ["keys"],
    ],
)
def test_an_incomplete_command_is_told_in_one_line(ended: Ended, words: list[str]) -> None:
    code, out, err = ended(*words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "--help says more" in err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (EmbeddedError("the data folder is in use"), "the data folder is in use"),
        (MigrationError("the schema is newer"), "the schema is newer"),
        (CatalogError("cloud.toml: 1 problem"), "cloud.toml: 1 problem"),
        (KeyFileError("no key"), "no key"),
        (AddressError("cannot listen"), "cannot listen"),
        (Refusal(Reason.DATABASE_UNAVAILABLE), "the service cannot reach its database"),
    ],
)
def test_what_the_world_refuses_is_told_in_a_sentence(
    server: Called, ended: Ended, error: Exception, told: str
) -> None:
    server.error = error
    assert ended("serve") == (1, "", f"{told}\n")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "[Errno 111] Connection refused"),
        (asyncpg.InvalidPasswordError("password authentication failed"), "password authentication failed"),
        (asyncpg.ClientConfigurationError("no such sslmode"), "no such sslmode"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_in_a_sentence(
    server: Called, ended: Ended, error: Exception, cause: str
) -> None:
    server.error = error
    told = f"the database cannot be used ({cause}): check it and CUNHO_DATABASE_URL\n"
    assert ended("migrate") == (1, "", told)


def test_a_bug_shows_its_traceback(server: Called) -> None:
    server.error = AssertionError("a bug")
    with pytest.raises(AssertionError, match="a bug"):
        main(["serve"])


def test_an_interrupt_ends_quietly(server: Called, ended: Ended) -> None:
    server.error = KeyboardInterrupt()
    assert ended("serve") == (130, "", "")


def test_applying_hands_on_the_file_and_the_database(server: Called, ended: Ended) -> None:
    assert ended("catalog", "apply", "--database-url", "postgresql://db/cunho", "cloud.toml") == (
        0,
        "public images: 1 published, 2 changed, 3 unchanged\n",
        "",
    )
    ((called, chosen, path),) = server.calls
    assert isinstance(chosen, Settings)
    assert (called, chosen.database_url, path) == ("apply_catalog", "postgresql://db/cunho", Path("cloud.toml"))


def test_migrating_names_what_it_applied(server: Called, ended: Ended) -> None:
    server.migrations = ["0001_initial.sql", "0002_more.sql"]
    assert ended("migrate") == (0, "0001_initial.sql\n0002_more.sql\n", "")
    server.migrations = []
    assert ended("migrate") == (0, "the schema is up to date\n", "")


def test_a_dry_run_names_what_would_be_applied(server: Called, ended: Ended) -> None:
    server.migrations = ["0002_more.sql"]
    assert ended("migrate", "--dry-run") == (0, "0002_more.sql\n", "")
    assert [call[0] for call in server.calls] == ["pending"]


def test_the_built_in_catalogue_is_printed_and_is_valid(ended: Ended, tmp_path: Path) -> None:
    code, out, err = ended("catalog", "show")
    assert (code, err) == (0, "")
    (tmp_path / "own.toml").write_text(out)
    assert ended("catalog", "check", str(tmp_path / "own.toml"))[0] == 0
    assert out == BUILT_IN.read_text()


def test_who_reads_only_the_beginning_of_an_output_is_shown_no_error() -> None:
    command = f"{sys.executable} -m cunho_server catalog show | head -n 1"
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (shown.stdout.count("\n"), shown.stderr) == (1, "")


@pytest.mark.parametrize(
    "words", [["version"], ["catalog", "show"], ["keys", "keys"], ["protoset"], ["catalog", "check", str(BUILT_IN)]]
)
def test_an_output_that_nobody_reads_or_that_has_no_room_is_no_fault_of_the_database(
    tmp_path: Path, words: list[str]
) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    kept: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    unread = subprocess.run(RUN + words, stdout=writes, check=False, **kept)
    os.close(writes)
    assert (unread.returncode, unread.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        lost = subprocess.run(RUN + words, stdout=full, check=False, **kept)
    assert (lost.returncode, lost.stderr) == (1, "the output cannot be written (No space left on device)\n")


def test_a_protoset_that_cannot_be_written_is_no_fault_of_the_database(ended: Ended, tmp_path: Path) -> None:
    assert ended("protoset", str(tmp_path)) == (1, "", f"{tmp_path} cannot be written (Is a directory)\n")


def test_a_valid_catalogue_is_summed_up(ended: Ended) -> None:
    code, out, err = ended("catalog", "check", str(BUILT_IN))
    assert (code, err) == (0, "")
    assert re.fullmatch(rf"{BUILT_IN}: \d+ regions, \d+ instance types, \d+ images\n", out)


def test_a_wrong_catalogue_is_told_by_its_problems(ended: Ended, tmp_path: Path) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text("region = []\n")
    assert ended("catalog", "check", str(file)) == (
        1,
        "",
        f"{file}: 1 problem\n  region: should have at least one entry\n",
    )


def test_the_version_is_printed(ended: Ended) -> None:
    assert ended("version") == (0, f"{version('cunho-server')}\n", "")


@pytest.mark.parametrize(
    ("words", "named", "caller"),
    [
        (["--account", "acme"], None, Caller("acme", Role.ACCOUNT, "acme")),
        (["--operator", "alice"], None, Caller("", Role.OPERATOR, "alice")),
        (["--service", "api", "--acts-for", "acme", "globex"], "globex", Caller("globex", Role.ACCOUNT, "service:api")),
        (["--service", "api", "--acts-for", "*"], "acme", Caller("acme", Role.ACCOUNT, "service:api")),
        (["--service", "api", "--acts-for", "acme", "*"], "globex", Caller("globex", Role.ACCOUNT, "service:api")),
        (["--account", "acme", "--seconds", "1"], None, Caller("acme", Role.ACCOUNT, "acme")),
    ],
)
def test_the_printed_token_is_accepted(
    ended: Ended, key: Identity, words: list[str], named: str | None, caller: Caller
) -> None:
    code, out, err = ended("token", *words)
    assert (code, err, out.count("\n")) == (0, "", 1)
    acting = [("cunho-account", named)] if named else []
    assert key.caller([("authorization", f"Bearer {out.strip()}"), *acting]) == caller


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--account", "Acme"], "argument --account: 'Acme' must be 1 to 60 characters of [a-z0-9-]"),
        (["--operator", ""], "argument --operator: '' must not be empty"),
        (["--account", "a", "--operator", "b"], "argument --operator: not allowed with argument --account"),
        (["--service", "api"], "--service and --acts-for need each other"),
        (["--account", "acme", "--acts-for", "globex"], "--service and --acts-for need each other"),
        (["--service", "api", "--acts-for", "Acme"], "argument --acts-for: 'Acme' must be 1 to 60"),
        (["--account", "acme", "--seconds", "0"], "--seconds is 0: must be a whole number from 1 to 86400"),
        (["--account", "acme", "--seconds", "86401"], "--seconds is 86401: must be a whole number from 1 to 86400"),
        (["--account", "acme", "--seconds", "day"], "argument --seconds: invalid int value: 'day'"),
        (["--account", "acme", "--workers", "1"], "cunho-server token takes no --workers"),
    ],
)
def test_a_token_that_would_not_be_accepted_is_not_made(
    ended: Ended, key: Identity, words: list[str], told: str
) -> None:
    code, out, err = ended("token", *words)
    assert (code, out) == (2, "")
    assert told in err


def test_no_token_is_made_with_a_key_that_no_server_has(ended: Ended, tmp_path: Path) -> None:
    code, out, err = ended("token", "--account", "acme", "--data-dir", str(tmp_path / "none"))
    assert (code, out) == (1, "")
    assert "none/development-key.pem cannot be read" in err
    assert "--data-dir" in err
    assert not (tmp_path / "none").exists()


def test_no_token_is_made_where_the_server_has_another_key(
    ended: Ended, key: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUNHO_TOKEN_KEY", "/etc/cunho/key.pem")
    code, out, err = ended("token", "--account", "acme")
    assert (code, out) == (2, "")
    assert "the server accepts no tokens of the development key: name the private key to sign with by --key" in err


# --- keys


def test_keys_are_made_with_which_a_server_can_be_reached_by_others(ended: Ended, tmp_path: Path) -> None:
    code, out, err = ended("keys", str(tmp_path / "pki"), "--host", "cunho.example", "--client", "cunho://account/acme")
    assert (code, err) == (0, "")
    given = dict(line.split("=", 1) for line in out.splitlines() if line.startswith("CUNHO_"))
    chosen = load({"address": "0.0.0.0:0"} | {name.removeprefix("CUNHO_").lower(): given[name] for name in given})
    assert chosen.tls_certificate == tmp_path / "pki" / "server.pem"
    assert (tmp_path / "pki" / "account-acme.pem").exists()


def test_a_token_signed_with_a_key_of_ones_own_is_accepted(
    ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended("keys", str(tmp_path / "pki"))[0] == 0
    monkeypatch.setenv("CUNHO_TOKEN_KEY", str(tmp_path / "pki" / "token-public.pem"))
    code, out, err = ended("token", "--account", "acme", "--key", str(tmp_path / "pki" / "token-key.pem"))
    assert (code, err) == (0, "")
    chosen = Settings.model_validate({})
    verifying = Identity(keys.verifying(chosen), chosen)
    assert verifying.caller([("authorization", f"Bearer {out.strip()}")]) == Caller("acme", Role.ACCOUNT, "acme")


def test_a_wrong_host_is_refused(ended: Ended, tmp_path: Path) -> None:
    code, out, err = ended("keys", str(tmp_path / "pki"), "--host", "Not A Host")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'Not A Host'" in err


def test_the_installed_command_refuses_as_the_function_does() -> None:
    ended = subprocess.run([*RUN, "serve", "--address", "0.0.0.0:1"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "calls and tokens would cross the network in clear" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_grpc_is_not_loaded_before_it_is_needed() -> None:
    script = "import sys, cunho_server.__main__ as m; m.main(['version']); sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


SERVE_UNTIL_INTERRUPTED = """
import asyncio, sys
from cunho_server import __main__, supervisor

async def serve(settings):
    print("ready", flush=True)
    await asyncio.Event().wait()

supervisor.serve = serve
sys.exit(__main__.main(["serve"]))
"""


def test_ctrl_c_shows_no_traceback() -> None:
    command = [sys.executable, "-c", SERVE_UNTIL_INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == ("", "")
        finally:
            process.kill()
    assert process.returncode == 130


def test_a_folder_for_the_metrics_of_another_program_is_let_be(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    code = "import sys; from cunho_server.__main__ import main; main(['version']); import cunho_server.metrics"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_standard_stream_that_is_closed_is_no_obstacle(closed: str) -> None:
    code = (
        "import asyncio, uvloop; from cunho_server.__main__ import main; main(['version']); "
        "uvloop.run(asyncio.create_subprocess_exec('true'))"
    )
    ran = subprocess.run(f'exec {sys.executable} -c "{code}" {closed}', shell=True, check=False)
    assert ran.returncode == 0
