"""The sheets of `explain`: an image with its heat maps, and similar or influential training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnaeus.cli.replacing import refuse_to_replace
from linnaeus.console import Console
from linnaeus.explain.influential import InfluentialImages
from linnaeus.explain.neighbors import Gallery, Neighbor, gallery
from linnaeus.explain.saliency import Explanation, choose_stages, explain, find_class
from linnaeus.inference.classifier import Classifier, Prediction
from linnaeus.report.explanation import Examples, draw_explanation, similar_images
from linnaeus.report.influential import influential_examples
from linnaeus.text import probability_percent

if TYPE_CHECKING:  # only --influence needs what training takes to import
    from linnaeus.training.derived.influence import TrainingInfluence

STEM_LENGTH = 80  # characters of an image's name that are kept in the name of its sheet


@dataclass(frozen=True)
class ExplainedImage:
    """The explanation of one image and the file that shows it."""

    explanation: Explanation
    method: str
    sheet: Path
    neighbors: list[Neighbor] | None
    influential: InfluentialImages | None = None

    def line(self) -> str:
        """The line of `linnaeus predict` and the path of the sheet."""
        p, e = self.explanation.prediction, self.explanation
        explained = f"  for {e.name} ({probability_percent(e.probability)})"
        if p.thresholds is not None:
            answer = f"{', '.join(p.labels) or 'no label':<24}"
        else:
            name = f"{p.verdict} ({p.name})" if p.verdict else p.name
            answer = f"{probability_percent(p.probability):>7}  {name:<24}"
            explained = "" if e.target == p.index else explained
        nothing = "  (no area of the image supports it)" if e.empty else ""
        return f"{answer}  {p.path}{explained}{nothing}  -> {self.sheet}"

    def details(self) -> list[str]:
        """One line per training image that is shown."""
        alike = [f"{n.similarity:>8.3f}  {n.name:<22}  {n.path}" for n in self.neighbors or []]
        return [*alike, *(image.line() for image in (self.influential.all if self.influential else ()))]

    def to_dict(self) -> dict[str, Any]:
        """Keys that are added to the JSON of the prediction."""
        e = self.explanation
        explained = {"class": e.prediction.classes[e.target], "name": e.name, "probability": e.probability}
        stages = {"stages": list(e.maps)} if self.method == "gradcam" else {}
        like = {} if self.neighbors is None else {"like": [n.to_dict() for n in self.neighbors]}
        influence = {} if self.influential is None else {"influence": self.influential.to_dict()}
        record = {"explained": explained, "empty": e.empty, "method": self.method, **stages, "sheet": str(self.sheet)}
        return record | like | influence


@dataclass(eq=False)
class Sheets:
    """Draws one sheet per image into a folder, each under a name of its own."""

    classifier: Classifier
    folder: Path
    target: int | None  # index of the class to explain; None for the predicted class of each image
    method: str
    stages: tuple[str, ...]
    top: int  # number of training images to show
    gallery: Gallery | None = None  # training images to compare with
    influence: TrainingInfluence | None = None  # training images whose influence is computed
    missing: str = ""  # characters that no installed font contains
    names: set[str] = field(default_factory=set)  # file names in use, case-folded because some file systems ignore case

    @classmethod
    def of(
        cls, classifier: Classifier, folder: Path, class_name: str | None, method: str, stage: str | None, top: int
    ) -> Sheets:
        """Sheets for a class, by default the predicted one, and a stage. Raises UserError if there is no such one."""
        target = None if class_name is None else find_class(classifier, class_name)
        stages = choose_stages(classifier.network, classifier.preprocessing.size, stage) if method == "gradcam" else ()
        return cls(classifier, folder, target, method, stages, top)

    def compare_with(self, source: str, console: Console) -> None:
        """Show the most similar images of `source` on every sheet."""
        self.gallery = gallery(self.classifier, source, console)
        if not self.gallery.trained:
            n = len(self.gallery)
            console.warn(f"{source}: not known to be the model's training data; comparing with {n} of its images")

    def draw(self, predictions: Sequence[Prediction]) -> Iterator[tuple[Prediction, ExplainedImage | None]]:
        """Each prediction with its sheets, one for each class that is explained; None for an unreadable image."""
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
        examples: list[Examples] = []
        neighbors = influential = None
        if self.gallery is not None:
            neighbors = self.gallery.nearest(prediction, self.top)
            examples.append(similar_images(explanation, neighbors, self.gallery.trained))
        if self.influence is not None:
            influential = self.influence.of(prediction, explanation.target, self.top)
            examples += influential_examples(explanation, influential)
        file = self._new_file(prediction.path)
        refuse_to_replace("--out", file)
        sheet = ExplainedImage(explanation, self.method, file, neighbors, influential)
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
