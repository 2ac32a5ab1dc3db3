"""MODEL_CARD.md: what a model is, for what, trained on what, how good, and where it ends. For people, and for hubs.

Its front matter is what the Hugging Face hub reads; the sections follow Mitchell et al. 2019, arXiv:1810.03993.
"""

from __future__ import annotations

import json
from typing import Any

from linnaeus._version import __version__
from linnaeus.inference.classifier import Classifier
from linnaeus.metrics.intervals import wilson

CARD = "MODEL_CARD.md"
LISTED = 200  # classes that are named one by one


def card(classifier: Classifier, file: str, call: str) -> str:
    """The text of the card. `call` makes the network that loads `file`: `resnet50(num_classes=16)`."""
    about = classifier.about
    title = f"{about.arch['name']} for {len(about.classes)} classes"
    parts = [
        front_matter(classifier),
        f"# {title}",
        _what(classifier),
        "## How good it is",
        _figures(about.metrics),
        "## How sure it is",
        _certainty(classifier),
        "## What it was trained on",
        _data(classifier),
        "## Limits",
        _limits(classifier),
        "## How to use it",
        _use(classifier, file, call),
        "## Classes",
        _classes(classifier),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(classifier: Classifier) -> str:
    """YAML between two lines of dashes. Every text is a JSON string, which YAML reads as it is meant."""
    about = classifier.about
    lines = [
        "---",
        "pipeline_tag: image-classification",
        "library_name: pytorch",
        "tags:",
        *(f"- {_text(tag)}" for tag in ("image-classification", "linnaeus", about.arch["name"])),
        "license: unknown",
    ]
    figures = [
        (split, about.metrics[split]) for split in ("test", "valid") if "accuracy" in about.metrics.get(split, {})
    ]
    if figures:
        lines += ["metrics:", "- accuracy", "model-index:", f"- name: {_text(about.arch['name'])}", "  results:"]
    for split, found in figures:
        lines += [
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      name: {_text(_named(classifier))}",
            f"      type: {_text(about.data.get('kind', 'folder'))}",
            f"      split: {_text(split)}",
            "    metrics:",
            "    - type: accuracy",
            f"      value: {found['accuracy']:.6f}",
        ]
    return "\n".join([*lines, "---"])


def _text(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def _named(classifier: Classifier) -> str:
    """The data by the name of the recipe, for want of another."""
    return f"{classifier.about.recipe.get('name', 'images')}, {len(classifier.classes)} classes"


def _what(classifier: Classifier) -> str:
    about = classifier.about
    started = about.recipe.get("model", {}).get("weights")
    begun = "from scratch" if started in (None, "none") else f"starting from the weights `{started}`"
    channels = "RGB" if about.preprocessing.channels == 3 else "gray"
    version = about.versions.get("linnaeus", __version__)
    return (
        f"Says which of {len(about.classes)} classes a {channels} image shows: one class an image, and one of these "
        f"in any case. A {about.arch['name']}, trained {begun} with Linnaeus {version}."
    )


def _figures(metrics: dict[str, Any]) -> str:
    rows = []
    for split in ("valid", "test"):
        found = metrics.get(split, {})
        if "accuracy" not in found:
            continue
        low, high = found.get("accuracy_ci95") or wilson(found["correct"], found["n"])
        more = [f"{name.replace('_', ' ')} {found[key]:.2%}" for key, name in MORE if found.get(key) is not None]
        loss = [] if found.get("loss") is None else [f"loss {found['loss']:.3f}"]
        groups = f" in {found['groups']} groups" if "groups" in found else ""
        rows.append(
            f"| {split} | {found['n']}{groups} | {found['accuracy']:.2%} ({found['correct']}) | "
            f"{low:.1%} to {high:.1%} | {', '.join(more + loss)} |"
        )
    if not rows:
        return "Not measured."
    head = ["| split | images | accuracy (right) | 95 % interval | more |", "|---|---|---|---|---|"]
    note = (
        "The best epoch was chosen on `valid`, so its figures flatter a little; intervals are Wilson's, of "
        "as many images as their groups are worth where they come in groups. They hold for "
        "images like those measured, and say nothing of others."
    )
    return "\n".join([*head, *rows, "", note])


MORE = (("top5", "top-5"), ("balanced_accuracy", "balanced accuracy"))


def _certainty(classifier: Classifier) -> str:
    calibration = classifier.calibration
    if calibration is None:
        return "Its probabilities were not calibrated."
    rule = calibration.rule
    lines = [
        f"Divide the logits by the temperature {calibration.temperature:.6g}, fitted on `{calibration.split}`, before "
        "the softmax: the probabilities are then calibrated. It changes no answer.",
    ]
    if rule.threshold > 0:
        lines.append(f'Below a probability of {rule.threshold:.4g} take the answer as "I don\'t know": {rule}.')
    return "\n\n".join(lines)


def _data(classifier: Classifier) -> str:
    data = classifier.about.data
    counts = ", ".join(f"{n} {split}" for split, n in data.get("counts", {}).items()) or "unknown numbers of"
    known = f"a {data.get('kind', 'source')} source; fingerprint `{data.get('fingerprint', 'unknown')}`"
    return (
        f"{counts} images ({known}). "
        "Who may use the model, and for what, depends on their license and on that of the weights it started from; "
        "set `license` above."
    )


def _limits(classifier: Classifier) -> str:
    p = classifier.preprocessing
    seen = {
        "crop": "the central square: what lies near the short edges of a long image is not looked at",
        "squash": "the whole image, its sides changed to a square",
        "pad": "the whole image, with black bars around it",
    }[p.fit]
    return "\n".join(
        [
            "- It always answers with one of its classes, whatever the image shows.",
            f"- It sees {p.size} x {p.size} pixels: {seen}.",
            "- Images from other cameras, places or times than those of the training may be judged worse; measure "
            "before relying on it.",
            "- It was not examined for fairness, nor against images made to fool it. Not for decisions about people.",
        ]
    )


def _use(classifier: Classifier, file: str, call: str) -> str:
    p = classifier.preprocessing
    steps = {
        "crop": f"short side to {p.resize} pixels, central {p.size} x {p.size}",
        "squash": f"both sides to {p.resize} pixels, central {p.size} x {p.size}",
        "pad": f"long side to {p.resize} pixels, black around to a square, central {p.size} x {p.size}",
    }[p.fit]
    return f"""```python
import torch, torchvision

model = torchvision.models.{call}
model.load_state_dict(torch.load("{file}", weights_only=True))
model.eval()
```

Images: {steps} ({p.interpolation}, antialiased), scaled to [0, 1], then normalised with mean
{list(p.mean)} and standard deviation {list(p.std)}, a value a channel. Class names by index are below. `linnaeus
predict` does all of it from the model file that this was made of."""


def _classes(classifier: Classifier) -> str:
    pairs = list(zip(classifier.classes, classifier.names, strict=True))
    lines = [f"{i}. {_plain(name if name == label else f'{label}: {name}')}" for i, (label, name) in enumerate(pairs)]
    more = [] if len(lines) <= LISTED else [f"… and {len(lines) - LISTED} more"]
    return "\n".join([*lines[:LISTED], *more])


def _plain(name: str) -> str:
    """A class name, in which nothing is Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in " ".join(name.split()))
