"""The entry point sets up the interpreter before the imports of the command line."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
import sys
from types import ModuleType

collections = []
gc.callbacks.append(lambda phase, info: collections.append(info) if phase == "start" else None)
command_line = ModuleType("linnaeus.cli.main")
command_line.main = lambda: kept.extend([] for _ in range(5_000))
kept = []
sys.modules["linnaeus.cli.main"] = command_line
from linnaeus.__main__ import run

collections.clear()
run()
print(len(collections), gc.isenabled())
"""


def test_a_command_seldom_collects_garbage_while_it_imports():
    """By default 5,000 objects that stay cause seven collections; collection stays enabled for cycles."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]
