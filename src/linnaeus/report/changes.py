"""The report's section on what `linnaeus classes` or `linnaeus forget` changed."""

from __future__ import annotations

from typing import Any

from linnaeus.metrics.mcnemar import significance
from linnaeus.report.page_sections import WORDS
from linnaeus.runs.reader import RunContents
from linnaeus.text import typeset_percent


def changes_section(run: RunContents) -> dict[str, Any] | None:
    """The variables of the section: the changes, and the accuracies before and after on the same images.

    None for a run that was trained from its source.
    """
    if not run.changes:
        return None
    tests = []
    for split, test in run.changes.get("before_after", {}).items():
        low, high = (typeset_percent(value, 1) for value in test["difference_ci95"])
        accuracies = {key: typeset_percent(test.get(key), 1) for key in ("before", "after")}
        verdict = significance(test["p"])
        interval, p = f"{low} to {high}", f"{test['p']:.3g}"
        tests.append(
            {"word": WORDS[split], "n": test["n"], "interval": interval, "p": p, "verdict": verdict} | accuracies
        )
    return {"old": run.changes.get("from"), "lines": run.changes.get("changes", []), "tests": tests}
