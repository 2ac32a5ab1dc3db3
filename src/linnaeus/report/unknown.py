"""The report's section on unknown images: both scores on validation, the thresholds, and the images nearest to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FixedLocator, FuncFormatter

from linnaeus.metrics.ood import Thresholds, combined_scores
from linnaeus.report.canvas import muted, new_figure, style_axes
from linnaeus.report.fonts import families_for
from linnaeus.report.page_sections import IntervalBar
from linnaeus.report.palette import BLUE, MUTED, ORANGE, PAGE
from linnaeus.report.shown_prediction import shown_prediction
from linnaeus.report.svg import tag, to_svg
from linnaeus.report.thumbnails import Thumbnails
from linnaeus.runs.predictions import PredictionRow
from linnaeus.runs.reader import RunContents
from linnaeus.text import fraction, fraction_range, probability_percent, typeset_percent

FONTS = families_for([])  # all texts of these charts are our own
BINS = 28
NEAREST = 6  # images on each side of the thresholds
SPLITS = {"valid": "validation", "test": "test"}


def unknown_section(run: RunContents, images: Thumbnails) -> dict[str, Any] | None:
    """The variables of the section; None for a run whose model does not recognize unknown images."""
    limits, measured = run.limits, run.metrics.get("unknown") or {}
    rows = run.predictions.get("valid", [])
    if limits is None or not rows:
        return None
    distance, probability = scores_of(rows)
    nearest = nearest_images(rows, limits)
    positions = {key: [images.find(row.sample) for row, _ in part] for key, part in nearest.items()}
    # Decoded at once, in threads, before they are shown one by one.
    images.decode(i for part in positions.values() for i in part if i is not None)
    return {
        "distance": None if limits.distance is None else f"{limits.distance:.3g}",
        "probability": typeset_percent(limits.probability, 1, exact=True),
        "target": typeset_percent(limits.target),
        "few": limits.few,
        "groups": (measured.get("known") or {}).get("valid", {}).get("groups"),
        "chosen_on": limits.chosen_on,
        "assured": typeset_percent(limits.assured),
        "accepted": [
            (SPLITS.get(split, split), known["accepted"], known["n"], typeset_percent(known["share"], 1))
            for split, known in measured.get("known", {}).items()
        ],
        "charts": _charts(limits, distance, probability),
        "nearest": {
            key: [(shown_prediction(run, images, row), score) for row, score in part] for key, part in nearest.items()
        },
        "left_out": _left_out(run, measured.get("left_out_classes")),
        "trained_features": measured.get("trained_features", False),
    }


def scores_of(rows: Sequence[PredictionRow]) -> tuple[np.ndarray | None, np.ndarray]:
    """(n,) distance, None unless every row has one, and (n,) probability of the most likely class."""
    distances = [row.distance for row in rows if row.distance is not None]
    return np.array(distances) if len(distances) == len(rows) else None, np.array([row.probability for row in rows])


def nearest_images(rows: Sequence[PredictionRow], limits: Thresholds) -> dict[str, list[tuple[PredictionRow, str]]]:
    """The images that are only just accepted, and those only just rejected, each with its distance as text.

    Both scores are compared by the share of images with a lower one, as the thresholds were chosen.
    """
    distance, probability = scores_of(rows)
    if distance is None and limits.distance is not None:  # a run of an earlier version recorded no distances
        return {"accepted": [], "rejected": []}
    scores = [-probability] if distance is None else [distance, -probability]
    rank = combined_scores(scores, scores)
    rejected = limits.unknown(distance, probability)
    texts = [] if distance is None else [f"distance {value:.3g}" for value in distance]

    def rows_of(indices: np.ndarray) -> list[tuple[PredictionRow, str]]:
        return [(rows[i], texts[i] if texts else "") for i in indices[:NEAREST].tolist()]

    order = np.argsort(rank, kind="stable")
    return {"accepted": rows_of(order[::-1][~rejected[order[::-1]]]), "rejected": rows_of(order[rejected[order]])}


def _left_out(run: RunContents, measured: dict[str, Any] | None) -> dict[str, Any] | None:
    """How well images of a class that the head was not trained on are told apart, class by class, the worst first."""
    if not measured:
        return None
    names = [run.name_of(label) if label in run.class_index else label for label in measured["classes"]]
    areas = measured["auroc_by_class"]
    shares = measured.get("accepted_by_class")  # not in runs of earlier versions
    # The worst first: those of which most images pass as known.
    by_class = sorted(zip([1 - a for a in areas] if shares is None else shares, areas, names, strict=True))[::-1]
    return {
        "auroc": fraction(measured["auroc"]["combined"]),
        "interval": fraction_range(*measured["auroc_ci95"]),
        "known": measured["known"],
        "unknown": measured["unknown"],
        "of": measured["of"],
        "accepted": None if shares is None else typeset_percent(measured["accepted"]),
        "accepted_interval": None if shares is None else [typeset_percent(end) for end in measured["accepted_ci95"]],
        "rows": [
            (
                name,
                fraction(area),
                None if shares is None else typeset_percent(share),
                None if shares is None else IntervalBar.of(f"{name}: {typeset_percent(share)}", share, None),
            )
            for share, area, name in by_class
        ],
    }


def _charts(limits: Thresholds, distance: np.ndarray | None, probability: np.ndarray) -> list[tuple[str, Markup]]:
    """(title, drawing) of the distribution of each score."""
    charts = []
    if distance is not None and limits.distance is not None:
        top = 1.05 * max(float(distance.max()), limits.distance)
        title = "Distance from the training images"
        charts.append((title, score_histogram(distance, limits.distance, (0.0, top), "distance")))
    title = "Probability of the most likely class"
    charts.append((title, score_histogram(probability, limits.probability, (0.0, 1.0), "probability")))
    return charts


def score_histogram(values: np.ndarray, threshold: float, ends: tuple[float, float], name: str) -> Markup:
    """Number of images by a score (n,), with its threshold. `name` is `distance`, of which large values are rejected,
    or `probability`, of which small ones are."""
    above, percentages = name == "distance", name == "probability"

    def text(value: float) -> str:
        """An edge of a bin or the threshold."""
        return typeset_percent(value, 1, exact=True) if percentages else f"{value:.3g}"

    def of_image(value: float) -> str:
        return probability_percent(value, typeset=True) if percentages else f"{value:.3g}"

    edges = bin_edges(threshold, ends)
    # Values beyond the ends belong to the outer bars.
    counts, _ = np.histogram(np.clip(values, *ends), edges)
    rejected = int(((values > threshold) if above else (values < threshold)).sum())
    figure = new_figure(4.6, 2.9, margin=0.04)
    axes = figure.subplots()
    style_axes(axes, FONTS)
    # Few images lie near the threshold and most far from it: on a linear scale the former could not be seen.
    most = max(int(counts.max(initial=1)), 10)
    axes.set_yscale("symlog", linthresh=1)
    # A factor of 1.5 is room for the label of the threshold on a logarithmic axis.
    axes.set(xlim=ends, ylim=(0, 1.5 * most))
    axes.yaxis.set_major_locator(FixedLocator([0, *(10**k for k in range(math.floor(math.log10(most)) + 1))]))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: typeset_percent(v) if percentages else f"{v:.3g}"))
    axes.set_title("images (logarithmic scale)", loc="left", pad=6, **muted(FONTS))
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            color = ORANGE if (low >= threshold) == above else BLUE
            (bar,) = axes.bar(low, count, high - low, align="edge", color=color, edgecolor=PAGE, linewidth=0.6)
            tag(bar, "bar", f"{text(low)} to {text(high)}: {count:,} {'image' if count == 1 else 'images'}")
    tag(axes.axvline(threshold, color=MUTED, linewidth=1, linestyle="--"), "limit", f"threshold {text(threshold)}")
    side = "above" if above else "below"
    about = f"{len(values):,} validation images between {of_image(values.min())} and {of_image(values.max())}, half of "
    about += f"them below {of_image(float(np.median(values)))}; {rejected} {side} the threshold of {text(threshold)}."
    return to_svg(figure, f"unknown-{name}", f"Distribution of the {name}", about)


def bin_edges(threshold: float, ends: tuple[float, float]) -> np.ndarray:
    """Ascending edges of equal bins from one end to the other, one of them the threshold: no bin lies on both sides."""
    low, high = ends
    width = (high - low) / BINS
    below, above = math.floor((threshold - low) / width), math.floor((high - threshold) / width)
    inner = threshold + width * np.arange(-below, above + 1)
    return np.unique(np.concatenate([[low], inner[(inner > low) & (inner < high)], [high]]))
