"""train(): from a source and a recipe to a run folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from linnaeus.console import Console
from linnaeus.data.table import SPLITS, Table
from linnaeus.device import choose_device
from linnaeus.errors import JobError, UserError
from linnaeus.recipe import Recipe
from linnaeus.stores import default_cache
from linnaeus.stores.frozen import Frozen
from linnaeus.training.engine import Engine
from linnaeus.training.finish import Run, finish
from linnaeus.training.inspect import inspect
from linnaeus.training.job import Job, RunTimes
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
from linnaeus.training.runfolder import RunFolder
from linnaeus.training.streams import Streams


def train(
    source: str | Path,
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
    console: Console | None = None,
) -> Run:
    """Train a classifier on `source` and leave everything about it in a run folder.

    `recipe` is a name, a file, or a Recipe; without one it is chosen from the data. `model` is the name of a network,
    `file.py:function`, or a module of your own; `weights` a name, a file or "none"; `epochs` a number for each phase;
    `settings` dotted keys on the recipe, such as {"phase.1.lr": 1e-3}. `strict` refuses a source with unreadable
    pictures instead of leaving them out. Ctrl-C ends the run with the best model so far.
    Raises UserError for wrong input, and JobError where the input was right and the run failed all the same.
    """
    job = Job(console or Console(), RunTimes())
    try:
        _prepare(job, source, recipe, model, weights, epochs, settings, seed, device, out, strict)
        return _run(job, tensorboard)
    except BaseException:
        if hasattr(job, "folder"):
            job.folder.abandon()
        raise


def _prepare(job: Job, source, recipe, model, weights, epochs, settings, seed, device, out, strict) -> None:
    """Everything before the first epoch. What can be wrong with the input is found here, the cheap things first."""
    since = time.perf_counter()
    choose_device(device)  # a device that is not there is the cheapest thing to find
    job.recipe, table = resolve_recipe(source, recipe, model, weights, epochs, settings, seed, job.console)
    job.engine = Engine(device, job.recipe.precision)
    job.table = open_split(table, job.recipe, job.console)
    job.place = place(job.table.source)  # before there is a run folder, which may have the name of the source
    RunFolder.check(out)
    torch.manual_seed(job.recipe.seed)
    wanted = job.recipe.data.channels
    channels = (job.table.channels or 3) if wanted == "auto" else wanted
    module = model if isinstance(model, nn.Module) else None
    job.network, normalisation = build_network(job.recipe, len(job.table.classes), channels, module, job.console)
    check_size(job.network, job.recipe, channels)
    for phase in job.recipe.phase:
        training_stages(job.network, phase.train)
    job.folder = RunFolder.create(out, job.recipe.name)
    job.folder.write_recipe(job.recipe)
    job.folder.write_split(job.table)
    job.preprocessing = preprocessing_of(job.recipe, channels, normalisation)
    job.samples, bad = load_samples(job.table, job.recipe, job.preprocessing, strict, job.console)
    job.folder.write_bad_images(bad)
    if bad and strict:
        first, advice = ": ".join(bad[0]), "remove them, or go on without --strict, which names them all"
        raise UserError(f"{source}: {len(bad)} unreadable picture(s), such as {first}; {advice}")
    job.inspection = inspect(job.table, job.console)
    job.folder.write_check(job.inspection)
    if job.inspection.leaked and strict:
        counts = " and ".join(f"{len(found)} {split}" for split, found in job.inspection.leaked.items())
        raise UserError(
            f"{source}: copies of {counts} picture(s) stand in an earlier split; remove them (`linnaeus check` "
            "names them), or go on without --strict: figures then come with and without them"
        )
    if job.recipe.data.normalise == "data":
        job.preprocessing = measure_pixels(job.samples["train"], job.preprocessing)
    job.bad = len(bad)
    job.seconds.lap("prepare", since)
    _introduce(job)


def _introduce(job: Job) -> None:
    """Say what will be trained on what, where."""
    say, table, network = job.console.say, job.table, job.network
    counts = ", ".join(f"{split} {len(job.samples[split])}" for split in SPLITS if split in job.samples)
    left_out = f"; {job.bad} unreadable, left out (bad_images.csv)" if job.bad else ""
    say(f"run       {job.folder.path}")
    say(f"device    {job.engine.describe()}")
    say(f"source    {table.source} ({table.kind}): {counts}{left_out}")
    say(f"classes   {len(table.classes)}: {_class_map(table)}")
    for line in job.inspection.lines:
        job.console.warn(line)
    if job.recipe.data.valid == "test":
        job.console.warn('valid = "test": the best model is selected on the test pictures, so its figure flatters')
    total = sum(p.numel() for p in network.parameters())
    p = job.preprocessing
    say(f"network   {network.arch['name']}, {total:,} parameters, weights: {job.recipe.model.weights}")
    kind = "gray" if p.channels == 1 else "color"
    say(f"pictures  {p.fit} to {p.resize}, center {p.size}, {kind}, {p.interpolation}")


def _run(job: Job, tensorboard: bool) -> Run:
    """The phases, then the final figures from the saved file, on pixels."""
    int8 = job.samples["train"] if job.recipe.model.frozen == "int8" else None
    frozen = Frozen(job.network, job.preprocessing, job.engine, job.console, default_cache(), int8)
    train, valid = job.samples["train"], job.samples["valid"]
    streams = Streams(frozen, train, valid, job.recipe.phase, job.recipe.seed)
    phases = Phases(
        job.recipe, job.network, streams, len(job.table.classes), job.engine, job.console, job.save,
        job.folder.add, job.divided, job.tuned, job.seconds,
    )  # fmt: skip
    interrupted = False
    with job.folder.tensorboard(tensorboard):
        try:
            best = phases.run()
        except KeyboardInterrupt:
            interrupted, best = True, phases.best
            if best.figures is None:
                raise JobError(f"{job.folder.path}: stopped before the first epoch was over; nothing to keep") from None
            job.console.say("stopped; the best model so far is kept. Evaluating it (Ctrl-C again to skip)")
        except JobError as error:
            if phases.best.figures is None:
                raise
            where = f"phase {phases.best.phase}, epoch {phases.best.epoch}"
            raise JobError(f"{error}; the best model so far ({where}) is in {job.folder.model}") from None
    return finish(job, best, phases.micro, frozen.made_by, interrupted)


def place(source: str) -> str:
    """Where a source lies, to be found from any folder; a known name stays one."""
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


def _class_map(table: Table, most: int = 12) -> str:
    """`0 daisy, 1 rose …`: index and display name, shortened where there are many."""
    shown = [name if name == str(i) else f"{i} {name}" for i, name in enumerate(table.names)]
    return ", ".join(shown) if len(shown) <= most else ", ".join(shown[:most]) + f", … {shown[-1]}"
