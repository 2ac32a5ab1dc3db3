"""A new run whose head has never seen some images of a finished run, and a cache without them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.cache import default_cache
from linnaeus.console import Console, counted
from linnaeus.data.class_names import listed, read_text
from linnaeus.data.images.content import HASH, UNKNOWN, content_hash
from linnaeus.data.table import SPLITS, Table, checked
from linnaeus.errors import UserError, did_you_mean
from linnaeus.inference.membership import images_of_weights
from linnaeus.inference.perceptual import RunHashes, statistics_of_table
from linnaeus.modelfile.safetensors import MODEL, read_header
from linnaeus.runs.changes import RunChanges
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.layout import SPLIT
from linnaeus.runs.ownership import is_in_progress
from linnaeus.runs.parsing import recorded_source
from linnaeus.stores.decoding import signature_of_file
from linnaeus.stores.image_statistics import compute_statistics
from linnaeus.stores.purge import Purged, purge_derived, purge_images, signatures_of_contents
from linnaeus.training.derived.class_changes import find_class
from linnaeus.training.derived.solved_run import SolvedRun
from linnaeus.training.run import Run, train
from linnaeus.training.setup.request import EarlierRun


@dataclass(frozen=True)
class Forgotten:
    """The images to forget: the union of these."""

    images: str | None = None  # a file with the path of an image on each line, or `-` for standard input
    groups: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()  # class names or display names; an image with several labels counts for each


def chosen_images(run: SolvedRun, chosen: Forgotten) -> np.ndarray:
    """(n,) bool: the rows of split.csv that are to be forgotten. Raises UserError for a name that the run lacks."""
    if chosen == Forgotten():
        raise UserError(f"{run.path}: nothing to forget; give --images, --group or --class")
    gone = np.zeros(len(run.rows.texts), bool)
    if chosen.images is not None:
        gone |= _named(run, chosen.images)
    groups = run.rows.groups or [""] * len(gone)
    for value in chosen.groups:
        members = np.array([group == value for group in groups])
        # An empty value would match every image without a group.
        if not value or not members.any():
            known = sorted({group for group in groups if group})
            have = f"it has {listed(known, 10)}" if known else "it has no groups (data.split.groups)"
            raise UserError(
                f"--group {value}: no image of {run.path} belongs to it{did_you_mean(value, known)}; {have}"
            )
        gone |= members
    for name in chosen.classes:
        label = find_class(name, run.model.classes, run.model.names, f"--class {name}: {run.path}")
        sets = run.rows.sets if run.rows.sets is not None else [(only,) for only in run.rows.labels]
        gone |= np.array([label in labels for labels in sets])
    return gone


def _named(run: SolvedRun, source: str) -> np.ndarray:
    """(n,) bool: the images that a list names, each by its path, or as predictions.csv names it."""
    text = sys.stdin.read() if source == "-" else read_text(Path(source))
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"{source}: names no image; write the path of one on each line")
    positions = _positions(run)
    folder = "" if source == "-" else os.path.dirname(os.path.abspath(source))  # noqa: PTH100, PTH120
    gone = np.zeros(len(run.rows.texts), bool)
    for number, name in lines:
        # As written, then relative to the list, then to the working directory.
        tried = [name, *(os.path.normpath(os.path.join(base, name)) for base in (folder, os.getcwd()))]  # noqa: PTH109, PTH118
        position = next((positions[key] for key in tried if key in positions), None)
        if position is None:
            # The comparison with many names would take seconds.
            close = did_you_mean(name, run.rows.texts) if len(positions) < 10_000 else ""
            raise UserError(
                f"{source}:{number}: {name!r} is not an image of {run.path}{close}; name images as its split.csv or "
                "predictions.csv does, or by their paths"
            )
        gone[position] = True
    return gone


def _positions(run: SolvedRun) -> dict[str, list[int]]:
    """Names of the images -> their rows: as split.csv has them, absolute, and relative to the source of the run."""
    folder = str(run.path.absolute())
    source = Path(recorded_source(run.path) or folder).absolute()
    root = str(source if source.is_dir() else source.parent) + os.sep
    positions: dict[str, list[int]] = {}
    for i, text in enumerate(run.rows.texts):
        absolute = os.path.normpath(os.path.join(folder, text))  # noqa: PTH118
        for name in {text, absolute, absolute.removeprefix(root)}:
            positions.setdefault(name, []).append(i)
    return positions


@dataclass(frozen=True)
class ForgetfulRun:
    """A run without some images of another run, and what was removed."""

    run: Run
    changes: RunChanges
    purged: Purged

    def render(self) -> str:
        """What was removed and what was not, as plain text."""
        old, purged = self.changes.old, self.purged
        rows, entries = counted(purged.rows, "row"), counted(purged.entries, "store")
        return (
            f"{self.changes.render()}\n"
            f"cache     {rows} of pixels and {entries} computed from images removed\n"
            f"kept      {old}, with copies and exports of its model: these still depend on the forgotten images. To "
            f"remove it: rm -r {shlex.quote(str(old))}"
        )


def forget(
    path: str | Path, chosen: Forgotten, *, out: str | Path | None = None, device: str = "auto", console: Console
) -> ForgetfulRun:
    """Train a run without the chosen images of the run at `path`, and remove them from the cache.

    The new run is, bit for bit, one that is trained without them from the start. The run at `path` is only read.
    Raises UserError if its network was trained below the head, or on these images by an earlier run, and if too little
    is left.
    """
    old = SolvedRun.read(Path(path), "nothing can be forgotten by solving the head again")
    named = chosen_images(old, chosen)
    contents = _contents(old)
    # Copies of the same content must go too, or their features would remain.
    gone = named | (np.isin(contents, contents[named]) & (contents != UNKNOWN))
    _refuse_trained_backbone(old, contents[gone])
    changes = _changes(old, named, gone, contents)
    with old.new_folder("forget", out) as place:
        after = _without(old, gone, place)
        resume = is_in_progress(place)
        done = None if resume else _finished(place, (*old.forgotten, *changes.forgotten))
        earlier, purged = _purged_images(old, after, gone, contents, changes)
        _warn_of_altered_copies(old, after, gone, console)
        run = done or train(
            after, old.recipe, out=place, device=device, console=console, earlier=earlier, resume=resume
        )
    # Only after the new run exists: a failure must not cost the stores.
    purge_derived(default_cache(), purged)
    for left in purged.left:
        console.warn(f"{left}: could not be removed, so the cache still holds forgotten images; run the command again")
    return ForgetfulRun(run, changes, purged)


def _warn_of_altered_copies(old: SolvedRun, after: Table, gone: np.ndarray, console: Console) -> None:
    """Warn of images that stay and look like altered copies of forgotten ones, if these still exist."""
    try:
        # Without the cache, from which the forgotten images are removed.
        forgotten = old.table(gone, cached=False)
    except UserError:  # an image is gone or replaced
        return
    hashes = RunHashes.of(compute_statistics(forgotten, cache=None), np.full(len(forgotten), "train"))
    found = np.flatnonzero(hashes.copies(statistics_of_table(after), "test"))
    if len(found):
        console.warn(
            f"images that stay and look like altered copies of forgotten ones: {len(found):,}, such as "
            f"{after.sample_id(int(found[0]))}; to forget them too, name them and run the command again"
        )


def _finished(place: Path, forgotten: tuple[dict[str, Any], ...]) -> Run | None:
    """The run of this very command in `place`, which was killed before it had emptied the cache.

    Raises UserError if `place` holds anything else.
    """
    if RunFolder(place).finished() and read_header(place / MODEL).data.get("forgotten") == list(forgotten):
        return Run.read(place)
    RunFolder.check(place)
    return None


def _without(old: SolvedRun, gone: np.ndarray, place: Path) -> Table:
    """The images that stay, with their splits; classes that no image has are gone too."""
    if gone.all():
        raise UserError(f"{old.path}: these are all of its images, so nothing is left to train on; remove the run")
    source = str(place.absolute() / SPLIT)
    return checked(dataclasses.replace(old.table(~gone), source=source))


def _contents(old: SolvedRun) -> np.ndarray:
    """(n,) uint64: the content hashes of the images: those of split.csv, else of the files."""
    folder, contents = old.path.absolute(), old.contents.copy()
    for i in np.flatnonzero(contents == UNKNOWN).tolist():
        contents[i] = content_hash(str(folder / old.rows.texts[i]))
    return contents


def _changes(old: SolvedRun, named: np.ndarray, gone: np.ndarray, contents: np.ndarray) -> RunChanges:
    """What is removed. Anyone who has the images can verify the statement; it contains no names."""
    splits, n, copies = np.array(old.rows.splits), int(gone.sum()), int((gone & ~named).sum())
    counts = {split: int((splits[gone] == split).sum()) for split in SPLITS}
    text = "".join(f"{value:012x}\n" for value in np.sort(contents[gone]).tolist())
    statement = {
        "images": n,
        "counts": counts,
        "of": f"sorted first 12 digits of the SHA-256 of each file, one a line ({HASH})",
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    where = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
    more = f"; {counted(copies, 'image')} not named but identical to a named one" if copies else ""
    targets = None if old.rows.sets is not None else {name: name for name in old.model.classes}
    return RunChanges(old.path, [f"{counted(n, 'image')} forgotten ({where}{more})"], targets, (statement,))


def _refuse_trained_backbone(old: SolvedRun, contents: np.ndarray) -> None:
    """Raise UserError if the backbone comes from another model that was trained on one of these images."""
    weights = old.recipe.model.weights
    n = int(np.isin(contents, images_of_weights(weights, with_head=False)).sum())
    if n:
        raise UserError(
            f"{old.path}: its backbone comes from {weights}, which was trained by gradient descent on {n} of these "
            "images, and solving the head again does not change it; train that model again without them"
        )


def _purged_images(
    old: SolvedRun, after: Table, gone: np.ndarray, contents: np.ndarray, changes: RunChanges
) -> tuple[EarlierRun, Purged]:
    """Remove the rows of the images from the stores of pixels. The run before, whose activations are still there."""
    cache = default_cache()
    try:
        before = old.table()
    except UserError:  # files that are to be forgotten are deleted or replaced already
        before = None
    if before is None:
        earlier, paths = EarlierRun(after, {}, True, (*old.forgotten, *changes.forgotten), changes=changes), []
    else:
        # Decoded first: the new stores of pixels have other names, by which no activations are found.
        earlier = old.earlier(before, changes, exact=True)
        paths = [before.paths[i] for i in np.flatnonzero(gone).tolist()] if before.paths is not None else []
    signatures = np.array([signature_of_file(path) for path in paths], np.uint64)
    known = signatures_of_contents(cache, contents[gone & (contents != UNKNOWN)])
    return earlier, purge_images(cache, np.union1d(signatures, known))
