"""MODEL_CARD.md: what a model does, how accurate it is, its training data and its limits.

The Hugging Face hub reads the front matter; the sections follow Mitchell et al. 2019, arXiv:1810.03993.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from linnaeus._version import __version__
from linnaeus.inference.classifier import Classifier
from linnaeus.metrics.classification import no_better_than_one_class
from linnaeus.metrics.intervals import wilson
from linnaeus.runs.model_selection import ModelSelection
from linnaeus.runs.penalties import held_out_text
from linnaeus.text import percent, percent_range

CARD = "MODEL_CARD.md"
MAX_CLASSES = 200  # listed by name
CHECKSUM = "<!-- written by linnaeus; CRC-32 of the text above: "

DATASET_TYPE = {"folder": "imagefolder", "list": "imagefolder", "csv": "imagefolder", "shards": "webdataset"}
"""Kind of source -> `dataset.type` of the model-index: the hub's loader for such files, where a published dataset has
its id."""

VIEW = {
    "crop": "the central square; the ends of a long image are cut off",
    "squash": "the whole image, its sides changed to a square",
    "pad": "the whole image, with black bars around it",
}
RESIZE = {
    "crop": "short side to {} pixels",
    "squash": "both sides to {} pixels",
    "pad": "long side to {} pixels, black around to a square",
}
OTHER_METRICS = (("top5", "top-5"), ("balanced_accuracy", "balanced accuracy"))


def model_card(
    classifier: Classifier,
    file: str,
    call: str | None = None,
    *,
    repository: str = "",
    license: str | None = None,
) -> str:
    """Text of the card.

    `call` creates the network of torchvision that loads `file`, for example `resnet50(num_classes=16)`; without it,
    `file` is a model file in `repository` of the hub. `license`: an identifier of the hub.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        # A card is Markdown, where escaping for HTML would spoil the names.
        autoescape=False,
    )
    environment.filters |= {"yaml": _yaml_text, "plain": _without_markdown, "percent": percent}
    environment.filters |= {"interval": _interval, "other_metrics": _other_metrics}
    environment.filters |= {"no_better": no_better_than_one_class, "held_out": held_out_text}
    return environment.get_template("model_card.md.j2").render(
        file=file, call=call, repository=repository, license=license or "unknown", **_values(classifier)
    )


def with_checksum(card: str) -> str:
    """The card with a last line, which Markdown does not show, by which `is_unedited` recognizes it."""
    return f"{card}{CHECKSUM}{zlib.crc32(card.encode()):08x} -->\n"


def is_unedited(path: Path) -> bool:
    """Whether a file is a card as it was written: people complete cards, and that must not be lost."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return text == with_checksum(text.rpartition(CHECKSUM)[0])


def _values(classifier: Classifier) -> dict[str, Any]:
    about, preprocessing = classifier.about, classifier.preprocessing
    weights = about.recipe.get("model", {}).get("weights")
    pairs = zip(classifier.classes, classifier.names, strict=True)
    names = [name if name == label else f"{label}: {name}" for label, name in pairs]
    counts = ", ".join(f"{n} {split}" for split, n in about.data.get("counts", {}).items())
    return {
        "about": about,
        "preprocessing": preprocessing,
        "calibration": classifier.calibration,
        "selection": _selection(classifier),
        "measured": [
            (split, about.metrics[split]) for split in ("valid", "test") if "accuracy" in about.metrics.get(split, {})
        ],
        "recognizes": (detector := classifier.detector) is not None,
        "left_out": {} if detector is None else detector.measured.get("left_out_classes") or {},
        "dataset_type": DATASET_TYPE.get(kind := about.data.get("kind", "folder"), kind),
        "dataset": f"{about.recipe.get('name', 'images')}, {len(about.classes)} classes",
        "start": "from scratch" if weights in (None, "none") else f"starting from the weights `{weights}`",
        "version": about.versions.get("linnaeus", __version__),
        "counts": counts or "unknown numbers of",
        "view": VIEW[preprocessing.fit],
        "resize": RESIZE[preprocessing.fit].format(preprocessing.resize),
        "classes": names[:MAX_CLASSES],
        "unlisted": max(0, len(names) - MAX_CLASSES),
    }


def _selection(classifier: Classifier) -> ModelSelection:
    """What chose the model: the header does not name the best epoch, but says from how many validation chose."""
    recipe, calibration = classifier.about.recipe, classifier.calibration
    epochs = None if calibration is None else calibration.rule.candidates
    if epochs is None:
        epochs = sum(1 if p.get("head") == "auto" else p.get("epochs", 1) for p in recipe.get("phase", [{}]))
    return ModelSelection.of(recipe, {}, epochs)


def _yaml_text(value: object) -> str:
    """A JSON string, which YAML reads as the same text whatever it contains."""
    return json.dumps(str(value), ensure_ascii=False)


def _interval(metrics: dict[str, Any]) -> str:
    return percent_range(metrics.get("accuracy_ci95") or wilson(metrics["correct"], metrics["n"]))


def _other_metrics(metrics: dict[str, Any]) -> str:
    parts = [f"{label} {percent(metrics[key], 2)}" for key, label in OTHER_METRICS if metrics.get(key) is not None]
    loss = [] if metrics.get("loss") is None else [f"loss {metrics['loss']:.3f}"]
    return ", ".join(parts + loss)


def _without_markdown(name: str) -> str:
    """A class name on one line, its Markdown characters escaped."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in " ".join(name.split()))
