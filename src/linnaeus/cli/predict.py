"""`predict`: classify images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import click

from linnaeus.cli import early
from linnaeus.cli.options import (
    ModelCommand,
    chosen_model,
    code_option,
    device_option,
    devices_option,
    join_processes,
    load_model,
    make_console,
    process_group,
    use_option,
    verbosity,
)
from linnaeus.console import ESCAPED, Console, counted
from linnaeus.errors import UserError

if TYPE_CHECKING:
    from linnaeus.distributed.group import ProcessGroup
    from linnaeus.inference.classifier import Classifier
    from linnaeus.inference.grid import GridSelection
    from linnaeus.inference.prediction import Prediction
    from linnaeus.inference.resume import ExistingPredictions

GRID_SIZE = 64  # images in a grid; more would be too small to see
FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".txt": "table"}


@click.command(cls=ModelCommand)
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--top",
    type=click.IntRange(1),
    metavar="N",
    help="Number of classes to show.  [default: 1; all for models with several labels]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "jsonl"]),
    help="Output format.  [default: from the suffix of --out, else table]",
)
@click.option("--out", metavar="FILE", help="Output file; an existing CSV or JSONL file is continued.")
@click.option("--grid", metavar="FILE.png", help=f"Draw {GRID_SIZE} images with their predictions, mistakes first.")
@code_option
@use_option
@device_option
@devices_option
@verbosity
def predict(
    model: str,
    images: tuple[str, ...],
    top: int | None,
    form: str | None,
    out: str | None,
    grid: str | None,
    code: str | None,
    use: str | None,
    device: str,
    devices: int | None,
) -> None:
    """Classify images.

    MODEL is a run folder, a model file, or hf:OWNER/NAME on the Hugging Face hub. An image is a file, a folder, a glob
    pattern, or - to read paths from standard input. The answer is "unsure" if the best class is less probable than the
    threshold fitted on validation, and "unknown" if the image is unlike the training images; models that give images
    several labels have neither. Images that --out holds already are skipped. Exit status 1 if any image cannot be read.

    Several machines: torchrun --nproc-per-node N -m linnaeus predict ..., or srun linnaeus predict ... Process 0
    reads standard input and writes the output; all machines need the images under the same paths.
    """
    with early.one_report():
        form = _form(form, out)
        early.check_device(device)
        early.check_model(model)
        early.check_images(images)
        early.check_output("--grid", grid, (".png",))
    resumable = out is not None and form != "table"
    advice = f"run the same command again to continue {out}" if resumable else "run it again"
    here = join_processes(devices, advice)
    console = make_console(sys.stderr, silent=not here.is_main)
    with process_group(here, devices, device, advice) as group:
        with group.propagate_errors():
            _check_outputs(out, form, grid, images)
        file = group.broadcast(lambda: chosen_model(model, device, code, use, console))
        with group.propagate_errors():
            classifier = load_model(file, device, code)
            selection = _grid_selection(grid, images, classifier)
        job = PredictionJob(classifier, group, images, form, _shown(top, classifier), out, console)
        job.grid = selection
        total, failed = job.run()
    if grid and job.grid and job.grid.total:
        _draw_grid(grid, job.grid, console)
    if failed:
        problem = "got no answer" if job.unanswered else "could not be read"
        console.warn(f"{failed} of {counted(total, 'image')} {problem}")
        raise SystemExit(1)


def _shown(top: int | None, classifier: Classifier) -> int:
    """Number of classes to show: as many as asked for, else one, or all where images have several labels."""
    count = len(classifier.classes)
    return min(top or (count if classifier.several else 1), count)


def _form(form: str | None, out: str | None) -> str:
    """The format of the answers, by option or by the suffix of the file. Raises UserError if both disagree."""
    named = FORMATS.get(Path(out or "").suffix.lower())
    if form is not None and named is not None and form != named:
        raise UserError(f"--out {out}: its name says {named}, but --format says {form}; change one of them")
    suffixes = tuple(suffix for suffix, name in FORMATS.items() if form in (None, name))
    early.check_output("--out", out, suffixes)
    return form or named or "table"


def _check_outputs(out: str | None, form: str, grid: str | None, images: tuple[str, ...]) -> None:
    """Raise UserError if --out or --grid would replace a file of the user."""
    from linnaeus.files import check_output

    if grid and Path(grid).suffix.lower() != ".png":
        raise UserError(f"--grid {grid}: must end in .png")
    if grid in images:
        raise UserError(f"--grid {grid}: is one of the images; choose another name")
    if out and form == "table":  # files of the other formats are continued
        check_output(Path(out), lambda path: False, "--out")


@dataclass
class PredictionJob:
    """Predicts images in all processes of a group and writes the answers in the main process."""

    classifier: Classifier
    group: ProcessGroup
    images: tuple[str, ...]
    form: str
    top: int
    out: str | None
    console: Console
    grid: GridSelection | None = None  # the predictions to draw; None if none are
    unanswered: bool = False  # whether an image was read and got no answer

    def run(self) -> tuple[int, int]:
        """(number of images, number of unreadable images), including those of earlier runs; main process only."""
        from linnaeus.files import disk_errors
        from linnaeus.inference.distributed import predictions
        from linnaeus.inference.inputs import expand
        from linnaeus.inference.problems import FoldedProblems
        from linnaeus.inference.resume import ExistingPredictions
        from linnaeus.inference.runners import NOT_FINITE

        done, failed, write, problems = 0, 0, None, FoldedProblems()
        previous = ExistingPredictions()
        path = Path(self.out or "standard output")
        with disk_errors(path), ExitStack() as stack:
            # Errors of the main process reach the others here, before any of them waits for images.
            with self.group.propagate_errors(), disk_errors(path):
                if self.group.is_main:
                    previous = self._read_previous(stack)
                    write = stack.enter_context(self._open_output(previous))
            # A grid shows images of the whole command, so it needs also those whose answers are written already.
            paths = (path for path in expand(self.images, sys.stdin) if self.grid or path not in previous)
            answers = predictions(self.classifier, self.group, paths, lambda: self.grid is not None)
            for prediction in stack.enter_context(closing(answers)):
                assert write is not None  # only the main process receives predictions
                if self.grid is not None and prediction.error is None:
                    self.grid.add(prediction, self.classifier.true_class(prediction.path))
                if prediction.path in previous:
                    continue
                write(prediction)
                done += 1
                if prediction.error is not None:
                    failed += 1
                    # One kind of failure is not of the image, and the summary must say so.
                    self.unanswered |= prediction.error == NOT_FINITE
                    line = problems.add(prediction.path, prediction.error)
                    if line is not None:
                        self.console.warn(line)
        for line in (*problems.rest(), self.classifier.color.take_line()):
            if line:
                self.console.warn(line)
        total = done + len(previous.paths)
        if self.out:
            self.console.say(f"answers   {self.out}: {counted(total, 'image')}")
        return total, failed + previous.errors

    def _read_previous(self, stack: ExitStack) -> ExistingPredictions:
        """The answers that the output file already holds. Raises UserError if another model gave them.

        The file stays locked until the end of `stack`: two processes would write over each other.
        """
        from linnaeus.files import claimed
        from linnaeus.inference.resume import (
            ExistingPredictions,
            check_same_model,
            forget_passing_errors,
            read_existing,
        )

        if not self.out:
            return ExistingPredictions()
        stack.enter_context(claimed(Path(self.out)))
        previous = read_existing(Path(self.out), self.form, self.top, self.classifier.several)
        if previous.paths:
            check_same_model(Path(self.out), previous, self.classifier)
        if previous.again:
            forget_passing_errors(Path(self.out), previous)
            stack.enter_context(claimed(Path(self.out)))  # it is another file now
            previous = read_existing(Path(self.out), self.form, self.top, self.classifier.several)
        if previous.paths:
            self.console.say(f"{self.out}: continuing after {counted(len(previous.paths), 'image')}")
        return previous

    @contextmanager
    def _open_output(self, previous: ExistingPredictions) -> Iterator[Callable[[Prediction], None]]:
        """A function that writes a prediction, and counts it on a progress bar if the output is a file."""
        from linnaeus.inference.inputs import expand
        from linnaeus.inference.writers import open_writer

        existing = previous.header if previous.length else None
        with _open_file(self.out, previous) as file:
            write = open_writer(self.form, file, self.top, existing, several=self.classifier.several)
            if not self.out:  # progress would only disturb answers that are printed on the terminal
                yield write
                return
            total = None if "-" in self.images else sum(1 for _ in expand(self.images))
            numbers = count(len(previous.paths) + 1)
            with self.console.progress("predicting") as advance:

                def write_and_count(prediction: Prediction) -> None:
                    write(prediction)
                    file.flush()  # a killed process then loses nothing that was predicted
                    advance(next(numbers), total)

                yield write_and_count


@contextmanager
def _open_file(out: str | None, previous: ExistingPredictions) -> Iterator[TextIO]:
    """The output file, positioned after the answers it already holds, or standard output. Always UTF-8."""
    if out and previous.length:
        with Path(out).open("r+", encoding="utf-8", errors=ESCAPED, newline="\n") as file:
            file.truncate(previous.length)
            file.seek(previous.length)
            yield file
        return
    if not out and not hasattr(sys.stdout, "buffer"):  # the object of a notebook or a window
        yield sys.stdout
        return
    with click.open_file(out or "-", "w", encoding="utf-8", errors=ESCAPED) as stream:
        yield cast(TextIO, stream)


def _grid_selection(grid: str | None, images: tuple[str, ...], classifier: Classifier) -> GridSelection | None:
    """The images of the grid, still none. Raises UserError if the grid would lie among the images."""
    from linnaeus.data.sources import refuse_among
    from linnaeus.inference.grid import GridSelection
    from linnaeus.inference.membership import Membership

    if grid is None:
        return None
    refuse_among("--grid", grid, images, classifier.classes)
    return GridSelection(GRID_SIZE, Membership.of_model(classifier.about, classifier.path))


def _draw_grid(path: str, grid: GridSelection, console: Console) -> None:
    """Draw images with their predicted and true names."""
    from linnaeus.report.fonts import advice
    from linnaeus.report.image_grid import PredictedImage, image_grid

    tiles = [
        PredictedImage(
            image=p.image,
            predicted=p.answer,
            probability=p.probability,
            true=None if true is None else p.names[true],
            note=p.verdict or None,
        )
        for p, true in grid.shown()
        if p.image is not None
    ]
    missing = image_grid(tiles, Path(path), title=grid.title())
    console.say(f"grid      {path}: {grid.title()}")
    if missing:
        console.warn(advice(missing))
