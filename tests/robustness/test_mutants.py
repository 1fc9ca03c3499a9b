"""Mutants: without a defence the checker finds what goes wrong, unless another defence holds, which is named."""

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.end_to_end.soundness import unsound
from tests.robustness import mutants, traffic
from tests.robustness.installation import Installation, installed
from tests.robustness.mutants import MUTANTS
from tests.robustness.scale import LONG, scaled
from tests.world import Postgres

ROOT = Path(__file__).parents[2]

#: The mutants of the short form: those that show soon, whatever the machine.
SHORT = ["unlocked images.CHANGING", "list of everything"]

#: How many calls are made of a mutant, in worlds of so many each, until the checker finds it.
OPERATIONS, OPERATIONS_OF_WORLD = scaled(4_000, 10_000), 1_000


@pytest.mark.parametrize("name", MUTANTS if LONG else SHORT)
def test_a_mutant_is_found_unless_another_defence_holds(name: str, postgres: Postgres, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    with (
        mutants.mutation(name),
        installed(postgres, tmp_path, servers=1, PROCESSES=1, **mutant.settings) as installation,
    ):
        for statement in mutant.drops:
            installation.sql(statement)
        found = first_violation(installation)
        held = held_by(installation)
    print(f"{name}: {found or 'nothing'}; conflicts: {dict(held.most_common(6))}")
    assert bool(found) != bool(mutant.held_by), found


#: Becomes each mutant, in a process of its own, and says which it could not become.
BECOMING = """
import os
from tests.robustness import mutants

for name in mutants.MUTANTS:
    if not os.fork():
        mutants.become(name)
        os._exit(0)
    _, status = os.wait()
    if status:
        print(name, flush=True)
"""


def test_there_is_something_to_take_away_for_every_mutant() -> None:
    process = subprocess.run([sys.executable, "-c", BECOMING], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == "", process.stderr


def test_a_server_that_cannot_become_its_mutant_does_not_begin() -> None:
    with mutants.mutation("none of them"):
        process = subprocess.run([sys.executable, "-c", "print('began')"], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (1, "")
    assert "KeyError" in process.stderr


def first_violation(installation: Installation) -> str:
    """What the checker finds first, and after how many calls; "" if it finds nothing."""
    for number in range(OPERATIONS // OPERATIONS_OF_WORLD):
        run = traffic.run(installation.callable(), operations=OPERATIONS_OF_WORLD, clients=16, seed=number)
        history = asyncio.run(run)
        before = number * OPERATIONS_OF_WORLD
        if violations := installation.judge(history):
            return f"after {before + violations[0].after_calls} calls, {len(violations)} in all: {violations[0]}"
        if contradictions := unsound(installation.sql):
            return f"after {before + len(history.calls)} calls: {contradictions[0]}"
    return ""


def held_by(installation: Installation) -> Counter[str]:
    """What got in the way of transactions, and how often."""
    lines = (line for server in installation.servers for line in server.log.splitlines())
    return Counter(line.removeprefix(mutants.HELD) for line in lines if line.startswith(mutants.HELD))
