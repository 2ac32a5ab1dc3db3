"""The folder of a sweep: the table of trials, the recipe of the best one, and the data of the plot."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnaeus._version import __version__
from linnaeus.console import duration
from linnaeus.errors import UserError
from linnaeus.files import csv_file, disk_errors, numbered, remove_scratch, write_text
from linnaeus.metrics.multilabel import Headline, read_headline
from linnaeus.recipe import Recipe
from linnaeus.sweeps.space import Dimension, Interval, Space
from linnaeus.sweeps.study import STUDY, Trial
from linnaeus.text import percent

if TYPE_CHECKING:
    from linnaeus.report.sweep_plot import SweepImage

BEST, TRIALS = "best.toml", "trials.csv"
COLUMNS = (
    *("trial", "state", "n", "correct", "accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy", "loss"),
    *("phase", "epoch", "epochs", "seconds", "same_as", "reason"),
)
"""Columns of trials.csv; those of the space follow."""
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "loss": "loss",
    "map": "mean average precision",
}


class SweepFolder:
    """The folder of one sweep. Its files are replaced atomically."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, out: str | Path | None, name: str) -> SweepFolder:
        """Create or open `out`, or runs/<name>-sweep-<n>. Raises UserError if `out` holds anything but a sweep."""
        if out is not None:
            path = Path(out)
            with disk_errors(path):
                if path.exists() and not path.is_dir():
                    raise UserError(f"{path}: is a file, not a folder; choose another --out")
                path.mkdir(parents=True, exist_ok=True)
                remove_scratch(path)
                names = sorted(p.name for p in path.iterdir() if p.name != ".lock")
            if names and "sweep.json" not in names:
                raise UserError(f"{path}: holds {names[0]!r} but no sweep; choose another --out, or empty the folder")
            return cls(path)
        return cls(numbered(Path("runs") / f"{name}-sweep"))

    @property
    def plot(self) -> Path:
        return self.path / "sweep.png"

    def recipe(self, number: int) -> Path:
        """Recipe of a complete trial."""
        return self.path / "trials" / f"{number}.toml"

    def keep(self, number: int, folder: Path) -> None:
        """Keep the recipe of a trial, including values tuned during the run, such as the learning rate."""
        shutil.move(folder / "recipe.toml", self.recipe(number))

    def known(self) -> int:
        """The number of trials, finished or not, that the study had when trials.csv was written; 0 without it."""
        with suppress(OSError), (self.path / TRIALS).open(encoding="utf-8", errors="replace", newline="") as file:
            first = [row[0] for row in csv.reader(file) if row]
            return max((int(cell) + 1 for cell in first if re.fullmatch("[0-9]{1,9}", cell)), default=0)
        return 0

    def write(self, trials: Sequence[Trial], base: Recipe, space: Space, fingerprint: str) -> None:
        """Write trials.csv, and best.toml if a trial is complete. `fingerprint` is that of the source."""
        with csv_file(self.path / TRIALS) as writer:
            writer.writerow([*COLUMNS, *space])
            writer.writerows(self._row(trial, space) for trial in trials)
        best = best_of(trials, base.best)
        if best is not None:
            original = best.number if best.same_as is None else best.same_as
            try:
                text = self.recipe(original).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{self.recipe(original)}: cannot be read ({getattr(error, 'strerror', error)}), and {BEST} is "
                    "made from it; restore it, or start again with another --out"
                ) from None
            record = f'\n[sweep]\ntrials = {len(trials)}\nfingerprint = "{fingerprint}"\n'
            write_text(self.path / BEST, header(best, trials, base, space) + text + record)

    @staticmethod
    def _row(trial: Trial, space: Space) -> list[object]:
        figures = trial.figures
        low, high = figures.get("accuracy_ci95", ("", ""))
        return [
            *(trial.number, trial.state),
            *(figures.get(name, "") for name in ("n", "correct", "accuracy")),
            low,
            high,
            *(figures.get(name, "") for name in ("balanced_accuracy", "loss")),
            *(trial.phase or "", trial.epoch or "", trial.epochs, f"{trial.seconds:.3f}"),
            "" if trial.same_as is None else trial.same_as,
            trial.reason,
            *(trial.drawn.get(key, "") for key in space),
        ]

    def image(
        self, trials: Sequence[Trial], best: Trial, importances: dict[str, float], base: Recipe, space: Space
    ) -> SweepImage:
        """The data of sweep.png: complete and pruned trials, and a slice for each key, the most important first."""
        from linnaeus.report.sweep_plot import Slice, SweepImage

        shown = [t for t in trials if t.state in ("complete", "pruned") and t.value is not None]
        slices = []
        for key in sorted(space, key=lambda key: -importances.get(key, 0.0)):
            dimension, drawn = space[key], [t.drawn[key] for t in shown]
            if isinstance(dimension, Interval):
                slices.append(Slice(key, [float(v) for v in drawn], (dimension.low, dimension.high), log=dimension.log))
            else:
                # Choices are drawn by position, with their texts as labels.
                positions = [float(dimension.labels.index(v)) for v in drawn]
                slices.append(Slice(key, positions, (0, len(dimension.labels) - 1), labels=dimension.labels))
        failed = sum(t.state == "failed" for t in trials)
        return SweepImage(
            title=f"{base.name}: {len(trials)} trials",
            says=f"best {_result(best, base.best)}, trial {best.number}" + (f"  ·  {failed} failed" if failed else ""),
            measure=METRICS[base.best],
            numbers=[t.number for t in shown],
            values=[float(t.value) for t in shown if t.value is not None],
            pruned=[t.state == "pruned" for t in shown],
            best=[t.number for t in shown].index(best.number),
            importances=importances,
            slices=slices,
        )


def better(metric: str, figures: Headline | dict[str, Any]) -> tuple[float, float]:
    """Sort key of a result, higher is better: the selection metric, then the loss."""
    values = figures if isinstance(figures, dict) else figures.to_dict()
    return (-values["loss"] if metric == "loss" else values[metric]), -values["loss"]


def best_of(trials: Sequence[Trial], metric: str) -> Trial | None:
    """The best complete trial, the first of equal ones; None if none is complete."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda trial: (*better(metric, trial.figures), -trial.number), default=None)


def counts(trials: Sequence[Trial]) -> str:
    """Numbers of trials by state: `14 complete, 5 pruned, 1 failed`."""
    states = [trial.state for trial in trials]
    return ", ".join(f"{states.count(s)} {s}" for s in ("complete", "pruned", "failed", "running") if s in states)


def header(best: Trial, trials: Sequence[Trial], base: Recipe, space: Space) -> str:
    """The comment at the top of best.toml: the settings, the result, and why the result is optimistic."""
    figures = best.figures
    split = "Test" if base.data.valid == "test" else "Validation"
    lines = [
        f"{base.name}: the best by {METRICS[base.best]} of {len(trials)} trials ({counts(trials)}) of a sweep.",
        "",
        *(f"{key} = {_toml(best.drawn[key], space[key])}" for key in space),
        "",
        f"{split} {_quality(figures)}, loss {figures['loss']:.4g}; trial {best.number}, phase {best.phase}, epoch "
        f"{best.epoch}.",
        f"This trial was selected among {len(trials)} on these same images, so its result is optimistic, and the",
        "interval does not account for the selection. Measure the recipe on images that no trial was compared on.",
        f"linnaeus {__version__}; all trials are in trials.csv and {STUDY}.",
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def _quality(figures: dict[str, Any]) -> str:
    """`accuracy 93.12 % (149 of 160, …)`, or `mAP …` with several labels per image."""
    return ("" if "map" in figures else "accuracy ") + str(read_headline(figures))


def trial_line(trial: Trial, trials: Sequence[Trial], metric: str) -> str:
    """A line about a finished trial; `*` marks the best so far."""
    best = best_of(trials, metric)
    params = "  ".join(f"{key}={_short(value)}" for key, value in trial.drawn.items())
    number = f"trial {trial.number:>{len(str(max(t.number for t in trials)))}}"
    if trial.state == "failed":
        return f"{number}  failed: {trial.reason}  ({params})"
    mark = " *" if best is not None and best.number == trial.number else "  "
    if trial.same_as is not None:
        ending = f"same settings as trial {trial.same_as}"
    else:
        epoch = f"pruned after epoch {trial.epochs}"
        if trial.state != "pruned":
            epoch = f"epoch {trial.epoch} of {trial.epochs}"
        ending = f"{epoch}, {duration(trial.seconds)}"
    return f"{number}  {_result(trial, metric)}{mark}  {ending}  ({params})"


def _result(trial: Trial, metric: str) -> str:
    """The selection metric of a trial as text."""
    value = trial.figures.get(metric, trial.value)
    return f"loss {value:.4f}" if metric == "loss" else percent(value, 2)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _toml(drawn: Any, dimension: Dimension) -> str:
    """A value on one line, for the comment of a recipe."""
    value = dimension.value(drawn)
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
