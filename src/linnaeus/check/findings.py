"""Findings: what is wrong, how serious it is, and which images and classes are affected.

`linnaeus check --json` writes one object, whose `findings` are a list of these, the most serious first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

SEVERITIES = ("error", "warning", "info")
"""error: results or training would be wrong; warning: needs a look; info: worth knowing."""

KINDS = {
    "truncated": "truncated files",
    "empty": "empty files",
    "too-large": "images too large to decode",
    "unreadable": "unreadable files",
    "leak": "leaks between splits",
    "label-conflict": "copies with different labels",
    "few-images": "classes with few training images",
    "missing-class": "classes missing from a split",
    "one-class": "only one class",
    "confusable-names": "confusable class names",
    "suspicious-label": "suspicious labels",
    "duplicate": "duplicates",
    "near-duplicate": "near duplicates",
    "same-scene": "images of the same scene",
    "few-to-measure": "few images for evaluation",
    "few-of-class": "classes with few images for evaluation",
    "imbalance": "imbalanced classes",
    "wrong-extension": "wrong file extensions",
    "pages": "multi-page files",
    "one-color": "images of a single color",
    "dark": "very dark images",
    "bright": "very bright images",
    "blurred": "blurred images",
    "small": "much smaller than most images",
    "large": "much larger than most images",
    "elongated": "elongated images",
    "ignored": "ignored files",
}
"""Kind -> title, in the order of display."""

SAME = {"leak", "label-conflict", "duplicate", "near-duplicate", "same-scene"}
"""Kinds whose images show the same thing; other kinds list images that only share a property."""

MORE_TO_MEASURE = "set aside more with `train --set data.split.valid=0.3`, or cross-validate with `probe`"
"""What to do about few images to evaluate on."""

MORE_TO_LEARN = "add images of them, or merge or leave out classes"  # what to do about few images to learn from

EXAMPLE = 80  # longest example in a summary line, in characters


@dataclass(frozen=True)
class Finding:
    """One problem. In JSON: `{"kind", "severity", "paths", "classes", "detail"}`."""

    kind: str
    """One of KINDS: `leak`, `label-conflict`, `suspicious-label`, `duplicate`, `unreadable` and so on."""
    severity: str
    """One of SEVERITIES."""
    paths: tuple[str, ...] = ()
    """Names of the images in the source, the most important first."""
    classes: tuple[str, ...] = ()
    """The classes affected."""
    detail: str = ""
    """One line for a person."""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind
        assert self.severity in SEVERITIES, self.severity

    @property
    def separator(self) -> str:
        """What joins the names of its images: an equals sign only where they show the same thing."""
        return " = " if self.kind in SAME else ", "

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "severity": self.severity,
            "paths": list(self.paths),
            "classes": list(self.classes),
            "detail": self.detail,
        }


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Sort by severity, then by kind in the order of KINDS. The sort is stable, so a ranking within a kind stays."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), kinds.index(f.kind)))


def by_kind(findings: Iterable[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """(severity, kind) -> findings, in the order of `sort_findings`."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in sort_findings(findings):
        groups.setdefault((finding.severity, finding.kind), []).append(finding)
    return groups


def summary_lines(findings: Sequence[Finding]) -> list[str]:
    """At most two warnings to print before training: the errors, and what to review."""
    lines = []
    for severity, title in (("error", "errors in the data"), ("warning", "to review in the data")):
        groups = {kind: members for (s, kind), members in by_kind(findings).items() if s == severity}
        if groups:
            kinds = [f"{KINDS[kind]} {_summary(members)}" for kind, members in groups.items()]
            lines.append(f"{title}: {'; '.join(kinds)}")
    return lines


def _summary(findings: Sequence[Finding]) -> str:
    """The number of findings and the first; of too few images how few, such as `9 images in valid`, and what helps."""
    first, n = findings[0], len(findings)
    if first.kind == "few-images":  # the smallest class is first
        return f"({n}; {', '.join(first.classes)} has {first.detail.partition(';')[0]}: {MORE_TO_LEARN})"
    if first.kind == "few-to-measure":
        return f"({', '.join(finding.detail.partition(':')[0] for finding in findings)}: {MORE_TO_MEASURE})"
    return f"({n}){_example(findings)}"


def _example(findings: Sequence[Finding]) -> str:
    """`: train/rose/1.jpg …`: the first of the findings; of a copy in two splits the one in the later split first."""
    first = findings[0]
    text = (
        first.separator.join(first.paths[::-1])
        if len(first.paths) == 2
        else "".join((first.paths or first.classes)[:1])
    )
    if not text or len(text) > EXAMPLE:
        return ""
    return f": {text}{' …' if len(findings) > 1 else ''}"
