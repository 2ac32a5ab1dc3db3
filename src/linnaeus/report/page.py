"""report.html: everything about a run on one page that needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from linnaeus.data.class_names import printable
from linnaeus.data.table import Table
from linnaeus.files import write_text
from linnaeus.metrics.calibration import Calibration
from linnaeus.report import sections
from linnaeus.report.album import Album, Heat, open_album
from linnaeus.report.charts import curves, reliability, risk_coverage
from linnaeus.report.matrix import draw_matrix
from linnaeus.report.svg import percent
from linnaeus.runs.layout import REPORT
from linnaeus.runs.reader import RunContents, read_run

HERE = Path(__file__).parent


def write_report(
    run: str | Path,
    table: Table | None = None,
    *,
    source: str | None = None,
    heat: Callable[[Table], Heat] | None = None,
) -> tuple[Path, str]:
    """Write report.html into a run folder, from what the folder holds. Returns its path, and why it has no images.

    The images come from `table`, the run's own where it is at hand, in the order of its split.csv; else from where
    the run found them, or from `source`. Where they are no longer there, the page says so and goes without. `heat`
    takes the table and gives the function that draws the heat map of its image i.
    Raises UserError where `run` is no finished run, or `source` holds other images.
    """
    contents = read_run(Path(run))
    album = open_album(contents, table, source, heat)
    path = contents.path / REPORT
    write_text(path, render(contents, album))
    return path, album.missing


def render(run: RunContents, album: Album) -> str:
    """The page as text that can be written as UTF-8, whatever a class or a file is called."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template("page.html.j2").render(
        script_hash=f"sha256-{digest}", script=jinja2.utils.markupsafe.Markup(script), **_values(run, album)
    )
    return printable(text)


def _values(run: RunContents, album: Album) -> dict[str, Any]:
    """What the template is filled with."""
    wrong, unsure = sections.mistakes(run, album)
    found = run.metrics[run.split]
    matrix = draw_matrix(run.confusion, run.names)
    best = run.metrics.get("best") or {}
    at = next((i for i, e in enumerate(run.history) if (e.phase, e.epoch) == (best.get("phase"), best.get("epoch"))), 0)
    return {
        "run": run,
        "name": run.path.absolute().name,
        "split": run.split,
        "word": sections.WORDS[run.split],
        "words": sections.WORDS,
        "accuracy": percent(found["accuracy"], 1),
        "interval": [percent(v, 1) for v in found["accuracy_ci95"]],
        "found": found,
        "threshold": run.threshold,
        "facts": sections.facts(run),
        "notes": _notes(run, album),
        "metrics": sections.metrics(run),
        "classes": sections.classes(run, album),
        "findings": sections.findings(run, album),
        "phases": sections.phases(run),
        "curves": curves(run.history, at) if run.history else [],
        "class_rows": sections.class_table(run),
        "matrix": matrix,
        "pairs": sections.confused(run, album, sections.PAIRS if matrix.clustered else sections.BESIDE),
        "trust": _trust(run),
        "mistakes": wrong,
        "least": unsure,
        "has_heat": any(each.heat for each in wrong),
        "times": sections.times(run),
        "versions": {**run.metrics.get("versions", {}), **(run.metrics.get("executors") or {})},
        "fingerprint": run.metrics.get("fingerprint", ""),
    }


def _trust(run: RunContents) -> dict[str, Any] | None:
    """Calibration and abstention; None where the run has no evaluation.json, or no calibration."""
    long, stored = run.evaluation.get(run.split), run.model.calibration
    if not long or stored is None:
        return None
    rule = Calibration.from_dict(stored, str(run.path)).rule
    found = run.metrics[run.split]["calibration"]
    chance = run.metrics[run.split]["ece_by_chance"]
    return {
        "reliability": reliability(long["reliability"]),
        "risk": risk_coverage(long["risk_coverage"], rule.target_risk, rule.threshold),
        "temperature": f"{found['temperature']:.3g}",
        "crossed": found["cross_fitted"],
        "before": percent(found["before"]["ece"], 1),
        "after": percent(found["after"]["ece"], 1),
        "chance": percent(chance["mean"], 1),
        "often": percent(chance["p95"], 1),
        "rule": str(rule).replace("never: ", "never, because ", 1),
    }


def _notes(run: RunContents, album: Album) -> list[str]:
    """What a reader must know before the figures."""
    notes = []
    if run.metrics.get("interrupted"):
        notes.append("The run was stopped before its end: this is the best model until then.")
    if run.metrics.get("selected_on") == "test":
        notes.append("The best model was selected on the test images, so its figure flatters.")
    if run.split == "valid" and run.metrics.get("selected_on") != "test":
        notes.append("There is no test split: the figures are of the images that chose the best epoch.")
    for split in run.predictions:
        if "without_leaks" in run.metrics[split]:
            notes.append(_without_leaks(split, run.metrics[split]["without_leaks"]))
    if album.missing:
        notes.append(f"No images are shown: {album.missing}")
    if run.split not in run.evaluation:
        notes.append("Figures by class and calibration are missing: this run has no evaluation.json.")
    return notes


def _without_leaks(split: str, clean: dict[str, Any] | None) -> str:
    """What the figures are on the images of which no copy stands in an earlier split."""
    start = f"Some {sections.WORDS[split]} images have copies in an earlier split, so their figures flatter"
    if clean is None:
        return f"{start}; without them none is left."
    low, high = (percent(v, 1) for v in clean["accuracy_ci95"])
    right = f"{percent(clean['accuracy'], 1)} ({clean['correct']:,} of {clean['n']:,}, 95 % interval {low} to {high})"
    return f"{start}. Without them {right} are right."
