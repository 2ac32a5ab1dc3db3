"""The files of a probe: probe.json, probe.csv and the plot; and its table as text."""

from __future__ import annotations

import io
import json
import platform
from pathlib import Path
from typing import Any

import torch

from linnaeus.files import write_text
from linnaeus.metrics.stratification import FOLDS
from linnaeus.probe.comparison import Comparison
from linnaeus.probe.evaluation import ProbeEvaluator
from linnaeus.text import SafeCsvWriter, align, percent, percent_range

PROBE_JSON, PROBE_CSV, PROBE_PLOT = "probe.json", "probe.csv", "probe.png"
FORMAT = 1
NESTED = ("mcnemar", "accuracy_ci95", "models", "weights")


def write_results(
    folder: Path, comparison: Comparison, evaluator: ProbeEvaluator, command: str | None, *, plot: bool
) -> None:
    """Write the files of a probe, each whole or not at all."""
    rows = comparison.rows()
    best, recommended = comparison.best, comparison.recommended
    about = {
        "format": FORMAT,
        "source": comparison.table.source,
        "fingerprint": comparison.table.fingerprint(),
        "protocol": "validation" if evaluator.by_validation else "cross-validation",
        "folds": None if evaluator.by_validation else FOLDS,
        "seed": evaluator.seed,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "best": best.name,
        "recommended": None if recommended is None else recommended.name,
        "command": command,
        "backbones": rows,
    }
    write_text(folder / PROBE_JSON, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / PROBE_CSV, _csv(rows))
    if plot:
        from linnaeus.report.probe_plot import ProbedBackbone, probe_plot

        drawn = [
            # The network's time without decoding, which is the same for all backbones.
            ProbedBackbone(
                comparison.shown_names[r.name],
                r.accuracy,
                comparison.interval(r),
                1000 * r.cost.seconds,
                r.name in comparison.front,
            )
            for r in comparison.results
        ]
        probe_plot(
            drawn,
            f"Backbones on {Path(comparison.table.source).name}",
            f"accuracy {evaluator}, n = {comparison.best.n:,}, with 95 % intervals",
            folder / PROBE_PLOT,
        )


def _csv(rows: list[dict[str, Any]]) -> str:
    """The rows with one column for each number; lists are joined with a plus sign."""
    text = io.StringIO(newline="")
    writer = SafeCsvWriter(text)
    flat = [_flat(row) for row in rows]
    writer.writerow(flat[0])
    writer.writerows(row.values() for row in flat)
    return text.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    low, high = row["accuracy_ci95"] or (None, None)
    joined = {key: "+".join(row[key]) for key in ("models", "weights")}
    rest = {key: value for key, value in row.items() if key not in NESTED}
    return {"name": rest.pop("name"), **joined, "accuracy_low": low, "accuracy_high": high, **rest}


def render(comparison: Comparison) -> str:
    """The table as text: the most accurate first, and one line for each that failed."""
    cells = [
        (
            "backbone",
            "accuracy",
            "95 % interval",
            "n",
            "p",
            "parameters",
            "multiply-adds",
            "images/s",
            "model",
            "license",
        )
    ]
    for row in comparison.rows():
        if row["error"] is not None:
            continue
        adds = row["multiply_adds"]
        cells.append(
            (
                ("→ " if row["recommended"] else "  ") + comparison.shown_names[row["name"]],
                percent(row["accuracy"]),
                percent_range(row["accuracy_ci95"]),
                f"{row['n']:,}",
                "best" if row["p"] is None else f"{row['p']:.2g}",
                f"{row['parameters'] / 1e6:.1f} M",
                "–" if adds is None else f"{adds / 1e9:.2f} G",
                f"{row['images_per_second']:.3g}",
                f"{row['model_bytes'] / 1e6:.1f} MB",
                row["license"],
            )
        )
    lines = align(cells, "<>>>>>>>><", indent="")
    return "\n".join([*lines, *(f"  {f.candidate.name}  failed: {f.reason}" for f in comparison.failures)])
