"""report.html: everything about a run on one page that needs no network."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError
from markupsafe import Markup

from linnaeus.check.class_findings import FEW_IN_ALL
from linnaeus.console import counted
from linnaeus.data.class_names import printable
from linnaeus.data.table import Table
from linnaeus.errors import UserError, described
from linnaeus.files import write_text
from linnaeus.metrics.classification import no_better_than_one_class
from linnaeus.report import page_sections as sections
from linnaeus.report.class_sections import class_values
from linnaeus.report.curves import Chart, curve_charts
from linnaeus.report.heat_maps import HeatMaps
from linnaeus.report.label_sections import label_values
from linnaeus.report.penalty_curve import penalty_charts
from linnaeus.report.thumbnails import StoredRow, Thumbnails, open_thumbnails
from linnaeus.runs.layout import CHANGES, EVALUATION, METRICS, PREDICTIONS, REPORT
from linnaeus.runs.model_selection import sweep_note
from linnaeus.runs.parsing import recorded_source
from linnaeus.runs.penalties import held_out_text
from linnaeus.runs.reader import RunContents, read_run
from linnaeus.text import page_templates, policy_source, typeset, typeset_percent
from linnaeus.theme import style_sheet

HERE = Path(__file__).parent
NOT_AS_WRITTEN = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, UndefinedError)
"""What the page raises for files of a run that somebody has edited, or a disk has damaged."""


def write_report(
    run: str | Path | RunContents,
    table: Table | None = None,
    *,
    source: str | None = None,
    heat: HeatMaps | None = None,
    stored: StoredRow | None = None,
) -> tuple[Path, str]:
    """Write report.html into a run folder from its files. Returns the path, and why the page has no images, if so.

    The images come from `table`, whose samples are in the order of split.csv; else from `source`, or from where the
    run found them. If they are gone, the page says so and shows none. `heat` draws heat maps, and `stored` has decoded
    images of `table`. Raises UserError if `run` is not a finished run or `source` holds other images.
    """
    contents = run if isinstance(run, RunContents) else read_run(Path(run))
    images = open_thumbnails(contents, table, source, heat, stored)
    path = contents.path / REPORT
    try:
        text = render(contents, images)
    except NOT_AS_WRITTEN as error:
        raise UserError(
            f"{path}: cannot be made ({described(error)}): {METRICS}, {EVALUATION}, {PREDICTIONS} or {CHANGES} holds "
            "another kind of value than linnaeus writes; restore it, or train the run again"
        ) from error
    write_text(path, text)
    return path, images.missing


def render(run: RunContents, images: Thumbnails) -> str:
    """The page as text that can be encoded as UTF-8, also if names of classes or files cannot."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    template = page_templates(HERE).get_template("page.html.j2")
    # The page forbids all scripts except its own.
    fixed = {"script": script, "script_source": policy_source(script), "theme": style_sheet()}
    text = template.render(**{name: Markup(part) for name, part in fixed.items()}, **_values(run, images))
    return printable(text)


CLASS_SECTIONS = {
    "classes": "Classes",
    "confusions": "Confusions",
    "trust": "Trust",
    "unknown": "Unknown images",
    "mistakes": "Mistakes",
}
LABEL_SECTIONS = {"labels": "Labels", "together": "Labels together", "trust": "Trust", "mistakes": "Doubtful labels"}


def _values(run: RunContents, images: Thumbnails) -> dict[str, Any]:
    best = run.metrics.get("best") or {}
    epochs = [(row.phase, row.epoch) for row in run.history]
    # The kept epoch is unknown in runs that were interrupted before the first epoch ended.
    kept = (best.get("phase"), best.get("epoch"))
    figures = run.metrics[run.split]
    score = "map" if run.several else "accuracy"
    values = {
        "run": run,
        "name": run.path.absolute().name,
        "split": run.split,
        "word": sections.WORDS[run.split],
        "words": sections.WORDS,
        "score": typeset_percent(figures[score], 1),
        "interval": [typeset_percent(v, 1) for v in figures.get(f"{score}_ci95") or ()],
        "figures": figures,
        "facts": sections.facts(run),
        "changes": sections.changes_section(run),
        "metrics": sections.metrics(run),
        "classes": sections.classes(run, images),
        "findings": sections.findings(run, images),
        "phases": sections.phases(run),
        "curves": _curves(run, epochs.index(kept) if kept in epochs else 0),
        "solved": sorted(run.penalties),
        "own_sections": LABEL_SECTIONS if run.several else CLASS_SECTIONS,
        **(label_values(run, images) if run.several else class_values(run, images)),
        "times": sections.times(run),
        "command": _repeat_command(run),
        "versions": {**run.metrics.get("versions", {}), **(run.metrics.get("executors") or {})},
        "fingerprint": run.metrics.get("fingerprint", ""),
    }
    # Last: only now it is known which of the images that are shown have changed.
    return values | {"notes": list(map(typeset, _notes(run, images)))}


def _curves(run: RunContents, best: int) -> list[Chart]:
    """Accuracy and loss over the epochs, and over the penalties of each solved head; one epoch alone is no curve."""
    charts = [chart for phase, trials in run.penalties.items() for chart in penalty_charts(trials, phase)]
    if len(run.history) > len(run.penalties):
        charts = [*curve_charts(run.history, best), *charts]
    return charts


def _repeat_command(run: RunContents) -> str:
    """The command that trains the recipe again, with the source where the run had it."""
    source = recorded_source(run.path)
    return f"linnaeus train {'SOURCE' if source is None else shlex.quote(source)} --recipe recipe.toml"


def _notes(run: RunContents, images: Thumbnails) -> list[str]:
    """What a reader must know before the figures."""
    notes = []
    if run.metrics.get("interrupted"):
        notes.append("The run was stopped before its end. This is the best model up to that point.")
    selection = run.selection
    if run.metrics.get("selected_on") == "test":
        chosen = "best model was" if selection.by_validation else "temperature and the thresholds were"
        notes.append(f"The {chosen} selected on the test images, so the test figures are optimistic.")
    if selection.trials:
        note = sweep_note(selection.trials, run.metrics.get("selected_on") == "test")
        notes.append(f"{note[0].upper()}{note[1:]}.")
    # A test split that selected the model has a note of its own, above.
    if run.split == "valid" and run.metrics.get("selected_on") != "test":
        role = f"the images that selected the {selection.title.lower()}."
        if not selection.by_validation:
            role = f"validation images. {selection.sentence}."
        notes.append(f"There is no test split: the figures are for {role}")
    figures = run.metrics[run.split]
    if figures["n"] < FEW_IN_ALL:
        low, high = (100 * end for end in figures.get("map_ci95" if run.several else "accuracy_ci95") or (0, 0))
        width = f": its interval spans {counted(round(high - low), 'percentage point')}" if high > low else ""
        images_of = counted(figures["n"], f"{sections.WORDS[run.split]} image")
        notes.append(f"The figure comes from only {images_of}{width}. More images would make it more precise.")
    if held_out := run.metrics.get("valid", {}).get("held_out"):
        notes.append(f"Cross-validated: {held_out_text(held_out)}.")
    if no_better := no_better_than_one_class(figures):
        notes.append(f"The accuracy is {no_better}.")
    for split in run.measured:
        if "without_leaks" in run.metrics[split]:
            notes.append(_without_leaks(split, run.metrics[split]["without_leaks"]))
    for removal in run.model.data.get("forgotten", []):
        was, them = ("was", "it") if removal["images"] == 1 else ("were", "them")
        notes.append(
            f"{counted(removal['images'], 'image')} of an earlier run {was} removed with everything that was learned "
            f"from {them} (SHA-256 of the content hashes: {removal['sha256'][:16]}…)."
        )
    if images.note:
        notes.append(images.note)
    if run.split not in run.evaluation:
        notes.append(f"Figures by class and calibration are missing: this run has no {EVALUATION}.")
    return notes


def _without_leaks(split: str, clean: dict[str, Any] | None) -> str:
    """The accuracy, or mAP, on the images that were not seen before."""
    seen = "have copies in an earlier split, or the initial weights were trained on them"
    start = f"Some {sections.WORDS[split]} images {seen}, so the figures are optimistic"
    if clean is None:
        return f"{start}; no images are left without them."
    if "map" in clean:
        score = f"mean average precision is {typeset_percent(clean['map'], 1)} ({clean['n']:,} images)"
    else:
        low, high = (typeset_percent(v, 1) for v in clean["accuracy_ci95"])
        correct = f"{clean['correct']:,} of {clean['n']:,}, 95 % interval {low} to {high}"
        score = f"accuracy is {typeset_percent(clean['accuracy'], 1)} ({correct})"
    return f"{start}. Without these images the {score}."
