"""Runs the command as `python -m cunho.cli`."""

import sys

from cunho.cli import main

sys.exit(main())
