"""How `linnaeus predict` writes its answers: a table to read, CSV, or JSON lines. One image at a time.

A JSON line, and the columns of CSV with --top K:

    {"path": "rose/1.jpg", "top": [{"class": "1", "name": "rose", "probability": 0.93}], "unsure": false, "error": null}
    path, unsure, error, class_1, name_1, probability_1, …, class_K, name_K, probability_K

Where an image cannot be read, `error` says why and `top` is empty.

A CSV or JSON lines file that is there already is gone on with: what it holds is not predicted again, and half a line at
its end, which a killed process leaves, is cut off.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from linnaeus.console import ESCAPED
from linnaeus.errors import UserError
from linnaeus.inference.classifier import Classifier, Prediction

NAME_WIDTH = 24
SAME = 0.02
"""Largest difference of a probability to what a file holds that the same model may make: another executor, or int8."""

Write = Callable[[Prediction], None]


def writer(form: str, file: TextIO, top: int, begin: bool = True) -> Write:
    """A function that writes one prediction with its `top` classes to `file`; `form` is table, csv or jsonl.

    `begin` is False where the file has its beginning already.
    """
    if form == "csv":
        return _csv(file, top, begin)
    return {"table": _table, "jsonl": _jsonl}[form](file, top)


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


def csv_header(top: int) -> list[str]:
    return [
        "path",
        "unsure",
        "error",
        *(f"{cell}_{k + 1}" for k in range(top) for cell in ("class", "name", "probability")),
    ]


def _csv(file: TextIO, top: int, begin: bool) -> Write:
    rows = csv.writer(file, lineterminator="\n")
    width = len(csv_header(top))
    if begin:
        rows.writerow(csv_header(top))

    def write(prediction: Prediction) -> None:
        said = prediction.to_dict(top)
        answers = [cell for each in said["top"] for cell in (each["class"], each["name"], f"{each['probability']:.6f}")]
        unsure = int(said["unsure"]) if prediction.error is None else ""
        row = [said["path"], unsure, said["error"] or "", *answers]
        rows.writerow(row + [""] * (width - len(row)))  # every row has the header's cells, an unreadable one's too

    return write


def _jsonl(file: TextIO, top: int) -> Write:
    def write(prediction: Prediction) -> None:
        file.write(json.dumps(prediction.to_dict(top), ensure_ascii=False) + "\n")

    return write


@dataclass(frozen=True)
class Answer:
    """What a file holds of one image."""

    path: str
    error: str
    likeliest: str
    """Class name; nothing where there was an error."""
    probability: float
    end: int
    """Bytes of the file up to the end of this line."""


@dataclass
class Done:
    """What a file of answers holds already."""

    paths: set[str] = field(default_factory=set)
    errors: int = 0
    length: int = 0
    """Bytes up to the end of the last whole line; what follows is to be cut off."""
    some: list[Answer] = field(default_factory=list)
    """The first and the last that could be read: enough to see whether another model gave them."""

    def __contains__(self, path: str) -> bool:
        return path.encode("utf-8", ESCAPED).decode() in self.paths


def read_done(path: Path, form: str, top: int) -> Done:
    """What the file of answers `path` holds; nothing where it is not there, or is empty.

    Raises UserError where it holds something else than answers of this format with `top` classes.
    """
    done = Done()
    if form == "table" or not path.is_file():
        return done
    with path.open("rb") as file:
        for answer in (_csv_answers if form == "csv" else _jsonl_answers)(path, file, top, done):
            done.paths.add(answer.path.encode("utf-8", ESCAPED).decode())
            done.length = answer.end
            done.errors += bool(answer.error)
            if not answer.error:
                done.some[1:] = [answer] if done.some else []
                done.some = done.some or [answer]
    return done


def _csv_answers(path: Path, file: BinaryIO, top: int, done: Done) -> Iterator[Answer]:
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        for line in file:
            if not line.endswith(b"\n"):
                return  # the rest of a line that was being written
            end += len(line)
            yield line.decode("utf-8", "surrogateescape")

    rows = csv.reader(lines(), strict=True)
    header, want = next(rows, None), csv_header(top)
    if header is None:
        with path.open("rb") as again:  # a header that was being written, at most
            if not (",".join(want) + "\n").encode().startswith(again.read(1 << 16)):
                raise _foreign(path, "no answers")
        return
    if header != want:
        columns = sum(cell.startswith("class_") for cell in header)
        ours = header == csv_header(columns)
        raise _foreign(path, f"answers with --top {columns}" if ours else "other columns")
    done.length = end
    try:
        for row in rows:
            if len(row) != len(want):
                raise _foreign(path, f"a line of {len(row)} cells, not {len(want)},")
            yield Answer(row[0], row[2], row[3], float(row[5] or 0), end)
    except csv.Error:  # a quoted name was being written
        return
    except ValueError:
        raise _foreign(path, f"a probability of {row[5]!r}") from None


def _jsonl_answers(path: Path, file: BinaryIO, top: int, done: Done) -> Iterator[Answer]:
    end = 0
    for line in file:
        if not line.endswith(b"\n"):
            return
        end += len(line)
        try:
            told: dict[str, Any] = json.loads(line)
            first: dict[str, Any] = told["top"][0] if told["top"] else {"class": "", "probability": 0.0}
            answer = Answer(told["path"], told["error"] or "", first["class"], float(first["probability"]), end)
            many = len(told["top"])
        except (ValueError, KeyError, TypeError):
            raise _foreign(path, "a line that is no answer") from None
        if many != top and not answer.error:
            raise _foreign(path, f"answers with --top {many}")
        yield answer


def _foreign(path: Path, what: str) -> UserError:
    return UserError(f"{path}: is there already and holds {what}; remove it, or give another --out")


def check_same(path: Path, done: Done, classifier: Classifier) -> None:
    """Raise UserError where the answers in a file are not those of this model: the two must not be mixed."""
    for answer in done.some:
        if not Path(answer.path).is_file():
            continue
        now = next(classifier.stream([answer.path]))
        if now.error is not None:
            continue
        known = {now.classes[k]: p for k, p in now.ranked(len(now.classes))}
        if abs(known.get(answer.likeliest, 0.0) - answer.probability) > SAME:
            raise UserError(
                f"{path}: holds answers of another model, or for other images ({answer.path}: {answer.likeliest} "
                f"{answer.probability:.1%}, here {now.classes[now.index]} {now.probability:.1%}); remove it, or give "
                "another --out"
            )
