"""The command that explains: explain. Heavy things are imported inside, so that --help is instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from linnaeus.cli.options import load_model, verbosity
from linnaeus.console import Console, counted
from linnaeus.errors import UserError

if TYPE_CHECKING:
    from linnaeus.explain.neighbors import Gallery, Neighbor
    from linnaeus.explain.saliency import Explanation
    from linnaeus.inference.classifier import Classifier, Prediction

METHODS = ("gradcam", "occlusion", "integrated-gradients")
NEIGHBORS = 5
LONGEST = 80  # characters of an image's name that its sheet takes over
AT_ONCE = 8  # images between two looks at what is done


@click.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option("--out", metavar="DIR", default="explained", show_default=True, help="A sheet for each image goes there.")
@click.option("--class", "wanted", metavar="NAME", help="Explain this class instead of the predicted one.")
@click.option("--method", type=click.Choice(METHODS), default="gradcam", show_default=True, help="How a map is made.")
@click.option("--stage", metavar="NAME|all", help="Where Grad-CAM looks.  [default: the last that tells places apart]")
@click.option("--like", metavar="SOURCE", help="Show the training images that look most alike; SOURCE holds them.")
@click.option("--top", type=click.IntRange(1), help=f"How many of them.  [default: {NEIGHBORS}]")
@click.option("--json", "json_file", metavar="FILE", help="Write what is printed there, and more.")
@click.option("--model", "code", metavar="FILE.py:FUNCTION", help="The network, where it is your own code.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@verbosity
def explain(
    model: str, images: tuple[str, ...], out: str, wanted: str | None, method: str, stage: str | None,
    like: str | None, top: int | None, json_file: str | None, code: str | None, device: str, quiet: bool,
    verbose: bool,
) -> None:  # fmt: skip
    """Show why MODEL gives IMAGES their class: where in the image it sees it, and what it looks like.

    An image is a file, a folder, a glob, or - for paths on standard input. A line an image says where its sheet lies.
    A map has a scale of its own: it says where, not how strongly. Exit status 1 if any image cannot be read.

    Grad-CAM takes as long as two or three predictions; integrated gradients (as 60) and occlusion (as 170) need captum.
    """
    from linnaeus.data.class_names import printable
    from linnaeus.explain.neighbors import gallery
    from linnaeus.explain.saliency import choose_stages, find_class, require_captum
    from linnaeus.files import write_text
    from linnaeus.inference.inputs import expand
    from linnaeus.report.fonts import advice

    if stage is not None and method != "gradcam":
        raise UserError(f"--stage {stage}: only Grad-CAM looks at a stage; leave out --stage or --method {method}")
    if top is not None and like is None:
        raise UserError(f"--top {top}: of what? add --like SOURCE, the source that the model was trained on")
    if method != "gradcam":
        require_captum()
    classifier = load_model(model, device, code)
    target = None if wanted is None else find_class(classifier, wanted)
    stages = choose_stages(classifier.network, classifier.preprocessing.size, stage) if method == "gradcam" else ()
    console = Console(quiet=quiet, verbose=verbose, stream=sys.stderr)
    alike = None if like is None else gallery(classifier, like, console)
    if alike is not None and not alike.trained:
        console.warn(f"{like}: not known to be what the model was trained on; compared with {len(alike)} of its images")
    sheets = Sheets(classifier, Path(out), target, method, stages, alike, top or NEIGHBORS)
    told: list[dict[str, Any]] = []
    failed = 0
    for some in _chunks(classifier.stream(expand(images, sys.stdin)), AT_ONCE if method == "gradcam" else 1):
        for prediction, sheet in sheets.draw(some):
            told.append(prediction.to_dict() | ({} if sheet is None else sheet.to_dict()))
            if sheet is None:
                failed += 1
                console.warn(f"{prediction.path}: {prediction.error}")
            else:
                click.echo(str(sheet))
    if json_file:
        write_text(Path(json_file), printable(json.dumps(told, indent=2, ensure_ascii=False)) + "\n")
    if sheets.missing:
        console.warn(advice(sheets.missing))
    if failed:
        console.warn(f"{failed} of {counted(len(told), 'image')} could not be read")
        raise SystemExit(1)


@dataclass(frozen=True)
class Told:
    """What the command says of an image."""

    explanation: Explanation
    method: str
    sheet: Path
    like: list[Neighbor] | None

    def __str__(self) -> str:
        """The predicted class as `linnaeus predict` prints it, and where the sheet is; then what looks alike."""
        p, e = self.explanation.prediction, self.explanation
        other = "" if e.target == p.index else f"  for {e.name} ({e.probability:.1%})"
        name = f"unsure ({p.name})" if p.unsure else p.name
        lines = [f"{p.probability:>6.1%}  {name:<24}  {p.path}{other}  -> {self.sheet}"]
        return "\n".join([*lines, *(f"{n.similarity:>8.3f}  {n.name:<22}  {n.path}" for n in self.like or [])])

    def to_dict(self) -> dict[str, Any]:
        """What it adds to the JSON of a prediction."""
        e = self.explanation
        what = {"class": e.prediction.classes[e.target], "name": e.name, "probability": e.probability}
        stages = {"stages": list(e.maps)} if self.method == "gradcam" else {}
        like = {} if self.like is None else {"like": [n.to_dict() for n in self.like]}
        return {"explained": what, "method": self.method, **stages, "sheet": str(self.sheet), **like}


class Sheets:
    """Draws a sheet for each image of a command, in files of their own."""

    def __init__(
        self, classifier: Classifier, folder: Path, target: int | None, method: str, stages: tuple[str, ...],
        alike: Gallery | None, top: int,
    ):  # fmt: skip
        self.classifier, self.folder, self.target, self.method, self.stages = classifier, folder, target, method, stages
        self.alike, self.top = alike, top
        self.taken: set[str] = set()
        self.missing = ""
        """Characters that no font here has."""

    def draw(self, some: Sequence[Prediction]) -> Iterator[tuple[Prediction, Told | None]]:
        """Each prediction with what is to be told of it: None where the image could not be read."""
        from linnaeus.explain.saliency import explain
        from linnaeus.report.explained import draw_explanation

        readable = [p for p in some if p.error is None]
        explained = iter(explain(self.classifier, readable, target=self.target, method=self.method, stages=self.stages))
        for p in some:
            if p.error is not None:
                yield p, None
                continue
            like = None if self.alike is None else self.alike.nearest(p, self.top)
            told = Told(next(explained), self.method, self.file(p.path), like)
            missing = draw_explanation(
                told.explanation, told.sheet, true=self.classifier.true_class(p.path), neighbors=told.like or [],
                trained=self.alike is None or self.alike.trained,
            )  # fmt: skip
            self.missing += "".join(c for c in missing if c not in self.missing)
            yield p, told

    def file(self, path: str) -> Path:
        """Where the sheet of an image goes: never over that of another, nor over the image itself."""
        stem = Path(path).stem[:LONGEST]
        number = 1
        word = "explained" if self.method == "gradcam" else self.method
        name = f"{stem}-{word}.png"
        while name.casefold() in self.taken:
            number += 1
            name = f"{stem}-{number}-{word}.png"
        self.taken.add(name.casefold())
        return self.folder / name


def _chunks(predictions: Iterator[Prediction], size: int) -> Iterator[list[Prediction]]:
    while some := list(islice(predictions, size)):
        yield some
