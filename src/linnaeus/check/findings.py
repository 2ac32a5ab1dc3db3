"""A finding: one thing that is wrong, how bad it is, and which images and classes it is about.

`linnaeus check --json` writes one object, whose `findings` are a list of these, the worst first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

SEVERITIES = ("error", "warning", "info")
"""error: figures or training would be wrong; warning: look at it; info: worth knowing."""

KINDS = {
    "truncated": "files cut short",
    "empty": "empty files",
    "too-large": "images too large to decode",
    "unreadable": "files that cannot be read",
    "leak": "leaks between splits",
    "label-conflict": "copies with different labels",
    "missing-class": "classes missing from a split",
    "one-class": "one class only",
    "confusable-names": "confusable class names",
    "suspicious-label": "suspicious labels",
    "duplicate": "duplicates",
    "near-duplicate": "near duplicates",
    "same-scene": "scenes that are there twice",
    "few-images": "classes too small to learn",
    "few-to-measure": "too few to measure",
    "imbalance": "unequal classes",
    "wrong-extension": "wrong extensions",
    "one-color": "images of one color",
    "dark": "very dark images",
    "bright": "very bright images",
    "blurred": "blurred images",
    "small": "much smaller than the rest",
    "large": "much larger than the rest",
    "elongated": "far from square",
    "ignored": "passed over",
}
"""Kind -> what people call it, in the order in which they are shown."""

EXAMPLE = 80  # characters of an example in the short form


@dataclass(frozen=True)
class Finding:
    """One thing found. In JSON: `{"kind", "severity", "paths", "classes", "detail"}`."""

    kind: str
    """What it is: `leak`, `label-conflict`, `suspicious-label`, `duplicate`, `unreadable` and so on: one of KINDS."""
    severity: str
    """`error`: figures or training would be wrong; `warning`: look at it; `info`: worth knowing."""
    paths: tuple[str, ...] = ()
    """Images by their names in the source; the first is what to look at first."""
    classes: tuple[str, ...] = ()
    """The classes that it is about."""
    detail: str = ""
    """One line for a person."""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind
        assert self.severity in SEVERITIES, self.severity

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "severity": self.severity,
            "paths": list(self.paths),
            "classes": list(self.classes),
            "detail": self.detail,
        }


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, then by kind as KINDS has them; otherwise as they come, so a ranking stays one."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), kinds.index(f.kind)))


def by_kind(findings: Iterable[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """(severity, kind) -> its findings, in the order of `in_order`."""
    found: dict[tuple[str, str], list[Finding]] = {}
    for finding in in_order(findings):
        found.setdefault((finding.severity, finding.kind), []).append(finding)
    return found


def short_form(findings: Sequence[Finding], where: str) -> list[str]:
    """At most three lines for who is about to train: the errors, the warnings, and `where` to see them all.

    Nothing where there is neither error nor warning.
    """
    lines = []
    for severity in ("error", "warning"):
        groups = {kind: found for (s, kind), found in by_kind(findings).items() if s == severity}
        if groups:
            counts = [f"{KINDS[kind]} {len(found)}{_example(found)}" for kind, found in groups.items()]
            total = sum(map(len, groups.values()))
            lines.append(f"{total} {severity}{'s' if total > 1 else ''}: {'; '.join(counts)}")
    return [*lines, where] if lines else []


def _example(found: Sequence[Finding]) -> str:
    """` (train/rose/1.jpg …)`: what the first one is about; of copies in two splits the later one is named first."""
    first = found[0]
    about = " = ".join(first.paths[::-1]) if len(first.paths) == 2 else "".join((first.paths or first.classes)[:1])
    if not about or len(about) > EXAMPLE:
        return ""
    return f" ({about}{' …' if len(found) > 1 else ''})"
