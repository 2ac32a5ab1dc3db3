"""`explain`: heat maps and similar training images. Heavy modules are imported when the command runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from linnaeus.cli import early
from linnaeus.cli.options import ModelCommand, code_option, device_option, load_model, make_console, verbosity
from linnaeus.console import Console, counted, echo
from linnaeus.errors import UserError

if TYPE_CHECKING:
    from linnaeus.cli.sheets import Sheets
    from linnaeus.inference.classifier import Classifier, Prediction

METHODS = ("gradcam", "occlusion", "integrated-gradients")
NEIGHBORS = 5
BATCH = 8  # images explained at a time with Grad-CAM; the slower methods report after every image


@click.command(cls=ModelCommand)
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--out", metavar="DIR", default="explained", show_default=True, help="Folder for the sheets, one per image."
)
@click.option(
    "--class",
    "class_name",
    metavar="NAME",
    help="Class to explain.  [default: the predicted class, or all predicted labels]",
)
@click.option("--method", type=click.Choice(METHODS), default="gradcam", show_default=True, help="Attribution method.")
@click.option(
    "--stage", metavar="NAME|all", help="Stage for Grad-CAM.  [default: the last with 4 x 4 positions or more]"
)
@click.option("--like", metavar="SOURCE", help="Show the most similar training images; SOURCE is the training data.")
@click.option(
    "--influence",
    is_flag=True,
    help="Show the training images that influence the answer most: the head of the run is solved again without each.",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    metavar="N",
    help=f"Number of training images to show with --like and --influence.  [default: {NEIGHBORS}]",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the results as JSON.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write the training images of --influence as CSV.")
@code_option
@device_option
@verbosity
def explain(
    model: str,
    images: tuple[str, ...],
    out: str,
    class_name: str | None,
    method: str,
    stage: str | None,
    like: str | None,
    influence: bool,
    top: int | None,
    json_file: str | None,
    csv_file: str | None,
    code: str | None,
    device: str,
) -> None:
    """Explain predictions with heat maps and similar images.

    For each image, a sheet shows which regions led MODEL to its answer and, with --like, the most similar training
    images. An image is a file, a folder, a glob pattern, or - to read paths from standard input. One line per image
    names its sheet; for a single file, and with -v, the similar images follow. Each heat map has its own scale, so maps
    show location, not strength. Exit status 1 if any image cannot be read.

    Grad-CAM costs as much as two or three predictions. Integrated gradients (about 60) and occlusion (about 170)
    require captum.
    """
    _check_options(method, stage, like, influence, top, csv_file)
    early.check_device(device)
    early.check_output("--json", json_file, (".json",), "explain")
    early.check_output("--csv", csv_file, (".csv",), "explain --csv")
    early.check_model(model)
    early.check_images(images)
    classifier = load_model(model, device, code)
    console = make_console(sys.stderr)
    from linnaeus.cli.sheets import Sheets
    from linnaeus.data.sources import refuse_among

    refuse_among("--out", out, images, classifier.classes)
    sheets = Sheets.of(classifier, Path(out), class_name, method, stage, top or NEIGHBORS)
    if like is not None:
        sheets.compare_with(like, console)
    if influence:
        from linnaeus.training.derived.influence import TrainingInfluence

        sheets.influence = TrainingInfluence(classifier, console)
    records, failed = _explain_images(classifier, images, sheets, console)
    _write(records, json_file, csv_file)
    if failed:
        console.warn(f"{failed} of {counted(len(records), 'image')} could not be read")
        raise SystemExit(1)


def _write(records: list[dict[str, Any]], json_file: str | None, csv_file: str | None) -> None:
    from linnaeus.data.class_names import printable
    from linnaeus.files import write_text
    from linnaeus.report.influential import write_csv

    if json_file:
        write_text(Path(json_file), printable(json.dumps(records, indent=2, ensure_ascii=False)) + "\n")
    if csv_file:
        write_csv(Path(csv_file), records)


def _check_options(
    method: str, stage: str | None, like: str | None, influence: bool, top: int | None, csv_file: str | None
) -> None:
    """Raise UserError for options that contradict each other, or that nothing asks for, before a model is loaded."""
    if stage is not None and method != "gradcam":
        raise UserError(f"--stage {stage}: only Grad-CAM uses a stage; omit --stage or --method {method}")
    if top is not None and like is None and not influence:
        raise UserError(f"--top {top}: needs --influence, or --like SOURCE, the source that the model was trained on")
    if csv_file is not None and not influence:
        raise UserError(f"--csv {csv_file}: lists the training images of --influence; add it, or use --json")
    if method != "gradcam":
        from linnaeus.explain.saliency import require_captum

        require_captum()


def _explain_images(
    classifier: Classifier, images: tuple[str, ...], sheets: Sheets, console: Console
) -> tuple[list[dict[str, Any]], int]:
    """Draw and print one sheet per image. Returns (JSON record of each image, number of unreadable images)."""
    from linnaeus.inference.inputs import expand
    from linnaeus.report.fonts import advice

    records: list[dict[str, Any]] = []
    failed = 0
    detailed = console.verbose or (len(images) == 1 and Path(images[0]).is_file())
    # Occlusion and integrated gradients run hundreds of passes for one image, which fill a batch by themselves.
    size = BATCH if sheets.method == "gradcam" else 1
    for batch in _batches(classifier.stream(expand(images, sys.stdin)), size):
        for prediction, sheet in sheets.draw(batch):
            records.append(prediction.to_dict() | ({} if sheet is None else sheet.to_dict()))
            if sheet is None:
                failed += 1
                console.warn(f"{prediction.path}: {prediction.error}")
            else:
                echo(sheet.line())
                for line in sheet.details() if detailed else ():
                    echo(line)
    for line in (classifier.color.take_line(), advice(sheets.missing)):
        if line:
            console.warn(line)
    if len(records) > 1:
        hint = "" if detailed or (sheets.gallery, sheets.influence) == (None, None) else "; -v lists the similar images"
        console.say(f"{counted(len(sheets.names), 'sheet')} in {sheets.folder}{hint}")
    return records, failed


def _batches(predictions: Iterator[Prediction], size: int) -> Iterator[list[Prediction]]:
    while batch := list(islice(predictions, size)):
        yield batch
