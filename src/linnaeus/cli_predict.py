"""`predict`: what a model says of pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import click

from linnaeus.cli_common import ESCAPED, fastest_model, load_model, verbosity
from linnaeus.console import Console
from linnaeus.errors import UserError

if TYPE_CHECKING:
    from linnaeus.predict import Prediction

GRID_MOST = 64  # pictures that a grid shows; more would be too small to see


@click.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option("--top", default=1, show_default=True, type=click.IntRange(1), help="Classes to show.")
@click.option("--format", "form", type=click.Choice(["table", "csv", "jsonl"]), default="table", show_default=True)
@click.option("--out", metavar="FILE", help="Write the answers there.")
@click.option("--grid", metavar="FILE.png", help=f"Draw the first {GRID_MOST} pictures with their answers.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--model", "code", metavar="FILE.py:FUNCTION", help="The network, where it is your own code.")
@verbosity
def predict(
    model: str, images: tuple[str, ...], top: int, form: str, out: str | None, grid: str | None, device: str,
    code: str | None, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Predict IMAGES with MODEL, a run folder or a model file.

    An image is a file, a folder, a glob, or - for paths on standard input. Exit status 1 if any cannot be read. Where
    the first class is less likely than the threshold that the model was given on validation, the answer is unsure.
    """
    from linnaeus.answers import Write, writer
    from linnaeus.files import disk_errors
    from linnaeus.images import expand

    if grid and Path(grid).suffix.lower() != ".png":
        raise UserError(f"--grid {grid}: must end in .png")
    console = Console(quiet=quiet, verbose=verbose, stream=sys.stderr)
    classifier = load_model(fastest_model(model, device, code, console), device, code)
    shown: list[tuple[Prediction, int | None]] = []
    failed = done = 0
    with disk_errors(Path(out or "-")), _open_out(out) as file:
        write: Write = writer(form, file, min(top, len(classifier.classes)))
        for prediction in classifier.stream(expand(images, sys.stdin)):
            write(prediction)
            done += 1
            if prediction.error is not None:
                failed += 1
                console.warn(f"{prediction.path}: {prediction.error}")
            elif grid and len(shown) < GRID_MOST:
                shown.append((prediction, classifier.true_class(prediction.path)))
    if grid and shown:
        _draw_grid(grid, shown, console)
    if failed:
        console.warn(f"{failed} of {done} pictures could not be read")
        raise SystemExit(1)


def _open_out(out: str | None) -> AbstractContextManager[TextIO]:
    """A file to write answers to, or standard output; UTF-8 in any case."""
    file = click.open_file(out or "-", "w", encoding="utf-8", errors=ESCAPED)
    return cast(AbstractContextManager[TextIO], file)


def _draw_grid(path: str, shown: Iterable[tuple[Prediction, int | None]], console: Console) -> None:
    """The pictures with predicted and true name."""
    from linnaeus.report.plots import Shown, advice, picture_grid

    tiles = [
        Shown(
            picture=p.picture,
            predicted=p.name,
            probability=p.probability,
            true=None if true is None else p.names[true],
            note="unsure" if p.unsure else None,
        )
        for p, true in shown
        if p.picture is not None
    ]
    missing = picture_grid(tiles, Path(path))
    if missing:
        console.warn(advice(missing))
