"""Every rule has a test that shows it through the client, and no test claims to show a rule that there is not."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from cunho_rules.rules import RULES

HERE = Path(__file__).parent


def shown(source: str) -> Iterator[tuple[str, str]]:
    """Each rule that a test of the source is marked with, and the test's name."""
    for test in ast.walk(ast.parse(source)):
        if isinstance(test, (ast.FunctionDef, ast.AsyncFunctionDef)) and test.name.startswith("test_"):
            for mark in test.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.rule":
                    yield from ((ast.literal_eval(rule), test.name) for rule in mark.args)


def shown_in(folder: Path) -> list[tuple[str, str]]:
    """Each rule that a test below the folder is marked with, and the test's name."""
    return [each for path in sorted(folder.rglob("test_*.py")) for each in shown(path.read_text())]


SHOWN = {rule for rule, _ in shown_in(HERE)}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_a_test(rule: str) -> None:
    assert rule in SHOWN


def test_no_test_is_marked_with_a_rule_that_there_is_not() -> None:
    assert [(rule, test) for rule, test in shown_in(HERE.parent) if rule not in RULES] == []


def test_only_marks_of_tests_count() -> None:
    source = """
@pytest.mark.rule("SEL-1", "SEL-2")
def test_marked(): ...

@pytest.mark.rule("SEL-3")
def not_a_test(): ...

@pytest.mark.parametrize("rule", ["SEL-4"])
async def test_of_parameters(rule): ...

@pytest.mark.slow
@pytest.mark.rule("NEW-1")
async def test_marked_too(): ...
"""
    assert [*shown(source)] == [("SEL-1", "test_marked"), ("SEL-2", "test_marked"), ("NEW-1", "test_marked_too")]
