"""What the experiments share: where runs lie, what is read from one, how an image and its figures are written."""

from __future__ import annotations

import csv
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import linnaeus
from linnaeus.console import Console
from linnaeus.data.table import Table
from linnaeus.metrics.intervals import wilson
from linnaeus.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "docs" / "results"


def trained(source: str | Path | Table, recipe: dict[str, Any], folder: Path) -> Path:
    """The run folder of a recipe: trained now, gone on with where it was cut, or left alone where it has ended.

    Nothing is drawn. What the whole run took, over all starts, stands in FOLDER.seconds.json: on the clock, and of the
    processor, which other work on the machine does not change.
    """
    if not (folder / "metrics.json").exists():
        print(folder.name, flush=True)
        spent = {"wall": 0.0, "cpu": 0.0} | seconds(folder)
        wall, cpu = time.perf_counter(), time.process_time()
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            linnaeus.train(
                source, Recipe.model_validate(recipe), out=folder, resume=True, draw=False, console=Console(silent=True)
            )
        finally:
            spent["wall"] += time.perf_counter() - wall
            spent["cpu"] += time.process_time() - cpu
            _clock(folder).write_text(json.dumps({kind: round(took, 1) for kind, took in spent.items()}))
    return folder


def _clock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.seconds.json")


def seconds(folder: Path) -> dict[str, float]:
    """{"wall": seconds, "cpu": seconds of all threads}, empty where the run never began."""
    return json.loads(_clock(folder).read_text()) if _clock(folder).exists() else {}


def history(folder: Path) -> dict[str, list[float]]:
    """The columns of history.csv, a number an epoch."""
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name] != ""] for name in rows[0] if name != "parts"}


def last_epoch(runs: list[Path]) -> tuple[list[float], int, list[float]]:
    """(% right on validation after the last epoch of each run, of how many, 95 % interval of the first run's in %)."""
    shares = [history(run)["valid_accuracy"][-1] for run in runs]
    n = metrics(runs[0])["valid"]["n"]
    return [100 * share for share in shares], n, [round(100 * end, 1) for end in wilson(round(shares[0] * n), n)]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def machine() -> str:
    threads = torch.get_num_threads()
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''} a run, "
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]} on CPU"
    )


def write(name: str, figures: dict[str, Any]) -> None:
    """The figures behind a page, docs/results/NAME.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), **figures}, indent=1, sort_keys=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")


@contextmanager
def panels(file: Path, width: float, height: float, rows: int = 1, **more: Any) -> Iterator[tuple[Figure, np.ndarray]]:
    """An image of `rows` by two empty plots, (rows, 2), in inches; it is written when they have been filled."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, squeeze=False, **more)
    yield figure, axes
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.savefig(file)
