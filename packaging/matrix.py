"""Run the quick tests on several Pythons, each in an environment of its own that is removed afterwards.

    python packaging/matrix.py [3.11 3.12 3.13 3.14] [--resolution lowest-direct]

Needs uv, which finds the Pythons that are here and installs the others where it can. A Python is skipped, with the
reason, where it cannot be had or where the only torch for it would bring several GB of CUDA libraries. The exit status
is 1 if tests failed or none ran.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TORCH = "torch==2.13.0"
INDEX = "MATRIX_TORCH_INDEX"
"""Environment variable: index with CPU builds of torch, such as https://download.pytorch.org/whl/cpu."""


def uv(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run uv in the root of the repository and capture what it says."""
    return subprocess.run(["uv", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def install_torch(python: Path) -> str:
    """Install torch, without dependencies on CUDA; returns why it cannot be done, or an empty string."""
    index = ["--index-url", os.environ[INDEX]] if os.environ.get(INDEX) else []
    command = ["pip", "install", "--python", str(python), *index, TORCH]
    planned = uv(*command, "--dry-run")
    if planned.returncode:
        return f"no {TORCH}: {last_line(planned.stderr)}"
    if re.search(r"^ \+ nvidia-", planned.stderr, re.MULTILINE):
        return f"the only {TORCH} here brings CUDA; set {INDEX} to an index of CPU builds"
    done = uv(*command)
    return last_line(done.stderr) if done.returncode else ""


def prepare(version: str, folder: Path, resolution: str) -> tuple[Path | None, str]:
    """An environment with everything that the tests need; or None, and the reason."""
    made = uv("venv", "--python", version, folder / "env")
    if made.returncode:
        return None, f"no Python {version}: {last_line(made.stderr)}"
    python = folder / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if reason := install_torch(python):
        return None, reason
    # Torch stays as it is, also with the lowest versions of everything else.
    installed = uv("pip", "freeze", "--python", python).stdout
    pin = next(line for line in installed.splitlines() if line.startswith("torch=="))
    (folder / "torch.txt").write_text(pin + "\n")
    options = ["--resolution", resolution, "--constraints", str(folder / "torch.txt")]
    done = uv("pip", "install", "--python", python, *options, "-e", ".[dev]")
    return (None, last_line(done.stderr)) if done.returncode else (python, "")


def run(version: str, resolution: str, tests: list[str]) -> tuple[bool | None, str]:
    """(whether the tests passed; None if they did not run, what to print)."""
    folder = Path(tempfile.mkdtemp(prefix="linnaeus-matrix-"))
    try:
        python, reason = prepare(version, folder, resolution)
        if python is None:
            return None, f"skipped: {reason}"
        started = time.monotonic()
        command = [str(python), "-m", "pytest", "-n", "auto", "-m", "not long", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(done.stdout)
        return done.returncode == 0, f"{last_line(done.stdout)} ({time.monotonic() - started:.0f} s)"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", metavar="VERSION", default=list(PYTHONS))
    parser.add_argument("--resolution", choices=("highest", "lowest-direct"), default="highest")
    parser.add_argument("--tests", nargs="+", metavar="PATH", default=[], help="only these tests")
    arguments = parser.parse_args()
    if shutil.which("uv") is None:
        print("needs uv: pip install uv", file=sys.stderr)
        return 2
    results = []
    for version in arguments.pythons:
        passed, text = run(version, arguments.resolution, arguments.tests)
        print(f"Python {version}, {arguments.resolution} versions: {text}", flush=True)
        results.append(passed)
    return int(False in results or True not in results)


if __name__ == "__main__":
    sys.exit(main())
