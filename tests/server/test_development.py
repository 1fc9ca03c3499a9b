"""What a start with the development key prints can be pasted as it stands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests import world as worlds
from tests.world import Postgres, World

from cunho_server import development, issuing

PATH = os.pathsep.join((os.environ["PATH"], str(Path(sys.executable).parent)))


def printed(world: World, capsys: pytest.CaptureFixture[str]) -> str:
    """What a start prints."""
    world.run(development.register(world.database))
    world.run(development.welcome(world.address, world.settings, world.database))
    return capsys.readouterr().out


needs_grpcurl = pytest.mark.skipif(
    not shutil.which("grpcurl", path=PATH), reason="there is no grpcurl, neither on PATH nor beside Python"
)


def assert_answered(text: str) -> None:
    """The calls in the text are answered when they are pasted."""
    exports = "\n".join(re.findall(r"^export .*$", text, re.MULTILINE))
    calls = re.findall(r"^\S*grpcurl .*$", text, re.MULTILINE)
    for call in calls:
        ran = subprocess.run(
            ["sh", "-c", f"{exports}\n{call}"], env={"PATH": PATH}, capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stderr) == (0, ""), call
        assert len(ran.stdout) > 100
    assert len(calls) == 4


@needs_grpcurl
def test_the_calls_that_are_printed_are_answered(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    printed(world, capsys)
    assert_answered(printed(world, capsys))


@needs_grpcurl
def test_the_calls_that_a_server_with_tls_prints_are_answered(
    postgres: Postgres, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    issuing.make(tmp_path)
    with worlds.world(postgres, tls_certificate=tmp_path / "server.pem", tls_key=tmp_path / "server-key.pem") as world:
        assert_answered(printed(world, capsys))


def test_where_there_is_no_grpcurl_it_says_how_to_get_it(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "There is no grpcurl on PATH: install it from" in printed(world, capsys)
