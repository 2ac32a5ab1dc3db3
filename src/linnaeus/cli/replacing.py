"""Which existing files a command may replace: those that it wrote itself, recognized by how they begin."""

from __future__ import annotations

import re
from pathlib import Path

from linnaeus.errors import UserError
from linnaeus.files import check_output, disk_errors
from linnaeus.runs import layout

PAGE = rb"[\s\S]*<title>Data check of"
MARKS = {".png": rb"[\s\S]*Linnaeus, Matplotlib", ".html": PAGE, ".htm": PAGE}
"""Patterns of the beginning of the images and pages that commands write."""
RESULTS = {
    "check": rb'\s*\{\s*"source":\s*".*",\s*"(images|pictures)":',
    "compare": rb'\s*\{\s*"split":\s*"\w+",\s*"runs":',
    "evaluate": rb'\s*\{\s*"\w+":\s*\{\s*"n":\s*\d+,\s*"correct":',
    "explain": rb'\s*\[\s*(\]|\{\s*"path":\s*".*",\s*"top":)',
    "explain --csv": rb"image,explained,role,training_image,class,",
    "export": rb'\s*\{\s*"kind":\s*"[\w-]+",\s*"(images|pictures)":',
}
"""Command -> pattern of the beginning of the results that it writes with --json."""


def refuse_to_replace(option: str, path: Path, command: str | None = None) -> None:
    """Raise UserError for an existing file that must not be lost: of a run, or not written by linnaeus.

    `command` is a key of `RESULTS`, for a file of results; images and pages are known by their suffix. Other files of
    an unknown kind are accepted.
    """
    if path.name in layout.FILES and (path.parent / layout.RECIPE).is_file():
        raise UserError(f"{option} {path}: is a file of the run {path.parent}; choose another name")
    mark = MARKS.get(path.suffix.lower(), b"") if command is None else RESULTS[command]
    check_output(path, lambda file: re.match(mark, _start(file)) is not None, option)


def _start(path: Path) -> bytes:
    with disk_errors(path), path.open("rb") as file:
        return file.read(10_000)
