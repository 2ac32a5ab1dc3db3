"""What a check has found out about labels, kept for the training that follows: the dear part is not done twice."""

from __future__ import annotations

import json
from collections.abc import Sequence

from linnaeus.check.findings import Finding
from linnaeus.data.table import Table
from linnaeus.files import write_text
from linnaeus.stores.cache import Cache, OverBudgetError

KIND, FILE = "suspicious-label", "labels.json"


def remember_labels(table: Table, findings: Sequence[Finding], cache: Cache) -> None:
    """Keep the suspicious labels of `table`, as its source gave it, in the cache; also that there were none."""
    name = _name(table)
    text = json.dumps([finding.to_dict() for finding in findings if finding.kind == KIND])
    with cache.lock(name):
        if cache.find(name) is not None:
            cache.discard(name)
        try:
            cache.room(name, len(text))
        except OverBudgetError:
            return  # the training then says less
        with cache.building(name) as folder:
            write_text(folder / FILE, text)
            cache.commit(name, {"rows": len(table)})


def recall_labels(table: Table, cache: Cache) -> list[Finding] | None:
    """The suspicious labels that a check of the same table found; None where there was none."""
    found = cache.find(_name(table))
    if found is None:
        return None
    rows = json.loads((found.path / FILE).read_text(encoding="utf-8"))
    return [
        Finding(row["kind"], row["severity"], tuple(row["paths"]), tuple(row["classes"]), row["detail"]) for row in rows
    ]


def _name(table: Table) -> str:
    return f"labels-{table.fingerprint()[:32]}"
