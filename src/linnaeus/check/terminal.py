"""The result of a check as text: counts by severity and kind, the first findings of each kind, and the next steps."""

from __future__ import annotations

from collections.abc import Iterator

from linnaeus.check.data_check import DataCheck
from linnaeus.check.findings import KINDS, MORE_TO_LEARN, MORE_TO_MEASURE, SEVERITIES, Finding, by_kind
from linnaeus.console import counted
from linnaeus.text import first_few

SHOWN = 3  # findings of each kind; the gallery and the JSON have all
ERRORS_SHOWN = 20  # of each kind, because every error needs an action

NEXT_STEPS = {
    "leak": "move all copies into one split; until then results on the later split are optimistic",
    "label-conflict": "decide which label is right and remove the other image",
    "truncated": "replace or remove these files; `train` leaves them out",
    "empty": "replace or remove these files; `train` leaves them out",
    "unreadable": "convert or remove these files; `train` leaves them out",
    "too-large": "reduce the size of these images; `train` leaves them out",
    "few-images": MORE_TO_LEARN,
    "missing-class": "add images of every class to every split",
    "few-to-measure": MORE_TO_MEASURE,
    "confusable-names": "give each class a single name with a single spelling",
    "suspicious-label": "review these images in this order and correct wrong labels",
    "duplicate": "remove all but one of each group",
    "near-duplicate": "a random split may separate them; `train --set data.split.groups=near-duplicates` keeps them "
    "together",
    "same-scene": "keep each scene in one split: `train --set data.split.groups=near-duplicates`",
}
"""Kind -> what to do about it."""


def render(result: DataCheck, shown: int = SHOWN) -> Iterator[str]:
    """Lines for the terminal, with `shown` findings of each kind."""
    table = result.table
    splits = ", ".join(f"{split or 'unsplit'} {n}" for split, n in table.sizes().items())
    yield f"{table.source}: {counted(len(table), 'image')} of {len(table.classes)} classes ({splits})"
    groups = by_kind(result.findings)
    totals = {severity: sum(len(f) for (s, _), f in groups.items() if s == severity) for severity in SEVERITIES}
    for severity in SEVERITIES:
        if n := totals[severity]:
            yield ""
            yield f"{n} {severity}" if severity == "info" else counted(n, severity)
        for (s, kind), findings in groups.items():
            if s == severity:
                # Errors stop a training, so more of them are shown.
                yield from _kind(kind, findings, max(shown, ERRORS_SHOWN) if severity == "error" else shown)
    yield ""
    for note in result.notes:
        yield f"note: {note}"
    if not result.findings:
        yield "no problems found"
    elif not totals["error"] and not totals["warning"]:
        yield "no errors or warnings"
    for kind in dict.fromkeys(kind for (severity, kind) in groups if severity != "info" and kind in NEXT_STEPS):
        yield f"next: {KINDS[kind]}: {NEXT_STEPS[kind]}"


def _kind(kind: str, findings: list[Finding], shown: int) -> Iterator[str]:
    yield f"  {len(findings):>5}  {KINDS[kind]}"
    for finding in findings[:shown]:
        subject = _subject(finding)
        yield f"         {subject}{': ' if subject else ''}{finding.detail}"
    if len(findings) > shown:
        yield f"         and {len(findings) - shown} more"


def _subject(finding: Finding) -> str:
    """The first two images of a finding, or its classes."""
    if finding.kind == "ignored":  # the detail has the number of files, and their names are of no use
        return ""
    return first_few(finding.paths, 2, finding.separator) if finding.paths else ", ".join(finding.classes)
