"""The most influential training images of an answer: below the heat maps of its sheet, and as CSV."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from linnaeus.explain.influential import InfluentialImage, InfluentialImages
from linnaeus.explain.saliency import Explanation
from linnaeus.files import csv_file
from linnaeus.report.explanation import Examples
from linnaeus.text import probability_percent

COLUMNS = ("influence", "first_order", "probability_without")


def influential_examples(explanation: Explanation, influential: InfluentialImages) -> list[Examples]:
    """The images that raise the probability of the explained class, and those that lower it."""
    here = probability_percent(explanation.probability)

    def examples(effect: str, images: list[InfluentialImage]) -> Examples:
        note = f"log-odds; {here}, and {probability_percent(images[0].probability)} without the first" if images else ""
        shown = [image.shown for image in images]
        title = f"training images that {effect} the probability of {explanation.name}"
        return Examples(title, note, shown, [f"{image.influence:+.2f}" for image in images])

    return [examples("raise", influential.proponents), examples("lower", influential.opponents)]


def write_csv(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write the training images of the records of `explain --json`, one a row. The influence is in log-odds."""
    with csv_file(path, errors="backslashreplace") as writer:
        writer.writerow(["image", "explained", "role", "training_image", "class", *COLUMNS])
        for record in records:
            for role, images in record.get("influence", {}).items():
                for image in images:
                    explained = record["explained"]["class"]
                    numbers = [f"{image[name]:.8g}" for name in COLUMNS]
                    writer.writerow([record["path"], explained, role[:-1], image["path"], image["class"], *numbers])
