"""What it is like at a terminal and in a pipe: colours, narrow windows, live views, Ctrl-C, `| head`, completion."""

import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from time import monotonic
from typing import Any, TypeAlias, get_args

import pytest
from google.type.money_pb2 import Money
from tests.cli.conftest import COMMAND, Run
from tests.end_to_end.steps import Held
from tests.world import GUANGZHOU, Tenant, World

from cunho import v1
from cunho.cli import images, instances, main
from cunho.cli.flags import Architecture, value_of
from cunho.cli.printing import age, moment, money, size, visible

Started: TypeAlias = Callable[..., "subprocess.Popen[bytes]"]


class Terminal:
    """A pseudo-terminal that a process runs in."""

    def __init__(self, columns: int = 100) -> None:
        self._ours, self.theirs = pty.openpty()
        ioctl(self.theirs, TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self._shown = b""

    def until(self, text: str) -> str:
        """Everything shown so far, once the text is. Raises AssertionError if it does not come within 20 s."""
        end = monotonic() + 20
        while text.encode() not in self._shown:
            ready, _, _ = select.select([self._ours], [], [], max(0, end - monotonic()))
            assert ready, f"{text!r} is not in {self._shown.decode()}"
            assert monotonic() < end, f"{text!r} is not in {self._shown.decode()}"
            self._shown += self._read()
        return self._shown.decode()

    def _read(self) -> bytes:
        try:
            read = os.read(self._ours, 1 << 16)
        except OSError:  # the process has ended
            read = b""
        assert read, f"ended after {self._shown.decode()}"
        return read

    def rest(self) -> str:
        """Everything shown until the process ended; call it once it has."""
        os.close(self.theirs)
        while True:
            try:
                self._shown += os.read(self._ours, 1 << 16)
            except OSError:
                return self._shown.decode()


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def run_in(terminal: Terminal, started: Started, *words: str) -> str:
    """Everything that a run shows in a terminal."""
    process = started(*words, stdin=terminal.theirs, stdout=terminal.theirs, stderr=terminal.theirs)
    assert process.wait(20) == 0
    return terminal.rest()


def test_a_terminal_gets_colours_and_whole_ids_however_narrow_it_is(world: World, started: Started) -> None:
    image_id = world.public_image().image_id
    words = ("images", "list", "--region", GUANGZHOU, "--name", "Debian 12 64bit")
    wide, narrow = run_in(Terminal(160), started, *words), run_in(Terminal(40), started, *words)
    assert "\x1b[" in wide
    assert "AGE" in wide
    assert image_id in wide
    assert image_id in narrow
    assert "AGE" not in narrow


def test_colours_are_left_out_if_they_are_not_wanted(
    started: Started, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = run_in(terminal, started, "images", "list", "--region", GUANGZHOU)
    assert "AVAILABLE" in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown)


def test_a_pipe_gets_aligned_lines_without_colours_and_without_cuts(world: World, tenant: Tenant, run: Run) -> None:
    world.image(tenant, name="x" * 60)
    head, line = run("images", "list", "--kind", "custom").out.splitlines()
    assert "\x1b" not in line
    assert "x" * 60 in line
    assert line.index("AVAILABLE") == head.index("STATE")
    assert all(line == line.rstrip() for line in run("regions").out.splitlines())


def test_slow_work_shows_its_steps_until_it_ends(
    world: World, tenant: Tenant, started: Started, driver: Held, terminal: Terminal
) -> None:
    image_id = world.image(tenant, name="web").image_id
    words = ("images", "copy", image_id, "--to", "ap-shanghai", "eu-frankfurt")
    with driver.holding("copy"):
        process = started(*words, stdin=terminal.theirs, stdout=terminal.theirs, stderr=terminal.theirs)
        shown = terminal.until("copy eu-frankfurt")
        assert "CopyImage" in shown
        assert "copy ap-shanghai" in shown
    assert process.wait(20) == 0
    rest = terminal.rest()
    assert len(re.findall("AVAILABLE", rest)) == 2


def test_ctrl_c_leaves_the_operation_going_and_says_how_to_wait_again(
    world: World, tenant: Tenant, started: Started, driver: Held, terminal: Terminal, run: Run
) -> None:
    instance_id = world.launch(tenant).instance_id
    with driver.holding("stop"):
        process = started(
            *("instances", "stop", instance_id), stdout=subprocess.PIPE, stdin=terminal.theirs, stderr=terminal.theirs
        )
        terminal.until("StopInstance")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    found = re.search(r"cunho operations wait (operations/op-\w+)", terminal.rest())
    assert found
    assert "STOPPED" in run("operations", "wait", found[1]).out


def test_the_command_that_waits_again_asks_the_same_service_as_the_same_caller(
    world: World, tenant: Tenant, started: Started, driver: Held, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(40)
    _, port = world.address.split(":")
    words = ("instances", "stop", world.launch(tenant).instance_id, "--token-file", str(token_file))
    with driver.holding("stop"):
        process = started(
            *(*words, "--address", f"localhost:{port}"),
            **dict.fromkeys(("stdin", "stdout", "stderr"), terminal.theirs),
        )
        terminal.until("StopInstance")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    found = re.search(r"with: cunho (operations wait [^\r]*)\r", terminal.rest())
    assert found
    monkeypatch.setenv("CUNHO_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("CUNHO_TOKEN", "wrong")
    assert main(shlex.split(found[1])) == 0


def test_who_loses_the_token_while_waiting_is_told_how_to_wait_again(
    world: World, tenant: Tenant, started: Started, driver: Held, terminal: Terminal, token_file: Path
) -> None:
    words = ("instances", "stop", world.launch(tenant).instance_id, "--token-file", str(token_file))
    with driver.holding("stop"):
        process = started(*words, stdin=terminal.theirs, stdout=terminal.theirs, stderr=terminal.theirs)
        terminal.until("StopInstance")
        token_file.write_text("")
        assert process.wait(20) == 2
    shown = terminal.rest()
    assert "cunho operations wait operations/op-" in shown
    assert "holds no token" in shown
    assert "Traceback" not in shown


def test_a_watched_list_is_shown_anew_until_ctrl_c(
    world: World, tenant: Tenant, started: Started, terminal: Terminal
) -> None:
    words = ("instances", "list", "--watch", "0.1")
    process = started(*words, stdin=terminal.theirs, stdout=terminal.theirs, stderr=terminal.theirs)
    terminal.until("no instances")
    instance_id = world.launch(tenant).instance_id
    terminal.until(instance_id)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert "Traceback" not in terminal.rest()


def test_a_watched_list_as_json_is_one_line_each_time(started: Started) -> None:
    process = started("regions", "--watch", "0.1", "--json", stdout=subprocess.PIPE)
    assert process.stdout
    first, second = process.stdout.readline(), process.stdout.readline()
    assert first == second
    assert first.startswith(b'[{"region_id"')
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each watching paused; the first pause is its end."""
    pauses: list[float] = []

    def sleep(pause: float) -> None:
        pauses.append(pause)
        raise KeyboardInterrupt

    monkeypatch.setattr("cunho.cli.printing.sleep", sleep)
    return pauses


@pytest.mark.parametrize(
    ("words", "seconds"), [("--watch", 2), ("--watch 1", 1), ("--watch 0.5", 0.5), ("--watch=3", 3)]
)
def test_it_is_watched_as_often_as_is_said(run: Run, pauses: list[float], words: str, seconds: float) -> None:
    with pytest.raises(SystemExit, match="130"):
        run("regions", *words.split())
    assert pauses == [seconds]


def test_watching_takes_no_word_for_its_pause_but_a_number(
    tenant: Tenant, run: Run, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    for pause in ("--watch", "--watch 5"):
        with pytest.raises(SystemExit, match="130"):
            run("quotas", *pause.split(), tenant.account_id)
        assert GUANGZHOU in capsys.readouterr().out
    assert pauses == [2, 5]


def test_the_command_ends_quietly_if_nobody_reads_on(started: Started) -> None:
    process = started("regions", "--watch", "0.1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr.read() == b""


@pytest.mark.parametrize("words", ["regions", "regions --json", "--help", "images list --help", "--version"])
def test_an_output_that_nobody_reads_has_its_exit_code(started: Started, words: str) -> None:
    unread, pipe = os.pipe()
    os.close(unread)
    process = started(*words.split(), stdout=pipe, stderr=subprocess.PIPE)
    os.close(pipe)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize("words", ["regions", "regions --json", "--help"])
def test_an_output_that_takes_nothing_more_is_told_in_a_sentence(started: Started, words: str) -> None:
    with Path("/dev/full").open("wb") as full:
        process = started(*words.split(), stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    told = json.loads(err)["error"]["message"] if "--json" in words else err.decode().rstrip()
    assert told == "[Errno 28] No space left on device"


@pytest.mark.parametrize(("words", "code"), [("images show img-00000000", 3), ("images lst", 2)])
@pytest.mark.parametrize("json", ["", " --json"])
def test_an_error_output_that_nobody_can_read_changes_no_exit_code(
    started: Started, words: str, json: str, code: int
) -> None:
    unread, pipe = os.pipe()
    os.close(unread)
    full = os.open("/dev/full", os.O_WRONLY)
    for errors in (pipe, full):
        process = started(*f"{words}{json}".split(), stdout=subprocess.DEVNULL, stderr=errors)
        os.close(errors)
        assert process.wait(20) == code


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_an_output_that_is_closed_changes_no_exit_code(
    tenant: Tenant, as_caller: Callable[[Tenant], None], closed: str
) -> None:
    as_caller(tenant)
    for words, code in {"regions": 0, "images show img-00000000": 3, "images lst": 2}.items():
        shell = ("sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, *words.split())
        assert subprocess.run(shell, capture_output=True, check=False).returncode == code


def test_names_that_an_encoding_has_not_are_spelt_out(
    world: World, tenant: Tenant, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.image(tenant, name="图")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    process = started("images", "list", "--kind", "custom", stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=20)
    assert b"\\u56fe" in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_for_a_shell(shell: str, tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path)}
    words = ("--install-completion", "--shell", shell)
    ran = subprocess.run([*COMMAND, *words], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (script,) = (path for path in tmp_path.rglob("*cunho*") if path.is_file())
    assert "instance-type" in script.read_text()


def test_help_waits_neither_for_grpc_nor_for_a_service() -> None:
    waited = "sys.exit(not sys.modules.keys().isdisjoint(['cunho.cli.images', 'grpc']))"
    program = f"import sys; from cunho.cli import main; main(['--help']); {waited}"
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_ctrl_c_at_the_start_is_quiet_too() -> None:
    program = """
import sys
from cunho.cli import main

class Interrupting:
    @staticmethod
    def find_spec(name, path, target=None):
        if name == "cyclopts":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting)
sys.exit(main(["regions"]))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (130, b"")


def test_what_grpc_logs_is_not_shown(started: Started) -> None:
    process = started("regions", "--tls", "--timeout", "2", "--json", stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 7
    assert [[*json.loads(line)] for line in err.splitlines()] == [["error"]]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (visible("[red]a\x1b[31m\x9b\u202e"), "[red]a\\x1b[31m\\x9b\\u202e"),
        (size(0), "0 B"),
        (size(1 << 30), "1 GiB"),
        (size(1_600_000_000), "1.5 GiB"),
        (money(Money(currency_code="CNY")), "0.00 CNY"),
        (money(Money(currency_code="USD", units=12, nanos=46_000_000)), "12.046 USD"),
        (age(v1.Image().create_time), ""),
        (moment(v1.Image().create_time), ""),
    ],
)
def test_values_are_shown_for_people(shown: str, expected: str) -> None:
    assert shown == expected


def test_every_word_of_a_flag_is_a_value_of_the_api() -> None:
    choices: dict[Any, Any] = {
        Architecture: (v1.Architecture, set()),
        images.Kind: (v1.ImageKind, set()),
        images.State: (v1.Image.State, {v1.Image.STATE_DELETING, v1.Image.STATE_DELETED}),
        images.Format: (v1.ImportImageRequest.Format, set()),
        instances.State: (v1.Instance.State, {v1.Instance.STATE_DELETED}),
    }
    unspecified = 0
    for words, (enum, never_listed) in choices.items():
        assert {value_of(enum, word) for word in get_args(words)} == {*enum.values()} - never_listed - {unspecified}
    assert tuple(images.ACTIONS.values()) == get_args(images.Action)
    assert tuple(instances.ACTIONS.values()) == get_args(instances.Action)
