"""Shared by the experiments: train a run, read its results, write figures and plots."""

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
    """Train a recipe into `folder`, or resume it, or do nothing if the run is complete. Returns `folder`.

    FOLDER.seconds.json records the total time over all starts: wall-clock time, and CPU time, which does not depend on
    what else the machine is doing.
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
    """{"wall": seconds, "cpu": seconds summed over all threads}; empty if the run was never started."""
    return json.loads(_clock(folder).read_text()) if _clock(folder).exists() else {}


def history(folder: Path) -> dict[str, list[float]]:
    """The columns of history.csv, with one number per epoch."""
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name] != ""] for name in rows[0] if name != "parts"}


def last_epoch(runs: list[Path]) -> tuple[list[float], int, list[float]]:
    """(final validation accuracy of each run in %, number of images, 95 % interval of the first run in %)."""
    shares = [history(run)["valid_accuracy"][-1] for run in runs]
    n = metrics(runs[0])["valid"]["n"]
    return [100 * share for share in shares], n, [round(100 * end, 1) for end in wilson(round(shares[0] * n), n)]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def machine() -> str:
    threads = torch.get_num_threads()
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''} per run, "
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]} on CPU"
    )


def write(name: str, figures: dict[str, Any]) -> None:
    """Write the figures of a page to docs/results/NAME.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), **figures}, indent=1, sort_keys=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")


@contextmanager
def panels(file: Path, width: float, height: float, rows: int = 1, **more: Any) -> Iterator[tuple[Figure, np.ndarray]]:
    """`rows` × 2 empty plots of an image of `width` × `height` inches, which is saved when the block ends."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, squeeze=False, **more)
    yield figure, axes
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.savefig(file)
