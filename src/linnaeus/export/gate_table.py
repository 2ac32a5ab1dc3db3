"""Text table of the results of the gate."""

from __future__ import annotations

from linnaeus.console import counted
from linnaeus.export.gate import RAW_PIXELS, SAME_PIXELS, Comparison
from linnaeus.export.onnx import Attempt, GateResult
from linnaeus.modelfile.agreement import FEW
from linnaeus.text import align, percent

HEADER = ("", "same class", "accuracy", "probabilities", "variant")
WRITTEN = "the variant that changes the fewest classes, and of equal ones the fastest"
WRITTEN_FEW = "of the variants that change the fewest classes, the one that changes the probabilities least"
CHOSEN_HERE = "; chosen on these images, so its figures are slightly optimistic"
LEGEND = (
    ("same class", "images to which the export gives the same class, or the same labels, as the original"),
    ("probabilities", "largest difference of a probability (0 to 1) between the two"),
)


def render(result: GateResult) -> str:
    """The images, one line per variant with its result, and the meaning of the columns."""
    first, images = result.attempts[0].prepared, result.samples.images
    original = f"{percent(first.original_accuracy, 2)} accuracy"
    about = f"{counted(first.n, 'image')}, {images.split} of {result.samples.source}"
    rows = [HEADER, *(_row(attempt, i == result.chosen) for i, attempt in enumerate(result.attempts))]
    written = WRITTEN_FEW if first.n < FEW else WRITTEN
    choice = [("written", written + CHOSEN_HERE)] if len(result.attempts) > 1 and result.passed else []
    notes = [*choice, *LEGEND, *_unsure(result), *_full_size(result), *_speed(result)]
    return "\n".join(
        [
            f"compared with the original ({original}) on {about}",
            "",
            *align(rows, "<>>><", indent=""),
            "",
            *align(notes, "<<", indent=""),
        ]
    )


def _row(attempt: Attempt, chosen: bool) -> tuple[str, ...]:
    prepared, reason = attempt.prepared, f": {attempt.refused}" if attempt.refused else ""
    outcome = "written" if chosen else "rejected" if attempt.refused else "passed"
    return outcome, *_agreement(prepared), f"{attempt.scheme}{reason}"


def _agreement(comparison: Comparison) -> tuple[str, str, str]:
    same = f"{comparison.n - comparison.differing} of {comparison.n}"
    return same, percent(comparison.accuracy, 2), _difference(comparison.largest)


def _difference(largest: float) -> str:
    """With as many digits as the strictest limit has."""
    return f"<{SAME_PIXELS:g}" if largest < SAME_PIXELS else f"{largest:.4f}"


def _unsure(result: GateResult) -> list[tuple[str, str]]:
    """For how many images the written file gives another answer although the class is the same."""
    if result.passed is None or result.passed.prepared.unsure is None:
        return []
    prepared = result.passed.prepared
    return [("unsure", f"{prepared.unsure} of {prepared.n} images become sure or unsure")]


def _full_size(result: GateResult) -> list[tuple[str, str]]:
    """How the variants do that resize the images themselves, and the effect of decoding JPEGs at reduced size."""
    lines = []
    for attempt in result.attempts:
        if attempt.raw is not None:
            same, accuracy, difference = _agreement(attempt.raw)
            which = "" if len(result.attempts) == 1 else f"; {attempt.scheme}"
            lines.append(
                ("full size", f"{same}, {accuracy}, {difference} if the export resizes the images itself{which}")
            )
    draft = result.reference.draft_effect
    if draft is not None and draft.n:
        effect = f"changes a probability by at most {draft.largest:.2g} and the answer for {draft.differing}"
        decoded = f"`linnaeus predict` decodes {counted(draft.n, 'large JPEG')} at a fraction of the size"
        lines.append(("reduced", f"{decoded}: this {effect}"))
    # int8 has a required agreement instead, which the reasons for rejection state.
    if result.kind == "onnx":
        limits = f"probabilities within {SAME_PIXELS:g}; at full size, within {RAW_PIXELS:g}"
        lines.append(("required", f"the same class for all images, {limits}"))
    return lines


def _speed(result: GateResult) -> list[tuple[str, str]]:
    speed = {} if result.passed is None else result.passed.speed or {}
    ratios = ", ".join(f"{ratio:.1f} times in batches of {int(size)}" for size, ratio in speed.items())
    return [("speed", f"relative to the original on this machine: {ratios}")] if ratios else []
