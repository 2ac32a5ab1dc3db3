"""What a sweep leaves behind: a table of its trials, the best of them as a recipe, and what its plot is drawn from."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnaeus._version import __version__
from linnaeus.console import duration
from linnaeus.errors import UserError
from linnaeus.files import atomic, disk_errors, numbered, write_text
from linnaeus.metrics.classification import Figures
from linnaeus.recipe import Recipe
from linnaeus.sweeps.space import Interval, Space
from linnaeus.sweeps.study import STUDY, Trial

if TYPE_CHECKING:
    from linnaeus.report.sweep_plot import SweepImage

BEST = "best.toml"
COLUMNS = (
    "trial", "state", "n", "correct", "accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy", "loss",
    "phase", "epoch", "epochs", "seconds", "same_as", "reason",
)  # fmt: skip
MEASURES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "loss": "loss"}


class SweepFolder:
    """The folder of one sweep. Files are written whole or not at all."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, out: str | Path | None, name: str) -> SweepFolder:
        """`out`, new or a sweep's, or runs/<name>-sweep-<n>. Raises UserError where something else lies there."""
        if out is not None:
            path = Path(out)
            with disk_errors(path):
                if path.exists() and not path.is_dir():
                    raise UserError(f"{path}: a file; choose another --out")
                path.mkdir(parents=True, exist_ok=True)
                theirs = sorted(p.name for p in path.iterdir() if p.name != ".lock")
            if theirs and "sweep.json" not in theirs:
                raise UserError(f"{path}: holds {theirs[0]!r} and no sweep; choose another --out, or remove it")
            return cls(path)
        return cls(numbered(Path("runs") / f"{name}-sweep"))

    @property
    def plot(self) -> Path:
        return self.path / "sweep.png"

    def trial(self, number: int) -> Path:
        """Where a trial works; thrown away when it is over."""
        return self.path / "trials" / f".{number}"

    def recipe(self, number: int) -> Path:
        """The recipe of a trial that was completed."""
        return self.path / "trials" / f"{number}.toml"

    def keep(self, number: int, folder: Path) -> None:
        """Keep the recipe of a trial, with what the run found out, such as a learning rate."""
        shutil.move(folder / "recipe.toml", self.recipe(number))

    def write(self, trials: Sequence[Trial], base: Recipe, space: Space) -> None:
        """trials.csv, and best.toml where a trial is complete."""
        with atomic(self.path / "trials.csv") as new, new.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*COLUMNS, *space])
            writer.writerows(self._row(trial, space) for trial in trials)
        best = best_of(trials, base.best)
        if best is not None:
            original = best.number if best.same_as is None else best.same_as
            text = self.recipe(original).read_text(encoding="utf-8")
            write_text(self.path / BEST, header(best, trials, base, space) + text)

    @staticmethod
    def _row(trial: Trial, space: Space) -> list[object]:
        found = trial.figures
        low, high = found.get("accuracy_ci95", ("", ""))
        figures = [found.get(k, "") for k in ("n", "correct", "accuracy")]
        more = [found.get(k, "") for k in ("balanced_accuracy", "loss")]
        where = [trial.phase or "", trial.epoch or "", trial.epochs, f"{trial.seconds:.3f}"]
        same = "" if trial.same_as is None else trial.same_as
        drawn = [trial.drawn.get(key, "") for key in space]
        return [trial.number, trial.state, *figures, low, high, *more, *where, same, trial.reason, *drawn]

    def image(
        self, trials: Sequence[Trial], best: Trial, importances: dict[str, float], base: Recipe, space: Space
    ) -> SweepImage:
        """What sweep.png is drawn from."""
        from linnaeus.report.sweep_plot import Slice, SweepImage

        done = [t for t in trials if t.state in ("complete", "pruned") and t.value is not None]
        slices = []
        for key in sorted(space, key=lambda key: -importances.get(key, 0.0)):
            at, drawn = space[key], [t.drawn[key] for t in done]
            if isinstance(at, Interval):
                slices.append(Slice(key, [float(v) for v in drawn], (at.low, at.high), log=at.log))
            else:
                positions = [float(at.labels.index(v)) for v in drawn]
                slices.append(Slice(key, positions, (0, len(at.labels) - 1), labels=at.labels))
        failed = sum(t.state == "failed" for t in trials)
        return SweepImage(
            title=f"{base.name}: {len(trials)} trials",
            says=f"best {_figure(best, base.best).replace('%', ' %')}, trial {best.number}"
            + (f"  ·  {failed} failed" if failed else ""),
            measure=MEASURES[base.best],
            numbers=[t.number for t in done],
            values=[float(t.value) for t in done if t.value is not None],
            pruned=[t.state == "pruned" for t in done],
            best=[t.number for t in done].index(best.number),
            importances=importances,
            slices=slices,
        )


def better(by: str, figures: Figures | dict[str, Any]) -> tuple[float, float]:
    """What two results are compared by, more is better: the recipe's measure, then the loss."""
    found = figures.to_dict() if isinstance(figures, Figures) else figures
    return (-found["loss"] if by == "loss" else found[by]), -found["loss"]


def best_of(trials: Sequence[Trial], by: str) -> Trial | None:
    """The best of the complete trials; of equals the first."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda trial: (*better(by, trial.figures), -trial.number), default=None)


def counts(trials: Sequence[Trial]) -> str:
    """`14 complete, 5 pruned, 1 failed`."""
    states = [trial.state for trial in trials]
    return ", ".join(f"{states.count(s)} {s}" for s in ("complete", "pruned", "failed", "running") if s in states)


def header(best: Trial, trials: Sequence[Trial], base: Recipe, space: Space) -> str:
    """The comment above the best recipe: how good it was, and why that flatters."""
    found = best.figures
    low, high = found["accuracy_ci95"]
    where = f"trial {best.number}, phase {best.phase}, epoch {best.epoch}"
    whose = "test" if base.data.valid == "test" else "validation"
    lines = [
        f"{base.name}, swept: the best by {MEASURES[base.best]} of {len(trials)} trials ({counts(trials)}).",
        "",
        *(f"{key} = {_toml(best.drawn[key], space[key])}" for key in space),
        "",
        f"{whose.capitalize()} accuracy {found['accuracy']:.2%} ({found['correct']} of {found['n']} right; 95 % "
        f"interval {low:.1%} to {high:.1%}), loss {found['loss']:.4g}; {where}.",
        f"It was selected among {len(trials)} trials on these very images, so the figure flatters, and the interval",
        "does not know it: only images that no trial was compared on tell how good the recipe is.",
        f"linnaeus {__version__}; all trials are in trials.csv and {STUDY}.",
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def told(done: Trial, trials: Sequence[Trial], by: str) -> str:
    """A line about a trial that is over."""
    best = best_of(trials, by)
    drawn = "  ".join(f"{key}={_short(value)}" for key, value in done.drawn.items())
    head = f"trial {done.number:>{len(str(max(t.number for t in trials)))}}"
    if done.state == "failed":
        return f"{head}  failed: {done.reason}  ({drawn})"
    star = " *" if best is not None and best.number == done.number else "  "
    how = f"pruned after epoch {done.epochs}" if done.state == "pruned" else f"epoch {done.epoch} of {done.epochs}"
    how = f"as trial {done.same_as}" if done.same_as is not None else f"{how}, {duration(done.seconds)}"
    return f"{head}  {_figure(done, by)}{star}  {how}  ({drawn})"


def _figure(trial: Trial, by: str) -> str:
    """The measure of a trial, as people write it."""
    value = trial.figures.get(by, trial.value)
    return f"loss {value:.4f}" if by == "loss" else f"{value:.2%}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _toml(drawn: Any, dimension: Any) -> str:
    """A value for the comment of a recipe, on one line."""
    value = dimension.value(drawn)
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
