"""The two wheels as their users install them: in fresh environments, far from the repository, with each Python here."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import pytest
from tests.end_to_end.steps import until
from tests.server_process import reserved_port

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
LOCK = ("--constraints", ROOT / "requirements.lock")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"

CALLS = """
import asyncio, sys
from cunho import Client, Refused, aio

address, token = sys.argv[1:]
with Client(address, token=token) as client:
    print(*{type(region).__name__ for region in client.list_regions()})
    try:
        client.get_image(image_id="img-zzzzzzzz")
    except Refused as refused:
        print(refused.reason, refused.metadata["image_id"])

async def main():
    async with aio.Client(address, token=token) as client:
        print(*{type(region).__name__ async for region in client.list_regions()})
        try:
            await client.get_image(image_id="img-zzzzzzzz")
        except Refused as refused:
            print(refused.reason, refused.metadata["image_id"])

asyncio.run(main())
"""
ANSWERS = ["Region", "IMAGE_NOT_FOUND img-zzzzzzzz"] * 2

IMPORTS = """
import pkgutil, sys, cunho

for module in pkgutil.walk_packages(cunho.__path__, "cunho."):
    if not module.name.startswith("cunho.cli."):
        __import__(module.name)
"""


class Environment:
    """A fresh environment of a Python, with some packages in it."""

    def __init__(self, folder: Path, python: object, *packages: object) -> None:
        self.bin, self._folder = folder / "bin", folder.parent
        self._uv("venv", "--python", python, folder)
        self._uv("pip", "install", "--python", self.bin / "python", *packages)

    def run(self, command: object, *words: object) -> subprocess.CompletedProcess[str]:
        """Runs one of its commands to its end."""
        return subprocess.run(
            [self.bin / str(command), *map(str, words)],
            cwd=self._folder,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def printed(self, command: object, *words: object) -> list[str]:
        """The lines that one of its commands prints."""
        done = self.run(command, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    @property
    def variables(self) -> dict[str, str]:
        """The variables of its processes: none that leads to the repository."""
        strange = ("CUNHO_", "PYTHON", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        return kept | {"PATH": f"{self.bin}{os.pathsep}{os.defpath}"}

    def packages(self) -> dict[str, str]:
        """What is installed, with its version."""
        listed = self._uv("pip", "list", "--format", "freeze", "--python", self.bin / "python")
        return dict(line.split("==") for line in listed)

    @contextmanager
    def serving(self) -> Iterator[tuple[str, str]]:
        """A server with a data folder of its own: its address, and a token of the operator."""
        data_dir, reserved = self._folder / f"data-{self.bin.parent.name}", reserved_port()
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        settings = {"DATA_DIR": str(data_dir), "ADDRESS": address, "PROCESSES": "1", "SHUTDOWN_SECONDS": "0"}
        log = data_dir.with_suffix(".log")
        with log.open("w") as output:
            server = subprocess.Popen(
                [self.bin / "cunho-server", "serve"],
                cwd=self._folder,
                env=self.variables | {f"CUNHO_{name}": value for name, value in settings.items()},
                stdout=output,
                stderr=output,
            )
        try:
            until(lambda: server.poll() is not None or listens(address))
            assert server.poll() is None, log.read_text()
            (token,) = self.printed("cunho-server", "token", "--operator", "ops", "--data-dir", data_dir)
            yield address, token
        finally:
            server.terminate()
            server.wait(60)
            reserved.close()

    def _uv(self, *words: object) -> list[str]:
        command = [str(BIN / "uv"), *map(str, words), "--quiet"]
        return subprocess.check_output(command, cwd=self._folder, text=True).splitlines()


@pytest.fixture(scope="module")
def outside() -> Iterator[Path]:
    """A folder that knows nothing of the repository; every user may enter it, as PostgreSQL's must."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def wheels(outside: Path) -> dict[str, Path]:
    """Both wheels, by the names of their packages."""
    building = (BIN / "uv", "build", "--quiet", "--offline", "--wheel", "--no-build-isolation", "--out-dir", outside)
    for folder in ("client", "."):
        subprocess.run((*building, folder), cwd=ROOT, env=os.environ | {"VIRTUAL_ENV": str(BIN.parent)}, check=True)
    return {wheel.name.partition("-")[0].replace("_", "-"): wheel for wheel in outside.glob("*.whl")}


@pytest.fixture(scope="module")
def client_alone(outside: Path, wheels: dict[str, Path]) -> Environment:
    """The client with the newest of what it needs."""
    return Environment(outside / "client", sys.executable, *LOCK, wheels["cunho"])


@pytest.fixture(scope="module")
def both(outside: Path, wheels: dict[str, Path]) -> Environment:
    """The client and the server."""
    return Environment(outside / "both", sys.executable, *LOCK, *wheels.values())


@pytest.fixture(scope="module")
def server(both: Environment) -> Iterator[tuple[str, str]]:
    """A server from its wheel: its address, and a token of the operator."""
    with both.serving() as serving:
        yield serving


def listens(address: str) -> bool:
    """Whether connections are taken."""
    host, _, port = address.partition(":")
    with socket.socket() as connecting:
        return connecting.connect_ex((host, int(port))) == 0


def interpreter(version: str) -> str:
    """The Python of that version on this machine; empty if there is none."""
    if not (found := shutil.which(f"python{version}")):
        return ""
    told = subprocess.run(
        [found, "-c", "import sys; print(sys.executable)"],
        env=os.environ | {"PYENV_VERSION": version},  # pyenv's commands are there for versions that it runs only so
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip()


def test_the_wheels_hold_the_packages_and_nothing_else(wheels: dict[str, Path]) -> None:
    packages = {"cunho": {"cunho"}, "cunho-server": {"cunho_rules", "cunho_server", "cunho_storage"}}
    assert wheels.keys() == packages.keys()
    for name, wheel in wheels.items():
        files = ZipFile(wheel).namelist()
        about = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
        assert {file.partition("/")[0] for file in files} == packages[name] | {about}
        assert {f"{package}/py.typed" for package in packages[name]} <= set(files)
        assert {Path(file).suffix for file in files if not file.startswith(about)} <= {
            *(".py", ".pyi", ".typed", ".sql", ".toml"),
        }


def test_the_client_is_installed_alone(client_alone: Environment) -> None:
    needed = {"googleapis-common-protos", "grpcio", "grpcio-status", "protobuf", "typing-extensions"}
    assert client_alone.packages().keys() == {"cunho", *needed}
    client_alone.printed("python", "-W", "error", "-c", IMPORTS)


def test_the_client_s_command_says_in_a_sentence_what_it_lacks(client_alone: Environment) -> None:
    told = client_alone.run("cunho")
    assert told.returncode == 1
    assert "pip install 'cunho[cli]'" in told.stderr
    assert "Traceback" not in told.stderr


def test_the_server_s_command_tells_its_version(both: Environment, wheels: dict[str, Path]) -> None:
    assert both.printed("cunho-server", "version") == [wheels["cunho-server"].name.split("-")[1]]


def test_a_client_with_the_newest_packages_is_answered(client_alone: Environment, server: tuple[str, str]) -> None:
    assert client_alone.printed("python", "-W", "error", "-c", CALLS, *server) == ANSWERS


def test_a_client_with_the_oldest_packages_is_answered(
    outside: Path, wheels: dict[str, Path], server: tuple[str, str]
) -> None:
    declared = tomllib.loads((ROOT / "client/pyproject.toml").read_text())["project"]["dependencies"]
    oldest = Environment(outside / "oldest", sys.executable, "--resolution", "lowest", wheels["cunho"])
    floors = dict(each.partition(",")[0].split(">=") for each in declared)
    assert floors.items() <= oldest.packages().items()
    assert oldest.printed("python", "-W", "error", "-c", CALLS, *server) == ANSWERS


@pytest.mark.parametrize("version", [v for v in ("3.11", "3.12", "3.13", "3.14") if v != HERE])
def test_client_and_server_work_with_other_pythons(outside: Path, wheels: dict[str, Path], version: str) -> None:
    if not (python := interpreter(version)):
        pytest.skip(f"there is no Python {version} on this machine")
    environment = Environment(outside / version, python, *LOCK, *wheels.values())
    with environment.serving() as serving:
        assert environment.printed("python", "-W", "error", "-c", CALLS, *serving) == ANSWERS


def test_every_public_name_of_the_client_has_a_type(outside: Path, wheels: dict[str, Path]) -> None:
    stubs = ("types-grpcio", "types-grpcio-status", "types-protobuf")
    typed = Environment(outside / "typed", sys.executable, *LOCK, f"cunho[cli] @ {wheels['cunho'].as_uri()}", *stubs)
    report = typed.run(BIN / "pyright", "--verifytypes", "cunho", "--ignoreexternal").stdout
    assert "Type completeness score: 100%" in report, report
