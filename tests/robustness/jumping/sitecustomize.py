"""Makes a process's clock jump: time.time() is off by the seconds in the file that JUMP_FILE names, as they are then.

Python reads this file at its start, if the folder is on PYTHONPATH. gRPC's core has the clock of the machine all the
same; so what is left of a call's time, which gRPC takes from both, is told by that clock alone.
"""

import os
import sys
import time
from pathlib import Path

_true = time.time
_file = Path(os.environ["JUMP_FILE"])


def _jumped() -> float:
    if sys._getframe(1).f_code.co_filename.endswith("answering.py"):
        return _true()
    return _true() + float(_file.read_text())


time.time = _jumped
