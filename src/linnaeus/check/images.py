"""Findings about single files and images: what cannot be read, what is misnamed, what is unlike the rest."""

from __future__ import annotations

import os

import numpy as np

from linnaeus.check.findings import Finding
from linnaeus.check.look import Looks
from linnaeus.data.decode import FORMATS, IMAGE_SUFFIXES
from linnaeus.data.table import Table

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
"""Format -> what its files may be called; the first is the usual one."""

ONE_COLOR = 8.0  # gray levels, of 255, between the extremes of an image that shows nothing
DARK, BRIGHT = 40.0, 200.0  # the brightest of a dark image, the darkest of a bright one
BLURRED = 4.0  # times less sharp than the median, and as many robust deviations below it
LEAST_SIDE = 64  # pixels: a smaller image has no detail to lose
LEAST_DEVIATION = 0.3  # of log2 sharpness: where all images are alike, a small difference is none
SIZES = 4.0  # times: a short side this far from the median is far
ELONGATED = 3.0  # long side over short side; the store of `fit = "crop"` keeps no more than 4
COMMON = 0.2  # of the images: what so many are is how this source is, and said once


def files(table: Table, looks: Looks) -> list[Finding]:
    """What cannot be read, and whose name says something else than its content."""
    found = []
    for i, failure in sorted(looks.failed.items()):
        found.append(Finding(failure.kind, "error", *_about(table, i), failure.reason))
    if table.paths is None:
        return found
    for i in looks.readable.tolist():
        suffix = os.path.splitext(table.paths[i])[1].lower()  # noqa: PTH122
        form = FORMATS[looks.rows["format"][i]]
        if suffix in IMAGE_SUFFIXES and suffix not in SUFFIXES[form].split():
            detail = f"holds {form} and is called {suffix}; rename it to {SUFFIXES[form].split()[0]}"
            found.append(Finding("wrong-extension", "warning", *_about(table, i), detail))
    return found


def images(table: Table, looks: Looks) -> list[Finding]:
    """Images that show nothing, or are far from what the others are like; the farthest first."""
    readable = looks.readable
    rows = {
        name: looks.rows[name][readable].astype(np.float64)
        for name in ("range", "low", "high", "sharpness", "height", "width")
    }
    empty = rows["range"] < ONE_COLOR
    short, long = np.minimum(rows["height"], rows["width"]), np.maximum(rows["height"], rows["width"])
    sharp = np.log2(rows["sharpness"] + 1e-3)
    center = np.median(sharp) if len(sharp) else 0.0
    deviation = max(LEAST_DEVIATION, 1.4826 * float(np.median(np.abs(sharp - center)))) if len(sharp) else 1.0
    soft = (short >= LEAST_SIDE) & (sharp < center - np.log2(BLURRED)) & (sharp < center - BLURRED * deviation)
    usual = float(np.median(short)) if len(short) else 1.0
    aspect = long / np.maximum(1, short)
    times = 2 ** (center - sharp)
    dark, bright = ~empty & (rows["high"] < DARK), ~empty & (rows["low"] > BRIGHT)

    def say(
        kind: str, severity: str, which: np.ndarray, rank: np.ndarray, detail: str, *values: np.ndarray
    ) -> list[Finding]:
        chosen = np.flatnonzero(which)
        chosen = chosen[np.argsort(rank[chosen], kind="stable")]
        if len(chosen) > max(2, COMMON * len(readable)):
            samples = tuple(table.sample_id(int(readable[k])) for k in chosen)
            text = f"{len(chosen)} of {len(readable)} images: this is what the source is like, or something went wrong"
            return [Finding(kind, "info" if kind != "one-color" else severity, samples, (), text)]
        return [
            Finding(kind, severity, *_about(table, int(readable[k])), detail.format(*(v[k] for v in values)))
            for k in chosen
        ]

    return [
        *say("one-color", "warning", empty, rows["range"], "all one color, within {:.0f} of 255 levels", rows["range"]),
        *say("dark", "warning", dark, rows["high"], "99 % of it is darker than {:.0f} of 255", rows["high"]),
        *say("bright", "warning", bright, -rows["low"], "99 % of it is brighter than {:.0f} of 255", rows["low"]),
        *say("blurred", "warning", soft & ~empty & ~dark & ~bright, sharp,
             "{:.0f} times less sharp than the median image", times),
        *say("small", "info", short * SIZES < usual, short, "{:.0f} x {:.0f} pixels; the median short side is "
             f"{usual:.0f}", rows["width"], rows["height"]),
        *say("large", "info", short > SIZES * usual, -short, "{:.0f} x {:.0f} pixels; the median short side is "
             f"{usual:.0f}", rows["width"], rows["height"]),
        *say("elongated", "info", aspect >= ELONGATED, -aspect,
             '{:.0f} x {:.0f} pixels, {:.1f} to 1: a center crop shows little of it; fit = "pad" shows all',
             rows["width"], rows["height"], aspect),
    ]  # fmt: skip


def _about(table: Table, i: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths and classes of a finding about sample i."""
    return (table.sample_id(i),), (table.classes[table.labels[i]],)
