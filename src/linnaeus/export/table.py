"""Text table of the results of the gate."""

from __future__ import annotations

from linnaeus.export.gate import RAW_PIXELS, SAME_PIXELS, Comparison
from linnaeus.export.run import Gate, Tried
from linnaeus.text import align


def render(gate: Gate) -> str:
    """One line per candidate, followed by the reasons for rejection, the images and the tolerances."""
    head = ("", "same class", "largest difference", "accuracy", "p", "raw: same class", "largest", "speed", "")
    rows = [head, *(_row(each, i == gate.chosen) for i, each in enumerate(gate.tried))]
    lines = [*align(rows, "<>>>>>><<", indent=""), ""]
    lines += [f"{each.scheme}: {each.refused}" for each in gate.tried if each.refused]
    first = gate.tried[0].prepared
    where = f"{first.n} images, {gate.material.images.split} of {gate.material.source}"
    lines.append(f"{where}; the original has {first.original_accuracy:.2%} right")
    if gate.kind == "onnx":
        lines.append(
            f"allowed: no other class and {SAME_PIXELS:g} on the same pixels; {RAW_PIXELS:g} from raw pixels, which "
            "the graph resizes itself"
        )
    drafted = gate.original.drafted
    if drafted is not None:
        looked = len(gate.original.raw_chosen)
        lines.append(
            f"{drafted.n} of {looked} images are JPEGs that `linnaeus predict` decodes at a fraction of their size"
            + (
                f"; that moves a probability by {drafted.largest:.2g} at most, and the class of {drafted.differing}"
                if drafted.n
                else ""
            )
        )
    return "\n".join(lines)


def _row(tried: Tried, chosen: bool) -> tuple[str, ...]:
    found, raw = tried.prepared, tried.raw
    speed = "" if not tried.speed else ", ".join(f"{ratio:.1f}x at {size}" for size, ratio in tried.speed.items())
    return (
        tried.scheme, _agreed(found), f"{found.largest:.1e}", f"{found.accuracy:.2%}", f"{found.paired.p:.2g}",
        "" if raw is None else _agreed(raw), "" if raw is None else f"{raw.largest:.1e}", speed,
        "written" if chosen else "refused" if tried.refused else "",
    )  # fmt: skip


def _agreed(found: Comparison) -> str:
    return f"{found.n - found.differing}/{found.n}"
