"""penalties-phaseN.csv: the penalties that were tried for a solved head, evaluated on held-out training images."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linnaeus.console import counted
from linnaeus.files import csv_file
from linnaeus.metrics.classification import no_better_than_one_class
from linnaeus.runs.parsing import read_csv
from linnaeus.text import percent, percent_range

FILES = "penalties-phase*.csv"


@dataclass(frozen=True)
class Trial:
    """A penalty, with accuracy and loss on held-out training images of heads solved with it."""

    penalty: float
    loss: float  # cross-entropy in nats
    accuracy: float | None = None  # 0 to 1; None where images may have several labels
    n: int | None = None  # number of these images; of the chosen penalty only
    ci95: tuple[float, float] | None = None  # 95 % interval of the accuracy; of the chosen penalty only
    # Number of these images that are of the most frequent class; of the chosen penalty only.
    most_frequent: int | None = None
    groups: int | None = None  # number of groups of these images, if they come in groups; of the chosen penalty only


def in_groups(groups: int | None) -> str:
    """` in 40 groups`, or nothing where the images come in none."""
    return "" if groups is None else f" in {counted(groups, 'group')}"


def held_out_text(held_out: dict[str, Any]) -> str:
    """The entry `held_out` of validation figures in words: `92.1 % of 180 training images, each …`."""
    interval = percent_range(held_out["accuracy_ci95"])
    no_better = no_better_than_one_class(held_out)
    text = (
        f"{percent(held_out['accuracy'], 2)} of {held_out['n']:,} training images{in_groups(held_out.get('groups'))}, "
        f"each predicted by a head that had not seen it (95 % interval {interval}): more certain than validation, "
        "though these images also chose the penalty"
    )
    return f"{text}; {no_better}" if no_better else text


def penalties_file(folder: Path, phase: int) -> Path:
    return folder / f"penalties-phase{phase}.csv"


def write_penalties(path: Path, trials: Iterable[Trial]) -> None:
    """Write trials in the order of their penalties."""
    with csv_file(path) as writer:
        writer.writerow(["penalty", "loss", "accuracy", "n", "low", "high", "most_frequent", "groups"])
        for trial in sorted(trials, key=lambda trial: trial.penalty):
            accuracy = "" if trial.accuracy is None else f"{trial.accuracy:.6f}"
            interval = ["", ""] if trial.ci95 is None else [f"{end:.6f}" for end in trial.ci95]
            counts = (trial.n, trial.most_frequent, trial.groups)
            n, *more = ("" if count is None else count for count in counts)
            writer.writerow([f"{trial.penalty:g}", f"{trial.loss:.6g}", accuracy, n, *interval, *more])


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
        n = int(row["n"]) if row.get("n") else None
        ci95 = None if n is None else (float(row["low"]), float(row["high"]))
        most_frequent, groups = (int(row[key]) if row.get(key) else None for key in ("most_frequent", "groups"))
    except (KeyError, ValueError, TypeError):
        return None
    good = penalty > 0 and math.isfinite(penalty) and math.isfinite(loss) and (n is None or n > 0)
    good = good and all(0 <= share <= 1 for share in (accuracy or 0.0, *(ci95 or ())))
    counts = [count for count in (most_frequent, groups) if count is not None]
    good = good and all(n is not None and 0 < count <= n for count in counts)
    return Trial(penalty, loss, accuracy, n, ci95, most_frequent, groups) if good else None
