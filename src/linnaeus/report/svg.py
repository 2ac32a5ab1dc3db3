"""Turn a matplotlib figure into inline SVG whose colors and fonts follow the style sheet of the page."""

from __future__ import annotations

import io
import re
import threading
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import matplotlib
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from linnaeus.report.fonts import Fonts, drawable, families_for
from linnaeus.report.palette import BLUE, FAINT, GROUND, INK, MUTED, ON_MEDIUM, ON_STRONG, ORANGE, PAGE, PALE_BLUE

VARIABLES = {
    INK: "text",
    MUTED: "muted",
    FAINT: "faint",
    GROUND: "raised",
    PAGE: "background",
    BLUE: "accent",
    ORANGE: "alert",
    PALE_BLUE: "accent-light",
    ON_STRONG: "on-accent",
    ON_MEDIUM: "on-accent-medium",
}
"""Color of the figure -> CSS variable of the page."""
PIXELS_PER_POINT = 4 / 3
_SETTINGS = threading.Lock()


@contextmanager
def page_fonts(texts: Iterable[str]) -> Iterator[Fonts]:
    """Fonts for laying out `texts`. The browser draws them with fonts of its own, so no glyph is reported missing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield Fonts(families_for(texts).families, missing="")


def tag(artist: Artist, css_class: str, tooltip: str = "") -> None:
    """Give the SVG element of an artist a CSS class and a tooltip."""
    artist.set_gid(f"{css_class}|{drawable(tooltip)}")


def to_svg(figure: Figure, name: str, title: str, description: str, css_class: str = "chart") -> Markup:
    """Inline SVG at its natural size. `name` must be unique on the page; screen readers read title and description."""
    buffer = io.StringIO()
    figure.patch.set_visible(False)
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # a date would change the file on every run
    with _SETTINGS, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=metadata)
    root = ET.fromstring(buffer.getvalue())
    referenced = set(re.findall(r'(?:href="|url\()#([^")]+)', buffer.getvalue()))
    for element in root.iter():
        for child in [child for child in element if child.find("{*}style") is not None]:
            element.remove(child)  # its rules would apply to the whole page
        _clean(element, referenced)
    width, height = (float(v) * PIXELS_PER_POINT for v in root.attrib["viewBox"].split()[2:])
    root.attrib = {
        "class": css_class,
        "viewBox": root.attrib["viewBox"],
        "width": f"{width:.0f}",
        "height": f"{height:.0f}",
        "role": "img",
        "aria-label": drawable(f"{title}. {description}" if description else title),
    }
    return Markup(ET.tostring(root, encoding="unicode"))


def _clean(element: ET.Element, referenced: set[str]) -> None:
    """Map colors to variables, shorten numbers, and replace matplotlib's ids by class and tooltip where tagged."""
    # Without namespaces the markup can be put into HTML as it is.
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    if element.tag not in ("text", "title"):
        element.text = None
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    identifier = attributes.pop("id", "")
    if "|" in identifier:
        attributes["class"], _, tooltip = identifier.partition("|")
        if tooltip:
            title = ET.Element("title")
            title.text = tooltip
            element.insert(0, title)
    elif identifier in referenced:
        attributes["id"] = identifier
    # Three digits too many would double the size of the page.
    for key in attributes.keys() & {"d", "x", "y", "transform", "style", "viewBox"}:
        attributes[key] = re.sub(r"-?\d+\.\d+", _short, attributes[key])
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    if "d" in attributes:
        attributes["d"] = " ".join(attributes["d"].split())
    # Fonts and colors come from the page, so that dark mode and print apply to charts too.
    if "style" in attributes:
        style = re.sub(r"font-family: [^;]*;? ?", "", attributes["style"])
        attributes["style"] = re.sub(r"#[0-9a-f]{6}", _variable, style)
    element.attrib = attributes


def _short(number: re.Match[str]) -> str:
    """At most two decimals, without trailing zeros."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _variable(color: re.Match[str]) -> str:
    return f"var(--{VARIABLES[color[0]]})" if color[0] in VARIABLES else color[0]
