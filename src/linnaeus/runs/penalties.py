"""penalties-phaseN.csv: the penalties that were tried for a solved head, judged on held-out training images."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from linnaeus.files import csv_file
from linnaeus.runs.parsing import read_csv

FILES = "penalties-phase*.csv"


@dataclass(frozen=True)
class Trial:
    """A penalty, with accuracy and loss on held-out training images of heads solved with it."""

    penalty: float
    loss: float
    """Cross-entropy in nats."""
    accuracy: float | None = None
    """0 to 1; None where images may have several labels."""


def penalties_file(folder: Path, phase: int) -> Path:
    return folder / f"penalties-phase{phase}.csv"


def write_penalties(path: Path, trials: Iterable[Trial]) -> None:
    """Write trials in the order of their penalties."""
    with csv_file(path) as writer:
        writer.writerow(["penalty", "loss", "accuracy"])
        for trial in sorted(trials, key=lambda trial: trial.penalty):
            accuracy = "" if trial.accuracy is None else f"{trial.accuracy:.6f}"
            writer.writerow([f"{trial.penalty:g}", f"{trial.loss:.6g}", accuracy])


def read_penalties(folder: Path) -> dict[int, list[Trial]]:
    """Phase -> trials in the order of their penalties, of a run folder. Rows that are no trials are left out."""
    curves = {}
    for path in sorted(folder.glob(FILES)):
        number = re.fullmatch(r"penalties-phase([0-9]{1,6})\.csv", path.name)
        trials = [trial for row in read_csv(path) if (trial := _trial(row)) is not None]
        if number is not None and trials:
            curves[int(number[1])] = sorted(trials, key=lambda trial: trial.penalty)
    return curves


def _trial(row: dict[str, str]) -> Trial | None:
    try:
        penalty, loss = float(row["penalty"]), float(row["loss"])
        accuracy = float(row["accuracy"]) if row.get("accuracy") else None
    except (KeyError, ValueError, TypeError):
        return None
    good = penalty > 0 and math.isfinite(penalty) and math.isfinite(loss)
    return Trial(penalty, loss, accuracy) if good and (accuracy is None or 0 <= accuracy <= 1) else None
