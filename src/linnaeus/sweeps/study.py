"""The study of a sweep: an Optuna study in SQLite, shared by processes, of which any may die at any time.

The folder's lock is held while a trial is drawn, so that numbers are unique and no two processes draw beyond the
wanted count. A process holds the lock of the trial that it runs; a trial that is said to be running and whose lock is
free was lost with its process, and its settings are queued again.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from linnaeus.errors import JobError, UserError
from linnaeus.files import acquire, disk_errors, locked
from linnaeus.recipe import difference
from linnaeus.sweeps.space import Interval, Space, combinations, every_combination

if TYPE_CHECKING:
    import optuna
    from filelock import BaseFileLock

STUDY = "study.sqlite"
LOCKS = ".locks"
AGAIN = "again"  # attribute of a trial: the number of the lost one that it repeats
GRID_UP_TO = 10_000  # combinations that are listed, so that each is tried once
PATIENT = 60  # seconds that one process waits for another's transaction


@dataclass(frozen=True)
class Trial:
    """One trial, as the study has it."""

    number: int
    state: str
    """complete | pruned | failed | running"""
    drawn: dict[str, Any]
    """What it drew, by dotted key; a choice that is no word as its JSON text."""
    value: float | None = None
    """The measure that is compared: of the best epoch where it is complete, of the last where it was pruned."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Of the best epoch: n, correct, accuracy, accuracy_ci95, balanced_accuracy, loss."""
    phase: int = 0
    epoch: int = 0
    epochs: int = 0
    """The best epoch, its phase, and how many epochs there were in all."""
    seconds: float = 0.0
    reason: str = ""
    """Why it failed."""
    same_as: int | None = None
    """The trial that drew the same before, whose figures these are."""


@dataclass
class Drawn:
    """A trial that is this process's to run: held until `close`."""

    handle: optuna.trial.Trial
    lock: BaseFileLock
    same_as: optuna.trial.FrozenTrial | None

    @property
    def number(self) -> int:
        return self.handle.number

    @property
    def drawn(self) -> dict[str, Any]:
        return self.handle.params

    def close(self) -> None:
        self.lock.release()


class Study:
    """The trials of a sweep in `folder`. `minimize`: less is better; `warmup`: epochs before any trial is pruned."""

    def __init__(self, folder: Path, space: Space, *, minimize: bool, seed: int, warmup: int):
        optuna = _optuna()
        self.folder, self.space, self.minimize, self.seed = folder, space, minimize, seed
        self._distributions = {key: _distribution(dimension) for key, dimension in space.items()}
        with disk_errors(folder), self.locked():
            (folder / LOCKS).mkdir(exist_ok=True)
            path = (folder / STUDY).absolute()
            if "?" in str(path):
                raise UserError(f"{folder}: SQLite's addresses end at a '?'; choose another --out")
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": PATIENT}}
            )
            self.study = optuna.create_study(
                storage=storage,
                study_name="sweep",
                direction="minimize" if minimize else "maximize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=warmup, n_min_trials=3),
                load_if_exists=True,
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder, waiting until they are done."""
        with locked(self.folder / ".lock"):
            yield

    def draw(self, wanted: int) -> Drawn | None:
        """The next trial, or None where `wanted` are there or being run."""
        optuna = _optuna()
        with self.locked():
            self._release()
            trials = self.study.get_trials(deepcopy=False)
            waiting = optuna.trial.TrialState.WAITING
            begun = [t for t in trials if t.state != waiting and t.number not in _lost(trials)]
            if len(begun) >= wanted:
                return None
            self._queue(trials, wanted)
            # By the count of trials, so that a sweep that was stopped goes on as one that was not.
            seed = int(np.random.SeedSequence([self.seed, len(begun)]).generate_state(1)[0])
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            with _quiet():
                handle = self.study.ask(self._distributions)
            same = [t for t in begun if t.params == handle.params and t.state.name in ("COMPLETE", "PRUNED")]
            return Drawn(handle, self._hold(handle.number), same[0] if same else None)

    def report(self, drawn: Drawn, step: int, value: float) -> bool:
        """Note an epoch. Returns whether the trial is worse than half of those before at the same epoch."""
        drawn.handle.report(value, step)
        return drawn.handle.should_prune()

    def finish(self, drawn: Drawn, state: str, value: float | None = None, **attributes: Any) -> Trial:
        """Put down how a trial ended: "complete", "pruned" or "failed", with what `Trial` has of it."""
        states = _optuna().trial.TrialState
        same = drawn.same_as
        if same is not None:  # what is alike would end alike, to the bit
            state, value, attributes = _word(same), same.value, {**same.user_attrs, "same_as": same.number}
            attributes.pop(AGAIN, None)
            for step, reported in same.intermediate_values.items():
                drawn.handle.report(reported, step)
        for name, given in attributes.items():
            drawn.handle.set_user_attr(name, given)
        kind = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[state]
        told = self.study.tell(drawn.handle, None if state != "complete" else value, kind)
        drawn.close()
        return _trial(told)

    def trials(self) -> list[Trial]:
        """All that were begun, by number, without those that were lost with their process."""
        trials = self.study.get_trials(deepcopy=False)
        lost = _lost(trials)
        return [_trial(t) for t in trials if t.state.name != "WAITING" and t.number not in lost]

    def importances(self) -> dict[str, float]:
        """Key -> its share of what made trials good, by PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255).

        Empty where too few trials are complete, or all of them are alike.
        """
        optuna = _optuna()
        complete = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if len(complete) < 4 or len({t.value for t in complete}) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # that the best quarter is all of them, where many are equal
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # The best quarter: with the usual tenth a sweep of twenty trials would be told by two.
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
            try:
                found = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
            except UserWarning:
                return {}
        return {key: float(share) for key, share in found.items() if np.isfinite(share)}

    def _release(self) -> None:
        """Queue again what was lost with its process. Hold the folder's lock."""
        states = _optuna().trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            lock = acquire(self._lock_file(trial.number), wait=False)
            if lock is None:
                continue
            try:
                self.study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})
                self.study.tell(trial.number, state=states.FAIL)
            finally:
                lock.release()

    def _queue(self, trials: list[Any], wanted: int) -> None:
        """Where all combinations are wanted, queue those that nobody has begun. Hold the folder's lock."""
        count = combinations(self.space)
        if count is None or count > min(wanted, GRID_UP_TO):
            return
        known = [t.params or t.system_attrs.get("fixed_params") for t in trials]
        missing = [drawn for drawn in every_combination(self.space) if drawn not in known]
        random.Random(self.seed).shuffle(missing)
        for drawn in missing:
            self.study.enqueue_trial(drawn)

    def _hold(self, number: int) -> BaseFileLock:
        lock = acquire(self._lock_file(number), wait=True)
        assert lock is not None
        return lock

    def _lock_file(self, number: int) -> Path:
        return self.folder / LOCKS / str(number)


def _lost(trials: list[Any]) -> set[int]:
    """Numbers of trials that were lost with their process: another repeats each."""
    return {t.user_attrs[AGAIN] for t in trials if AGAIN in t.user_attrs}


def _trial(frozen: Any) -> Trial:
    known = frozen.user_attrs
    began, ended = frozen.datetime_start, frozen.datetime_complete
    return Trial(
        number=frozen.number,
        state=_word(frozen),
        drawn=dict(frozen.params),
        value=frozen.value if frozen.state.is_finished() else None,
        figures=dict(known.get("figures") or {}),
        phase=known.get("phase", 0),
        epoch=known.get("epoch", 0),
        epochs=len(frozen.intermediate_values),
        seconds=(ended - began).total_seconds() if began and ended else 0.0,
        reason=known.get("reason", ""),
        same_as=known.get("same_as"),
    )


def _word(frozen: Any) -> str:
    return {"FAIL": "failed"}.get(frozen.state.name, frozen.state.name.lower())


def _distribution(dimension: Any) -> Any:
    distributions = _optuna().distributions
    if not isinstance(dimension, Interval):
        return distributions.CategoricalDistribution(list(dimension.labels))
    if dimension.whole:
        step = 1 if dimension.step is None else int(dimension.step)
        return distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def _optuna() -> Any:
    """The package, silent: what it says of trials we say ourselves."""
    try:
        import optuna
    except ImportError:
        raise UserError('sweeps need Optuna, which is not installed; pip install "linnaeus[sweep]"') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def study_errors(folder: Path) -> Iterator[None]:
    """Turn what the database says into one line."""
    optuna = _optuna()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error.__cause__ or error).split())[:200]
        raise JobError(f"{folder / STUDY}: cannot be used ({reason}); is the disk full, or the file damaged?") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that something is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _optuna().exceptions.ExperimentalWarning)
        yield


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key was a, is b` for every difference between two descriptions of a sweep."""

    def text(value: Any) -> str:
        return "nothing" if value is None else json.dumps(value, ensure_ascii=False)

    return [f"{key} was {text(old)}, is {text(new)}" for key, (old, new) in difference.differences([then, now]).items()]
