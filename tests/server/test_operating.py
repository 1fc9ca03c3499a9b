"""Commands that work on an installation: beside its running server, and where none runs. Rules are tested elsewhere."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from tests import world as worlds
from tests.server_process import Server, serving
from tests.world import CATALOG, GUANGZHOU, SHANGHAI, Postgres

from cunho_server import operating
from cunho_server.__main__ import main
from cunho_storage import embedded, migrations

Ended = Callable[..., tuple[int, str, str]]
GRPCURL = shutil.which("grpcurl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with a PostgreSQL of its own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)  # every user may enter it, which those of pytest are not for
    try:
        with serving(folder / "data", PROCESSES=1) as running:
            yield running
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def ended(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Ended]:
    """Runs a command on the server's data folder; its exit code, output and errors."""
    for name in os.environ:
        if name.startswith("CUNHO_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
    monkeypatch.setenv("CUNHO_DATA_DIR", str(server.data_dir))
    handlers, level = logging.root.handlers[:], logging.root.level

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = main(words)
        except SystemExit as exit:
            code = int(exit.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    yield run
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_an_account_is_registered_changed_suspended_and_activated_beside_the_server(
    server: Server, ended: Ended
) -> None:
    client = server.client("operator")
    code, out, err = ended("accounts", "register", "initech", "--name", "Initech", "--regions", GUANGZHOU)
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["ACCOUNT_ID", "STATE", "DISPLAY_NAME", "REGION_IDS"],
        ["initech", "ACTIVE", "Initech", GUANGZHOU],
    ]
    assert client.get_account(account_id="initech").display_name == "Initech"
    for words, row in {
        ("update", "--name", "Initrode", "--add-region", SHANGHAI): ["ACTIVE", "Initrode", f"{GUANGZHOU},{SHANGHAI}"],
        ("update", "--remove-region", GUANGZHOU): ["ACTIVE", "Initrode", SHANGHAI],
        ("update", "--regions", GUANGZHOU, SHANGHAI): ["ACTIVE", "Initrode", f"{GUANGZHOU},{SHANGHAI}"],
        ("suspend",): ["SUSPENDED", "Initrode", f"{GUANGZHOU},{SHANGHAI}"],
        ("activate",): ["ACTIVE", "Initrode", f"{GUANGZHOU},{SHANGHAI}"],
        ("update", "--name", ""): ["ACTIVE", "-", f"{GUANGZHOU},{SHANGHAI}"],
    }.items():
        code, out, err = ended("accounts", words[0], "initech", *words[1:])
        assert (code, out.splitlines()[1].split()) == (0, ["initech", *row]), err
    assert client.get_account(account_id="initech").display_name == ""
    assert "initech" in ended("accounts", "list")[1]
    assert ended("accounts", "show", "initech")[1] == out


def test_the_log_names_the_operator(ended: Ended) -> None:
    _, _, err = ended("accounts", "register", "hooli", "--as", "alice")
    assert re.search(r"RegisterAccount .*cunho\.audit.* actor='alice' .*code='OK'", err)
    _, _, err = ended("accounts", "suspend", "hooli")
    assert f"actor='{operating.user()}'" in err


def test_the_default_operator_is_the_user_as_far_as_an_id_can_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, id in {"Zoë.Smith": "zo--smith", "x" * 99: "x" * 60}.items():
        monkeypatch.setenv("LOGNAME", name)
        assert operating.user() == id


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["accounts", "show", "nobody"], ["no such account: nobody", ""]),
        (["accounts", "register", "acme"], ["account acme is registered already", ""]),
        (["accounts", "register", "pied-piper", "--regions", "nowhere"], ['no region "nowhere"', "Check the region;"]),
        (["quotas", "set", "acme", GUANGZHOU, "--images", "-1"], ["limit: must be 0 to 100000, is -1", ""]),
        (["quotas", "set-image", "img-00000000", "--shares", "9"], ["img-00000000", ""]),
    ],
)
def test_a_refusal_is_told_with_what_to_do(ended: Ended, words: list[str], told: list[str]) -> None:
    code, out, err = ended(*words)
    assert (code, out) == (1, "")
    sentence, remedy = err.splitlines()[-2:]
    assert told[0] in sentence
    assert remedy.startswith(told[1])
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["accounts", "update", "acme"], "nothing to change: give --name, --regions, --add-region or --remove-region"),
        (
            ["accounts", "update", "acme", "--regions", "a", "--add-region", "b"],
            "argument --add-region: not allowed with argument --regions",
        ),
        (["accounts", "suspend", "Acme"], "argument ACCOUNT: 'Acme' must be 1 to 60 characters of [a-z0-9-]"),
        (["quotas", "set", "acme", GUANGZHOU], "the following arguments are required: --images"),
        (["quotas", "set", "acme", GUANGZHOU, "--image", "1"], "the following arguments are required: --images"),
        (["accounts", "list", "--jsn"], "cunho-server accounts list takes no --jsn: did you mean --json?"),
    ],
)
def test_words_that_make_no_call_are_told_in_one_line(ended: Ended, words: list[str], told: str) -> None:
    code, out, err = ended(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_quotas_are_shown_and_set(server: Server, ended: Ended) -> None:
    code, out, _ = ended("quotas", "set", "acme", GUANGZHOU, "--images", "12")
    assert (code, out.splitlines()[1].split()) == (
        0,
        ["CUSTOM_IMAGES", "acme", GUANGZHOU, "-", "12", "0", "0", "false"],
    )
    listed = json.loads(ended("quotas", "list", "acme", "--json")[1])
    assert [quota["limit"] for quota in listed if quota["region_id"] == GUANGZHOU] == ["12"]
    assert [quota["is_default"] for quota in listed if quota["region_id"] == SHANGHAI] == [True]


def test_the_quota_of_an_image_is_shown_and_set(postgres: Postgres, ended: Ended) -> None:
    with worlds.world(postgres) as world:
        image_id = world.image(world.tenant(account_id="globex")).image_id
        url = ("--database-url", world.dsn)
        code, out, _ = ended("quotas", "set-image", image_id, "--shares", "7", *url)
        row = ["SHARES_PER_IMAGE", "globex", GUANGZHOU, image_id, "7", "0", "0", "false"]
        assert (code, out.splitlines()[1].split()) == (0, row)
        assert ended("quotas", "show-image", image_id, *url)[1] == out


def test_programs_read_json(ended: Ended) -> None:
    (acme,) = json.loads(ended("accounts", "show", "acme", "--json")[1])
    assert acme["account_id"] == "acme"
    assert acme["state"] == "STATE_ACTIVE"
    assert {each["account_id"] for each in json.loads(ended("accounts", "list", "--json")[1])} >= {"acme", "globex"}


def test_the_check_beside_a_running_server_finds_it_sound(ended: Ended) -> None:
    code, out, err = ended("check")
    assert (code, err) == (0, "")
    assert [line.partition(":")[0] for line in out.splitlines()] == ["note", "sound"]


def test_the_catalogue_is_applied_and_the_schema_brought_up_to_date_beside_a_running_server(ended: Ended) -> None:
    code, out, _ = ended("catalog", "apply", str(CATALOG))
    assert code == 0
    assert re.fullmatch(r"public images: 0 published, 0 changed, \d+ unchanged\n", out)
    assert ended("migrate") == (0, "the schema is up to date\n", "")
    assert ended("migrate", "--dry-run") == (0, "the schema is up to date\n", "")


def test_where_no_server_runs_its_postgresql_is_started_for_the_command_alone(ended: Ended) -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        place = ("--data-dir", str(folder / "data"))
        assert ended("migrate", "--dry-run", *place) == (
            0,
            "".join(f"{name}\n" for _, name, _ in migrations.files()),
            "",
        )
        assert ended("accounts", "list", *place)[:2] == (0, "ACCOUNT_ID  STATE  DISPLAY_NAME  REGION_IDS\n")
        assert ended("check", "--processes", "40", *place)[0] == 0
        assert embedded.running(folder / "data") is None
    finally:
        shutil.rmtree(folder)


def test_of_two_that_migrate_at_once_one_does(postgres: Postgres) -> None:
    command = [sys.executable, "-m", "cunho_server", "migrate", "--database-url", postgres.empty_database()]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        told = sorted(process.communicate(timeout=180)[0] for process in both)
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert told == ["".join(f"{name}\n" for _, name, _ in migrations.files()), "the schema is up to date\n"]


# --- the protoset


def test_the_protoset_holds_all_that_calls_and_answers_are_made_of(ended: Ended, tmp_path: Path) -> None:
    assert ended("protoset", str(tmp_path / "api.binpb")) == (0, "", "")
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString((tmp_path / "api.binpb").read_bytes()).file:
        pool.Add(file)  # raises if what it imports did not come before
    for service in ("cunho.v1.ImageService", "google.longrunning.Operations", "grpc.health.v1.Health"):
        assert pool.FindServiceByName(service).methods
    for packed in ("cunho.v1.Advice", "cunho.v1.OperationMetadata", "google.rpc.ErrorInfo", "google.rpc.QuotaFailure"):
        assert pool.FindMessageTypeByName(packed).fields


def test_the_protoset_goes_to_a_pipe_too() -> None:
    written = subprocess.run([sys.executable, "-m", "cunho_server", "protoset"], capture_output=True, check=True).stdout
    assert "cunho/v1/image.proto" in {file.name for file in FileDescriptorSet.FromString(written).file}


@pytest.mark.skipif(not GRPCURL, reason="grpcurl is not on this machine")
def test_grpcurl_calls_a_server_that_does_not_describe_itself(postgres: Postgres, ended: Ended, tmp_path: Path) -> None:
    ended("protoset", str(tmp_path / "api.binpb"))
    with worlds.world(postgres, reflection=False) as world:
        world.tenant(GUANGZHOU, account_id="acme")

        def grpcurl(*words: str) -> subprocess.CompletedProcess[str]:
            sender = (str(GRPCURL), "-plaintext", "-H", f"authorization: Bearer {world.token('acme')}")
            return subprocess.run((*sender, *words), capture_output=True, text=True, check=False)

        call = ("-d", '{"account_id": "%s"}', world.address, "cunho.v1.AccountService/GetAccount")
        own, other = ((call[0], call[1] % account, *call[2:]) for account in ("acme", "globex"))
        assert "does not support the reflection API" in grpcurl(*own).stderr
        protoset = ("-protoset", str(tmp_path / "api.binpb"))
        assert json.loads(grpcurl(*protoset, *own).stdout)["account_id"] == "acme"
        assert '"reason":"ACCOUNT_NOT_FOUND"' in grpcurl(*protoset, *other).stderr.replace(" ", "")
