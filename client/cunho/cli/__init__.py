"""The command `cunho`: images and instances from a terminal. It uses `cunho.Client` alone and knows no rule.

Nothing is imported here that the command alone needs: whoever uses the library does not have to install it.
"""

import sys
from collections.abc import Sequence

from cunho.cli.exit_codes import INTERRUPTED


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code. `words` are the process's own if not given."""
    try:
        from cunho.cli.commands import run
    except ModuleNotFoundError as missing:
        if missing.name != "cyclopts":
            raise
        print("The command is not installed whole: install cunho[cli], as by pip install 'cunho[cli]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # what is imported takes a moment
        return INTERRUPTED
    return run(sys.argv[1:] if words is None else words)
