"""What the README shows is true: its lines are run in order, against a real server, and its answers are the answers."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import Default as default_pool
from google.protobuf.message_factory import GetMessageClass
from tests.examples import ADDRESS, Ids, examples
from tests.world import Postgres, World

from cunho_server import settings
from cunho_server.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CALLS = re.findall(r"```sh\n(grpcurl .*?)```\n\n```\w+\n(.*?)```", README, re.DOTALL)
COMMANDS = [each for each in examples(ROOT / "README.md") if re.search(r"^(\w+=\S+ )?cunho ", each.code, re.MULTILINE)]
PYTHON = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
PATH = os.pathsep.join((os.environ["PATH"], str(Path(sys.executable).parent)))


@pytest.fixture(scope="module")
def world(postgres: Postgres) -> Iterator[World]:
    """A service with the built-in catalogue, as `make run` starts it."""
    dsn = postgres.empty_database()
    running = World(dsn, postgres.settings(dsn, catalog=None), None)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def environment(world: World) -> dict[str, str]:
    """The variables that a reader has set, with the tokens of the demo accounts."""
    for account_id in ("acme", "globex"):
        world.tenant(account_id=account_id)
    return {"PATH": PATH, "ACME": world.token("acme"), "GLOBEX": world.token("globex")}


@pytest.mark.skipif(
    not shutil.which("grpcurl", path=PATH), reason="there is no grpcurl, neither on PATH nor beside Python"
)
def test_every_line_is_answered_as_shown(world: World, environment: dict[str, str]) -> None:
    ids = Ids()
    for line, shown in CALLS:
        sent = ids.put_in(line).replace(ADDRESS, world.address)
        ran = subprocess.run(["sh", "-c", sent], env=environment, capture_output=True, text=True, check=False)
        answer = ran.stdout + ran.stderr
        assert ids.fit(shown, answer), f"{line}\n{answer}"
        for name in re.findall(r'"(operations/op-\w+)"', answer):
            caller = world.client("acme" if "$ACME" in line else "globex")
            caller.get_operation(name=name).result(timeout_seconds=20)
    assert len(CALLS) > 10


def test_every_command_prints_what_is_shown(world: World, environment: dict[str, str]) -> None:
    ids = Ids()
    own = environment | {"CUNHO_ADDRESS": world.address, "CUNHO_TOKEN": environment["ACME"]}
    for _, code, shown in COMMANDS:
        ran = subprocess.run(["sh", "-c", ids.put_in(code)], env=own, capture_output=True, text=True, check=False)
        assert ids.fit(shown, ran.stdout + ran.stderr), f"{code}\n{ran.stdout}{ran.stderr}"
    assert len(COMMANDS) == 4


@pytest.mark.parametrize("line", [line for line, _ in CALLS])
def test_the_protos_know_every_call_and_field(line: str) -> None:
    (request, service, method) = re.findall(rf"-d '(.*?)' {ADDRESS} ([\w.]+)/(\w+)$", line.strip(), re.DOTALL)[0]
    message = default_pool().FindServiceByName(service).methods_by_name[method].input_type
    json_format.Parse(request, GetMessageClass(message)())


@pytest.mark.parametrize(("code", "shown"), PYTHON)
def test_the_python_prints_what_is_shown(
    code: str,
    shown: str,
    world: World,
    environment: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACME", environment["ACME"])
    exec(code.replace(ADDRESS, world.address), {})  # noqa: S102
    assert capsys.readouterr().out == shown


def test_every_target_of_make_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b *[`#\n]", README)) <= targets


def test_every_setting_that_is_named_exists() -> None:
    named = set(re.findall(r"CUNHO_\w+", README))
    assert named <= {f"CUNHO_{name.upper()}" for name in Settings.model_fields} | settings.OF_CLIENTS
