"""The tutorial and the how-tos are true: their code runs as it stands there, and prints what is shown.

The README's are in tests/test_readme.py, the client's in tests/client/test_readme.py.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.examples import ADDRESS, Example, Ids, examples
from tests.world import Postgres, World

from cunho import cli
from cunho.v1 import Architecture
from cunho_rules.filters import IMAGE_FIELDS, parse
from cunho_server import __main__ as command
from cunho_server import catalog

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs/tutorial.md"
TLS = ROOT / "docs/how-to/connect-with-tls.md"
CATALOGUE = ROOT / "docs/how-to/declare-the-catalogue.md"
HOW_TOS = sorted({*ROOT.glob("docs/how-to/*.md")} - {TLS})
#: The name by which the how-to reaches a server with TLS.
NAME = "cunho.example:443"
COMMANDS = {"cunho-server": command.main, "cunho": cli.main}
SHELL = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("client/*.md")]
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
ACCOUNTS = ("acme", "globex", "initech", "umbrella")


def of(document: Path, language: str) -> list[Example]:
    """The examples in one language."""
    return [example for example in examples(document) if example.language == language]


def commands(document: Path) -> list[list[str]]:
    """The words of each line of the document's shell examples that runs a command of ours."""
    code = "\n".join(example.code for example in of(document, "sh")).replace("\\\n", " ")
    lines = re.findall(r"^(?:\w+=\S+ )*(?:\S*/)?((?:cunho-server|cunho) .*)", code, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture(scope="module")
def served(postgres: Postgres) -> Iterator[World]:
    """A service with the built-in catalogue, and the accounts that documents name."""
    dsn = postgres.empty_database()
    running = World(dsn, postgres.settings(dsn, catalog=None), None)
    try:
        regions = [region.region_id for region in running.operator.list_regions()]
        for account_id in ACCOUNTS:
            running.operator.register_account(account_id=account_id, region_ids=regions)
        yield running
    finally:
        running.stop()


@pytest.fixture
def world(served: World) -> Iterator[World]:
    """The service, with nothing left in it of one document when the next begins."""
    yield served
    for client in [served.client(account_id) for account_id in ACCOUNTS]:
        for operation in list(client.list_operations(filter="done = false")):
            operation.result(timeout_seconds=20)
        for image in list(client.list_images(region_id="-", filter="kind = CUSTOM")):
            client.delete_image(image_id=image.image_id, force=True)
        for instance in list(client.list_instances(region_id="-")):
            client.delete_instance(instance_id=instance.instance_id).result(timeout_seconds=20)


def run(document: Path, names: dict[str, Any], address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs a document's Python in order, as one program, and compares what each block prints."""
    ids = Ids()
    for code, shown in [(example.code, example.shown) for example in of(document, "python")]:
        exec(compile(code.replace(ADDRESS, address), document.name, "exec"), names)  # noqa: S102
        printed = capsys.readouterr().out
        assert ids.fit(shown, printed), f"{code}\n{printed}"


def test_the_tutorial_runs(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for account_id in ("acme", "globex"):
        monkeypatch.setenv(account_id.upper(), world.token(account_id))
    run(TUTORIAL, {}, world.address, capsys)


@pytest.mark.parametrize("document", [each for each in HOW_TOS if of(each, "python")], ids=lambda path: path.stem)
def test_a_how_to_runs(document: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    client = world.client("acme")
    instance = world.launch(client, _debian(world), name="web")
    image = world.image(client, "web", instance_id=instance.instance_id)
    names = {
        "client": client,
        "operator": world.operator,
        "image_id": image.image_id,
        "instance_id": instance.instance_id,
        "token": world.token("acme"),
        "service_token": world.token("console", "service", acts_for=["acme", "globex"]),
        "Architecture": Architecture,
    }
    run(document, names, world.address, capsys)


def _debian(world: World) -> str:
    architecture = Architecture.ARCHITECTURE_X86_64
    return world.operator.resolve_image(
        region_id="ap-guangzhou", family="debian-12", architecture=architecture
    ).image_id


GRPCURL = pytest.mark.skipif(
    not shutil.which("grpcurl", path=PATH), reason="there is no grpcurl beside Python or on PATH"
)


@GRPCURL
def test_the_tutorial_runs_by_grpcurl(world: World) -> None:
    environment = {"PATH": PATH, "ACME": world.token("acme"), "GLOBEX": world.token("globex")}
    connect, *calls = [example for example in of(TUTORIAL, "sh") if "make run" not in example.code]
    ids = Ids()
    for example in calls:
        lines = f"{connect.code}\n{ids.put_in(example.code)}".replace(ADDRESS, world.address)
        ran = subprocess.run(
            ["sh", "-c", lines], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
        )
        answer = ran.stdout + ran.stderr
        assert ids.fit(example.shown, answer), f"{example.code}\n{answer}"
    assert len(calls) > 10


def test_every_filter_that_is_shown_can_be_read() -> None:
    shown = re.findall(r"^\| [^|]* \| `(.+)` \|$", (ROOT / "docs/how-to/choose-images.md").read_text(), re.MULTILINE)
    assert [parse(each, IMAGE_FIELDS) for each in shown]


# TLS: with what `cunho-server keys` makes, by the line that is shown, but for this machine's address


@pytest.fixture
def pki(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder of the keys and certificates, within the folder that the examples run in."""
    monkeypatch.chdir(tmp_path)
    (words,) = [words for words in commands(TLS) if "keys" in words]
    assert command.main([*words[1:], "--host", "127.0.0.1"]) == 0
    capsys.readouterr()
    return tmp_path / "pki"


@contextmanager
def over_tls(world: World, postgres: Postgres, pki: Path, **settings: Any) -> Iterator[str]:
    """The address of another server over the same database, which speaks TLS."""
    files = {"tls_certificate": pki / "server.pem", "tls_key": pki / "server-key.pem"}
    running = World(world.dsn, postgres.settings(world.dsn, **files, **settings), None)
    try:
        yield running.address
    finally:
        running.stop()


def test_the_how_to_of_tls_connects(world: World, postgres: Postgres, pki: Path) -> None:
    token = pki / "token"
    token.write_text(world.token("acme"))
    trusting, with_authority, with_certificate = (
        example.code.replace("/run/secrets/cunho-token", str(token)) for example in of(TLS, "python")
    )
    names: dict[str, Any] = {}
    exec(trusting, names)  # noqa: S102
    names["client"].close()  # who trusts only known authorities could not call this one
    with over_tls(world, postgres, pki) as address:
        exec(with_authority.replace(NAME, address), names)  # noqa: S102
        assert list(names["client"].list_regions())
        names["client"].close()
    with over_tls(world, postgres, pki, tls_client_ca=pki / "ca.pem") as address:
        exec(with_certificate.replace(NAME, address), names)  # noqa: S102
        assert list(names["client"].list_regions())
        names["client"].close()


@GRPCURL
def test_grpcurl_connects_with_tls_as_shown(world: World, postgres: Postgres, pki: Path) -> None:
    (line,) = [example.code for example in of(TLS, "sh") if "grpcurl" in example.code]
    with over_tls(world, postgres, pki) as address:
        environment = {"PATH": PATH, "ACME": world.token("acme")}
        sent = line.replace(NAME, address)
        subprocess.run(["sh", "-c", sent], env=environment, cwd=pki.parent, capture_output=True, check=True)


# What else is shown


def test_the_catalogue_that_is_shown_is_sound(tmp_path: Path) -> None:
    whole, retired = (example.code for example in of(CATALOGUE, "toml"))
    for number, text in enumerate((whole, whole.replace("[[image.build]]", f"{retired}\n[[image.build]]"))):
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        assert len(catalog.read(file).images) == 1


@pytest.mark.parametrize("document", [each for each in SHELL if commands(each)], ids=lambda path: path.stem)
def test_commands_take_the_words_that_are_shown(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, *words in commands(document):
        with contextlib.suppress(SystemExit):
            assert COMMANDS[name]([*words, "--help"]) == 0
        shown = capsys.readouterr()
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert shown.err == ""
        assert [flag for flag in flags if not re.search(rf"{flag}\b", shown.out)] == [], words
