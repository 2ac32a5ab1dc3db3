"""sweep(): many trials of one recipe, and the best of them as a plain recipe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linnaeus.console import Console
from linnaeus.errors import JobError, UserError
from linnaeus.files import disk_errors, locked, write_text
from linnaeus.metrics.classification import Figures
from linnaeus.recipe import Recipe, override
from linnaeus.sweeps.results import BEST, SweepFolder, best_of, better, told
from linnaeus.sweeps.space import Space, combinations, load_space, settings_of
from linnaeus.sweeps.study import Drawn, Study, Trial, differences, study_errors
from linnaeus.training.request import Request, absolute_source
from linnaeus.training.resolve import resolve_recipe
from linnaeus.training.run import train
from linnaeus.training.stop import StoppedError

ABOUT = "sweep.json"
FORMAT = 1
FAILURES = 5  # trials in a row that fail before a sweep gives up: what is wrong is then not the settings


@dataclass
class Sweep:
    """A sweep: where it is, its trials, and the best of them."""

    path: Path
    """The sweep's folder."""
    trials: list[Trial]
    """All of them, those of earlier and other processes too."""
    best: Trial
    """The best by the recipe's own measure, on validation."""
    recipe: Path
    """best.toml: the best trial's recipe, which `train` takes."""
    importances: dict[str, float] = field(default_factory=dict)
    """Dotted key -> its share of what made trials good, together 1; empty where too few are complete to tell."""
    interrupted: bool = False
    """Whether it was stopped before its end."""


def sweep(
    source: str | Path,
    recipe: str | Recipe | None = None,
    space: str | Path | Mapping[str, Any] | None = None,
    *,
    trials: int = 20,
    out: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    device: str = "auto",
    seed: int | None = None,
    console: Console | None = None,
) -> Sweep:
    """Train `recipe` on `source` many times, with settings drawn from `space`, and keep the best recipe.

    `space` is a TOML file, or what one holds: {"phase.1.lr": {"low": 1e-4, "high": 0.1, "log": True}}. `trials` counts
    all of the sweep, also those of earlier and other processes: the same call on a folder `out` that holds a sweep goes
    on with it, and several processes may do so at once. `settings` are fixed overrides, by dotted key. A trial that is
    worse than the median of the others at the same epoch ends there; one that fails is put down with its reason.
    Raises UserError for wrong input, also where `out` was begun with another source, recipe or space, with what
    differs, and JobError where no trial was completed.
    """
    console = console or Console()
    if trials < 1:
        raise UserError(f"--trials {trials}: at least one")
    if space is None:
        raise UserError("a sweep needs a space: a TOML file that says which keys vary, over what")
    base, table = resolve_recipe(Request(source, recipe, settings=settings, seed=seed), console)
    varied = load_space(space, base, settings or {})
    about = {
        "format": FORMAT,
        "source": {"kind": table.kind, "fingerprint": table.fingerprint()},
        "recipe": base.model_dump(mode="json", exclude_none=True),
        "space": {key: dimension.describe() for key, dimension in varied.items()},
    }
    folder = SweepFolder.create(out, base.name)
    begin(folder.path, about, absolute_source(str(source)))
    minimize = base.best == "loss"
    warmup = 1 + sum(phase.epochs for phase in base.phase) // 4
    with study_errors(folder.path):
        study = Study(folder.path, varied, minimize=minimize, seed=base.seed, warmup=warmup)
        introduce(console, folder.path, base, varied, study, trials)
        job = _Job(source, base, varied, study, folder, device, _Quiet(console))
        interrupted = job.run(min(trials, combinations(varied) or trials))
        return conclude(job, interrupted)


def begin(folder: Path, about: dict[str, Any], where: str) -> None:
    """Write down what is swept, or see that it is what the folder was begun with."""
    path = folder / ABOUT
    with disk_errors(path), locked(folder / ".lock"):
        if not path.exists():
            write_text(path, json.dumps({**about, "path": where}, indent=2, ensure_ascii=False) + "\n")
            return
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
        then.pop("path", None)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); choose another --out") from None
    found = differences(then, json.loads(json.dumps(about)))
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(
            f"{folder}: begun with something else: {'; '.join(found[:3])}{more}; trials could not be compared: choose "
            "another --out, or give what it was begun with"
        )


def introduce(console: Console, path: Path, base: Recipe, space: Space, study: Study, trials: int) -> None:
    """Say what is swept, and where it stands."""
    console.say(f"sweep     {path}")
    console.say(f"recipe    {base.name}, by {base.best} on validation")
    for key, dimension in space.items():
        given = ", ".join(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in dimension.describe().items())
        console.say(f"space     {key}: {given}")
    count = combinations(space)
    if count is not None and count <= trials:
        console.say(f"trials    all {count} combinations, each once")
    if done := len(study.trials()):
        console.say(f"goes on   {done} trials are there")
    if base.data.valid == "test":
        console.warn('valid = "test": trials are compared on the test images, so every figure of them flatters')


class _Quiet(Console):
    """The console of trials: a warning is passed on the first time that a trial gives it, and nothing else is."""

    def __init__(self, parent: Console):
        super().__init__(quiet=True)
        self.parent = parent
        self.given: set[str] = set()

    def warn(self, line: str) -> None:
        if line not in self.given:
            self.given.add(line)
            self.parent.warn(line)


class _PrunedError(Exception):
    """A trial that is no use to go on with."""


@dataclass
class _Job:
    """What the trials of one process share."""

    source: str | Path
    base: Recipe
    space: Space
    study: Study
    folder: SweepFolder
    device: str
    quiet: _Quiet

    def run(self, wanted: int) -> bool:
        """Trials until there are `wanted`. Returns whether Ctrl-C ended it before."""
        failed = 0
        while (drawn := self.study.draw(wanted)) is not None:
            try:
                done = self.study.finish(drawn, "", None) if drawn.same_as is not None else self.trial(drawn)
            except StoppedError as error:
                drawn.close()
                raise StoppedError(
                    f"stopped by SIGTERM; the same command with --out {self.folder.path} goes on"
                ) from error
            except KeyboardInterrupt:
                drawn.close()  # free, and said to be running: the next process runs it again
                self.quiet.parent.say(f"stopped in trial {drawn.number}, which the next start begins again")
                return True
            with self.study.locked():
                trials = self.study.trials()
                self.folder.write(trials, self.base, self.space)
            self.quiet.parent.say(told(done, trials, self.base.best))
            failed = failed + 1 if done.state == "failed" else 0
            if failed == FAILURES:
                raise JobError(f"{self.folder.path}: {failed} trials in a row failed, the last so: {done.reason}")
        return False

    def trial(self, drawn: Drawn) -> Trial:
        """Train once with what was drawn, and put down how it went."""
        by = self.base.best
        best: list[Figures] = []
        settings = settings_of(self.space, drawn.drawn)

        def each(epoch: int, figures: Figures) -> None:
            best[:] = [max([*best, figures], key=lambda f: better(by, f))]
            hopeless = self.study.report(drawn, epoch, getattr(figures, by))
            if hopeless and epoch < last:
                raise _PrunedError

        folder = self.folder.trial(drawn.number)
        try:
            raw = self.base.model_dump(mode="json", exclude_none=True)
            recipe = override(raw, self.base.name, settings, None)
            last = sum(phase.epochs for phase in recipe.phase)
            run = train(self.source, recipe, out=folder, device=self.device, console=self.quiet, trial=each)
        except StoppedError:
            raise
        except _PrunedError:
            return self.study.finish(drawn, "pruned", figures=best[0].to_dict())
        except Exception as error:  # whatever a setting leads to, the others go on
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            return self.study.finish(drawn, "failed", reason=" ".join(reason.split())[:500])
        else:
            self.folder.keep(drawn.number, folder)
            assert run.best.figures is not None
            return self.study.finish(
                drawn, "complete", getattr(run.best.figures, by),
                figures=run.best.figures.to_dict(), phase=run.best.phase, epoch=run.best.epoch,
            )  # fmt: skip
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def conclude(job: _Job, interrupted: bool) -> Sweep:
    """The plot, and what is returned."""
    from linnaeus.report.plots import advice, sweep_plot

    trials = job.study.trials()
    best = best_of(trials, job.base.best)
    if best is None:
        reasons = [trial.reason for trial in trials if trial.reason]
        last = f"; the last failed so: {reasons[-1]}" if reasons else ""
        raise JobError(f"{job.folder.path}: no trial was completed{last}")
    importances = job.study.importances()
    with job.study.locked():
        missing = sweep_plot(job.folder.image(trials, best, importances, job.base, job.space), job.folder.plot)
    if missing:
        job.quiet.parent.warn(advice(missing))
    return Sweep(job.folder.path, trials, best, job.folder.path / BEST, importances, interrupted)
