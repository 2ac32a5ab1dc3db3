"""train(): from a source and a recipe to a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from linnaeus.check.inspection import Inspection, inspect
from linnaeus.console import Console
from linnaeus.data.decode import UnreadableError
from linnaeus.data.table import SPLITS, Table
from linnaeus.distributed.engine import Engine
from linnaeus.distributed.environment import process_info
from linnaeus.distributed.group import is_connection_error
from linnaeus.errors import JobError, LostError, UserError
from linnaeus.malloc import steady_heap
from linnaeus.metrics.classification import Figures
from linnaeus.recipe import Recipe
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.layout import CHECKPOINT
from linnaeus.runs.lock import clear
from linnaeus.stores import default_cache
from linnaeus.stores.frozen import FrozenStages
from linnaeus.training.checkpoint import Checkpoints, Every
from linnaeus.training.finish import Run, finish
from linnaeus.training.identity import Identity, identify, known_by
from linnaeus.training.job import Job
from linnaeus.training.optim import training_stages
from linnaeus.training.phases import Phases
from linnaeus.training.prepare import (
    build_network,
    check_size,
    load_samples,
    measure_pixels,
    open_split,
    preprocessing_of,
    resolve_recipe,
)
from linnaeus.training.request import Request, latest
from linnaeus.training.stop import StoppedError, Terminated
from linnaeus.training.streams import Streams


def train(
    source: str | Path | Table,
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
    resume: bool = False,
    checkpoint_every: str = "auto",
    draw: bool = True,
    devices: int | None = None,
    console: Console | None = None,
    trial: Callable[[int, Figures], None] | None = None,
) -> Run:
    """Train a classifier on `source` and leave everything about it in a run folder.

    `source` is what the command takes, or a table of your own. `recipe` is a name, a file, or a Recipe; without one it
    is chosen from the data. `model` is the name of a network, `file.py:function`, or a module of your own; `weights` a
    name, a file or "none"; `epochs` a number for each phase; `settings` dotted keys on the recipe, such as
    {"phase.1.lr": 1e-3}. `strict` refuses a source with unreadable images instead of leaving them out. Ctrl-C ends
    the run with the best model so far.

    With `resume`, a run that was cut goes on and ends as if it had not been, to the bit on CPU: the run in `out`, or
    `source` itself where that is a run folder, or else the last of runs/<recipe>-<n> on that source. Where there
    is none, a new one begins. One process at a time works in a run folder. `checkpoint_every`: "auto", as often as
    takes 2 % of the time; or "5min", or "100steps".
    Without `draw` there are no curves, images and report, which take longer than a very small network.

    Several processes train one network where torchrun or srun starts this in each of them; the first one writes and
    prints. `devices` is how many there are on this machine: from Python it can only be checked.

    `trial(number, figures)` is told the validation of every epoch, counted over all phases, and ends the run by an
    exception. A run with it is one of many, of which only figures are wanted: it leaves its recipe and history, and
    neither a model nor a checkpoint nor what is made from one, and no test image is looked at.
    Raises UserError for wrong input, and JobError where the input was right and the run failed all the same; one of
    these is StoppedError, after SIGTERM, and another LostError, where another process is gone.
    """
    here = process_info()
    if devices is not None and devices != here.local_world_size:
        raise UserError(
            f"devices = {devices}, and this is one process of {here.local_world_size} on this machine; start it with "
            f"torchrun --nproc-per-node {devices}, or as linnaeus train --devices {devices}"
        )
    if trial is not None and here.world_size > 1:
        raise UserError("a sweep runs each of its trials in one process; start several sweeps on one study instead")
    job = Job((console or Console()) if here.is_main else Console(silent=True), draw)
    place_ = None if out is None else Path(out)
    request = Request(source, recipe, model, weights, epochs, settings, seed, device, place_, strict, resume)
    checkpoints = Checkpoints(Path(), Every.parse(checkpoint_every))
    with job.stop.listening(), steady_heap():
        try:
            return _train(job, request, checkpoints, tensorboard, trial)
        except BaseException as error:
            if hasattr(job, "folder") and here.is_main:
                job.folder.abandon()
            if isinstance(error, Terminated):
                raise StoppedError(f"stopped by SIGTERM; {job.to_go_on()}") from None
            if isinstance(error, torch.OutOfMemoryError):
                raise JobError(f"out of memory on {job.engine.describe()}; {job.to_go_on()}") from None
            if isinstance(error, RuntimeError) and here.world_size > 1 and is_connection_error(error):
                raise LostError(f"another process of this run has ended; {job.to_go_on()}") from error
            raise
        finally:
            job.release()


def _train(
    job: Job,
    request: Request,
    checkpoints: Checkpoints,
    tensorboard: bool,
    trial: Callable[[int, Figures], None] | None,
) -> Run:
    """From the request to the finished run."""
    since = time.perf_counter()
    job.engine = Engine(request.device)  # a device that is not there is the cheapest thing to find
    request = _completed(job.engine, request)
    finished = job.engine.broadcast(lambda: request.finished)
    if not finished:
        job.recipe, table = job.engine.local_main_first(
            lambda: resolve_recipe(
                request.source, request.recipe, request.model, request.weights, request.epochs, request.settings,
                request.seed, job.console,
            )
        )  # fmt: skip
        if request.resume and request.out is None:
            request = replace(request, out=job.engine.broadcast(lambda: latest(job.recipe.name, place(table.source))))
            finished = job.engine.broadcast(lambda: request.finished)
    if finished:
        job.console.say(f"run       {request.out} is finished: there is nothing to resume")
        return job.engine.broadcast(lambda: _finished(request))
    _prepare(job, request, table)
    job.seconds.lap("prepare", since)
    _introduce(job)
    return _run(job, checkpoints, tensorboard, trial)


def _completed(engine: Engine, request: Request) -> Request:
    """The request, completed from the run that is to go on; by the first process, who sees its folder for sure."""

    def complete() -> tuple[str | Path, Path | None, str | Recipe | None]:
        found = request.completed()
        assert not isinstance(found.source, Table)
        return found.source, found.out, found.recipe

    if isinstance(request.source, Table):
        return request
    source, out, recipe = engine.broadcast(complete)
    return replace(request, source=source, out=out, recipe=recipe)


def _finished(request: Request) -> Run:
    """The run that was to go on, and is over."""
    assert request.out is not None
    clear(request.out)
    RunFolder(request.out).close()
    return Run.read(request.out)


def _prepare(job: Job, request: Request, table: Table) -> None:
    """Everything before the first epoch. What can be wrong with the input is found here, the cheap things first."""
    if job.recipe.precision != "auto":
        job.engine = Engine(request.device, job.recipe.precision)
    engine = job.engine
    with engine.propagate_errors():
        job.table = open_split(table, job.recipe, job.console)
        # The place is found before there is a run folder, which may have the name of the source.
        job.identity = identify(job.recipe, job.table, engine.environment(), place(job.table.source))
    if len(set(engine.all_gather(job.fingerprint))) > 1:
        raise UserError(f"{table.source}: is not the same on all machines")
    continues = engine.broadcast(lambda: request.continues)
    if continues:
        engine.broadcast(lambda: _hold(job, request))
    before = engine.broadcast(lambda: _same_run(job, request) if continues else None)
    if before is not None:
        job.identity.recipe = before.recipe
        job.identity.found = before.found
        job.recipe = before.found.apply(Recipe.model_validate(before.recipe))
    if not continues:
        engine.broadcast(lambda: RunFolder.check(request.out))
    torch.manual_seed(job.recipe.seed)
    channels = _build(job, request)
    job.folder = RunFolder(engine.broadcast(lambda: _open_folder(job, request, continues).path))
    job.folder.resumed = continues
    job.samples, bad = engine.local_main_first(
        lambda: load_samples(job.table, job.recipe, job.preprocessing, request.strict, job.console)
    )
    job.bad = len(bad)
    with engine.propagate_errors():
        if engine.is_main:
            _inspect(job, request, bad)
        else:
            job.inspection = Inspection()
    if job.recipe.data.normalise == "data":
        job.preprocessing = engine.broadcast(lambda: measure_pixels(job.samples["train"], job.preprocessing))
    assert job.preprocessing.channels == channels
    engine.broadcast(lambda: _identify_pixels(job, before))


def _build(job: Job, request: Request) -> int:
    """The network, and the preprocessing as far as it is known before an image is read. Returns the channels."""
    wanted = job.recipe.data.channels
    channels = (job.table.channels or 3) if wanted == "auto" else wanted
    module = request.model if isinstance(request.model, nn.Module) else None
    job.network, normalisation = job.engine.local_main_first(
        lambda: build_network(job.recipe, len(job.table.classes), channels, module, job.console)
    )
    with job.engine.propagate_errors():
        check_size(job.network, job.recipe, channels)
        for phase in job.recipe.phase:
            training_stages(job.network, phase.train)
    job.preprocessing = preprocessing_of(job.recipe, channels, normalisation)
    return channels


def _hold(job: Job, request: Request) -> None:
    """Keep others out of the folder of the run that is to go on. Raises UserError where one has just finished it."""
    assert request.out is not None
    job.hold(request.out)
    if request.finished:
        raise UserError(f"{request.out}: another process has finished this run since; there is nothing left to resume")


def _open_folder(job: Job, request: Request, continues: bool) -> RunFolder:
    """The run folder, with what is known before an image is read."""
    if continues:
        assert request.out is not None
        folder = RunFolder.resume(request.out)
    else:
        folder = RunFolder.create(request.out, job.recipe.name)
        job.hold(folder.path)
    job.folder = folder  # from here on there is something to abandon
    folder.write_recipe(job.recipe)
    folder.write_split(job.table)
    return folder


def _inspect(job: Job, request: Request, bad: list[tuple[str, str]]) -> None:
    """Write down what is wrong with the images. Raises UserError where --strict refuses that."""
    source = job.table.source
    job.folder.write_bad_images(bad)
    if bad and request.strict:
        first, advice = ": ".join(bad[0]), "remove them, or go on without --strict, which names them all"
        raise UserError(f"{source}: {len(bad)} unreadable image(s), such as {first}; {advice}")
    job.inspection = inspect(job.table, job.console)
    job.folder.write_check(job.inspection)
    if job.inspection.leaked and request.strict:
        counts = " and ".join(f"{len(found)} {split}" for split, found in job.inspection.leaked.items())
        raise UserError(
            f"{source}: copies of {counts} image(s) stand in an earlier split; remove them (`linnaeus check` "
            "names them), or go on without --strict: figures then come with and without them"
        )


def _identify_pixels(job: Job, before: Identity | None) -> None:
    """Write down what the decoded images are known by; refuse others than the run had `before`."""
    job.identity.pixels = {split: known_by(samples.rows) for split, samples in job.samples.items()}
    if before is not None:
        before.refuse(job.folder.path, before.other_pixels(job.identity))
    job.identity.write(job.folder.checkpoint)


def _same_run(job: Job, request: Request) -> Identity | None:
    """What the run that is to go on says of itself. Raises UserError where it is another one."""
    assert request.out is not None
    before = Identity.read(request.out / CHECKPOINT)
    if before is not None:
        before.refuse(request.out, before.differences(job.identity))
        elsewhere = before.other_machine(job.identity)
        if elsewhere:
            job.console.warn(f"resumed on another machine ({'; '.join(elsewhere)}): the last bits may differ")
    return before


def _introduce(job: Job) -> None:
    """Say what will be trained on what, where."""
    say, table, network = job.console.say, job.table, job.network
    counts = ", ".join(_count(job, split) for split in SPLITS if split in job.samples)
    left_out = f"; {job.bad} unreadable, left out (bad_images.csv)" if job.bad else ""
    say(f"run       {job.folder.path}")
    say(f"device    {job.engine.describe()}")
    say(f"source    {table.source} ({table.kind}): {counts}{left_out}")
    say(f"classes   {len(table.classes)}: {_class_map(table)}")
    for line in job.inspection.lines:
        job.console.warn(line)
    if job.recipe.data.valid == "test":
        job.console.warn('valid = "test": the best model is selected on the test images, so its figure flatters')
    total = sum(p.numel() for p in network.parameters())
    p = job.preprocessing
    say(f"network   {network.arch['name']}, {total:,} parameters, weights: {job.recipe.model.weights}")
    kind = "gray" if p.channels == 1 else "color"
    say(f"images  {p.fit} to {p.resize}, center {p.size}, {kind}, {p.interpolation}")


def _count(job: Job, split: str) -> str:
    """How many images a split has, and in how many groups."""
    groups = job.samples[split].groups
    return f"{split} {len(job.samples[split])}" + ("" if groups is None else f" in {len(set(groups.tolist()))} groups")


def _run(job: Job, checkpoints: Checkpoints, tensorboard: bool, trial: Callable[[int, Figures], None] | None) -> Run:
    """The phases, then the final figures from the saved file, on pixels."""
    checkpoints.path = job.folder.checkpoint
    first = job.engine.is_main
    last = job.engine.broadcast(lambda: checkpoints.read(job.recipe.best))
    rows = [] if last is None else last.rows
    job.engine.broadcast(lambda: job.folder.start(rows))
    if last is not None:
        job.console.say(f"resumed   {last}")
        job.seconds.go_on(last.seconds)
    found = job.identity.found
    int8 = job.samples["train"] if job.recipe.model.frozen == "int8" else None
    engine = job.engine
    frozen = FrozenStages(
        job.network,
        job.preprocessing,
        engine.device,
        job.console,
        default_cache(),
        engine,
        engine.precision,
        engine.autocast,
        int8,
        made_by=found.executors,
        on_change=job.note,
    )
    train, valid = job.samples["train"], job.samples["valid"]
    streams = Streams(frozen, train, valid, job.recipe.phase, job.recipe.seed)
    phases = Phases(
        job.recipe, job.network, streams, len(job.table.classes), job.engine, job.console,
        job.save if trial is None else lambda best: None, job.folder.add if first else lambda row: None, job.divided,
        job.tuned, checkpoints if first and trial is None else None, job.stop, job.folder.rows, found.micro,
        job.seconds, trial,
    )  # fmt: skip
    interrupted = False
    with job.folder.tensorboard(tensorboard and first):
        try:
            best = phases.run(last)
        except Terminated:
            raise
        except KeyboardInterrupt:
            if trial is not None:
                raise
            interrupted, best = True, phases.best
            if best.figures is None:
                raise JobError(f"stopped before the first epoch was over; {job.to_go_on()}") from None
            job.console.say("stopped; the best model so far is kept. Evaluating it (Ctrl-C again to skip)")
        except JobError as error:
            if phases.best.figures is None or trial is not None:
                raise
            where = f"phase {phases.best.phase}, epoch {phases.best.epoch}"
            raise JobError(f"{error}; the best model so far ({where}) is in {job.folder.model}") from None
        except UnreadableError as error:  # where images are decoded anew in every epoch
            raise JobError(f"{error}; it could be read when the run began. {job.to_go_on()}") from None
    if trial is not None:
        assert best.figures is not None
        return Run(job.folder.path, best, {"valid": best.figures}, dict(job.seconds))
    job.console.detail(f"{checkpoints.count} checkpoints took {checkpoints.spent:.2f} s")
    run = finish(job, best, interrupted)
    if not interrupted and first:
        job.folder.close()
    return run


def place(source: str) -> str:
    """Where a source lies, to be found from any folder; a known name stays one."""
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


def _class_map(table: Table, most: int = 12) -> str:
    """`0 daisy, 1 rose …`: index and display name, shortened where there are many."""
    shown = [name if name == str(i) else f"{i} {name}" for i, name in enumerate(table.names)]
    return ", ".join(shown) if len(shown) <= most else ", ".join(shown[:most]) + f", … {shown[-1]}"
