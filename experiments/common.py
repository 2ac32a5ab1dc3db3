"""What the experiments share: where runs lie, what is read from one, how a picture and its figures are written."""

from __future__ import annotations

import csv
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

import linnaeus
from linnaeus.console import Console
from linnaeus.data.table import Table
from linnaeus.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "docs" / "results"


def trained(source: str | Path | Table, recipe: dict[str, Any], folder: Path) -> Path:
    """The run folder of a recipe: trained now, gone on with where it was cut, or left alone where it has ended.

    Nothing is drawn. The seconds that the whole run took, over all starts, stand in `seconds.json`.
    """
    clock = folder.with_suffix(".seconds.json")
    spent = json.loads(clock.read_text()) if clock.exists() else 0.0
    if not (folder / "metrics.json").exists():
        print(f"{folder.name}", flush=True)
        since = time.perf_counter()
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            linnaeus.train(
                source, Recipe.model_validate(recipe), out=folder, resume=True, draw=False, console=Console(quiet=True)
            )
        finally:
            clock.write_text(json.dumps(round(spent + time.perf_counter() - since, 1)))
    return folder


def seconds(folder: Path) -> float:
    return float(json.loads(folder.with_suffix(".seconds.json").read_text()))


def history(folder: Path) -> dict[str, list[float]]:
    """The columns of history.csv, a number an epoch."""
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name] != ""] for name in rows[0] if name != "parts"}


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
