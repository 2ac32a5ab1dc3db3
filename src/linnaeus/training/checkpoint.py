"""Exact resume: what a run writes down of itself, to go on after it was killed at any instant.

RUN/checkpoint/ holds

    run.json               what the run is, and what it found out about itself (`training.identity`)
    checkpoint.json        where the run stands, and the length and checksum of the two files that go with it
    state-N.safetensors    the phase: network, moving average, optimizer, generators, sums of the epoch
    best-N.safetensors     the best model so far, written again only when there is a better one

Each is written under a temporary name, synced and renamed (`files.atomic`). checkpoint.json comes last, and only after
it are the files of the one before removed: at every instant one whole checkpoint is there, or none yet.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from linnaeus.errors import JobError, UserError
from linnaeus.files import atomic, crc32_of, leftovers, write_text
from linnaeus.metrics.classification import Figures
from linnaeus.modelfile.safetensors import save_tensors
from linnaeus.runs.history import Row
from linnaeus.runs.layout import MANIFEST
from linnaeus.training.best import Best
from linnaeus.training.snapshot import Snapshot

FORMAT = 1
SHARE = 0.02
"""Of a run's time that checkpoints may take, where nobody says how often to write them."""
OFTEN = 10.0
"""Seconds that lie between two of them at least, where nobody says."""


@dataclass(frozen=True)
class Every:
    """How often to write: every so many seconds or steps; neither: as often as SHARE allows."""

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> Every:
        """`auto`, `30s`, `5min` or `100steps`."""
        if text == "auto":
            return cls()
        for unit, worth in (("steps", 0), ("step", 0), ("min", 60), ("s", 1)):
            number = text.removesuffix(unit).strip()
            if text.endswith(unit) and number.isdigit() and int(number) > 0:
                return cls(seconds=float(number) * worth) if worth else cls(steps=int(number))
        raise UserError(
            f"--checkpoint-every {text}: expected auto, or a time or number of steps, as in 5min or 100steps"
        )


@dataclass
class Checkpoint:
    """Where a run stands."""

    phase: int
    """From 1; one more than there are when all are over."""
    fit: Snapshot | None
    """Inside the phase; None before its first step."""
    best: Best
    rows: list[Row]
    seconds: dict[str, float]

    def __str__(self) -> str:
        if self.fit is None:
            return f"before phase {self.phase}"
        return f"in phase {self.phase}, after {self.fit.numbers['epoch']} epochs and {self.fit.numbers['step']} steps"


@dataclass
class Checkpoints:
    """Writes the checkpoints of one run, when they are due, and reads the last."""

    path: Path
    """The folder RUN/checkpoint."""
    every: Every = field(default_factory=Every)
    number: int = 0
    cost: float = 0.0
    """Seconds that the last one took."""
    spent: float = 0.0
    """Seconds that all of them took."""
    count: int = 0
    steps: int = 0
    """Since the last one."""
    written_best: tuple[int, int] | None = None
    """(phase, epoch) of the best model on the disk."""
    files: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.written_at = time.monotonic()

    def due(self, steps: int = 0) -> bool:
        """Whether it is time, `steps` after the last time this was asked."""
        self.steps += steps
        if self.every.steps is not None:
            return self.steps >= self.every.steps
        wait = max(OFTEN, self.cost / SHARE) if self.every.seconds is None else self.every.seconds
        return time.monotonic() - self.written_at >= wait

    def write(self, now: Checkpoint) -> None:
        """Write `now`, whole or not at all. The one before stays until it is."""
        try:
            self._write(now)
        except BaseException:
            self._remove_all_but(self.files)
            raise

    def _write(self, now: Checkpoint) -> None:
        before, self.number = self.files, self.number + 1
        files: dict[str, dict[str, int]] = {}
        state = f"state-{self.number:06d}.safetensors"
        if now.fit is not None:
            files[state] = self._tensors(state, now.fit.tensors)
        best = now.best
        if best.figures is not None:
            kept = [name for name in before if name.startswith("best-")]
            if self.written_best == (best.phase, best.epoch) and kept:
                files[kept[0]] = before[kept[0]]
            else:
                name = f"best-{self.number:06d}.safetensors"
                files[name] = self._tensors(name, best.state)
        text = json.dumps(
            {
                "format": FORMAT,
                "number": self.number,
                "files": files,
                "phase": now.phase,
                "fit": None if now.fit is None else now.fit.numbers,
                "best": None
                if best.figures is None
                else {"figures": best.figures.to_dict(), "phase": best.phase, "epoch": best.epoch},
                "rows": [asdict(row) for row in now.rows],
                "seconds": now.seconds,
            },
            allow_nan=False,
        )
        write_text(self.path / MANIFEST, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        self.files = files
        self.written_best = None if best.figures is None else (best.phase, best.epoch)
        self._remove_all_but(files)

    def _remove_all_but(self, files: Collection[str]) -> None:
        """Remove the files of checkpoints that are past, or never became whole."""
        for path in self.path.glob("*.safetensors"):
            if path.name not in files:
                path.unlink(missing_ok=True)

    @contextmanager
    def paid(self) -> Iterator[None]:
        """What is done meanwhile is the cost of this checkpoint, whether it succeeds or not."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.steps, self.written_at = 0, time.monotonic()
            self.cost = self.written_at - started
            self.spent += self.cost
            self.count += 1

    def _tensors(self, name: str, tensors: dict[str, Tensor]) -> dict[str, int]:
        with atomic(self.path / name) as temporary:
            save_tensors(tensors, temporary)
            return {"bytes": temporary.stat().st_size, "crc32": crc32_of(temporary)}

    def read(self, by: str) -> Checkpoint | None:
        """The last checkpoint, or None where there is none yet. `by`: the recipe's measure of the best model.

        Removes what a killed writer left. Raises UserError where the checkpoint was damaged after it was written.
        """
        for path in leftovers(self.path):
            path.unlink(missing_ok=True)
        if not (self.path / MANIFEST).exists():
            return None
        found = self._manifest()
        self.number, self.files = found["number"], found["files"]
        self._remove_all_but(self.files)
        tensors = {name.partition("-")[0]: self._read(name) for name in self.files}
        best = Best(by)
        if found["best"] is not None:
            best.figures, best.state = Figures.from_dict(found["best"]["figures"]), tensors["best"]
            best.phase, best.epoch = found["best"]["phase"], found["best"]["epoch"]
            self.written_best = best.phase, best.epoch
        fit = None if found["fit"] is None else Snapshot(tensors["state"], found["fit"])
        return Checkpoint(found["phase"], fit, best, [Row(**row) for row in found["rows"]], found["seconds"])

    def _manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        try:
            checksum, _, text = path.read_text(encoding="utf-8").partition("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(path, str(error)) from None
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            raise self._damaged(path, "it does not match its checksum")
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise UserError(f"{path}: format {found['format']}, and this version reads {FORMAT}; resume with the other")
        return found

    def _read(self, name: str) -> dict[str, Tensor]:
        path, expected = self.path / name, self.files[name]
        try:
            if path.stat().st_size != expected["bytes"] or crc32_of(path) != expected["crc32"]:
                raise self._damaged(path, "it does not match its checksum")
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise self._damaged(path, str(error)) from None

    def _damaged(self, path: Path, why: str) -> UserError:
        return JobError(f"{path}: damaged since it was written ({why}); remove {self.path} to start from the beginning")
