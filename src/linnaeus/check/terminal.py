"""The check's findings as text: counts by severity and kind, the first few of each, and what to do next."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from linnaeus.check.findings import KINDS, SEVERITIES, Finding, by_kind
from linnaeus.check.run import Checked

SHOWN = 3  # findings of a kind, of those that a gallery or the JSON shows in full
ERRORS_SHOWN = 20  # of a kind: each of them has to be dealt with
WIDTH = 120

NEXT = {
    "leak": "move the copies into one split; until then every figure on the later split flatters",
    "label-conflict": "decide which label is right and remove the other image",
    "truncated": "fetch these files again or remove them; `train` leaves them out",
    "empty": "fetch these files again or remove them; `train` leaves them out",
    "unreadable": "convert or remove these files; `train` leaves them out",
    "too-large": "make these images smaller; `train` leaves them out",
    "missing-class": "give every class images in every split",
    "confusable-names": "give each class one name, written in one way",
    "suspicious-label": "look at these images, in this order, and correct the labels that are wrong",
    "duplicate": "remove all but one of them",
    "near-duplicate": "a random split may part them; `train --set data.split.groups=near-duplicates` does not",
    "same-scene": "keep a scene in one split; `train --set data.split.groups=near-duplicates` does",
}
"""Kind -> what to do about it."""


def render(checked: Checked, shown: int = SHOWN) -> Iterator[str]:
    """Lines for the terminal."""
    table = checked.table
    splits = ", ".join(f"{split or 'unsplit'} {n.sum()}" for split, n in table.counts().items())
    yield f"{table.source}: {len(table)} images of {len(table.classes)} classes ({splits})"
    groups = by_kind(checked.findings)
    totals = {severity: sum(len(f) for (s, _), f in groups.items() if s == severity) for severity in SEVERITIES}
    for severity in SEVERITIES:
        if totals[severity]:
            yield ""
            yield _plural(totals[severity], severity)
        for (s, kind), found in groups.items():
            if s == severity:
                yield from _kind(kind, found, max(shown, ERRORS_SHOWN) if severity == "error" else shown)
    yield ""
    for note in checked.notes:
        yield from textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="      ", break_long_words=False)
    if not checked.findings:
        yield "nothing found"
    elif not totals["error"] and not totals["warning"]:
        yield "no error, and nothing to warn of"
    for kind in dict.fromkeys(kind for (severity, kind) in groups if severity != "info" and kind in NEXT):
        yield f"next: {KINDS[kind]}: {NEXT[kind]}"


def _kind(kind: str, found: list[Finding], shown: int) -> Iterator[str]:
    yield f"  {len(found):>5}  {KINDS[kind]}"
    for finding in found[:shown]:
        about = _about(finding)
        yield f"         {about}{': ' if about else ''}{finding.detail}"
    if len(found) > shown:
        yield f"         and {len(found) - shown} more"


def _about(finding: Finding) -> str:
    """What a finding is about: two of its images, or its classes."""
    if finding.kind == "ignored":  # its detail counts them
        return ""
    more = f" and {len(finding.paths) - 2} more" if len(finding.paths) > 2 else ""
    return " = ".join(finding.paths[:2]) + more if finding.paths else ", ".join(finding.classes)


def _plural(n: int, severity: str) -> str:
    return f"{n} {severity}" if n == 1 or severity == "info" else f"{n} {severity}s"
