"""Fixtures that several parts of the tests share."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from hypothesis import settings

# Several test processes share the cores: one thread each, set before torch or numpy start their pools.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Many tests fork, and what has used CUDA cannot be forked: without LINNAEUS_TEST_GPU they see no GPU. With it, tests
# that fork are skipped.
if not os.environ.get("LINNAEUS_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A shell that starts the tests in the background ignores Ctrl-C, and every process of the tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Property tests try the same examples in every run, so that a change cannot fail for an older fault;
# --hypothesis-profile=explore tries new ones.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("repeatable")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-fault", action="store_true", help="fail at every system call, not at a sample (an hour)")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout; tests that need it are skipped, by name, without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real images in {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every test has a cache folder of its own, and keeps it if the test calls `monkeypatch.undo()`."""
    with pytest.MonkeyPatch.context() as always:
        always.setenv("LINNAEUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass
class Said:
    status: int
    out: str
    err: str


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]):
    """Run the command in this process: `say("train", "x")` gives exit status, stdout and stderr."""

    def run(*arguments: object) -> Said:
        capfd.readouterr()
        return Said(run_command(*arguments), *capfd.readouterr())

    return run


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    """63 training images, of 70: 4 steps of 16 an epoch."""
    from tiny import write_idx

    return write_idx(tmp_path / "idx", train=70, test=12)


@pytest.fixture
def undrawn_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without their images and page."""
    from killing import undrawn  # imports torch, which must not come before the number of threads above

    undrawn(monkeypatch)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright; tests that need it are skipped, by name, without them."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()
