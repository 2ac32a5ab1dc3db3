"""The study of a sweep: an Optuna study in SQLite that several processes share, any of which may be killed.

Optuna's ask-and-tell interface is used instead of its `optimize` loop, for guarantees that the loop does not give: the
number of trials is exact with several processes, an interrupted sweep proposes the same trials as an undisturbed one,
and a trial whose process was killed is repeated at once (Optuna's heartbeat waits, and takes a suspended process for a
dead one).

The lock of the folder is held while a trial is created, so that trials are numbered and counted by one process at a
time. A process holds the lock of the trial that it runs. A running trial without a holder was lost with its process,
and its parameters are queued again.
"""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from linnaeus.errors import DiskError, UserError, install, one_line
from linnaeus.files import acquire, disk_errors, locked
from linnaeus.sweeps.importance import importances
from linnaeus.sweeps.space import Interval, Space, combinations, every_combination

if TYPE_CHECKING:
    import optuna
    from filelock import BaseFileLock

STUDY = "study.sqlite"
LOCKS = ".locks"
REPEATS = "again"  # attribute of a trial: number of the lost trial that it repeats
MAX_GRID = 10_000  # combinations up to which each is tried once
TIMEOUT = 60  # seconds that a process waits for a transaction of another one


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep."""

    number: int
    state: str  # complete | pruned | failed | running
    drawn: dict[str, Any]  # its parameters by dotted key; a choice that is not a string as its JSON text
    value: float | None = None  # the objective: of the best epoch if complete, of the last epoch if pruned
    # Of the best epoch: n, correct, accuracy, accuracy_ci95, balanced_accuracy, loss.
    figures: dict[str, Any] = field(default_factory=dict)
    phase: int = 0  # phase of the best epoch
    epoch: int = 0  # the best epoch, in its phase
    epochs: int = 0  # number of epochs over all phases
    seconds: float = 0.0
    reason: str = ""  # why it failed
    same_as: int | None = None  # an earlier trial with the same parameters, whose results were copied

    @classmethod
    def of(cls, trial: optuna.trial.FrozenTrial) -> Trial:
        """A trial as the study stores it."""
        attributes = trial.user_attrs
        start, end = trial.datetime_start, trial.datetime_complete
        return cls(
            number=trial.number,
            state=_state(trial),
            drawn=dict(trial.params),
            value=trial.value if trial.state.is_finished() else None,
            figures=dict(attributes.get("figures") or {}),
            phase=attributes.get("phase", 0),
            epoch=attributes.get("epoch", 0),
            epochs=len(trial.intermediate_values),
            seconds=(end - start).total_seconds() if start and end else 0.0,
            reason=attributes.get("reason", ""),
            same_as=attributes.get("same_as"),
        )


@dataclass
class ClaimedTrial:
    """A trial that this process runs; other processes leave it alone until `release`."""

    handle: optuna.trial.Trial
    lock: BaseFileLock
    same_as: optuna.trial.FrozenTrial | None  # a finished trial with the same parameters

    @property
    def number(self) -> int:
        return self.handle.number

    @property
    def params(self) -> dict[str, Any]:
        return self.handle.params

    def report(self, epoch: int, value: float) -> bool:
        """Record the objective after an epoch. Returns whether the pruner would end the trial here."""
        self.handle.report(value, epoch)
        return self.handle.should_prune()

    def release(self) -> None:
        """Give up the trial. If it is not finished, it is repeated."""
        self.lock.release()


class Study:
    """The trials of the sweep in `folder`. No trial is pruned before its epoch `warmup`."""

    def __init__(self, folder: Path, space: Space, *, minimize: bool, seed: int, warmup: int):
        optuna = _optuna()
        self.folder, self.space, self.seed = folder, space, seed
        self.distributions = {key: _distribution(dimension) for key, dimension in space.items()}
        with disk_errors(folder), self.locked():
            (folder / LOCKS).mkdir(exist_ok=True)
            path = (folder / STUDY).absolute()
            if "?" in str(path):
                raise UserError(f"{folder}: SQLite cannot open a path with a '?'; choose another --out")
            # Other processes may hold the database for longer than SQLite waits by default.
            connection = {"connect_args": {"timeout": TIMEOUT}}
            self.study = optuna.create_study(
                storage=optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs=connection),
                study_name="sweep",
                direction="minimize" if minimize else "maximize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=warmup, n_min_trials=3),
                load_if_exists=True,
            )

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock of the folder, waiting while another process holds it."""
        return locked(self.folder / ".lock")

    def claim(self, total: int) -> ClaimedTrial | None:
        """The next trial, for this process to run; None if `total` trials are finished or running."""
        optuna = _optuna()
        with self.locked():
            # Trials of processes that were killed are given out again.
            self._requeue_lost()
            trials = self.study.get_trials(deepcopy=False)
            started = _started(trials)
            if len(started) >= total:
                return None
            self._queue_combinations(trials, total)
            # Seeded by the number of trials, so that an interrupted sweep continues as an undisturbed one.
            seed = int(np.random.SeedSequence([self.seed, len(started)]).generate_state(1)[0])
            with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
                # constant_liar: running trials count as bad, so that parallel workers spread out.
                self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
                handle = self.study.ask(self.distributions)
            same = [t for t in started if t.params == handle.params and t.state.name in ("COMPLETE", "PRUNED")]
            # The lock shows that the trial is being worked on; the system releases it when the process dies.
            lock = acquire(self._lock_file(handle.number), wait=True)
            assert lock is not None
            return ClaimedTrial(handle, lock, same[0] if same else None)

    def finish(
        self, trial: ClaimedTrial, state: str, attributes: Mapping[str, Any], value: float | None = None
    ) -> Trial:
        """Store the result of a trial: "complete", "pruned" or "failed", some attributes of `Trial`, the objective."""
        states = _optuna().trial.TrialState
        for name, attribute in attributes.items():
            trial.handle.set_user_attr(name, attribute)
        kind = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[state]
        stored = self.study.tell(trial.handle, value if state == "complete" else None, kind)
        trial.release()
        return Trial.of(stored)

    def copy_result(self, trial: ClaimedTrial) -> Trial:
        """Finish a trial with the result of an equal one, which training would only repeat, to the bit."""
        same = trial.same_as
        assert same is not None
        for epoch, value in same.intermediate_values.items():
            trial.handle.report(value, epoch)
        attributes = {**same.user_attrs, "same_as": same.number}
        attributes.pop(REPEATS, None)
        return self.finish(trial, _state(same), attributes, same.value)

    def trials(self) -> list[Trial]:
        """All trials that have started, by number; a lost trial is replaced by its repetition."""
        return [Trial.of(trial) for trial in _started(self.study.get_trials(deepcopy=False))]

    def require(self, known: int) -> None:
        """Raise UserError if the study has fewer than the `known` trials of trials.csv, which would be replaced."""
        if known > len(self.study.get_trials(deepcopy=False)):
            raise UserError(
                f"{self.folder / STUDY}: lacks trials that trials.csv lists, which would be replaced; restore it, or "
                "start again with another --out"
            )

    def importances(self) -> dict[str, float]:
        """Dotted key -> its share of the effect on the objective (`importance.importances`)."""
        complete = self.study.get_trials(deepcopy=False, states=(_optuna().trial.TrialState.COMPLETE,))
        return importances(complete, self.study.direction)

    def _requeue_lost(self) -> None:
        """Queue the parameters of trials whose process has ended. The caller holds the lock of the folder."""
        states = _optuna().trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            lock = acquire(self._lock_file(trial.number), wait=False)
            if lock is None:
                continue
            try:
                shutil.rmtree(trial_folder(self.folder, trial.number), ignore_errors=True)
                self.study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number})
                self.study.tell(trial.number, state=states.FAIL)
            finally:
                lock.release()

    def _queue_combinations(self, trials: list[Any], total: int) -> None:
        """If `total` trials cover all combinations, queue those that are missing. The caller holds the lock.

        GridSampler is no alternative: it stops the study itself, which only works inside Optuna's own loop.
        """
        count = combinations(self.space)
        if count is None or count > min(total, MAX_GRID):
            return
        known = [t.params or t.system_attrs.get("fixed_params") for t in trials]
        missing = [params for params in every_combination(self.space) if params not in known]
        random.Random(self.seed).shuffle(missing)
        for params in missing:
            self.study.enqueue_trial(params)

    def _lock_file(self, number: int) -> Path:
        return self.folder / LOCKS / str(number)


def trial_folder(folder: Path, number: int) -> Path:
    """Run folder of a trial, removed when the trial ends."""
    return folder / "trials" / f".{number}"


def _started(trials: list[Any]) -> list[Any]:
    """The trials that have started, without lost ones, which their repetitions replace."""
    lost = {t.user_attrs[REPEATS] for t in trials if REPEATS in t.user_attrs}
    return [t for t in trials if t.state.name != "WAITING" and t.number not in lost]


def _state(trial: Any) -> str:
    return {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def _distribution(dimension: Any) -> Any:
    distributions = _optuna().distributions
    if not isinstance(dimension, Interval):
        return distributions.CategoricalDistribution(list(dimension.labels))
    if dimension.whole:
        step = 1 if dimension.step is None else int(dimension.step)
        return distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def _optuna() -> Any:
    """The package, without its log messages: the sweep prints its own line for each trial."""
    try:
        import optuna
    except ImportError:
        raise UserError(f"sweeps need Optuna, which is not installed: {install('sweep')}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def study_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the database into one line."""
    optuna = _optuna()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = one_line(getattr(error, "orig", None) or error.__cause__ or error)
        raise DiskError(
            f"{folder / STUDY}: cannot be used ({reason}); check the free disk space, or start again with another --out"
        ) from None
