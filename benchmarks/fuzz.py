"""The properties of tests/fuzz for as long as one likes, each in a process of its own whose memory is limited.

    python benchmarks/fuzz.py --minutes 30 [--only decode,model] [--seed 1]

What fails is printed as hypothesis found it, smallest form first, and the exit status is 1. Every property prints how
many examples it tried, in how many seconds, and the most memory that its process took.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
MEMORY = 2 << 30  # bytes a process may hold: torch and scipy take half of one before anything is read
ROUND = 300  # examples between two looks at the clock


def fuzz(kind: str, seconds: float, seed: int) -> None:
    """Try one property in this process until the time is up."""
    sys.path[:0] = [str(TESTS), str(TESTS / "fuzz")]
    os.environ["LINNAEUS_CACHE"] = tempfile.mkdtemp(prefix="fuzz-cache-")
    from hypothesis import HealthCheck, given, settings
    from hypothesis import seed as seeded
    from properties import PROPERTIES

    strategy, holds = PROPERTIES[kind]
    tried, started, rounds = 0, time.monotonic(), 0

    def example(drawn: Any) -> None:
        nonlocal tried
        tried += 1
        with tempfile.TemporaryDirectory() as folder:
            holds(drawn, Path(folder))

    before = peak()
    while time.monotonic() - started < seconds:
        budget = settings(max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        seeded(seed * 1_000_003 + rounds)(budget(given(strategy)(example)))()
        rounds += 1
    took = time.monotonic() - started
    grown = f"{peak() >> 20:5d} MB at most, {before >> 20} before the first"
    print(f"{kind:10} {tried:8d} examples  {took:7.1f} s  {grown}", flush=True)


def peak() -> int:
    """The most memory that this process has held, bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def limited() -> None:
    """Address space beyond what is mapped already: a claim of gigabytes fails at once."""
    resource.setrlimit(resource.RLIMIT_AS, (6 * MEMORY, 6 * MEMORY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        fuzz(given.one, given.minutes * 60, given.seed)
        raise SystemExit(peak() > MEMORY)
    sys.path[:0] = [str(TESTS), str(TESTS / "fuzz")]
    from properties import PROPERTIES

    kinds = [kind for kind in PROPERTIES if not given.only or kind in given.only.split(",")]
    print(f"{len(kinds)} properties, {given.minutes:g} min in all, seed {given.seed}", flush=True)
    failed = []
    for kind in kinds:
        share = str(given.minutes / len(kinds))
        command = [sys.executable, __file__, "--one", kind, "--minutes", share, "--seed", str(given.seed)]
        if subprocess.run(command, preexec_fn=limited, check=False).returncode:
            failed.append(kind)
    print(f"failed: {', '.join(failed)}" if failed else "nothing failed")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
