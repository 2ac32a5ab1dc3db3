"""How `linnaeus predict` writes its answers: a table to read, CSV, or JSON lines. One picture at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from typing import TextIO

from linnaeus.predict import Prediction

NAME_WIDTH = 24
Write = Callable[[Prediction], None]


def writer(form: str, file: TextIO, top: int) -> Write:
    """A function that writes one prediction with its `top` classes to `file`; `form` is table, csv or jsonl."""
    forms: dict[str, Callable[[TextIO, int], Write]] = {
        "table": _table, "csv": _csv, "jsonl": _jsonl,
    }  # fmt: skip
    return forms[form](file, top)


def _table(file: TextIO, top: int) -> Write:
    def write(prediction: Prediction) -> None:
        if prediction.error is not None:
            return  # said on stderr
        ranked = prediction.top(top)
        if len(ranked) == 1:
            name, probability = ranked[0]
            name = f"unsure ({name})" if prediction.unsure else name
            file.write(f"{probability:>6.1%}  {name:<{NAME_WIDTH}}  {prediction.path}\n")
            return
        unsure = "  unsure" if prediction.unsure else ""
        file.write(f"{prediction.path}{unsure}\n" + "".join(f"{p:>8.1%}  {name}\n" for name, p in ranked))

    return write


def _csv(file: TextIO, top: int) -> Write:
    rows = csv.writer(file, lineterminator="\n")
    answers = [f"{cell}_{k + 1}" for k in range(top) for cell in ("class", "name", "probability")]
    rows.writerow(["path", "unsure", "error", *answers])

    def write(prediction: Prediction) -> None:
        said = prediction.to_dict(top)
        cells = [cell for each in said["top"] for cell in (each["class"], each["name"], f"{each['probability']:.6f}")]
        cells += [""] * (len(answers) - len(cells))  # every row has the header's cells, that of an unreadable one too
        unsure = int(said["unsure"]) if prediction.error is None else ""
        rows.writerow([said["path"], unsure, said["error"] or "", *cells])

    return write


def _jsonl(file: TextIO, top: int) -> Write:
    def write(prediction: Prediction) -> None:
        file.write(json.dumps(prediction.to_dict(top), ensure_ascii=False) + "\n")

    return write
