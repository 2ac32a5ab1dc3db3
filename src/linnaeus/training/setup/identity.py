"""Run identity: rejects resuming a different run, and records the values tuned at run time."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from linnaeus.data.batches import Rows, Subset
from linnaeus.data.images.content import UNKNOWN
from linnaeus.data.table import SPLITS, Table
from linnaeus.errors import JobError, UserError, not_read, one_line
from linnaeus.files import write_text
from linnaeus.recipe import Recipe
from linnaeus.recipe.difference import change_lines
from linnaeus.recipe.renamed import with_present_names
from linnaeus.runs.layout import IDENTITY
from linnaeus.stores.activations import content_key
from linnaeus.stores.pixelstore import PixelStore
from linnaeus.text import first_few

FORMAT = 1
SHOWN = 6  # differences that an error message names


@dataclass
class TunedValues:
    """Values that a run measured on its machine. They change the result, so a resumed run uses them again."""

    rates: dict[str, float] = field(default_factory=dict)
    """Phase -> learning rate, if the recipe says `auto`."""
    micro: dict[str, int] = field(default_factory=dict)
    """Phase -> micro-batch over all processes."""
    executors: dict[str, str] = field(default_factory=dict)
    """Frozen stages -> the executor that computed their stored output."""
    precisions: dict[str, str] = field(default_factory=dict)
    """Phase -> precision, if the recipe says `auto` and the phase runs on a CPU."""
    compiled: dict[str, bool] = field(default_factory=dict)
    """Phase -> whether torch.compile translates it, if the recipe says `auto` and the phase runs on a GPU."""

    def apply(self, recipe: Recipe) -> Recipe:
        """`recipe` with the tuned learning rates, and with the micro-batches that are smaller than a batch."""
        phases = list(recipe.phase)
        for i, phase in enumerate(phases):
            update: dict[str, Any] = {}
            if str(i + 1) in self.rates:
                update["lr"] = self.rates[str(i + 1)]
            if self.micro.get(str(i + 1), phase.batch) < phase.batch:
                update["micro_batch"] = self.micro[str(i + 1)]
            phases[i] = phase.model_copy(update=update)
        return recipe.model_copy(update={"phase": phases})


@dataclass
class Identity:
    """Recipe, data and machine of a run, as run.json stores them."""

    source: str  # absolute path of the source, or a known name
    recipe: dict[str, Any]  # the recipe as requested, before tuning
    classes: list[str]
    counts: dict[str, int]  # images by split
    fingerprint: str  # fingerprint of the table
    machine: dict[str, Any]  # device, precision, threads and torch version: with others the last bits may differ
    # Split -> identifiers of its decoded images; two splits are the same if they share one.
    pixels: dict[str, list[str]] = field(default_factory=dict)
    tuned: TunedValues = field(default_factory=TunedValues)
    # What was removed from the runs that this one comes from, for the model file.
    forgotten: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write run.json, completely or not at all."""
        # The file keeps the keys of format 1: `place` is the source and `found` the tuned values.
        values = asdict(self)
        source, tuned = values.pop("source"), values.pop("tuned")
        values = {"format": FORMAT, "place": source, **values, "found": tuned}
        text = json.dumps(values, ensure_ascii=False, indent=1, allow_nan=False)
        write_text(folder / IDENTITY, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> Identity | None:
        """Read run.json; None if there is none."""
        path = folder / IDENTITY
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict) or not {"format", "place", "recipe"} <= values.keys():
                raise UserError(f"{path}: does not belong to a run of linnaeus; choose another --out")
            if values.pop("format") != FORMAT:
                raise UserError(f"{path}: written by another version of linnaeus; resume with that version")
            # The keys keep their first names, because runs of earlier versions are resumed.
            values["recipe"] = with_present_names(values["recipe"])
            Recipe.model_validate(values["recipe"])
            identity = cls(source=values.pop("place"), tuned=TunedValues(**values.pop("found")), **values)
            return TypeAdapter(cls).validate_python(asdict(identity))
        except OSError as error:
            raise not_read(path, error) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise JobError(
                f"{path}: damaged ({one_line(error)}); remove {folder} to start from the beginning"
            ) from None

    def differences(self, other: Identity) -> list[str]:
        """`key: this → other` for everything that makes `other` a different run."""
        lines = change_lines(self.recipe, other.recipe)
        # The run's own recipe.toml, which contains the tuned values, is the same recipe.
        if lines and not change_lines(self.tuned_recipe(), other.recipe):
            lines = []
        if self.classes != other.classes:
            lines += change_lines({"number of classes": len(self.classes)}, {"number of classes": len(other.classes)})
            removed = ", ".join(sorted({*self.classes} - {*other.classes})) or "none"
            added = ", ".join(sorted({*other.classes} - {*self.classes})) or "none"
            lines += [f"classes: {removed} removed, {added} added"]
        if self.fingerprint != other.fingerprint:
            lines += [f"images in {line}" for line in change_lines(self.counts, other.counts)]
            lines += change_lines({"data": self.fingerprint[:12]}, {"data": other.fingerprint[:12]})
        return lines

    def pixel_differences(self, other: Identity) -> list[str]:
        """The same for the decoded images: a file may have been replaced by another one of the same size."""
        return [
            f"images in {split}: their pixels have changed"
            for split, ids in self.pixels.items()
            if not set(ids) & set(other.pixels.get(split, ()))
        ]

    def machine_differences(self, other: Identity) -> list[str]:
        """The same for what may change only the last bits of the result."""
        return change_lines(self.machine, other.machine)

    def tuned_recipe(self) -> dict[str, Any]:
        """The recipe with the tuned values, as the run's recipe.toml has it."""
        return as_json(self.tuned.apply(Recipe.model_validate(self.recipe)))


def identify(recipe: Recipe, table: Table, machine: dict[str, Any], source: str) -> Identity:
    """The identity of a run of `recipe` on a split table."""
    counts = {split: len(table.where(split)) for split in SPLITS}
    return Identity(source, as_json(recipe), list(table.classes), counts, table.fingerprint(), machine)


def refuse(path: Path, lines: list[str]) -> None:
    """Raise UserError if there are differences, given as lines of text, to the run in folder `path`."""
    if lines:
        raise UserError(
            f"{path}: cannot be resumed, because this is a different run: {first_few(lines, SHOWN, '; ')}; restore "
            "the earlier settings and data, or choose another --out"
        )


def pixel_ids(rows: Rows, contents: np.ndarray) -> list[str]:
    """Identifiers of decoded images: their paths and versions, and a checksum of the pixels if stored.

    `contents` (n,) uint64 are their content hashes. Equal versions say that nothing was touched, equal contents or
    pixels that a copy elsewhere is the same.
    """
    store = rows.rows if isinstance(rows, Subset) else rows
    pixels = [f"{store.checksum()} {len(rows)}"] if isinstance(store, PixelStore) else []
    files = [] if (contents == UNKNOWN).any() else [hashlib.sha256(contents.tobytes()).hexdigest()]
    return [content_key(rows), *pixels, *files]


def as_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON stores it, without the keys that are None."""
    return json.loads(recipe.model_dump_json(exclude_none=True))
