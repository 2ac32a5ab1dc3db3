"""The command line, called in this process or in a fork of it."""

from __future__ import annotations

import sys
from unittest.mock import patch

from linnaeus.cli.main import main


def run_command(*arguments: object) -> int:
    """Run `linnaeus ARGUMENTS` and return its exit status."""
    with patch.object(sys, "argv", ["linnaeus", *map(str, arguments)]):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0
