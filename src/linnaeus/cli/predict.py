"""`predict`: what a model says of images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import click

from linnaeus.cli.options import fastest_model, load_model, one_of, peers, several, verbosity
from linnaeus.console import ESCAPED, Console, counted
from linnaeus.errors import UserError

if TYPE_CHECKING:
    from linnaeus.distributed.group import ProcessGroup
    from linnaeus.inference.classifier import Classifier, Prediction
    from linnaeus.inference.writers import Done

GRID_MOST = 64  # images that a grid shows; more would be too small to see


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
@click.option("--grid", metavar="FILE.png", help=f"Draw the first {GRID_MOST} images with their answers.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@several
@click.option("--model", "code", metavar="FILE.py:FUNCTION", help="The network, where it is your own code.")
@verbosity
def predict(
    model: str, images: tuple[str, ...], top: int, form: str | None, out: str | None, grid: str | None, device: str,
    devices: int | None, code: str | None, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Predict IMAGES with MODEL, a run folder or a model file.

    An image is a file, a folder, a glob, or - for paths on standard input. Exit status 1 if any cannot be read. Where
    the first class is less likely than the threshold that the model was given on validation, the answer is unsure.

    A file of CSV or JSON lines that is there already is gone on with: images that it holds are not predicted again.

    Several machines: torchrun --nproc-per-node N -m linnaeus predict ..., or srun linnaeus predict ...; the first
    process reads standard input and writes, and the images must be reachable under the same path from all.
    """
    form = form or {".csv": "csv", ".jsonl": "jsonl"}.get(Path(out or "").suffix.lower(), "table")
    goes_on = out is not None and form != "table"
    advice = f"the same command goes on after what {out} holds" if goes_on else "start it again"
    here = one_of(devices, advice)
    console = Console(quiet=quiet, verbose=verbose, silent=not here.is_main, stream=sys.stderr)
    with peers(here, devices, device, advice) as group:
        with group.propagate_errors():
            if grid and Path(grid).suffix.lower() != ".png":
                raise UserError(f"--grid {grid}: must end in .png")
        fastest = group.broadcast(lambda: fastest_model(model, device, code, console))
        with group.propagate_errors():
            classifier = load_model(fastest, device, code)
        job = _Job(classifier, group, images, form, min(top, len(classifier.classes)), out, grid, console)
        read, failed = job.run()
    if grid and job.shown:
        _draw_grid(grid, job.shown, console)
    if failed:
        console.warn(f"{failed} of {counted(read, 'image')} could not be read")
        raise SystemExit(1)


@dataclass
class _Job:
    """Images to predict, and where the answers go."""

    classifier: Classifier
    group: ProcessGroup
    images: tuple[str, ...]
    form: str
    top: int
    out: str | None
    grid: str | None
    console: Console
    shown: list[tuple[Prediction, int | None]] = field(default_factory=list)
    """For the grid, with their true classes."""

    def run(self) -> tuple[int, int]:
        """How many images there are, those answered earlier included, and how many cannot be read; by the first
        process, which writes."""
        from linnaeus.files import disk_errors
        from linnaeus.inference.distributed import predictions
        from linnaeus.inference.writers import Done, Write, writer

        held, file, done, failed = Done(), sys.stdout, 0, 0
        write: Write = lambda prediction: None
        advance: Callable[[int, TextIO], None] = lambda done, file: None
        place = Path(self.out or "-")
        with disk_errors(place), ExitStack() as opened:
            with self.group.propagate_errors(), disk_errors(place):  # what is wrong is found before anybody predicts
                if self.group.is_main:
                    held = self._held()
                    if self.out:
                        advance = opened.enter_context(_progress(self.console, self.images, len(held.paths)))
                    file = opened.enter_context(_open_out(self.out, held))
                    write = writer(self.form, file, self.top, begin=not held.length)
            answers = predictions(self.classifier, self.group, _left(self.images, held), self._shows_more)
            for prediction in opened.enter_context(closing(answers)):
                write(prediction)
                done += 1
                advance(done, file)
                if prediction.error is not None:
                    failed += 1
                    self.console.warn(f"{prediction.path}: {prediction.error}")
                elif self._shows_more():
                    self.shown.append((prediction, self.classifier.true_class(prediction.path)))
        return done + len(held.paths), failed + held.errors

    def _shows_more(self) -> bool:
        return self.grid is not None and len(self.shown) < GRID_MOST

    def _held(self) -> Done:
        """What the file of answers holds already. Raises UserError where they are not this model's."""
        from linnaeus.inference.writers import Done, check_same, read_done

        held = read_done(Path(self.out), self.form, self.top) if self.out else Done()
        if self.out and held.paths:
            check_same(Path(self.out), held, self.classifier)
            self.console.say(f"{self.out}: goes on after {counted(len(held.paths), 'image')}")
        return held


def _left(images: Iterable[str], held: Done) -> Iterator[str]:
    """The images that the file of answers does not hold yet."""
    from linnaeus.inference.inputs import expand

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
    from linnaeus.inference.inputs import expand

    total = None if "-" in images else sum(1 for _ in expand(images))
    with console.progress("predicting") as advance:

        def tell(done: int, file: TextIO) -> None:
            file.flush()  # what is predicted is kept, whatever happens next
            advance(before + done, total)

        yield tell


def _draw_grid(path: str, shown: Iterable[tuple[Prediction, int | None]], console: Console) -> None:
    """The images with predicted and true name."""
    from linnaeus.report.plots import Shown, advice, image_grid

    tiles = [
        Shown(
            image=p.image,
            predicted=p.name,
            probability=p.probability,
            true=None if true is None else p.names[true],
            note="unsure" if p.unsure else None,
        )
        for p, true in shown
        if p.image is not None
    ]
    missing = image_grid(tiles, Path(path))
    if missing:
        console.warn(advice(missing))
