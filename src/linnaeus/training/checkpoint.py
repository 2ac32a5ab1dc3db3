"""Checkpoints for exact resuming, after the process was killed at any instant.

RUN/checkpoint/ holds

    run.json               identity of the run and the values tuned at run time (`training.identity`)
    checkpoint.json        progress of the run, and length and checksum of the two tensor files
    state-N.safetensors    state of the phase: network, moving average, optimizer, generators, sums of the epoch
    best-N.safetensors     the best model so far, rewritten only when there is a better one

Each file is written under a temporary name, synced and renamed (`files.atomic`). checkpoint.json is written last, and
the files of the previous checkpoint are removed only after that, so that a complete checkpoint exists at every instant
from the first one on.
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

from linnaeus.errors import JobError, UserError, not_read
from linnaeus.files import atomic, crc32_of, write_text
from linnaeus.metrics.multilabel import read_headline
from linnaeus.modelfile.safetensors import save_tensors
from linnaeus.runs.history import Row
from linnaeus.runs.layout import MANIFEST
from linnaeus.runs.ownership import CHECKPOINT_FILE, remove_remains
from linnaeus.training.best import Best
from linnaeus.training.interval import CheckpointInterval
from linnaeus.training.snapshot import Snapshot

FORMAT = 1
TIME_SHARE = 0.02  # share of the run time that checkpoints may take with --checkpoint-every auto
MIN_INTERVAL = 10.0  # shortest time between two checkpoints with --checkpoint-every auto, in seconds


@dataclass
class Checkpoint:
    """Progress of a run."""

    phase: int  # the current phase, from 1; the number of phases plus one after the last
    fit: Snapshot | None  # state inside the phase; None before its first step
    best: Best
    rows: list[Row]  # history so far
    seconds: dict[str, float]  # durations so far, by part of the run

    def __str__(self) -> str:
        if self.fit is None:
            return f"before phase {self.phase}"
        return f"in phase {self.phase}, after {self.fit.numbers['epoch']} epochs and {self.fit.numbers['step']} steps"


@dataclass
class Checkpoints:
    """Writes the checkpoints of one run when they are due, and reads the last one."""

    path: Path  # the folder RUN/checkpoint
    interval: CheckpointInterval = field(default_factory=CheckpointInterval)
    number: int = 0  # number of the last checkpoint, which is part of its file names
    cost: float = 0.0  # seconds that the last checkpoint took
    spent: float = 0.0  # seconds that all checkpoints of this process took
    count: int = 0  # checkpoints that this process wrote
    steps: int = 0  # steps since the last checkpoint
    written_best: tuple[int, int] | None = None  # (phase, epoch) of the best model on the disk
    # Name -> length and checksum of the tensor files of the last checkpoint.
    files: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.written_at = time.monotonic()

    def due(self, steps: int = 0) -> bool:
        """Whether it is time for a checkpoint; `steps`: steps since the last call."""
        self.steps += steps
        if self.interval.steps is not None:
            return self.steps >= self.interval.steps
        wait = max(MIN_INTERVAL, self.cost / TIME_SHARE) if self.interval.seconds is None else self.interval.seconds
        return time.monotonic() - self.written_at >= wait

    def write(self, checkpoint: Checkpoint) -> None:
        """Write `checkpoint` completely or not at all; the previous one stays until then."""
        try:
            self._write(checkpoint)
        except BaseException:  # also Ctrl-C; a partial checkpoint must not fill a disk that is full
            self._remove_all_but(self.files)
            raise

    def _write(self, checkpoint: Checkpoint) -> None:
        before, self.number = self.files, self.number + 1
        files: dict[str, dict[str, int]] = {}
        state = f"state-{self.number:06d}.safetensors"
        if checkpoint.fit is not None:
            files[state] = self._tensors(state, checkpoint.fit.tensors)
        best = checkpoint.best
        if best.figures is not None:
            kept = [name for name in before if name.startswith("best-")]
            # The best model changes rarely and is large, so its file is carried over to the next checkpoint.
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
                "phase": checkpoint.phase,
                "fit": None if checkpoint.fit is None else checkpoint.fit.numbers,
                "best": None
                if best.figures is None
                else {"figures": best.figures.to_dict(), "phase": best.phase, "epoch": best.epoch},
                "rows": [asdict(row) for row in checkpoint.rows],
                "seconds": checkpoint.seconds,
            },
            allow_nan=False,
        )
        # The manifest is written last: until then the previous checkpoint is the valid one.
        write_text(self.path / MANIFEST, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        self.files = files
        self.written_best = None if best.figures is None else (best.phase, best.epoch)
        self._remove_all_but(files)

    def _remove_all_but(self, files: Collection[str]) -> None:
        """Remove the tensor files of older and of incomplete checkpoints."""
        for path in self.path.glob("*.safetensors"):
            if path.name not in files and CHECKPOINT_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measure this block as the cost of a checkpoint, whether it succeeds or fails."""
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
        """Read the last checkpoint; None if there is none yet. `by`: the metric that chooses the best model.

        Removes the remains of a killed writer. Raises JobError if the checkpoint was damaged after it was written.
        """
        remove_remains(self.path, alone=True)
        if not (self.path / MANIFEST).exists():
            return None
        manifest = self._manifest()
        self.number, self.files = manifest["number"], manifest["files"]
        # A writer that died before its manifest has left files that no checkpoint lists.
        self._remove_all_but(self.files)
        tensors = {name.partition("-")[0]: self._read(name) for name in self.files}
        best = Best(by)
        if manifest["best"] is not None:
            best.figures, best.state = read_headline(manifest["best"]["figures"]), tensors["best"]
            best.phase, best.epoch = manifest["best"]["phase"], manifest["best"]["epoch"]
            self.written_best = best.phase, best.epoch
        fit = None if manifest["fit"] is None else Snapshot(tensors["state"], manifest["fit"])
        return Checkpoint(manifest["phase"], fit, best, [Row(**row) for row in manifest["rows"]], manifest["seconds"])

    def _manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        try:
            checksum, _, text = path.read_text(encoding="utf-8").partition("\n")
        except OSError as error:
            raise not_read(path, error) from None
        except UnicodeDecodeError as error:
            raise self._damaged(path, str(error)) from None
        # First the checksum, so that a torn file is not mistaken for another format.
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            raise self._damaged(path, "it does not match its checksum")
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{path}: format {manifest['format']}, but this version reads format {FORMAT}; resume with the version "
                "that wrote it"
            )
        return manifest

    def _read(self, name: str) -> dict[str, Tensor]:
        path, expected = self.path / name, self.files[name]
        try:
            if path.stat().st_size != expected["bytes"] or crc32_of(path) != expected["crc32"]:
                raise self._damaged(path, "it does not match its checksum")
            return load_file(path)
        except (FileNotFoundError, SafetensorError) as error:
            raise self._damaged(path, str(error)) from None
        except OSError as error:  # nothing to remove: it may be readable next time
            raise not_read(path, error) from None

    def _damaged(self, path: Path, reason: str) -> JobError:
        return JobError(
            f"{path}: damaged after it was written ({reason}); remove {self.path} to start from the beginning"
        )
