"""A page of what was found, side by side: one file, no scripts, nothing fetched."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from linnaeus.check.findings import KINDS, Finding, by_kind
from linnaeus.check.run import Checked
from linnaeus.check.terminal import NEXT
from linnaeus.data.class_names import printable
from linnaeus.data.decode import UnreadableError, decode
from linnaeus.data.encode import data_uri, to_pillow
from linnaeus.files import write_text

SIDE = 176  # pixels of a thumbnail's long side
QUALITY = 72
CARDS = 100  # findings shown of a kind and severity
IMAGES = 4  # of a finding
ALL_IMAGES = 700  # on the page, which keeps it below 5 MB


@dataclass(frozen=True)
class Picture:
    """A thumbnail; without data, what to say in its place."""

    caption: str
    alt: str
    data: str = ""
    width: int = 0
    height: int = 0
    instead: str = ""


@dataclass(frozen=True)
class Card:
    text: str
    images: list[Picture]


@dataclass(frozen=True)
class Section:
    title: str
    severity: str
    anchor: str
    advice: str
    count: int
    cards: list[Card]

    @property
    def more(self) -> int:
        return self.count - len(self.cards)


def write_gallery(checked: Checked, path: Path) -> None:
    """Write the page. Raises UserError or JobError where the file cannot be written."""
    import jinja2

    template = Path(__file__).with_name("gallery.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    table = checked.table
    splits = ", ".join(f"{n.sum()} {split or 'not split yet'}" for split, n in table.counts().items())
    page = environment.from_string(template).render(
        source=printable(table.source),
        summary=f"{len(table)} images of {len(table.classes)} classes: {splits}.",
        notes=checked.notes,
        sections=_Gallery(checked).sections(),
    )
    write_text(path, page)


@dataclass
class _Gallery:
    """Makes the thumbnails, as many as fit the page."""

    checked: Checked
    drawn: int = 0
    examples: dict[str, Picture | None] = field(default_factory=dict)

    def sections(self) -> list[Section]:
        return [
            Section(
                KINDS[kind], severity, f"{severity}-{kind}", NEXT.get(kind, ""), len(found),
                [self._card(finding) for finding in found[:CARDS]],
            )
            for (severity, kind), found in by_kind(self.checked.findings).items()
        ]  # fmt: skip

    def _card(self, finding: Finding) -> Card:
        text = finding.detail
        if finding.kind == "ignored":  # they are no images
            return Card(f"{text}: {', '.join(finding.paths[:20])}{' …' if len(finding.paths) > 20 else ''}", [])
        if not finding.paths and finding.classes:
            text = f"{', '.join(finding.classes)}: {text}"
        images = [self._image(name) for name in finding.paths[:IMAGES]]
        if len(finding.paths) > IMAGES:
            text += f" ({len(finding.paths) - IMAGES} more of these images are not shown)"
        if finding.kind == "suspicious-label":
            example = self._example(finding.classes[1])
            images += [example] if example else []
        return Card(text, images)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {self.checked.table.sample_id(i): i for i in range(len(self.checked.table))}

    def _image(self, name: str, caption: str = "") -> Picture:
        table, i = self.checked.table, self._positions[name]
        c = int(table.labels[i])
        label = table.classes[c] if table.classes[c] == table.names[c] else f"{table.classes[c]} {table.names[c]}"
        caption = caption or f"{name} ({label})"
        if self.drawn >= ALL_IMAGES:
            return Picture(caption, f"{name}: not shown", instead="not shown")
        try:
            given = table.image(i)
            pixels = given if isinstance(given, np.ndarray) else decode(given, at_least=SIDE)
        except UnreadableError:
            return Picture(caption, f"{name}: cannot be read", instead="cannot be read")
        self.drawn += 1
        data, width, height = _thumbnail(pixels)
        return Picture(caption, f"{name}, labelled {label}", data, width, height)

    def _example(self, name: str) -> Picture | None:
        """An image of a class about which nothing was found."""
        if name not in self.examples:
            table = self.checked.table
            c = table.classes.index(name)
            members = [i for i in self.checked.looks.readable.tolist() if table.labels[i] == c]
            chosen = next((s for i in members if (s := table.sample_id(i)) not in self._suspects), None)
            shown = f"for comparison: {table.names[c]}"
            self.examples[name] = None if chosen is None else self._image(chosen, shown)
        return self.examples[name]

    @cached_property
    def _suspects(self) -> set[str]:
        return {path for finding in self.checked.findings for path in finding.paths}


def _thumbnail(pixels: np.ndarray) -> tuple[str, int, int]:
    """(h, w[, C]) uint8 -> data URI of a JPEG, its width and height. Tiny images are enlarged, pixel by pixel."""
    image = to_pillow(pixels)
    long = max(image.size)
    size = (max(1, round(image.width * SIDE / long)), max(1, round(image.height * SIDE / long)))
    image = image.resize(size, Image.Resampling.BOX if long * 3 < SIDE else Image.Resampling.BILINEAR)
    return data_uri(image, "JPEG", quality=QUALITY, optimize=True), *size
