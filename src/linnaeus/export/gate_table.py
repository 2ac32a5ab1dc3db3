"""Text table of the results of the gate."""

from __future__ import annotations

from linnaeus.export.gate import RAW_PIXELS, SAME_PIXELS, Comparison
from linnaeus.export.onnx import Attempt, GateResult
from linnaeus.text import align, percent

HEADER = ("", "same class", "largest difference", "accuracy", "p", "raw: same class", "largest", "speed", "")


def render(result: GateResult) -> str:
    """One line per candidate, followed by the reasons for rejection, the images and the tolerances."""
    rows = [HEADER, *(_row(attempt, i == result.chosen) for i, attempt in enumerate(result.attempts))]
    lines = [*align(rows, "<>>>>>><<", indent=""), ""]
    lines += [f"{attempt.scheme}: {attempt.refused}" for attempt in result.attempts if attempt.refused]
    first = result.attempts[0].prepared
    images = f"{first.n} images, {result.samples.images.split} of {result.samples.source}"
    lines.append(f"{images}; accuracy of the original: {percent(first.original_accuracy, 2)}")
    # int8 has a required agreement instead, which each row states.
    if result.kind == "onnx":
        lines.append(
            f"allowed: the same class and {SAME_PIXELS:g} on the same pixels; {RAW_PIXELS:g} from raw pixels, which "
            "the graph resizes itself"
        )
    lines += _draft_line(result)
    return "\n".join(lines)


def _draft_line(result: GateResult) -> list[str]:
    """The effect of decoding large JPEGs at a fraction of their size, if raw images were compared."""
    draft = result.reference.draft_effect
    if draft is None:
        return []
    line = (
        f"{draft.n} of {len(result.reference.raw_positions)} images are JPEGs that `linnaeus predict` decodes at a "
        "fraction of their size"
    )
    if draft.n:
        line += f"; this changes a probability by at most {draft.largest:.2g} and the class of {draft.differing}"
    return [line]


def _row(attempt: Attempt, chosen: bool) -> tuple[str, ...]:
    prepared, raw = attempt.prepared, attempt.raw
    speed = ", ".join(f"{ratio:.1f}x at {size}" for size, ratio in (attempt.speed or {}).items())
    outcome = "written" if chosen else "refused" if attempt.refused else ""
    measured = [
        _agreement(prepared),
        f"{prepared.largest:.1e}",
        percent(prepared.accuracy, 2),
        f"{prepared.paired.p:.2g}",
    ]
    measured_raw = ["", ""] if raw is None else [_agreement(raw), f"{raw.largest:.1e}"]
    return (attempt.scheme, *measured, *measured_raw, speed, outcome)


def _agreement(comparison: Comparison) -> str:
    return f"{comparison.n - comparison.differing}/{comparison.n}"
