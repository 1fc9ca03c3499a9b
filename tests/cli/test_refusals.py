"""How refusals and mistakes are told, and the exit code of each class."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status
from tests.cli.conftest import Run
from tests.end_to_end.steps import Held
from tests.world import GUANGZHOU, Tenant, World

from cunho import v1
from cunho.cli import main
from cunho.cli.exit_codes import EXIT_CODES, exit_code
from cunho.cli.printing import as_json
from cunho.cli.session import Connection, MisuseError
from cunho_rules.refusals import Reason, Refusal

DOCS = Path(__file__).parents[2] / "docs/cli.md"


def test_a_refusal_tells_reason_numbers_and_remedy(world: World, tenant: Tenant, run: Run) -> None:
    instance_id = world.launch(tenant).instance_id
    refused = run("instances", "start", instance_id, code=5)
    assert refused.out == ""
    for told in ("INSTANCE_STATE_INVALID FAILED_PRECONDITION INS-5", f"instance_id = {instance_id}", "remedy", "retry"):
        assert told in refused.err


def test_with_json_a_refusal_is_json_on_the_error_output(run: Run) -> None:
    refused = run("images", "show", "img-00000000", "--json", code=3)
    assert refused.out == ""
    told = json.loads(refused.err)["error"]
    assert (told["code"], told["reason"], told["rule"]) == ("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2")
    assert told["metadata"] == {"image_id": "img-00000000"}
    assert told["remedy"]
    assert (told["retry"], told["retry_may_help"], told["exit_code"]) == ("NOTHING", False, 3)


def test_with_json_each_line_of_the_error_output_is_an_object(
    world: World, tenant: Tenant, run: Run, driver: Held
) -> None:
    friend, image_id = world.tenant(GUANGZHOU), world.image(tenant).image_id
    tenant.share_image(image_id=image_id, account_ids=[friend.account_id])
    launch = ("instances", "create", image_id, "--zone", "ap-guangzhou-3", "--instance-type", "S5.MEDIUM4", "--json")
    rehearsed = run(*launch, "--dry-run", caller=friend)
    with driver.failing("launch", Refusal(Reason.IMAGE_FORMAT_MISMATCH, format="QCOW2", found="VMDK")):
        failed = run(*launch, caller=friend, code=5)
    told = [json.loads(line) for line in (rehearsed.err + failed.err).splitlines()]
    assert [[*each] for each in told] == [["warning"], ["notice"], ["warning"], ["error"]]
    assert told[0]["warning"] == rehearsed.json["metadata"]["warnings"][0]
    assert told[1]["notice"] == "every check passed; nothing was done"


@pytest.mark.parametrize("words", ["images lst", "regions --tls-ca /nowhere/ca.pem", "regions --timeout 0"])
def test_with_json_a_mistake_in_the_words_is_told_as_a_refusal_is(run: Run, words: str) -> None:
    told = json.loads(run(*words.split(), "--json", code=2).err)["error"]
    assert told["message"]
    assert (told["code"], told["retry_may_help"], told["exit_code"]) == ("INVALID_ARGUMENT", False, 2)


@pytest.mark.parametrize("kind", ["cunho.v2.Hint", "cunho.v1.Advice"])
def test_a_detail_that_a_newer_service_gives_is_kept_as_it_came_in_json(kind: str) -> None:
    hint, advice = Any(type_url=f"type.googleapis.com/{kind}", value=b"\xff"), Any()
    advice.Pack(v1.Advice(rule="CUS-5"))
    steps = [v1.OperationMetadata.Step(name="copy", error=Status(message="full", details=[hint, advice]))]
    told = as_json(v1.OperationMetadata(method="CopyImage", create_time=Timestamp(seconds=1), steps=steps))
    unknown, known = told["steps"][0]["error"]["details"]
    assert unknown == {"@type": hint.type_url, "value": "/w=="}
    assert known["rule"] == "CUS-5"
    assert (told["steps"][0]["name"], told["steps"][0]["error"]["message"]) == ("copy", "full")
    assert (told["create_time"], told["created_by"]) == ("1970-01-01T00:00:01Z", "")


def test_every_field_that_is_wrong_is_named(run: Run) -> None:
    refused = run("images", "rename", "img-1", "x" * 61, code=2).err
    assert "image.image_id:" in refused
    assert "image.name:" in refused


def test_positions_in_a_wrong_filter_are_those_of_what_was_typed(run: Run) -> None:
    assert "at 5:" in run("images", "list", "--os", "linux", "--filter", "name ? x", code=2).err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("images list --region nowhere", 2),
        ("images show img-00000000", 3),
        ("images share IMAGE globex", 4),
        ("instances start INSTANCE", 5),
        ("images create INSTANCE --name taken", 6),
    ],
)
def test_each_class_of_refusal_has_its_exit_code(world: World, tenant: Tenant, run: Run, words: str, code: int) -> None:
    instance_id = world.launch(tenant).instance_id
    world.image(tenant, name="taken", instance_id=instance_id)
    run(*words.replace("IMAGE", world.public_image().image_id).replace("INSTANCE", instance_id).split(), code=code)


def test_every_grpc_code_has_an_exit_code() -> None:
    named = {grpc_code for row in EXIT_CODES for grpc_code in row.grpc_codes}
    assert named == {code.name for code in grpc.StatusCode} - {"OK"}
    assert exit_code("A_NEW_ONE") == 1


def test_a_service_that_does_not_answer_is_named(run: Run) -> None:
    refused = run("regions", "--address", "127.0.0.1:1", "--timeout", "1", code=7).err
    assert "no answer from 127.0.0.1:1" in refused
    assert "--address" in refused


def test_a_wrong_token_is_refused(run: Run) -> None:
    run("regions", "--token", "x", code=4)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("images lst", 'Did you mean "list"'),
        ("images list --arch arm65", '"arm64"'),
        ("images list --wtach", "--watch"),
        ("images list --label A=b", "keys are 1 to 63 characters"),
        ("images list --label AND", "keys are 1 to 63 characters"),
        ("images list --label a)=b", "'a)=b' is no label: write KEY or KEY=VALUE"),
        ("images update img-00000000 --label a", "'a' is no label: write KEY=VALUE"),
        ("images update img-00000000 --label a=1 --label a=2", "the label a is given 2 times"),
        ("images update img-00000000 --label a=1 --no-labels", "--label and --no-labels contradict each other"),
        ("images update img-00000000 --label A=b", "keys must be 1 to 63 characters"),
        ("images list --watch 0.01", "0.1 seconds at least"),
        ("images list --watch 0", "0.1 seconds at least"),
        ("images list --watch=x", '"x"'),
        ("images list --watch nan", "0.1 seconds at least"),
        ("images list --watch inf", "a day at most"),
        ("images copy img-00000000", "--to"),
        ("images share img-00000000", "ACCOUNT_IDS"),
        ("images update img-00000000 --min-disk big", "is no size"),
        ("images update img-00000000 --min-disk 8388608TiB", "more than 8 EiB"),
        ("images update img-00000000 --min-disk 9999999999999999999", "more than 8 EiB"),
        ("instances create img-00000000 --zone a --instance-type b --count 0", ">= 1"),
        ("instances create img-00000000 --zone a --instance-type b --count 2147483648", "<= 2147483647"),
        ("instances create img-00000000 --zone a --instance-type b --count 1.5", "no whole number"),
        ("images list --limit 1.5", "no whole number"),
        ("regions --no-tls --tls-ca /x", "--no-tls"),
        ("regions --tls-ca /nowhere/ca.pem", "/nowhere/ca.pem"),
        ("regions --token-file /nowhere/token", "/nowhere/token"),
        ("regions --address=", "the address is empty"),
        ("regions --address http://localhost:50051", "is a URL"),
        ("regions --timeout 0", "over 0 seconds"),
        ("regions --timeout -1", "over 0 seconds"),
        ("regions --timeout nan", "over 0 seconds"),
        ("regions --timeout inf", "a day at most"),
        ("regions --token sécret", "the token cannot be sent"),
        ("regions --account ä", "the account cannot be sent"),
        ("quotas acme --image img-00000000", "one of them"),
        ("regions --token x --token-file /nowhere/token", "one of them"),
    ],
)
def test_a_mistake_in_the_words_is_told_in_a_sentence(run: Run, words: str, told: str) -> None:
    mistaken = run(*words.split(), code=2)
    assert told in mistaken.err
    assert mistaken.out == ""
    assert "Traceback" not in mistaken.err


def test_words_that_are_not_in_utf_8_are_told_in_a_sentence(run: Run) -> None:
    latin = b"caf\xe9".decode(errors="surrogateescape")
    assert run("images", "list", "--name", latin, code=2).err == "'caf\\udce9' is not in UTF-8\n"


def test_without_a_token_it_says_how_to_give_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["regions"]) == 2
    assert "CUNHO_TOKEN" in capsys.readouterr().err


def test_a_token_file_by_a_flag_goes_before_the_variable_of_a_token(
    run: Run, token_file: Path, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    monkeypatch.setenv("CUNHO_TOKEN", "wrong")
    monkeypatch.setenv("CUNHO_ADDRESS", world.address)
    assert main(["regions", "--token-file", str(token_file)]) == 0
    assert main(["regions"]) == 4


def test_a_token_by_a_flag_goes_before_the_variable_of_a_token_file_however_that_is_written(
    monkeypatch: pytest.MonkeyPatch, token_file: Path, world: World
) -> None:
    monkeypatch.setenv("CUNHO_ADDRESS", world.address)
    monkeypatch.setenv("CUNHO_TOKEN_FILE", f"{token_file.parent}/./{token_file.name}")
    assert main(["regions"]) == 0
    assert main(["regions", "--token", "wrong"]) == 4


def test_a_flag_of_tls_goes_before_the_variables_that_say_otherwise(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    for name in ("CA", "CLIENT_CERTIFICATE", "CLIENT_KEY", "SERVER_NAME"):
        monkeypatch.setenv(f"CUNHO_TLS_{name}", "/nowhere")
    run("regions", "--no-tls")
    assert "--no-tls" in run("regions", "--no-tls", "--tls-ca", "/nowhere", code=2).err
    monkeypatch.setenv("CUNHO_TLS", "false")
    run("regions", "--no-tls")
    assert "--no-tls" in run("regions", code=2).err
    assert "/else" in run("regions", "--tls-ca", "/else", code=2).err


def test_a_connection_is_told_by_the_flags_that_variables_do_not_make_needless_and_without_its_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = (
        "--address",
        "images.example:443",
        "--token",
        "TOKEN",
        "--account",
        "acme",
        "--no-tls",
        "--tls-ca",
        "ca.pem",
    )
    connection = Connection(
        "images.example:443", token="secret", account="acme", tls=False, tls_ca=Path("ca.pem"), timeout=9
    )
    assert connection.flags == [*told]
    assert Connection().flags == []
    for name, value in {
        "ADDRESS": "images.example:443",
        "TOKEN": "secret",
        "ACCOUNT": "acme",
        "TLS_CA": "ca.pem",
    }.items():
        monkeypatch.setenv(f"CUNHO_{name}", value)
    assert connection.flags == ["--no-tls"]
    assert Connection().flags == ["--address", "127.0.0.1:50051"]


def test_an_empty_variable_is_as_none(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    for flag in ("TOKEN_FILE", "ACCOUNT", "TLS", "TLS_CA", "TLS_CLIENT_CERTIFICATE", "TLS_CLIENT_KEY", "TIMEOUT"):
        monkeypatch.setenv(f"CUNHO_{flag}", "")
    run("regions")


def test_an_empty_variable_of_the_address_is_as_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tell(connection: Connection) -> None:
        raise MisuseError(connection.address)

    monkeypatch.setenv("CUNHO_ADDRESS", "")
    monkeypatch.setattr(Connection, "client", tell)
    main(["regions"])
    assert capsys.readouterr().err == f"{Connection().address}\n"


def test_a_token_file_that_is_emptied_meanwhile_is_told_in_a_sentence(
    world: World, tenant: Tenant, started: Callable[..., "subprocess.Popen[bytes]"], token_file: Path
) -> None:
    watching = ("regions", "--json", "--watch", "0.1", "--token-file", str(token_file))
    process = started(*watching, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    token_file.write_text("")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert json.loads(err)["error"]["message"] == f"{token_file} holds no token: write one into it"


def test_a_service_acts_for_the_account_that_is_named(world: World, tenant: Tenant, run: Run) -> None:
    token = world.token("billing", role="service", acts_for=[tenant.account_id])
    seen = run("quotas", "--token", token, "--account", tenant.account_id, "--json").json
    assert {quota["account_id"] for quota in seen} == {tenant.account_id}
    run("quotas", "--token", token, "--account", "globex", code=4)


def test_the_help_and_the_guide_have_the_table_of_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    helped = capsys.readouterr().out
    guide = {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.*?) \|", DOCS.read_text(), re.MULTILINE)}
    assert guide == {row.code: row.meaning for row in EXIT_CODES}
    assert all(f"{row.code:>3}  {row.meaning}" in helped for row in EXIT_CODES)


def test_without_its_packages_the_command_says_what_to_install() -> None:
    program = "import sys; sys.modules['cyclopts'] = None; from cunho.cli import main; sys.exit(main(['regions']))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "cunho[cli]" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_every_command_has_a_help_that_starts_with_a_sentence(
    capsys: pytest.CaptureFixture[str], as_caller: Callable[[Tenant], None]
) -> None:
    for noun in ("images", "instances", "operations"):
        assert main([noun, "--help"]) == 0
        commands = re.findall(r"^│ ([a-z-]+) +\S", capsys.readouterr().out, re.MULTILINE)
        assert len(commands) > 3
        for command in commands:
            assert main([noun, command, "--help"]) == 0
            assert re.search(r"^[A-Z].*[.;]", capsys.readouterr().out.split("\n\n")[1]), command
