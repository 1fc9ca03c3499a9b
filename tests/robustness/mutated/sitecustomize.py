"""Makes a server a mutant: Python imports this before anything else in every process whose path this folder is on."""

import os

if name := os.environ.get("MUTANT"):
    from tests.robustness import mutants

    mutants.become(name)
