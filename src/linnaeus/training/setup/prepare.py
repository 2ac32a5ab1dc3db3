"""Prepare a run: everything before its first step, and all checks of the input, the cheap ones first.

Every rank prepares its own copy, since downloads, caches and paths belong to a machine. Rank 0 alone decides about the
run folder, and broadcasts the decision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from linnaeus.cache import default_cache
from linnaeus.check.inspection import Inspection, inspect, unseen_images
from linnaeus.console import Console, counted
from linnaeus.data.images.bitdepth import unstated_range, used_bits
from linnaeus.data.sources import refuse_inside
from linnaeus.data.split import write_split
from linnaeus.data.table import Table
from linnaeus.device import require_int8
from linnaeus.distributed.engine import Engine
from linnaeus.errors import UserError
from linnaeus.files import write_text
from linnaeus.inference.membership import Membership
from linnaeus.inference.perceptual import comparable
from linnaeus.models import Network
from linnaeus.preprocess import Preprocessing
from linnaeus.recipe import Recipe
from linnaeus.runs.changes import RunChanges
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.layout import CHECK, CHECKPOINT, SPLIT
from linnaeus.runs.model_selection import sweep_note
from linnaeus.stores.image_statistics import StatisticsBuilder
from linnaeus.stores.samples import Samples
from linnaeus.text import such_as
from linnaeus.training.optim import check_norms, training_stages
from linnaeus.training.setup.identity import Identity, identify, pixel_ids, refuse
from linnaeus.training.setup.lineage import Lineage
from linnaeus.training.setup.network import build_network, check_size, preprocessing_of
from linnaeus.training.setup.request import Request, absolute_source
from linnaeus.training.setup.resolve import refuse_split_settings, resolve_recipe
from linnaeus.training.setup.resume import complete, latest_run
from linnaeus.training.setup.samples import keep_together, link_earlier, load_samples, measure_normalization
from linnaeus.training.setup.workspace import Workspace


@dataclass(frozen=True)
class Plan:
    """A request with its recipe and its table, which is not split yet."""

    request: Request
    recipe: Recipe
    table: Table


@dataclass(frozen=True)
class Prepared:
    """A run before its first step."""

    recipe: Recipe  # as requested; for a resumed run with the values tuned before
    table: Table  # every sample has a split
    network: Network
    preprocessing: Preprocessing
    samples: dict[str, Samples]  # the readable images by split
    unreadable: int  # number of images left out
    inspection: Inspection  # problems of the data; empty on ranks above 0
    identity: Identity
    folder: RunFolder
    engine: Engine
    console: Console
    membership: Membership  # the content of all images, by split
    changes: RunChanges | None = None  # how the run differs from the one that it is derived from

    @cached_property
    def unseen(self) -> dict[str, np.ndarray]:
        """Split -> (n,) bool: the validation images that choose the model and fit its thresholds, and the test images
        that measure these; absent where all do.

        First used by all ranks at once, as a collective operation has to be.
        """
        images = {
            split: self.samples[split].kept(self.table.where(split)) for split in self.samples if split != "train"
        }
        return self.engine.broadcast(lambda: unseen_images(self.inspection.leaked, images, self.console))


def plan_run(request: Request, engine: Engine, console: Console) -> Plan | Path:
    """Resolve recipe and source, and with --resume find the run to continue; its folder where it has finished."""
    if not isinstance(request.source, Table):
        # The request itself is not broadcast: it may hold the caller's own network.
        source, out, recipe = engine.broadcast(lambda: _completed(request))
        request = replace(request, source=source, out=out, recipe=recipe)
    if engine.broadcast(lambda: request.finished):
        assert request.out is not None
        return request.out
    recipe, table = engine.local_main_first(lambda: resolve_recipe(request, console))
    with engine.propagate_errors():
        refuse_split_settings(request.settings, recipe, table)
    if recipe.model.frozen_precision == "int8":
        require_int8(engine.device.type)
    if request.resume and request.out is None:
        request = replace(request, out=engine.broadcast(lambda: latest_run(recipe.name, absolute_source(table.source))))
        if engine.broadcast(lambda: request.finished):
            assert request.out is not None
            return request.out
    return Plan(request, recipe, table)


def prepare(plan: Plan, workspace: Workspace, engine: Engine, console: Console) -> Prepared:
    """Check the plan, build the network, open the run folder, decode and check the images."""
    request, recipe = plan.request, plan.recipe
    lineage = engine.local_main_first(lambda: Lineage.of(recipe, plan.table))
    with engine.propagate_errors():
        table = lineage.split(plan.table, recipe, request.strict, console)
        recipe = _with_bits(request, _with_own_sweep(recipe, plan.table, console), table, console)
        refuse_inside(request.out or "runs", table)
        # Made absolute before the run folder exists, since that may have the name of a known source.
        identity = identify(recipe, table, engine.environment(), absolute_source(table.source))
        identity.forgotten = [] if request.earlier is None else list(request.earlier.forgotten)
    if len(set(engine.all_gather(identity.fingerprint))) > 1:
        raise UserError(f"{table.source}: differs between the machines; copy the same files to all of them")
    earlier = engine.broadcast(lambda: _check_folder(request, identity, workspace, console))
    if earlier is not None:
        identity.recipe, identity.tuned, identity.forgotten = earlier.recipe, earlier.tuned, earlier.forgotten
        recipe = earlier.tuned.apply(Recipe.model_validate(earlier.recipe))
    torch.manual_seed(recipe.seed)  # the initial weights of the network are drawn next
    network, preprocessing = _build_network(request, recipe, table, engine, console)
    # Opened only now, so that none of the errors above leaves a folder behind.
    folder = workspace.folder = engine.broadcast(lambda: workspace.open(request, recipe, table, identity))
    statistics = StatisticsBuilder(table, default_cache()) if engine.is_main and comparable(table) else None
    samples, unreadable, contents = engine.local_main_first(
        lambda: load_samples(table, recipe, preprocessing, request.strict, console, statistics)
    )
    link_earlier(samples, table, request.earlier)
    with engine.propagate_errors():
        inspection = Inspection()
        if engine.is_main:
            write_split(table, folder.file(SPLIT), contents)
            inspection = _inspect(table, folder, unreadable, lineage, request.strict, console, statistics)
    keep_together(table, samples, engine.broadcast(lambda: inspection.copies))
    if recipe.data.normalize == "data":
        preprocessing = engine.broadcast(lambda: measure_normalization(samples["train"], preprocessing))
    engine.broadcast(lambda: _record_identity(identity, earlier, samples, table, contents, folder))
    return Prepared(
        recipe,
        table,
        network,
        preprocessing,
        samples,
        len(unreadable),
        inspection,
        identity,
        folder,
        engine,
        console,
        Membership.of(contents, table.split, lineage.contents),
        None if request.earlier is None else request.earlier.changes,
    )


def _with_own_sweep(recipe: Recipe, table: Table, console: Console) -> Recipe:
    """The recipe, with a warning if a sweep selected it on these images, or without the sweep if on other images."""
    if recipe.sweep is None or recipe.sweep.fingerprint != table.fingerprint():
        return recipe.model_copy(update={"sweep": None})
    console.warn(sweep_note(recipe.sweep.trials, recipe.data.valid == "test"))
    return recipe


def _with_bits(request: Request, recipe: Recipe, table: Table, console: Console) -> Recipe:
    """The recipe with the used bits of 16-bit gray images, measured once: a resumed run keeps those of its start."""
    if recipe.data.bits is not None:
        return recipe
    earlier = Identity.read(request.out / CHECKPOINT) if request.continues and request.out else None
    if earlier is not None:
        bits = earlier.recipe.get("data", {}).get("bits")
    else:
        bits = used_bits(table, table.where("train"))
        if path := unstated_range(table, table.where("train")):
            console.warn(
                f"{path}: states no range of its floats or 32-bit integers, so each such image is scaled by its own "
                "pixels: equal values of two images may look different; save them as 8 or 16 bits of one scale"
            )
        if bits is not None:
            console.warn(
                f"the 16-bit training images use {bits} bits: {2**bits - 1} becomes white, in every later use of the "
                f"model too (data.bits = {bits}; --set data.bits=16 for the whole range)"
            )
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"bits": bits})})


def _completed(request: Request) -> tuple[str | Path, Path | None, str | Recipe | None]:
    """Source, folder and recipe of the request, completed from the run to resume."""
    completed = complete(request)
    assert not isinstance(completed.source, Table)
    return completed.source, completed.out, completed.recipe


def _check_folder(request: Request, identity: Identity, workspace: Workspace, console: Console) -> Identity | None:
    """Check that the run may have its folder; return the identity of the run to resume, None for a new run.

    Raises UserError if the folder is taken, in use, or belongs to a different run.
    """
    if not request.continues:
        RunFolder.check(request.out)
        return None
    assert request.out is not None
    RunFolder.check_interrupted(request.out)  # before the lock, which is a file in the folder
    workspace.lock(request.out)
    # Asked again under the lock: another process may have finished the run meanwhile.
    if request.finished:
        raise UserError(f"{request.out}: another process has just finished this run; there is nothing left to resume")
    earlier = Identity.read(request.out / CHECKPOINT)
    if earlier is not None:
        refuse(request.out, earlier.differences(identity))
        changes = earlier.machine_differences(identity)
        if changes:
            console.warn(f"resumed on another machine ({'; '.join(changes)}): the last bits may differ")
    return earlier


def _build_network(
    request: Request, recipe: Recipe, table: Table, engine: Engine, console: Console
) -> tuple[Network, Preprocessing]:
    """The network, checked against image size and phases, and its preprocessing."""
    channels = (table.channels or 3) if recipe.data.channels == "auto" else recipe.data.channels
    module = request.model if isinstance(request.model, nn.Module) else None
    network, normalization = engine.local_main_first(
        lambda: build_network(recipe, len(table.classes), channels, module, console)
    )
    with engine.propagate_errors():
        check_size(network, recipe, channels)
        for phase in recipe.phase:
            training_stages(network, phase.train)
            check_norms(network, phase)
    return network, preprocessing_of(recipe, channels, normalization)


def _inspect(
    table: Table,
    folder: RunFolder,
    unreadable: list[tuple[str, str]],
    lineage: Lineage,
    strict: bool,
    console: Console,
    statistics: StatisticsBuilder | None,
) -> Inspection:
    """Check the images and write what was found. Raises UserError for problems that --strict refuses."""
    folder.write_bad_images(unreadable)
    if unreadable and strict:
        n, example = len(unreadable), ": ".join(unreadable[0])
        raise UserError(
            f"{table.source}: {counted(n, 'unreadable image')}{such_as(n, example)}; "
            "remove what cannot be read, or run without --strict, which leaves it out and lists it in bad_images.csv"
        )
    inspection = inspect(table, console, statistics)
    # Written before the refusals, so that the user can look the findings up.
    if inspection.result:
        write_text(folder.file(CHECK), inspection.json)
    if inspection.leaked and strict:
        counts = " and ".join(counted(len(copies), f"{split} image") for split, copies in inspection.leaked.items())
        raise UserError(
            f"{table.source}: copies of {counts} are in an earlier split; remove them (`linnaeus check` lists "
            "them), or run without --strict, which reports the results with and without them"
        )
    lineage.add_to(inspection, table)
    return inspection


def _record_identity(
    identity: Identity,
    earlier: Identity | None,
    samples: dict[str, Samples],
    table: Table,
    contents: np.ndarray,
    folder: RunFolder,
) -> None:
    """Write the identity with the identifiers of the decoded images; refuse images that differ from the earlier run."""
    hashes = {split: contents[part.kept(table.where(split))] for split, part in samples.items()}
    identity.pixels = {split: pixel_ids(part.rows, hashes[split]) for split, part in samples.items()}
    if earlier is not None:
        refuse(folder.path, earlier.pixel_differences(identity))
    identity.write(folder.checkpoint)
