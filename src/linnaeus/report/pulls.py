"""The training images that pull an answer: below the heat maps of its sheet, and as CSV."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from linnaeus.explain.pulls import Pull, Pulls
from linnaeus.explain.saliency import Explanation
from linnaeus.files import csv_file
from linnaeus.report.explanation import Examples
from linnaeus.text import probability_percent

COLUMNS = ("pull", "first_order", "probability_without")


def pulling_images(explanation: Explanation, pulls: Pulls) -> list[Examples]:
    """The images that pull towards the explained class, and those that pull away from it."""
    here = probability_percent(explanation.probability)

    def examples(direction: str, images: list[Pull]) -> Examples:
        note = f"log-odds; {here}, and {probability_percent(images[0].probability)} without the first" if images else ""
        shown = [pull.shown for pull in images]
        title = f"training images that pull {direction} {explanation.name}"
        return Examples(title, note, shown, [f"{pull.pull:+.2f}" for pull in images])

    return [examples("towards", pulls.towards), examples("away from", pulls.away)]


def write_csv(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write the training images of the records of `explain --json`, one a row. Pulls are in log-odds."""
    with csv_file(path, errors="backslashreplace") as writer:
        writer.writerow(["image", "explained", "direction", "training_image", "class", *COLUMNS])
        for record in records:
            for direction, pulls in record.get("because", {}).items():
                for pull in pulls:
                    explained = record["explained"]["class"]
                    numbers = [f"{pull[name]:.8g}" for name in COLUMNS]
                    writer.writerow([record["path"], explained, direction, pull["path"], pull["class"], *numbers])
