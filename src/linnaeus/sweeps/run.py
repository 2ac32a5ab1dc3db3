"""sweep(): train one recipe with many settings and keep the best of them as a recipe."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linnaeus.console import Console, counted
from linnaeus.data.sources import refuse_inside
from linnaeus.errors import DiskError, JobError, UserError, described
from linnaeus.files import disk_errors, locked, write_text
from linnaeus.metrics.multilabel import Headline
from linnaeus.recipe import Recipe, override
from linnaeus.recipe.difference import change_lines
from linnaeus.recipe.renamed import with_present_names
from linnaeus.sweeps.results import BEST, SweepFolder, best_of, better, trial_line
from linnaeus.sweeps.space import combinations, load_space, settings_of
from linnaeus.sweeps.study import ClaimedTrial, Study, Trial, study_errors, trial_folder
from linnaeus.training.run import train
from linnaeus.training.setup.request import Request, absolute_source
from linnaeus.training.setup.resolve import refuse_split_settings, resolve_recipe
from linnaeus.training.stop import StoppedError

DESCRIPTION = "sweep.json"
FORMAT = 1
MAX_FAILURES = 5  # failed trials in a row that end the sweep, because the settings are then not the cause


@dataclass
class Sweep:
    """The result of a sweep."""

    path: Path
    """The folder of the sweep."""
    trials: list[Trial]
    """All trials, also those of earlier and of other processes."""
    best: Trial
    """The best trial by the recipe's selection metric on validation."""
    recipe: Path
    """best.toml: the recipe of the best trial, for `train`."""
    importances: dict[str, float] = field(default_factory=dict)
    """Dotted key -> its share of the effect on the result; they sum to 1. Empty where chance explains it."""
    interrupted: bool = False
    """Whether Ctrl-C ended the sweep early."""


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
    """Train `recipe` on `source` many times with settings from `space`, and keep the best recipe.

    `space` is a TOML file or its content: {"phase.1.lr": {"low": 1e-4, "high": 0.1, "log": True}}. `trials` is the
    total number, including earlier trials and those of other processes: the same call on an existing folder `out`
    continues the sweep, and several processes may work on one folder. `settings` are fixed overrides by dotted key. A
    trial ends early if it is worse than the median of the others at the same epoch; a failed trial is recorded with the
    reason. Raises UserError for invalid input, including a folder with the sweep of another source, recipe or space,
    and JobError if no trial was completed.
    """
    console = console or Console()
    if trials < 1:
        raise UserError(f"--trials {trials}: must be at least 1")
    if space is None:
        raise UserError("a sweep needs --space: a TOML file with the ranges or choices of the keys that vary")
    base, table = resolve_recipe(Request(source, recipe, settings=settings, seed=seed), console)
    refuse_split_settings(settings, base, table)
    base = base.model_copy(update={"sweep": None})  # of an earlier sweep
    dimensions = load_space(space, base, settings or {})
    description = {
        "format": FORMAT,
        "source": {"kind": table.kind, "fingerprint": table.fingerprint()},
        "recipe": base.model_dump(mode="json", exclude_none=True),
        "space": {key: dimension.describe() for key, dimension in dimensions.items()},
    }
    refuse_inside(out or "runs", table)
    folder = SweepFolder.create(out, base.name)
    known = folder.known()  # before the study, which only grows
    record_description(folder.path, description, absolute_source(str(source)))
    # Pruning begins after a quarter of the epochs: before, learning rates are still warming up.
    warmup = 1 + sum(phase.epochs for phase in base.phase) // 4
    with study_errors(folder.path):
        study = Study(folder.path, dimensions, minimize=base.best == "loss", seed=base.seed, warmup=warmup)
        study.require(known)
        print_introduction(console, folder.path, base, study, trials)
        worker = _Worker(source, base, table.fingerprint(), study, folder, device, _TrialConsole(console))
        # A grid smaller than the number of trials ends when each combination was tried.
        interrupted = worker.run(min(trials, combinations(dimensions) or trials))
        return worker.result(interrupted)


def record_description(folder: Path, description: dict[str, Any], source: str) -> None:
    """Write sweep.json, or check that the existing one has the same description."""
    path = folder / DESCRIPTION
    # Locked: several processes may start the same sweep at once.
    with disk_errors(path), locked(folder / ".lock"):
        if not path.exists():
            write_text(path, json.dumps({**description, "path": source}, indent=2, ensure_ascii=False) + "\n")
            return
    try:
        existing = json.loads(path.read_text(encoding="utf-8"))
        existing.pop("path", None)  # the same data may have moved
        existing["recipe"] = with_present_names(existing.get("recipe"))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); choose another --out") from None
    # Through JSON, so that tuples and lists compare equal.
    changes = change_lines(existing, json.loads(json.dumps(description)))
    if changes:
        more = f", and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise UserError(
            f"{folder}: this sweep was started with different settings: {'; '.join(changes[:3])}{more}; its trials "
            "would not be comparable: choose another --out, or repeat the settings"
        )


def print_introduction(console: Console, path: Path, base: Recipe, study: Study, trials: int) -> None:
    """Print what the sweep varies and how many trials exist."""
    console.say(f"sweep     {path}")
    console.say(f"recipe    {base.name}, selected by {base.best} on validation")
    for key, dimension in study.space.items():
        values = ", ".join(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in dimension.describe().items())
        console.say(f"space     {key}: {values}")
    count = combinations(study.space)
    if count is not None and count <= trials:
        console.say(f"trials    all {count} combinations, each once")
    if existing := len(study.trials()):
        console.say(f"resumed   after {counted(existing, 'trial')}")
    if base.data.valid == "test":
        console.warn('valid = "test": trials are compared on the test images, so all their results are optimistic')


class _TrialConsole(Console):
    """The console of a trial: passes each warning on once, and prints nothing else."""

    def __init__(self, parent: Console):
        super().__init__(quiet=True)
        self.parent = parent
        self.warnings: set[str] = set()

    def warn(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.add(line)
            self.parent.warn(line)


class _SourceChangedError(JobError):
    """The images are not those that the sweep began with."""


class _PrunedError(Exception):
    """Ends the training of a pruned trial."""


@dataclass
class _Worker:
    """Runs trials of a study in this process."""

    source: str | Path
    base: Recipe
    fingerprint: str  # of the images that the sweep began with
    study: Study
    folder: SweepFolder
    device: str
    console: _TrialConsole

    def run(self, total: int) -> bool:
        """Run trials until the study has `total`. Returns whether Ctrl-C ended it early."""
        failures = 0
        while (claimed := self.study.claim(total)) is not None:
            try:
                trial = self.study.copy_result(claimed) if claimed.same_as is not None else self._train(claimed)
            except (DiskError, _SourceChangedError):
                claimed.release()  # the settings are not at fault, so the next start repeats the trial
                raise
            except StoppedError as error:
                claimed.release()
                name = signal.Signals(error.number).name
                raise StoppedError(error.number, f"stopped by {name}; {self._advice()}") from error
            except KeyboardInterrupt:
                claimed.release()  # still marked as running, so the next process repeats it
                self.console.parent.say(f"stopped in trial {claimed.number}; the next start repeats it")
                return True
            with self.study.locked():
                trials = self.study.trials()
                self.folder.write(trials, self.base, self.study.space, self.fingerprint)
            self.console.parent.say(trial_line(trial, trials, self.base.best))
            failures = failures + 1 if trial.state == "failed" else 0
            if failures == MAX_FAILURES:
                raise JobError(f"{self.folder.path}: {failures} trials in a row failed, the last one: {trial.reason}")
        return False

    def _train(self, claimed: ClaimedTrial) -> Trial:
        """Train once with the parameters of a trial and store the result."""
        metric = self.base.best
        best: list[Headline] = []

        def observe(epoch: int, figures: Headline) -> None:
            # The best epoch of the trial so far, as `train` would keep it.
            best[:] = [max([*best, figures], key=lambda f: better(metric, f))]
            with study_errors(self.folder.path):
                pruned = claimed.report(epoch, getattr(figures, metric))
            if pruned and epoch < epochs:  # after the last epoch the trial is complete
                raise _PrunedError

        folder = trial_folder(self.folder.path, claimed.number)
        self._check_source()
        try:
            raw = self.base.model_dump(mode="json", exclude_none=True)
            recipe = override(raw, self.base.name, settings_of(self.study.space, claimed.params), None)
            epochs = sum(phase.epochs for phase in recipe.phase)
            run = train(self.source, recipe, out=folder, device=self.device, console=self.console, trial=observe)
        except (StoppedError, DiskError):
            # These concern the machine: every later trial would fail in the same way.
            raise
        except _PrunedError:
            return self.study.finish(claimed, "pruned", {"figures": best[0].to_dict()})
        except Exception as error:  # a bad combination of settings must not end the sweep
            self._check_source()
            return self.study.finish(claimed, "failed", {"reason": " ".join(described(error).split())[:500]})
        else:
            self.folder.keep(claimed.number, folder)
            figures = run.best.figures
            assert figures is not None
            attributes = {"figures": figures.to_dict(), "phase": run.best.phase, "epoch": run.best.epoch}
            return self.study.finish(claimed, "complete", attributes, getattr(figures, metric))
        finally:
            # Models of all trials would fill the disk; the best one was moved away before.
            shutil.rmtree(folder, ignore_errors=True)

    def _check_source(self) -> None:
        """Raise _SourceChangedError if the images changed since the start: trials could not be compared."""
        try:
            _, table = resolve_recipe(Request(self.source, self.base), Console(silent=True))
            changed = table.fingerprint() != self.fingerprint
        except (UserError, OSError):
            changed = True
        if changed:
            raise _SourceChangedError(
                f"{self.source}: was changed or removed during the sweep; restore it, and {self._advice()}"
            )

    def _advice(self) -> str:
        return f"the same command with --out {self.folder.path} continues"

    def result(self, interrupted: bool) -> Sweep:
        """Draw the plot and return the result. Raises JobError if no trial was completed, after Ctrl-C StoppedError."""
        from linnaeus.report.fonts import advice
        from linnaeus.report.sweep_plot import sweep_plot

        with self.study.locked():
            trials = self.study.trials()
            # A process that was killed after its last trial had no time to write them.
            self.folder.write(trials, self.base, self.study.space, self.fingerprint)
        best = best_of(trials, self.base.best)
        if best is None and interrupted:
            raise StoppedError(signal.SIGINT, f"no trial was completed yet; {self._advice()}")
        if best is None:
            reasons = [trial.reason for trial in trials if trial.reason]
            last = f"; the last one failed: {reasons[-1]}" if reasons else ""
            raise JobError(f"{self.folder.path}: no trial was completed{last}")
        importances = self.study.importances()
        # Locked, so that two processes do not write the plot at once.
        with self.study.locked():
            image = self.folder.image(trials, best, importances, self.base, self.study.space)
            missing = sweep_plot(image, self.folder.plot)
        if missing:
            self.console.parent.warn(advice(missing))
        return Sweep(self.folder.path, trials, best, self.folder.path / BEST, importances, interrupted)
