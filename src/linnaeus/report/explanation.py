"""One image explained: what the network saw, heat maps of where it sees the class, and the most similar images."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from linnaeus.explain.neighbors import Neighbor
from linnaeus.explain.saliency import Explanation
from linnaeus.report.canvas import Canvas, shorten, text_width, wrap
from linnaeus.report.fonts import Fonts, families_for
from linnaeus.report.heat_maps import overlay, ramp
from linnaeus.report.image_grid import BAR, GAP, LINE, MARGIN, fit_square, with_bar
from linnaeus.report.palette import BLUE, DPI, GREEN, INK, MUTED, ORANGE, RED, SMALL, TEXT, TITLE
from linnaeus.text import probability_percent

INPUT = "what the network saw"
METHODS = {"occlusion": "occlusion: where covering lowers the score", "integrated-gradients": "integrated gradients"}
NOTHING = "no evidence"
SCALE_WIDTH, SCALE_HEIGHT = 1.1, 0.1  # inches, of the color scale
TILE = 1.3  # inches, about the width of a similar image
CAPTION = 0.3  # inches below a panel


@dataclass(frozen=True)
class Line:
    """A line of the heading."""

    text: str
    size: float
    color: str


@dataclass(frozen=True)
class Examples:
    """Training images below the maps, each with a number."""

    title: str
    note: str
    images: Sequence[Neighbor]
    numbers: Sequence[str]


@dataclass(frozen=True)
class Tiles:
    """The arrangement of example images; inches."""

    across: int  # images in a row
    side: float
    labels: list[list[str]]  # the class name under each image, at most two lines

    @classmethod
    def of(cls, examples: Examples, width: float, fonts: Fonts) -> Tiles:
        across = max(2, min(len(examples.images), round(width / TILE)))
        side = (width - (across - 1) * GAP) / across
        room = side - max(text_width(number, fonts, SMALL) for number in examples.numbers) - 0.08
        return cls(across, side, [wrap(image.name, fonts, SMALL, room, 2) for image in examples.images])

    def top(self, row: int) -> float:
        """Distance of a row from the first one; for one row more than there are, the height of all."""
        lines = [max(map(len, self.labels[i : i + self.across])) for i in range(0, len(self.labels), self.across)]
        return sum(self.side + BAR + 0.2 + LINE * n for n in lines[:row])


def draw_explanation(
    explanation: Explanation,
    path: str | os.PathLike[str],
    *,
    true: int | None = None,
    examples: Sequence[Examples] = (),
) -> str:
    """Draw an explanation: the image, one panel per heat map, and the examples of which there are any.

    `true` is the index of the true class, if known. Returns the characters that no font on this machine has.
    """
    examples = [example for example in examples if example.images]
    prediction, panels = explanation.prediction, len(explanation.maps) + 1
    columns = _columns(panels)
    # More panels are narrower, so that the sheet stays about as wide.
    side = {2: 2.9, 3: 2.2}.get(columns, 1.8)
    width = columns * (side + GAP) - GAP
    texts = [*prediction.labels, explanation.name, prediction.path, *explanation.maps]
    texts += [image.name for example in examples for image in example.images]
    fonts = families_for([*texts, prediction.names[true] if true is not None else "", "✓✗"])
    heading = _heading(explanation, true, fonts, width)
    top = MARGIN + 0.2 + 0.19 * (len(heading) - 1) + 0.16
    below = top + math.ceil(panels / columns) * (side + CAPTION)
    tiles = [Tiles.of(example, width, fonts) for example in examples]
    end = below + 0.34 + sum(0.4 + example.top(len(example.labels)) for example in tiles)
    canvas = Canvas(width + 2 * MARGIN, end + MARGIN - 0.12, fonts)
    for i, line in enumerate(heading):
        canvas.write(MARGIN, MARGIN + 0.2 + 0.19 * i, line.text, size=line.size, color=line.color)
    probability = probability_percent(prediction.probability, 0)
    # The probability of a single label; several labels state theirs in the heading.
    if prediction.thresholds is None:
        canvas.write(MARGIN + width, MARGIN + 0.2, probability, size=TITLE, align="right")
    _draw_panels(canvas, explanation, columns, side, top)
    _draw_scale(canvas, explanation, below + 0.12, width)
    at = below + 0.72
    for example, arrangement in zip(examples, tiles, strict=True):
        _draw_examples(canvas, explanation, example, arrangement, at)
        at += 0.4 + arrangement.top(len(example.images))
    canvas.save(path)
    return fonts.missing


def _columns(panels: int) -> int:
    """Up to three panels side by side, five, six or nine in rows of three, others in rows of up to four."""
    return panels if panels <= 3 else 3 if panels in (5, 6, 9) else 4


def _heading(explanation: Explanation, true: int | None, fonts: Fonts, width: float) -> list[Line]:
    """The predicted class, whether it is unknown, unsure or wrong, and the file."""
    prediction = explanation.prediction
    room = width - text_width(">99 %", fonts, TITLE) - 0.15
    answer = f"unknown ({prediction.answer})" if prediction.unknown else prediction.answer
    lines = [Line(shorten(answer, fonts, TITLE, room), TITLE, INK)]
    if prediction.unknown:
        lines.append(Line(shorten("unknown: probably of none of the classes", fonts, TEXT, width), TEXT, ORANGE))
    elif prediction.unsure:
        lines.append(Line("unsure: below the model's threshold", TEXT, ORANGE))
    # The explained class is only stated where it is not the predicted one.
    if explanation.target != prediction.index or prediction.thresholds is not None:
        text = f"explained: {explanation.name}, {probability_percent(explanation.probability, 0)}"
        lines.append(Line(shorten(text, fonts, TEXT, width), TEXT, BLUE))
    if true is not None:
        correct = true == prediction.index
        text = "✓ correct" if correct else f"✗ true: {prediction.names[true]}"
        lines.append(Line(shorten(text, fonts, TEXT, width), TEXT, GREEN if correct else RED))
    lines.append(Line(_end_of(prediction.path, fonts, width), SMALL, MUTED))
    return lines


def _end_of(path: str, fonts: Fonts, width: float) -> str:
    """As much of the end of a path as fits: the file name says more than the folders."""
    parts = path.replace(os.sep, "/").split("/")
    for first in range(len(parts)):
        text = "/".join(parts[first:]) if first == 0 else "…/" + "/".join(parts[first:])
        if text_width(text, fonts, SMALL) <= 0.97 * width:  # hinting makes many narrow letters wider than measured
            return text
    return shorten(parts[-1], fonts, SMALL, 0.97 * width)


def _draw_panels(canvas: Canvas, explanation: Explanation, columns: int, side: float, top: float) -> None:
    """The image and the heat maps in rows, each with its caption."""
    image = explanation.prediction.image
    assert image is not None
    pixels = round(side * DPI)
    panels = [(fit_square(image, pixels), INPUT)]
    for name, heat in explanation.maps.items():
        caption = METHODS.get(name, f"Grad-CAM at {name}")
        panels.append((overlay(image, heat, pixels), caption if heat.any() else f"{caption}: {NOTHING}"))
    for i, (panel, caption) in enumerate(panels):
        left, upper = MARGIN + (i % columns) * (side + GAP), top + (i // columns) * (side + CAPTION)
        canvas.image(round(left * DPI), round(upper * DPI), panel)
        canvas.write(left, upper + side + 0.16, shorten(caption, canvas.fonts, SMALL, side), size=SMALL, color=MUTED)


def _draw_scale(canvas: Canvas, explanation: Explanation, y: float, width: float) -> None:
    """What the colors mean."""
    right = MARGIN + width
    canvas.write(right, y + 0.085, "most", size=SMALL, color=MUTED, align="right")
    left = right - text_width("most", canvas.fonts, SMALL) - 0.08 - SCALE_WIDTH
    canvas.image(round(left * DPI), round(y * DPI), ramp(round(SCALE_WIDTH * DPI), round(SCALE_HEIGHT * DPI)))
    canvas.write(left - 0.08, y + 0.085, "none", size=SMALL, color=MUTED, align="right")
    room = left - MARGIN - text_width("none", canvas.fonts, SMALL) - 0.25
    text = shorten(f"evidence for {explanation.name} at each position", canvas.fonts, SMALL, room)
    canvas.write(MARGIN, y + 0.085, text, size=SMALL)


def similar_images(explanation: Explanation, neighbors: Sequence[Neighbor], trained: bool) -> Examples:
    """The most similar images; `trained` says whether they are training images."""
    same = [_is_of_class(explanation, neighbor) for neighbor in neighbors]
    title = f"most similar {'training ' if trained else ''}images, with cosine similarity"
    numbers = [f"{neighbor.similarity:.2f}" for neighbor in neighbors]
    relation = "are of the predicted class" if explanation.prediction.thresholds is None else "have the label"
    return Examples(title, f"{sum(same)} of {len(same)} {relation}", neighbors, numbers)


def _is_of_class(explanation: Explanation, image: Neighbor) -> bool:
    """Whether the image is of the predicted class, or has the explained label where it may have several."""
    prediction = explanation.prediction
    if prediction.thresholds is not None:
        return prediction.classes[explanation.target] in image.label.split("|")
    return image.label == prediction.classes[prediction.index]


def _draw_examples(canvas: Canvas, explanation: Explanation, examples: Examples, tiles: Tiles, top: float) -> None:
    """The images with their classes: blue under those of the predicted class, orange under the others."""
    room = canvas.width - 2 * MARGIN - text_width(examples.note, canvas.fonts, SMALL) - 0.15
    canvas.write(MARGIN, top - 0.14, shorten(examples.title, canvas.fonts, TEXT, room), size=TEXT)
    canvas.write(canvas.width - MARGIN, top - 0.14, examples.note, size=SMALL, color=MUTED, align="right")
    for i, (example, lines) in enumerate(zip(examples.images, tiles.labels, strict=True)):
        left = MARGIN + (i % tiles.across) * (tiles.side + GAP)
        upper = top + tiles.top(i // tiles.across)
        color = BLUE if _is_of_class(explanation, example) else ORANGE
        image = with_bar(fit_square(example.image, round(tiles.side * DPI)), color)
        canvas.image(round(left * DPI), round(upper * DPI), image)
        y = upper + tiles.side + BAR + 0.16
        canvas.write(left + tiles.side, y, examples.numbers[i], size=SMALL, color=MUTED, align="right")
        for line in lines:
            canvas.write(left, y, line, size=SMALL)
            y += LINE
