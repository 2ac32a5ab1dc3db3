"""`explain`: heat maps and similar training images. Heavy modules are imported when the command runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from linnaeus.cli import early
from linnaeus.cli.options import ModelCommand, code_option, device_option, load_model, make_console, verbosity
from linnaeus.console import Console, counted, echo
from linnaeus.errors import UserError
from linnaeus.text import probability_percent

if TYPE_CHECKING:
    from linnaeus.explain.neighbors import Gallery, Neighbor
    from linnaeus.explain.saliency import Explanation
    from linnaeus.inference.classifier import Classifier, Prediction
    from linnaeus.report.explanation import Examples
    from linnaeus.training.derived.influence import Pulls, TrainingInfluence

METHODS = ("gradcam", "occlusion", "integrated-gradients")
NEIGHBORS = 5
STEM_LENGTH = 80  # characters of an image's name that are kept in the name of its sheet
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
    help="Class to explain.  [default: the predicted class, or every label that the image is given]",
)
@click.option("--method", type=click.Choice(METHODS), default="gradcam", show_default=True, help="Attribution method.")
@click.option(
    "--stage", metavar="NAME|all", help="Stage for Grad-CAM.  [default: the last with 4 x 4 positions or more]"
)
@click.option("--like", metavar="SOURCE", help="Show the most similar training images; SOURCE is the training data.")
@click.option(
    "--because",
    is_flag=True,
    help="Show the training images with the most influence on the answer, by solving the head of the run without each.",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    metavar="N",
    help=f"Number of training images to show with --like and --because.  [default: {NEIGHBORS}]",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the results as JSON.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write the training images of --because as CSV.")
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
    because: bool,
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
    _check_options(method, stage, top if like is None and not because else None, None if because else csv_file)
    early.check_device(device)
    early.check_output("--json", json_file, (".json",))
    early.check_output("--csv", csv_file, (".csv",))
    early.check_model(model)
    early.check_images(images)
    classifier = load_model(model, device, code)
    console = make_console(sys.stderr)
    sheets = _prepare_sheets(classifier, Path(out), class_name, method, stage)
    if like is not None:
        sheets.compare_with(like, top or NEIGHBORS, console)
    if because:
        from linnaeus.training.derived.influence import TrainingInfluence

        sheets.influence, sheets.top = TrainingInfluence(classifier, console), top or NEIGHBORS
    records, failed = _explain_images(classifier, images, sheets, console)
    _write(records, json_file, csv_file)
    if failed:
        console.warn(f"{failed} of {counted(len(records), 'image')} could not be read")
        raise SystemExit(1)


def _write(records: list[dict[str, Any]], json_file: str | None, csv_file: str | None) -> None:
    from linnaeus.data.class_names import printable
    from linnaeus.files import write_text
    from linnaeus.report.pulls import write_csv

    if json_file:
        write_text(Path(json_file), printable(json.dumps(records, indent=2, ensure_ascii=False)) + "\n")
    if csv_file:
        write_csv(Path(csv_file), records)


def _check_options(method: str, stage: str | None, top: int | None, csv_file: str | None) -> None:
    """Raise UserError for options that contradict each other, or that nothing asks for, before a model is loaded."""
    if stage is not None and method != "gradcam":
        raise UserError(f"--stage {stage}: only Grad-CAM uses a stage; omit --stage or --method {method}")
    if top is not None:
        raise UserError(f"--top {top}: needs --because, or --like SOURCE, the source that the model was trained on")
    if csv_file is not None:
        raise UserError(f"--csv {csv_file}: lists the training images of --because; add it, or use --json")
    if method != "gradcam":
        from linnaeus.explain.saliency import require_captum

        require_captum()


def _prepare_sheets(
    classifier: Classifier, folder: Path, class_name: str | None, method: str, stage: str | None
) -> Sheets:
    from linnaeus.explain.saliency import choose_stages, find_class

    target = None if class_name is None else find_class(classifier, class_name)
    stages = choose_stages(classifier.network, classifier.preprocessing.size, stage) if method == "gradcam" else ()
    return Sheets(classifier, folder, target, method, stages)


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
    for line in (classifier.color.take_line(), advice(sheets.missing) if sheets.missing else ""):
        if line:
            console.warn(line)
    if len(records) > 1:
        hint = "" if detailed or (sheets.gallery, sheets.influence) == (None, None) else "; -v lists the similar images"
        console.say(f"{counted(len(sheets.names), 'sheet')} in {sheets.folder}{hint}")
    return records, failed


@dataclass(frozen=True)
class ExplainedImage:
    """The explanation of one image and the file that shows it."""

    explanation: Explanation
    method: str
    sheet: Path
    neighbors: list[Neighbor] | None
    pulls: Pulls | None = None

    def line(self) -> str:
        """The line of `linnaeus predict` and the path of the sheet."""
        p, e = self.explanation.prediction, self.explanation
        other = "" if e.target == p.index else f"  for {e.name} ({probability_percent(e.probability)})"
        nothing = "  (no area of the image supports it)" if e.empty else ""
        if p.thresholds is not None:
            other, labels = f"  for {e.name} ({probability_percent(e.probability)})", ", ".join(p.labels) or "no label"
            return f"{labels:<24}  {p.path}{other}{nothing}  -> {self.sheet}"
        name = f"{p.verdict} ({p.name})" if p.verdict else p.name
        return f"{probability_percent(p.probability):>7}  {name:<24}  {p.path}{other}{nothing}  -> {self.sheet}"

    def details(self) -> list[str]:
        """One line per training image that is shown."""
        alike = [f"{n.similarity:>8.3f}  {n.name:<22}  {n.path}" for n in self.neighbors or []]
        return [*alike, *(pull.line() for pull in (self.pulls.all if self.pulls else ()))]

    def to_dict(self) -> dict[str, Any]:
        """Keys that are added to the JSON of the prediction."""
        e = self.explanation
        explained = {"class": e.prediction.classes[e.target], "name": e.name, "probability": e.probability}
        stages = {"stages": list(e.maps)} if self.method == "gradcam" else {}
        like = {} if self.neighbors is None else {"like": [n.to_dict() for n in self.neighbors]}
        because = {} if self.pulls is None else {"because": self.pulls.to_dict()}
        record = {"explained": explained, "empty": e.empty, "method": self.method, **stages, "sheet": str(self.sheet)}
        return record | like | because


@dataclass(eq=False)
class Sheets:
    """Draws one sheet per image into a folder, each under a name of its own."""

    classifier: Classifier
    folder: Path
    target: int | None
    """Index of the class to explain; None for the predicted class of each image."""
    method: str
    stages: tuple[str, ...]
    gallery: Gallery | None = None
    """Training images to compare with."""
    influence: TrainingInfluence | None = None
    """Training images whose pull is computed."""
    top: int = NEIGHBORS
    missing: str = ""
    """Characters that no installed font contains."""
    names: set[str] = field(default_factory=set)
    """File names in use, case-folded because some file systems ignore case."""

    def compare_with(self, source: str, top: int, console: Console) -> None:
        """Show the `top` most similar images of `source` on every sheet."""
        from linnaeus.explain.neighbors import gallery

        self.gallery, self.top = gallery(self.classifier, source, console), top
        if not self.gallery.trained:
            n = len(self.gallery)
            console.warn(f"{source}: not known to be the model's training data; comparing with {n} of its images")

    def draw(self, predictions: Sequence[Prediction]) -> Iterator[tuple[Prediction, ExplainedImage | None]]:
        """Each prediction with its sheets, one for each class that is explained; None for an unreadable image."""
        from linnaeus.explain.saliency import explain

        pairs = [(p, target) for p in predictions if p.error is None for target in self._targets(p)]
        readable, targets = [p for p, _ in pairs], [target for _, target in pairs]
        explained = iter(explain(self.classifier, readable, target=targets, method=self.method, stages=self.stages))
        for p in predictions:
            if p.error is not None:
                yield p, None
                continue
            for _ in self._targets(p):
                yield p, self._draw(p, next(explained))

    def _targets(self, prediction: Prediction) -> list[int]:
        """The classes to explain: the chosen one, else the predicted one, or each label that the image is given."""
        return [self.target] if self.target is not None else prediction.given or [prediction.index]

    def _draw(self, prediction: Prediction, explanation: Explanation) -> ExplainedImage:
        from linnaeus.report.explanation import draw_explanation, similar_images
        from linnaeus.report.pulls import pulling_images

        examples: list[Examples] = []
        neighbors = pulls = None
        if self.gallery is not None:
            neighbors = self.gallery.nearest(prediction, self.top)
            examples.append(similar_images(explanation, neighbors, self.gallery.trained))
        if self.influence is not None:
            pulls = self.influence.pulls(prediction, explanation.target, self.top)
            examples += pulling_images(explanation, pulls)
        sheet = ExplainedImage(explanation, self.method, self._new_file(prediction.path), neighbors, pulls)
        true = self.classifier.true_class(prediction.path)
        missing = draw_explanation(explanation, sheet.sheet, true=true, examples=examples)
        # Each missing character is reported once, whatever the number of sheets.
        self.missing += "".join(c for c in missing if c not in self.missing)
        return sheet

    def _new_file(self, path: str) -> Path:
        """Path of the sheet for an image: never that of another sheet, nor of the image itself."""
        stem = Path(path).stem[:STEM_LENGTH]
        number = 1
        suffix = "explained" if self.method == "gradcam" else self.method
        name = f"{stem}-{suffix}.png"
        while name.casefold() in self.names:
            number += 1
            name = f"{stem}-{number}-{suffix}.png"
        self.names.add(name.casefold())
        return self.folder / name


def _batches(predictions: Iterator[Prediction], size: int) -> Iterator[list[Prediction]]:
    while batch := list(islice(predictions, size)):
        yield batch
