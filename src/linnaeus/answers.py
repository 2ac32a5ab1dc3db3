"""How `linnaeus predict` writes its answers: a table to read, CSV, or JSON lines. One picture at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from typing import TextIO

from linnaeus.predict import Prediction

NAME_WIDTH = 28


def writer(form: str, file: TextIO, top: int) -> Callable[[Prediction], None]:
    """A function that writes one prediction with its `top` classes to `file`; `form` is table, csv or jsonl."""
    return {"table": _table, "csv": _csv, "jsonl": _jsonl}[form](file, top)


def _table(file: TextIO, top: int) -> Callable[[Prediction], None]:
    def write(prediction: Prediction) -> None:
        if prediction.error is not None:
            return  # said on stderr
        k = min(top, len(prediction.classes))
        cells = [f"{name:<{NAME_WIDTH}} {p:>6.1%}" if k > 1 else f"{p:>6.1%}  {name}" for name, p in prediction.top(k)]
        file.write(f"{prediction.path}\n" + "".join(f"  {c}\n" for c in cells) if k > 1 else f"{cells[0]:40} {prediction.path}\n")

    return write


def _csv(file: TextIO, top: int) -> Callable[[Prediction], None]:
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["path", "unsure", "error", *(f"{c}_{k + 1}" for k in range(top) for c in ("class", "name", "probability"))])

    def write(prediction: Prediction) -> None:
        said = prediction.to_dict(top)
        cells = [cell for each in said["top"] for cell in (each["class"], each["name"], f"{each['probability']:.6f}")]
        rows.writerow([said["path"], int(said["unsure"]), said["error"] or "", *cells])

    return write


def _jsonl(file: TextIO, top: int) -> Callable[[Prediction], None]:
    def write(prediction: Prediction) -> None:
        file.write(json.dumps(prediction.to_dict(top), ensure_ascii=False) + "\n")

    return write
