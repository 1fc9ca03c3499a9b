"""CONTRIBUTING.md names what there is: files, targets and commands, and the lines that its example begins from."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
CODE = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
FOLDERS = {path.name for path in ROOT.iterdir()}
DIFFS = re.findall(r"```diff\n(\S+)\n(.*?)```", PAGE, re.DOTALL)


def test_every_file_that_is_named_exists() -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", PAGE)]
    paths = [word for word in CODE if re.fullmatch(r"[\w./-]+", word) and word.split("/")[0] in FOLDERS]
    assert [path for path in [*links, *paths] if not (ROOT / path).exists()] == []
    assert len(paths) > 20


def test_every_target_and_command_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", PAGE, re.MULTILINE)) <= targets
    commands = set(re.findall(r"\.venv/bin/[\w-]+", PAGE))
    assert [command for command in commands if not (ROOT / command).exists()] == []


def test_every_test_that_is_run_exists() -> None:
    named = re.findall(r"\btests/[\w/]+(?:\.py)?", PAGE)
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("path", "diff"), DIFFS, ids=[f"{number}-{path}" for number, (path, _) in enumerate(DIFFS)])
def test_the_lines_that_the_example_begins_from_are_there(path: str, diff: str) -> None:
    there = "".join(line[1:] for line in diff.splitlines(keepends=True) if not line.startswith("+"))
    assert there in (ROOT / path).read_text()


def test_the_example_is_not_in_the_way_of_what_there_is() -> None:
    there = (ROOT / "server/cunho_rules/rules.py").read_text()
    assert [
        rule for rule in re.findall(r'^\+ +"([A-Z]{3}-\d+)": Rule', PAGE, re.MULTILINE) if f'"{rule}"' in there
    ] == []
    reasons = (ROOT / "protos/cunho/v1/error_reason.proto").read_text()
    assert [number for number in re.findall(r"^\+ .* = (\d+);", PAGE, re.MULTILINE) if f"= {number};" in reasons] == []
