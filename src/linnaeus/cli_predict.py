"""`predict`: what a model says of pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import click

from linnaeus.cli_common import fastest_model, load_model, verbosity
from linnaeus.console import ESCAPED, Console
from linnaeus.errors import UserError

if TYPE_CHECKING:
    from linnaeus.answers import Done
    from linnaeus.predict import Prediction

GRID_MOST = 64  # pictures that a grid shows; more would be too small to see


@click.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option("--top", default=1, show_default=True, type=click.IntRange(1), help="Classes to show.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "jsonl"]),
    help="[default: what the name of --out says, else table]",
)
@click.option("--out", metavar="FILE", help="Write the answers there; CSV and JSON lines go on where they stopped.")
@click.option("--grid", metavar="FILE.png", help=f"Draw the first {GRID_MOST} pictures with their answers.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--model", "code", metavar="FILE.py:FUNCTION", help="The network, where it is your own code.")
@verbosity
def predict(
    model: str, images: tuple[str, ...], top: int, form: str | None, out: str | None, grid: str | None, device: str,
    code: str | None, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Predict IMAGES with MODEL, a run folder or a model file.

    An image is a file, a folder, a glob, or - for paths on standard input. Exit status 1 if any cannot be read. Where
    the first class is less likely than the threshold that the model was given on validation, the answer is unsure.

    A file of CSV or JSON lines that is there already is gone on with: pictures that it holds are not predicted again.
    """
    from linnaeus.answers import Done, Write, check_same, form_of, read_done, writer
    from linnaeus.files import disk_errors

    if grid and Path(grid).suffix.lower() != ".png":
        raise UserError(f"--grid {grid}: must end in .png")
    console = Console(quiet=quiet, verbose=verbose, stream=sys.stderr)
    classifier = load_model(fastest_model(model, device, code, console), device, code)
    form, top = form_of(out, form), min(top, len(classifier.classes))
    with disk_errors(Path(out or "-")):
        held = read_done(Path(out), form, top) if out else Done()
    if out and held.paths:
        check_same(Path(out), held, classifier)
        console.say(f"{out}: goes on after {len(held.paths)} pictures")
    shown: list[tuple[Prediction, int | None]] = []
    failed = done = 0
    progress = _progress(console, images, len(held.paths)) if out else nullcontext(lambda done, file: None)
    with disk_errors(Path(out or "-")), progress as advance, _open_out(out, held) as file:
        write: Write = writer(form, file, top, begin=not held.length)
        for prediction in classifier.stream(_left(images, held)):
            write(prediction)
            done += 1
            advance(done, file)
            if prediction.error is not None:
                failed += 1
                console.warn(f"{prediction.path}: {prediction.error}")
            elif grid and len(shown) < GRID_MOST:
                shown.append((prediction, classifier.true_class(prediction.path)))
    if grid and shown:
        _draw_grid(grid, shown, console)
    failed += held.errors
    if failed:
        console.warn(f"{failed} of {done + len(held.paths)} pictures could not be read")
        raise SystemExit(1)


def _left(images: Iterable[str], held: Done) -> Iterator[str]:
    """The pictures that the file of answers does not hold yet."""
    from linnaeus.images import expand

    return (path for path in expand(images, sys.stdin) if path not in held)


@contextmanager
def _open_out(out: str | None, held: Done) -> Iterator[TextIO]:
    """A file to write answers to, after those that it holds, or standard output; UTF-8 in any case."""
    if out and held.length:
        with Path(out).open("r+", encoding="utf-8", errors=ESCAPED, newline="\n") as file:
            file.truncate(held.length)
            file.seek(held.length)
            yield file
        return
    with click.open_file(out or "-", "w", encoding="utf-8", errors=ESCAPED) as stream:
        yield cast(TextIO, stream)


@contextmanager
def _progress(console: Console, images: tuple[str, ...], before: int) -> Iterator[Callable[[int, TextIO], None]]:
    """Says how far the work is, of which `before` was done earlier, and hands each answer to the system."""
    from linnaeus.images import expand

    total = None if "-" in images else sum(1 for _ in expand(images))
    with console.progress("predicting") as advance:

        def tell(done: int, file: TextIO) -> None:
            file.flush()  # what is predicted is kept, whatever happens next
            advance(before + done, total)

        yield tell


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
