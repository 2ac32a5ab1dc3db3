"""Writing the predictions of `linnaeus predict`, one image at a time: a table to read, CSV, or JSON lines.

A JSON line, and the columns of CSV with --top K:

    {"path": "rose/1.jpg", "top": [{"class": "1", "name": "rose", "probability": 0.93}], "unsure": false,
     "unknown": false, "distance": 0.31, "error": null}
    path, unsure, error, class_1, name_1, probability_1, …, class_K, name_K, probability_K, unknown, distance

A model that gives images several labels writes them too: `"labels": ["1", "7"]` in JSON, and in CSV a column `labels`
at the end, separated by |.

Where an image cannot be read, `error` gives the reason and `top` is empty. `unknown` is null, or an empty cell, where
the model cannot tell; `distance` where it has no features to compare.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import TextIO

from linnaeus.inference.classifier import Prediction
from linnaeus.text import SafeCsvWriter, probability_percent

NAME_WIDTH = 24
UNKNOWN = ("unknown", "distance")
LABELS = "labels"  # the last columns of CSV, which files of earlier versions lack


PredictionWriter = Callable[[Prediction], None]  # writes a prediction to a file, with its most likely classes


def open_writer(
    form: str, file: TextIO, top: int, existing: list[str] | None = None, *, several: bool = False
) -> PredictionWriter:
    """A writer of predictions with their `top` classes; `form` is table, csv or jsonl.

    `existing` is the header of a CSV file that is continued. `several`: images have several labels.
    """
    if form == "csv":
        header = existing or csv_header(top, several=several)
        rows = SafeCsvWriter(file)
        if existing is None:
            rows.writerow(header)
        return partial(_write_row, rows, header, top)
    if form == "table":
        return partial(_write_labels if several else _write_answer, file, top)
    return partial(_write_json, file, top)


def _write_answer(file: TextIO, top: int, prediction: Prediction) -> None:
    """A line per image; with several classes, a block of lines."""
    if prediction.to_dict(1)["error"] is not None:
        return  # the command prints a warning instead
    ranked = prediction.top(top)
    if len(ranked) == 1:
        name, probability = ranked[0]
        name = f"{prediction.verdict} ({name})" if prediction.verdict else name
        file.write(f"{probability_percent(probability):>7}  {name:<{NAME_WIDTH}}  {prediction.path}\n")
        return
    verdict = f"  {prediction.verdict}" if prediction.verdict else ""
    file.write(
        f"{prediction.path}{verdict}\n" + "".join(f"{probability_percent(p):>9}  {name}\n" for name, p in ranked)
    )


def _write_labels(file: TextIO, top: int, prediction: Prediction) -> None:
    """A line per image, with the labels that it is given; or with fewer than all labels, a block of the most likely."""
    if prediction.error is not None:
        return  # the command prints a warning instead
    ranked, assigned = prediction.ranked(len(prediction.classes)), prediction.given
    if top < len(ranked):
        file.write(f"{prediction.path}\n")
        for i, p in ranked[:top]:
            file.write(f"{probability_percent(p):>9}  {'yes' if i in assigned else 'no':<3}  {prediction.names[i]}\n")
        return
    labels = ", ".join(f"{prediction.names[i]} {probability_percent(p)}" for i, p in ranked if i in assigned)
    file.write(f"{prediction.path}  {labels or 'no label'}\n")


def csv_header(top: int, *, unknown: bool = True, several: bool = False) -> list[str]:
    """The columns of CSV; without `unknown`, those of earlier versions."""
    ranks = (f"{column}_{rank}" for rank in range(1, top + 1) for column in ("class", "name", "probability"))
    return ["path", "unsure", "error", *ranks, *(UNKNOWN if unknown else ()), *([LABELS] if several else [])]


def _write_row(rows: SafeCsvWriter, header: list[str], top: int, prediction: Prediction) -> None:
    """A row per image. Every row has the cells of the header, also that of an unreadable image."""
    values = prediction.to_dict(top)
    unsure = int(values["unsure"]) if values["error"] is None else ""
    row = [values["path"], unsure, values["error"] or ""]
    for answer in values["top"]:
        row += [answer["class"], answer["name"], f"{answer['probability']:.6f}"]
    row += [""] * (len(csv_header(top, unknown=False)) - len(row))
    unknown = "" if values["unknown"] is None else int(values["unknown"])
    distance = "" if values["distance"] is None else f"{values['distance']:.6f}"
    several = [""] if "labels" not in values else ["|".join(values["labels"])]
    rest = dict(zip((*UNKNOWN, LABELS), (unknown, distance, *several), strict=True))
    rows.writerow([*row, *(rest[column] for column in header[len(row) :])])


def _write_json(file: TextIO, top: int, prediction: Prediction) -> None:
    """A JSON object per line."""
    file.write(json.dumps(prediction.to_dict(top), ensure_ascii=False, allow_nan=False) + "\n")
