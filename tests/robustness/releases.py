"""What was released: wheels and API as published, in `released/`, and the means to run them beside the code here.

`make release` puts them there. A file of a release never changes.
"""

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple
from zipfile import ZipFile

from tests.end_to_end.steps import until
from tests.robustness.scale import scaled

from cunho_server.tokens import Signer

RELEASED = Path(__file__).with_name("released")
CALLER = Path(__file__).with_name("caller.py")
UV = Path(sys.executable).with_name("uv")
LOCK = Path(__file__).parents[2] / "requirements.lock"
VERSIONS = sorted({wheel.name.split("-")[1] for wheel in RELEASED.glob("*.whl")})


class Code(NamedTuple):
    """Client and server of one version, installed."""

    version: str
    python: Path

    def call(self, what: str, **told: Any) -> Any:
        """What came of a call of `caller.py` by the client of this version."""
        command, line = (self.python, CALLER, what), json.dumps(told) + "\n"
        done = subprocess.run(command, input=line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    @contextmanager
    def traffic(self, output: Path, **told: Any) -> Iterator["Traffic"]:
        """Calls by the client of this version that go on until the block is left."""
        with output.open("w") as written:
            process = subprocess.Popen(
                (self.python, CALLER, "traffic"), stdin=subprocess.PIPE, stdout=written, stderr=written, text=True
            )
        assert process.stdin
        process.stdin.write(json.dumps(told) + "\n")
        process.stdin.flush()
        traffic = Traffic(process, process.stdin, output)
        try:
            yield traffic
        finally:
            traffic.end()


class Traffic(NamedTuple):
    """Calls that go on beside the test."""

    process: "subprocess.Popen[str]"
    told: IO[str]
    output: Path

    def goes_on(self) -> None:
        """Waits for some more rounds of calls."""
        rounds = scaled(short=3, long=60)
        before = self._rounds()
        until(lambda: self._rounds() >= before + rounds or self.process.poll() is not None, 120)
        assert self.process.poll() is None, self.output.read_text()

    def end(self) -> Any:
        """Lets the calls end; what came of them."""
        if not self.told.closed:
            self.told.close()
        assert self.process.wait(60) == 0, self.output.read_text()
        return json.loads(self.output.read_text().splitlines()[-1])

    def _rounds(self) -> int:
        return self.output.read_text().count("round\n")


#: The code that is tested.
HERE = Code("here", Path(sys.executable))


def installed(version: str, folder: Path) -> Code:
    """A release in a fresh environment, with the packages of today as far as it takes them."""
    python = folder / "bin/python"
    wheels = RELEASED.glob(f"*-{version}-*.whl")
    subprocess.run((UV, "venv", "--quiet", "--python", sys.executable, folder), check=True)
    install = (UV, "pip", "install", "--quiet", "--python", python, "--constraints", LOCK)
    subprocess.run((*install, *wheels), check=True)
    return Code(version, python)


def migrations_of(version: str) -> list[str]:
    """The names of the migrations that a release has."""
    (wheel,) = RELEASED.glob(f"cunho_server-{version}-*.whl")
    return sorted(Path(name).name for name in ZipFile(wheel).namelist() if re.search(r"/migrations/.*\.sql$", name))


def told(signer: Signer, addresses: Sequence[str], **more: Any) -> dict[str, Any]:
    """What `caller.py` has to know: servers, and new accounts with their tokens."""
    accounts = {"operator": "operator"} | {who: f"acc-{uuid.uuid4().hex[:10]}" for who in ("owner", "recipient")}
    tokens = {
        who: signer.token(account_id, "operator" if who == "operator" else "account", seconds=3600)
        for who, account_id in accounts.items()
    }
    return {"addresses": addresses, "accounts": accounts, "tokens": tokens} | more
