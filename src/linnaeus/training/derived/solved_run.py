"""A finished run with a frozen backbone and a head that is solved, from which other runs are derived in seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.cache import Cache, default_cache
from linnaeus.console import Console
from linnaeus.data.readers.csvfile import open_rows, read_csv
from linnaeus.data.readers.listfile import Rows
from linnaeus.data.table import Table
from linnaeus.errors import DiskError, UserError, no_run
from linnaeus.files import numbered
from linnaeus.modelfile.safetensors import MODEL, ModelFile, read_header
from linnaeus.recipe import Recipe, load_recipe
from linnaeus.runs.changes import RunChanges
from linnaeus.runs.layout import METRICS, RECIPE, SPLIT
from linnaeus.runs.ownership import removed_if_empty
from linnaeus.runs.parsing import read_metrics
from linnaeus.runs.reader import recorded_contents
from linnaeus.stores.contents import HashedImages
from linnaeus.stores.samples import Samples
from linnaeus.training.setup.request import EarlierRun
from linnaeus.training.setup.samples import load_samples

OF_FILES = ("folder", "list", "csv")  # kinds of sources whose images are files, which split.csv names


@dataclass(frozen=True, eq=False)
class SolvedRun:
    """A finished run whose images and recipe are known, so that its head can be solved again on other images."""

    path: Path
    model: ModelFile  # the header of the model file
    metrics: dict[str, Any]
    recipe: Recipe  # for a table that has splits already
    rows: Rows  # split.csv

    @classmethod
    def read(cls, path: Path, purpose: str) -> SolvedRun:
        """Read the run folder. Raises UserError that names `purpose` ("its classes cannot be changed") otherwise."""
        for name in (MODEL, METRICS, SPLIT):
            if not (path / name).is_file():
                raise no_run(path, name)
        metrics = read_metrics(path)
        kind = (metrics.get("source") or {}).get("kind")
        if kind not in OF_FILES:
            raise UserError(
                f"{path}: its images come from a source of kind {kind} and are not files, so {purpose}; train again "
                "on a source without them"
            )
        return cls(path, read_header(path / MODEL), metrics, _recipe(path, purpose), read_csv(path / SPLIT))

    @cached_property
    def contents(self) -> np.ndarray:
        """(n,) uint64: the content hashes of the images; UNKNOWN where split.csv has none."""
        contents = recorded_contents(self.path / SPLIT)
        self._refuse_repeated(len(contents), len(self.rows.texts))
        return contents

    @property
    def forgotten(self) -> tuple[dict[str, Any], ...]:
        """What was removed from the runs that it comes from."""
        return tuple(self.model.data.get("forgotten", ()))

    def table(self, kept: np.ndarray | None = None, *, cached: bool = True) -> Table:
        """The images with their splits, in their order; with `kept` (n,) bool only these, and the others may be gone.

        Without `cached`, the cache neither gives nor gets the content hashes by which they are compared with the run.
        Raises UserError if an image is missing or has changed.
        """
        rows = self.rows if kept is None else _selected(self.rows, np.flatnonzero(kept).tolist())
        table = open_rows(str(self.path / SPLIT), [rows])
        contents = self.contents if kept is None else self.contents[kept]
        self._refuse_repeated(len(contents), len(table))
        self._refuse_changed(table, contents, default_cache() if cached else None)
        if kept is None and set(table.classes) != set(self.model.classes):
            raise UserError(f"{self.path / SPLIT}: its classes are not those of the model; train the run again")
        source = Path((self.metrics.get("source") or {}).get("path") or self.path)
        # With the root of the source, images keep their names, so that both runs can be compared.
        root = str((source if source.is_dir() else source.parent).absolute())
        shown = dict(zip(self.model.classes, self.model.names, strict=True))
        names = tuple(shown.get(name, name) for name in table.classes)
        return dataclasses.replace(table, names=names, notes=(), root=root)

    def _refuse_repeated(self, rows: int, images: int) -> None:
        """Raise UserError unless each of the `rows` of split.csv stands for one of the `images`."""
        if rows != images:
            raise UserError(
                f"{self.path / SPLIT}: {rows:,} rows for {images:,} images, so it has changed since the run: a line "
                "stands twice, or is blank; restore it, or train the run again"
            )

    def _refuse_changed(self, table: Table, contents: np.ndarray, cache: Cache | None) -> None:
        """Raise UserError if images have other content hashes than `contents` (n,): a run on them is another run."""
        changed = HashedImages(table, cache).changed(np.arange(len(table)), contents)
        if len(changed):
            assert table.paths is not None
            more = f" (so have {len(changed) - 1:,} more images)" if len(changed) > 1 else ""
            raise UserError(
                f"{table.paths[changed[0]]}: has changed since {self.path} was trained on it{more}; restore it, or "
                "train again with `linnaeus train`"
            )

    def samples(self, table: Table) -> dict[str, Samples]:
        """The decoded images of the run by split; none where no image of a split can be read. Raises DiskError."""
        try:
            return load_samples(table, self.recipe, self.model.preprocessing, True, Console(silent=True))[0]
        except DiskError:  # the images are not at fault
            raise
        except UserError:
            return {}

    def earlier(self, table: Table, changes: RunChanges, *, exact: bool = False) -> EarlierRun:
        """What a run that is derived from this one reuses. `table` is that of this run."""
        forgotten = (*self.forgotten, *changes.forgotten)
        taken_over = self.metrics.get("taken_over") or {}
        return EarlierRun(table, self.samples(table), exact, forgotten, taken_over, changes)

    @contextmanager
    def new_folder(self, word: str, out: str | Path | None) -> Iterator[Path]:
        """The folder of the derived run: `out`, or the first unused one beside the run: NAME-word-1, …"""
        if out is not None:
            yield Path(out)
            return
        path = self.path.resolve()
        with removed_if_empty(numbered(path.with_name(f"{path.name}-{word}"))) as place:
            yield place


def _recipe(path: Path, purpose: str) -> Recipe:
    recipe = load_recipe(str(path / RECIPE))
    trained = [number for number, phase in enumerate(recipe.phase, 1) if phase.head != "auto"]
    if recipe.model.name == "custom":
        raise UserError(f"{path}: its network is the user's own code, so {purpose}; train it again on other images")
    if trained:
        raise UserError(
            f"{path}: phase {trained[0]} trained its network by gradient descent, and its features depend on every "
            f"training image, so {purpose}; change the images, and use `linnaeus train`"
        )
    # split.csv already holds the groups and the split, so the recipe must not draw them again.
    split = recipe.data.split.model_copy(update={"groups": None})
    data = recipe.data.model_copy(update={"train": None, "valid": None, "test": None, "split": split})
    return recipe.model_copy(update={"data": data})


def _selected(rows: Rows, chosen: list[int]) -> Rows:
    """These rows of a file."""

    def pick(values: list[Any]) -> list[Any]:
        return [values[i] for i in chosen] if values else values

    return dataclasses.replace(
        rows,
        texts=pick(rows.texts),
        labels=pick(rows.labels),
        sets=None if rows.sets is None else pick(rows.sets),
        splits=pick(rows.splits),
        lines=pick(rows.lines),
        groups=None if rows.groups is None else pick(rows.groups),
    )
