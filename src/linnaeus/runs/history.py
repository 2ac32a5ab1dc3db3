"""history.csv: one row per epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from linnaeus.runs.parsing import parse_rows, read_csv
from linnaeus.text import SafeCsvWriter


@dataclass(frozen=True)
class Row:
    """One epoch. Losses are in nats, accuracies in 0..1."""

    phase: int
    """Counted from 1."""
    epoch: int
    """Counted from 1 within the phase."""
    lr: float
    """Learning rate of the head."""
    train_loss: float
    """Mean over the augmented training images, measured while the weights change."""
    train_accuracy: float | None
    """On the same images; None if images are mixed."""
    valid_loss: float
    """Mean over the validation images after the epoch, without those that have a copy in training."""
    valid_accuracy: float
    """Share of the same images that are classified correctly, with several labels: all of them."""
    seconds: float
    """Duration of the epoch, validation included."""
    valid_map: float | None = None
    """Mean average precision, if images may have several labels; files of other runs have no such column."""


def write_rows(file: TextIO, rows: Iterable[Row], *, header: bool) -> None:
    """Write rows to an open file; floats have six significant digits, seconds are rounded to milliseconds."""
    writer = SafeCsvWriter(file)
    for row in rows:
        values = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
        if row.valid_map is None:
            del values["valid_map"]
        if header:
            writer.writerow(values)
            header = False
        writer.writerow({**values, "seconds": f"{row.seconds:.3f}"}.values())


def read_history(path: Path) -> list[Row]:
    """Read history.csv. Raises UserError that names the file and the line."""
    return parse_rows(path, read_csv(path), _parse)


def _parse(row: dict[str, str]) -> Row:
    return Row(
        phase=int(row["phase"]),
        epoch=int(row["epoch"]),
        lr=float(row["lr"]),
        train_loss=float(row["train_loss"]),
        train_accuracy=float(row["train_accuracy"]) if row["train_accuracy"] else None,
        valid_loss=float(row["valid_loss"]),
        valid_accuracy=float(row["valid_accuracy"]),
        seconds=float(row["seconds"]),
        valid_map=float(row["valid_map"]) if row.get("valid_map") else None,
    )
