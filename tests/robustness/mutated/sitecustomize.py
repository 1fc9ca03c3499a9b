"""Makes a server a mutant: Python imports this before anything else in every process whose path this folder is on."""

import os
import traceback

if name := os.environ.get("MUTANT"):
    try:
        from tests.robustness import mutants

        mutants.become(name)
    except Exception:  # noqa: BLE001 - Python would mention it, and go on without the mutation
        traceback.print_exc()
        os._exit(1)
