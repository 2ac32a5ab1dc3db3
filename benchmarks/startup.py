"""Seconds of CPU until `linnaeus --help`, a mistake or a completion is answered, and until `import linnaeus` is done.

CPU seconds of a fresh process, children included, in turns with a bare interpreter, so that the rest is ours; medians.

    python benchmarks/startup.py [--turns 15]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

LINNAEUS = [sys.executable, "-m", "linnaeus"]
COMPLETE = ["env", "_LINNAEUS_COMPLETE=bash_complete", "COMP_WORDS=linnaeus train c", "COMP_CWORD=2"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "linnaeus --help": [*LINNAEUS, "--help"],
    "linnaeus --version": [*LINNAEUS, "--version"],
    "linnaeus train --help": [*LINNAEUS, "train", "--help"],
    "completion of a source": [*COMPLETE, *LINNAEUS],
    "unknown option": [*LINNAEUS, "train", ".", "--imgsz", "224"],
    "unknown key in --set": [*LINNAEUS, "train", ".", "--set", "lrr=1"],
    "missing source": [*LINNAEUS, "train", "no-such-folder"],
    "import linnaeus": [sys.executable, "-c", "import linnaeus"],
    "import linnaeus, one name": [sys.executable, "-c", "import linnaeus; linnaeus.load_recipe"],
}


def cpu_seconds(command: list[str]) -> float:
    before = os.times()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    assert done.returncode in (0, 2), command  # 2: a mistake was reported
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(arguments.turns + 1):
        for name, command in COMMANDS.items():
            spent = cpu_seconds(command)
            if turn:  # the first round reads the files from the disk and compiles them
                taken[name].append(spent)
    bare = statistics.median(taken["python -c pass"])
    print(f"Python {sys.version.split()[0]}, {arguments.turns} turns; seconds of CPU, median (range)")
    for name, found in taken.items():
        middle = statistics.median(found)
        more = "" if name == "python -c pass" else f"   {middle - bare:+.3f} over a bare interpreter"
        print(f"  {name:26} {middle:.3f} ({min(found):.2f}-{max(found):.2f}){more}")


if __name__ == "__main__":
    main()
