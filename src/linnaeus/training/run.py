"""train(): from a source and a recipe to a run folder."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from linnaeus.console import Console, counted
from linnaeus.data.images.decode import UnreadableError
from linnaeus.data.readers.columns import LabelFormat
from linnaeus.data.readers.csvfile import open_frame
from linnaeus.data.table import NEAR_DUPLICATES, SPLITS, Table
from linnaeus.device import steady_heap
from linnaeus.distributed.engine import Engine
from linnaeus.distributed.environment import ProcessInfo, process_info
from linnaeus.distributed.group import is_connection_error
from linnaeus.errors import DiskError, JobError, LostError, UserError, exhausted
from linnaeus.files import explained
from linnaeus.metrics.multilabel import Headline
from linnaeus.modelfile.safetensors import model_path, read_header
from linnaeus.recipe import Recipe
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.lock import clear
from linnaeus.runs.tracking import Tracking, check_trackers, open_tracking
from linnaeus.stores.frozen import FrozenStages
from linnaeus.training.checkpoint import Checkpoint, Checkpoints
from linnaeus.training.finish.finalize import Run, TrainingOutcome, finalize, say_figures
from linnaeus.training.interval import CheckpointInterval
from linnaeus.training.phases import Phases
from linnaeus.training.recorder import RunRecorder
from linnaeus.training.setup.prepare import Prepared, plan_run, prepare
from linnaeus.training.setup.request import EarlierRun, Request
from linnaeus.training.setup.workspace import Workspace
from linnaeus.training.stop import StoppedError, StopSignals, Terminated
from linnaeus.training.streams import Streams
from linnaeus.training.timings import Timings

Observer = Callable[[int, Headline], None]  # observe(epochs so far, validation metrics)


def train(
    source: Any,
    recipe: str | Recipe | None = None,
    *,
    model: str | nn.Module | None = None,
    weights: str | None = None,
    epochs: int | str | list[int] | None = None,
    out: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    device: str = "auto",
    seed: int | None = None,
    strict: bool = False,
    tensorboard: bool = False,
    track: str | Sequence[str] = (),
    resume: bool = False,
    checkpoint_every: str = "auto",
    draw: bool = True,
    devices: int | None = None,
    console: Console | None = None,
    trial: Observer | None = None,
    earlier: EarlierRun | None = None,
) -> Run:
    """Train a classifier on `source` and write a run folder.

    The arguments are the options of `linnaeus train`. In addition:

    - `source` may be a Table or a pandas DataFrame, `recipe` a Recipe, and `model` a module.
    - `settings` maps dotted recipe keys to values, as `--set` does: {"phase.1.lr": 1e-3}.
    - `track` names experiment trackers: "tensorboard", "mlflow" or "trackio".
    - `draw=False` skips plots and report. `devices` is only checked; use torchrun to start several processes.
    - `trial(n, metrics)` is called after each epoch, n counted over all phases. If it raises, the run ends.
    - `earlier` is a run with the same network whose stored activations are reused for images in both.

    Ctrl-C ends the run with the best model so far. Raises UserError for invalid input and JobError if the run fails:
    StoppedError after SIGTERM, SIGHUP or SIGXCPU, LostError if another process has ended.
    """
    if hasattr(source, "itertuples"):  # a DataFrame, without importing pandas
        groups = (settings or {}).get("data.split.groups")
        form = LabelFormat(*((settings or {}).get(f"data.{key}") for key in ("task", "separator")))
        source = open_frame(source, None if groups == NEAR_DUPLICATES else groups, form)
    place = None if out is None else Path(out)
    request = Request(source, recipe, model, weights, epochs, settings, seed, device, place, strict, resume, earlier)
    info = process_info()
    _check_processes(info, devices, trial)
    console = (console or Console()) if info.is_main else Console(silent=True)
    trackers = check_trackers((*["tensorboard"] * tensorboard, *([track] if isinstance(track, str) else track)))
    workspace = Workspace(derived=earlier is not None)
    session = Session(console, CheckpointInterval.parse(checkpoint_every), trackers, draw, workspace)
    with steady_heap(), _errors_explained(session.workspace), session.stop.listening():
        return _train(request, session, trial)


@dataclass
class Session:
    """How this process carries out a run; nothing here changes the result."""

    console: Console
    checkpoint_interval: CheckpointInterval
    trackers: tuple[str, ...]
    draw: bool
    workspace: Workspace
    stop: StopSignals = field(default_factory=StopSignals)
    timings: Timings = field(default_factory=Timings)


def _train(request: Request, session: Session, trial: Observer | None) -> Run:
    """The steps of a run: plan, prepare, train, evaluate."""
    started, console = time.perf_counter(), session.console
    engine = Engine(request.device)  # first, because a missing device is the cheapest error to detect
    plan = plan_run(request, engine, console)
    if isinstance(plan, Path):
        run = engine.broadcast(lambda: _read_finished(plan))
        console.say(f"run       {plan} is finished: there is nothing to resume")
        say_figures(run.figures, [], console)
        return run
    # The precision is part of the recipe, which is only known now.
    if plan.recipe.precision != "auto":
        engine = Engine(request.device, plan.recipe.precision)
    prepared = prepare(plan, session.workspace, engine, console)
    session.timings.add_since("prepare", started)
    _introduce(prepared)
    recorder = RunRecorder(prepared)
    if trial is not None:
        return _run_trial(prepared, recorder, session, trial)
    checkpoints = Checkpoints(prepared.folder.checkpoint, session.checkpoint_interval)
    checkpoint = engine.broadcast(lambda: _last_checkpoint(prepared, checkpoints))
    with _tracking(prepared, session) as tracking:
        recorder.tracking = tracking
        outcome = _run_phases(prepared, recorder, session, checkpoints, checkpoint)
        run = finalize(prepared, recorder, outcome)
        tracking.finish(run.figures, outcome.interrupted)
    # An interrupted run stays open, so that it can be resumed.
    if not outcome.interrupted and engine.is_main:
        prepared.folder.close()
    return run


def _tracking(prepared: Prepared, session: Session) -> Tracking:
    """The trackers of `--track`, on rank 0."""
    engine, console = prepared.engine, prepared.console
    with engine.propagate_errors():
        recipe = prepared.recipe.model_dump(mode="json")
        return open_tracking(session.trackers if engine.is_main else (), prepared.folder, recipe, console)


def _run_phases(
    prepared: Prepared,
    recorder: RunRecorder,
    session: Session,
    checkpoints: Checkpoints,
    checkpoint: Checkpoint | None,
) -> TrainingOutcome:
    """Train all phases, from the last checkpoint if there is one. Ctrl-C keeps the best model so far."""
    engine, console = prepared.engine, prepared.console
    if checkpoint is not None:
        console.say(f"resumed   {checkpoint}")
        session.timings.add_earlier(checkpoint.seconds)
    phases = _phases(prepared, recorder, session)
    phases.checkpoints = checkpoints if engine.is_main else None
    interrupted = False
    try:
        phases.run(checkpoint)
    except Terminated:  # these signals leave no time for the final evaluation
        raise
    except KeyboardInterrupt:
        session.stop.raised = None
        if phases.best.figures is None:
            message = f"stopped before the end of the first epoch; {session.workspace.advice()}"
            raise StoppedError(signal.SIGINT, message) from None
        interrupted = True
        console.say("stopped; the best model so far is kept. Evaluating it (Ctrl-C again to skip)")
    except JobError as error:
        if phases.best.figures is None:
            raise
        raise JobError(f"{error}; {recorder.saved_model()}") from None
    except UnreadableError as error:  # only if images are decoded in every epoch
        raise JobError(f"{error}; it was readable when the run began. {session.workspace.advice()}") from None
    console.detail(f"{counted(checkpoints.count, 'checkpoint')} took {checkpoints.spent:.2f} s")
    return TrainingOutcome(phases.best, interrupted, session.timings, session.draw, phases.streams)


def _last_checkpoint(prepared: Prepared, checkpoints: Checkpoints) -> Checkpoint | None:
    """Read the last checkpoint, if there is one, and cut the history back to its epochs."""
    checkpoint = checkpoints.read(prepared.recipe.best)
    prepared.folder.start([] if checkpoint is None else checkpoint.rows)
    return checkpoint


def _run_trial(prepared: Prepared, recorder: RunRecorder, session: Session, observe: Observer) -> Run:
    """Train for the validation metrics alone: no checkpoints, no model file, no final evaluation."""
    prepared.folder.start([])
    if (unseen := prepared.unseen.get("valid")) is not None:
        count = f"{int(unseen.sum()):,} of {len(unseen):,} validation images"
        prepared.console.warn(f"trials are compared on {count}: the others were seen in training")
    phases = _phases(prepared, recorder, session)
    phases.observe = observe
    best = phases.run()
    assert best.figures is not None
    return Run(prepared.folder.path, best, {"valid": best.figures}, dict(session.timings))


def _phases(prepared: Prepared, recorder: RunRecorder, session: Session) -> Phases:
    """The phases over the decoded images, with a store for what the frozen stages compute."""
    recipe, engine, samples = prepared.recipe, prepared.engine, prepared.samples
    frozen = FrozenStages.on_engine(prepared.network, prepared.preprocessing, engine, prepared.console)
    frozen.round_as(recipe.model.frozen_precision, samples["train"])
    frozen.made_by = prepared.identity.tuned.executors
    frozen.on_change = recorder.write_tuned
    seen, unseen = prepared.membership.trained_before, prepared.unseen.get("valid")
    streams = Streams(frozen, samples["train"], samples["valid"], recipe.phase, recipe.seed, unseen, seen)
    classes, stop, timings = len(prepared.table.classes), session.stop, session.timings
    return Phases(recipe, streams, classes, engine, recorder, stop=stop, timings=timings)


def _read_finished(path: Path) -> Run:
    """The finished run in a folder, from which the remains of a killed process are removed.

    Raises UserError if its model file is gone or damaged: without a checkpoint it cannot be written again.
    """
    clear(path)
    RunFolder(path).close()
    read_header(model_path(path))
    return Run.read(path)


def _check_processes(info: ProcessInfo, devices: int | None, trial: Observer | None) -> None:
    """Raise UserError if the processes of this command do not fit the arguments."""
    if devices is not None and devices != info.local_world_size:
        raise UserError(
            f"devices = {devices}, but on this machine the command has {counted(info.local_world_size, 'process')}; "
            f"start it with torchrun --nproc-per-node {devices}, or run linnaeus train --devices {devices}"
        )
    if trial is not None and info.world_size > 1:
        raise UserError("a trial of a sweep runs in one process; start several sweeps on the same study instead")


@contextmanager
def _errors_explained(workspace: Workspace) -> Iterator[None]:
    """Clean up after an error, and raise it with advice on how to continue."""
    try:
        yield
    except BaseException as error:
        workspace.abandon()
        if isinstance(error, Terminated):
            name = signal.Signals(error.number).name
            raise StoppedError(error.number, f"stopped by {name}; {workspace.advice()}") from None
        if isinstance(error, OSError):
            raise DiskError(f"{explained(error)}; {workspace.advice()}") from error
        if lack := exhausted(error):
            raise JobError(f"out of {lack}; {workspace.advice()}") from None
        # The first sign of a dead process is a broken connection in some collective operation.
        if isinstance(error, RuntimeError) and process_info().world_size > 1 and is_connection_error(error):
            raise LostError(f"another process of this run has ended; {workspace.advice()}") from error
        raise
    finally:
        workspace.release()


def _introduce(prepared: Prepared) -> None:
    """Print what is trained, on which data and where."""
    say, table, network = prepared.console.say, prepared.table, prepared.network
    counts = ", ".join(_count(prepared, split) for split in SPLITS if split in prepared.samples)
    left_out = f"; {prepared.unreadable} unreadable, left out (bad_images.csv)" if prepared.unreadable else ""
    say(f"run       {prepared.folder.path}")
    say(f"device    {prepared.engine.describe(prepared.recipe.precision)}")
    say(f"source    {table.source} ({table.kind}): {counts}{left_out}")
    say(f"classes   {len(table.classes)}: {_class_list(table)}")
    prepared.inspection.tell(prepared.console)
    if prepared.recipe.data.valid == "test":
        prepared.console.warn(
            'valid = "test": the best model is selected on the test images, so its score is optimistic'
        )
    parameters = sum(p.numel() for p in network.parameters())
    say(f"network   {network.arch['name']}, {parameters:,} parameters, weights: {prepared.recipe.model.weights}")
    p = prepared.preprocessing
    say(f"images    {p.brief()}, {'gray' if p.channels == 1 else 'color'}, {p.interpolation}")


def _count(prepared: Prepared, split: str) -> str:
    """`valid 12 in 3 groups`: size of a split. Without groups of the source, only copies are grouped."""
    samples = prepared.samples[split]
    groups = 0 if samples.groups is None else len(set(samples.groups.tolist()))
    kind = f" ({groups} different images)" if prepared.table.groups is None else f" in {groups} groups"
    return f"{split} {len(samples)}{kind if groups else ''}"


def _class_list(table: Table, most: int = 12) -> str:
    """`0 daisy, 1 rose …`: index and display name, shortened if there are many classes."""
    shown = [name if name == str(i) else f"{i} {name}" for i, name in enumerate(table.names)]
    return ", ".join(shown) if len(shown) <= most else ", ".join(shown[:most]) + f", … {shown[-1]}"
