"""The result of a check as an HTML page with images: a single file without scripts or external resources."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from linnaeus.check.data_check import DataCheck
from linnaeus.check.findings import KINDS, Finding, by_kind
from linnaeus.check.terminal import NEXT_STEPS
from linnaeus.console import counted
from linnaeus.data.class_names import printable
from linnaeus.data.images.decode import UnreadableError, decode
from linnaeus.data.images.encode import data_uri, to_pillow
from linnaeus.files import write_text
from linnaeus.text import page_templates
from linnaeus.theme import style_sheet

SIDE = 176  # long side of a thumbnail, in pixels
QUALITY = 72
CARDS = 100  # findings shown for each kind and severity
IMAGES = 4  # images shown for each finding
ALL_IMAGES = 700  # images on the page, which keeps it below 5 MB


@dataclass(frozen=True)
class Thumbnail:
    """An image on the page; without `data` the text `placeholder` is shown in its place."""

    caption: str
    alt: str
    data: str = ""  # data URI of a JPEG
    width: int = 0
    height: int = 0
    placeholder: str = ""


@dataclass(frozen=True)
class Card:
    """A finding with its images."""

    text: str
    images: list[Thumbnail]


@dataclass(frozen=True)
class Section:
    """The findings of one kind and severity."""

    title: str
    severity: str
    anchor: str
    advice: str
    count: int  # number of findings; those without a card are only counted
    cards: list[Card]

    @property
    def more(self) -> int:
        return self.count - len(self.cards)


def write_gallery(result: DataCheck, path: Path) -> None:
    """Write the page. Raises UserError or JobError if the file cannot be written."""
    table, template = result.table, page_templates(Path(__file__).parent).get_template("gallery.html")
    splits = ", ".join(f"{n} {split or 'not split yet'}" for split, n in table.sizes().items())
    page = template.render(
        theme=Markup(style_sheet()),
        source=printable(table.source),
        summary=f"{counted(len(table), 'image')} of {len(table.classes)} classes: {splits}.",
        notes=result.notes,
        sections=_Gallery(result).sections(),
    )
    write_text(path, page)


@dataclass
class _Gallery:
    """Creates the cards and counts the thumbnails, whose number is limited."""

    result: DataCheck
    thumbnails: int = 0
    examples: dict[str, Thumbnail | None] = field(default_factory=dict)

    def sections(self) -> list[Section]:
        return [
            Section(
                title=KINDS[kind][0].upper() + KINDS[kind][1:],
                severity=severity,
                anchor=f"{severity}-{kind}",
                advice=NEXT_STEPS.get(kind, ""),
                count=len(findings),
                cards=[self._card(finding) for finding in findings[:CARDS]],
            )
            for (severity, kind), findings in by_kind(self.result.findings).items()
        ]

    def _card(self, finding: Finding) -> Card:
        text = finding.detail
        if finding.kind == "ignored":  # these files are no images
            return Card(f"{text}: {', '.join(finding.paths[:20])}{' …' if len(finding.paths) > 20 else ''}", [])
        if not finding.paths and finding.classes:
            text = f"{', '.join(finding.classes)}: {text}"
        images = [self._thumbnail(name) for name in finding.paths[:IMAGES]]
        if len(finding.paths) > IMAGES:
            text += f" ({len(finding.paths) - IMAGES} more of these images are not shown)"
        if finding.kind == "suspicious-label":
            example = self._example(finding.classes[-1])
            images += [example] if example else []
        return Card(text, images)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {self.result.table.sample_id(i): i for i in range(len(self.result.table))}

    def _thumbnail(self, name: str, caption: str = "") -> Thumbnail:
        table, i = self.result.table, self._positions[name]
        display = dict(zip(table.classes, table.names, strict=True))
        label = ", ".join(c if c == display[c] else f"{c} {display[c]}" for c in table.labels_of(i)) or "no label"
        caption = caption or f"{name} ({label})"
        if self.thumbnails >= ALL_IMAGES:
            return Thumbnail(caption, f"{name}: not shown", placeholder="not shown")
        try:
            source = table.image(i)
            pixels = source if isinstance(source, np.ndarray) else decode(source, at_least=SIDE)
        except UnreadableError:
            return Thumbnail(caption, f"{name}: cannot be read", placeholder="cannot be read")
        self.thumbnails += 1
        data, width, height = encode_thumbnail(pixels)
        return Thumbnail(caption, f"{name}, labelled {label}", data, width, height)

    def _example(self, name: str) -> Thumbnail | None:
        """An image of a class, for comparison, which no finding is about."""
        if name not in self.examples:
            table = self.result.table
            c = table.classes.index(name)
            samples = [
                table.sample_id(i) for i in self.result.statistics.readable.tolist() if name in table.labels_of(i)
            ]
            example = next((sample for sample in samples if sample not in self._suspects), None)
            caption = f"for comparison: {table.names[c]}"
            self.examples[name] = None if example is None else self._thumbnail(example, caption)
        return self.examples[name]

    @cached_property
    def _suspects(self) -> set[str]:
        return {path for finding in self.result.findings for path in finding.paths}


def encode_thumbnail(pixels: np.ndarray) -> tuple[str, int, int]:
    """(h, w[, C]) uint8 -> data URI of a JPEG, its width and height. Tiny images are enlarged with hard pixel edges."""
    image = to_pillow(pixels)
    long = max(image.size)
    size = (max(1, round(image.width * SIDE / long)), max(1, round(image.height * SIDE / long)))
    image = image.resize(size, Image.Resampling.BOX if long * 3 < SIDE else Image.Resampling.BILINEAR)
    return data_uri(image, "JPEG", quality=QUALITY, optimize=True), *size
