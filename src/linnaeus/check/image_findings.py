"""Findings about single files and images: unreadable, misnamed, or unlike the other images of the source."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from linnaeus.check.findings import Finding
from linnaeus.console import counted
from linnaeus.data.images.decode import FORMATS, IMAGE_SUFFIXES
from linnaeus.data.table import Table
from linnaeus.stores.image_statistics import ImageStatistics

SUFFIXES = {
    "JPEG": ".jpg .jpeg .jpe .jfif",
    "MPO": ".mpo .jpg .jpeg .jpe .jfif",
    "PNG": ".png .apng",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif .tiff",
    "WEBP": ".webp",
    "AVIF": ".avif",
    "JPEG2000": ".jp2 .j2k .j2c .jpc .jpf .jpx",
    "PPM": ".ppm .pgm .pbm .pnm .pfm",
    "TGA": ".tga",
}
"""Format -> valid file extensions, the usual one first."""

ONE_COLOR = 8.0  # range of gray levels, of 255, below which an image shows nothing
DARK, BRIGHT = 40.0, 200.0  # upper end of a dark image, lower end of a bright one
BLURRED = 4.0  # times less sharp than the median image, and as many robust standard deviations below it
MIN_SIDE = 64  # pixels; smaller images have no detail that blur could remove
MIN_DEVIATION = 0.3  # of log2 sharpness; where all images are alike, small differences are not outliers
SIZE_RATIO = 4.0  # ratio of the short side to the median short side
ELONGATED = 3.0  # long side over short side; the pixel store of `fit = "crop"` keeps at most 4
COMMON = 0.2  # share of the images from which a property is typical of the source and reported once


def file_findings(table: Table, statistics: ImageStatistics) -> list[Finding]:
    """Files that cannot be read, and files whose extension does not match their content."""
    findings = []
    for i, failure in sorted(statistics.failed.items()):
        findings.append(Finding(failure.kind, "error", *_names(table, i), failure.reason))
    if table.paths is None:
        return findings
    for i in statistics.readable.tolist():
        suffix = os.path.splitext(table.paths[i])[1].lower()  # noqa: PTH122
        form = FORMATS[statistics.rows["format"][i]]
        if suffix in IMAGE_SUFFIXES and suffix not in SUFFIXES[form].split():
            detail = f"contains {form} but has the extension {suffix}; rename it to {SUFFIXES[form].split()[0]}"
            findings.append(Finding("wrong-extension", "warning", *_names(table, i), detail))
    return findings


def page_findings(table: Table, statistics: ImageStatistics) -> list[Finding]:
    """Files of several pages or frames, of which only the first one is used."""
    pages = statistics.rows["pages"]
    order = np.flatnonzero(pages > 1)
    if not len(order):
        return []
    order = order[np.argsort(-pages[order].astype(int), kind="stable")]
    classes = tuple(dict.fromkeys(name for i in order.tolist() for name in table.labels_of(i)))
    detail = (
        f"{counted(len(order), 'file')} with several pages or frames (up to {pages[order[0]]}), of which only the "
        "first is used; save each page that matters as an image of its own"
    )
    return [Finding("pages", "warning", tuple(table.sample_id(i) for i in order.tolist()), classes, detail)]


@dataclass
class _Outliers:
    """Images with an unusual property."""

    kind: str
    severity: str
    mask: np.ndarray  # (n,) bool, over the readable images
    rank: np.ndarray  # (n,): the smallest first
    detail: str  # a format string for the `values` of an image
    values: tuple[np.ndarray, ...]


def image_findings(table: Table, statistics: ImageStatistics) -> list[Finding]:
    """Images that show nothing or differ strongly from the others, the most extreme first."""
    if not len(statistics.readable):
        return []
    findings = []
    for outliers in _outliers(statistics):
        findings += _describe(table, statistics.readable, outliers)
    return findings


def _outliers(statistics: ImageStatistics) -> list[_Outliers]:
    rows = {
        name: statistics.rows[name][statistics.readable].astype(np.float64)
        for name in ("range", "low", "high", "sharpness", "height", "width")
    }
    height, width, low, high = (rows[name] for name in ("height", "width", "low", "high"))
    empty = rows["range"] < ONE_COLOR
    short, long = np.minimum(height, width), np.maximum(height, width)
    median_short = float(np.median(short))
    aspect = long / np.maximum(1, short)
    dark, bright = ~empty & (high < DARK), ~empty & (low > BRIGHT)
    sharpness = np.log2(rows["sharpness"] + 1e-3)
    median = np.median(sharpness)
    # The median absolute deviation, scaled to the standard deviation of a normal distribution.
    deviation = max(MIN_DEVIATION, 1.4826 * float(np.median(np.abs(sharpness - median))))
    blurred = (sharpness < median - np.log2(BLURRED)) & (sharpness < median - BLURRED * deviation)
    # Tiny, empty or black images have no sharpness that could be compared.
    blurred &= (short >= MIN_SIDE) & ~empty & ~dark & ~bright
    size = "{:.0f} x {:.0f} pixels"
    shape = f'{size}, {{:.1f}} to 1: a center crop cuts most of it off; fit = "pad" keeps all of it'
    size += f"; the median short side is {median_short:.0f}"
    soft = "{:.0f} times less sharp than the median image"
    uniform = "a single color, within {:.0f} of 255 levels"
    return [
        _Outliers("one-color", "warning", empty, rows["range"], uniform, (rows["range"],)),
        _Outliers("dark", "warning", dark, high, "99 % of its pixels are darker than {:.0f} (of 255)", (high,)),
        _Outliers("bright", "warning", bright, -low, "99 % of its pixels are brighter than {:.0f} (of 255)", (low,)),
        _Outliers("blurred", "warning", blurred, sharpness, soft, (2 ** (median - sharpness),)),
        _Outliers("small", "info", short * SIZE_RATIO < median_short, short, size, (width, height)),
        _Outliers("large", "info", short > SIZE_RATIO * median_short, -short, size, (width, height)),
        _Outliers("elongated", "info", aspect >= ELONGATED, -aspect, shape, (width, height, aspect)),
    ]


def _describe(table: Table, readable: np.ndarray, outliers: _Outliers) -> list[Finding]:
    """A finding for each outlier, or one for all of them if they are too many to be outliers."""
    rows = np.flatnonzero(outliers.mask)
    rows = rows[np.argsort(outliers.rank[rows], kind="stable")]
    # What is true of a large part of the source is its nature, not a mistake.
    if len(rows) > max(2, COMMON * len(readable)):
        samples = tuple(table.sample_id(int(readable[k])) for k in rows)
        detail = f"{len(rows)} of {len(readable)} images: typical of this source, unless something went wrong"
        severity = outliers.severity if outliers.kind == "one-color" else "info"
        return [Finding(outliers.kind, severity, samples, (), detail)]
    findings = []
    for k in rows:
        detail = outliers.detail.format(*(values[k] for values in outliers.values))
        findings.append(Finding(outliers.kind, outliers.severity, *_names(table, int(readable[k])), detail))
    return findings


def _names(table: Table, i: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths and classes of a finding about sample i."""
    return (table.sample_id(i),), table.labels_of(i)
