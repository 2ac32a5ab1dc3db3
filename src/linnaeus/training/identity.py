"""What a run is, so that only the same run is resumed; and what it found out, so that it is not found anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from linnaeus.data.batches import Rows, Subset
from linnaeus.data.table import SPLITS, Table
from linnaeus.errors import JobError, UserError
from linnaeus.files import write_text
from linnaeus.recipe import Recipe
from linnaeus.stores.activations import content_key
from linnaeus.stores.pixelstore import PixelStore

RUN = "run.json"
FORMAT = 1
SHOWN = 6  # differences that a message names


@dataclass
class Found:
    """What a run measured or tried on its machine. It changes the result, so one that is resumed does as before."""

    rates: dict[str, float] = field(default_factory=dict)
    """Phase -> learning rate, where the recipe says `auto`."""
    micro: dict[str, int] = field(default_factory=dict)
    """Phase -> samples that go through the network at once."""
    executors: dict[str, str] = field(default_factory=dict)
    """Frozen stages -> what computed what the run used of them."""

    def apply(self, recipe: Recipe) -> Recipe:
        """`recipe` with the rates, and with the micro-batches that are less than a batch."""
        phases = list(recipe.phase)
        for i, phase in enumerate(phases):
            found: dict[str, Any] = {}
            if str(i + 1) in self.rates:
                found["lr"] = self.rates[str(i + 1)]
            if self.micro.get(str(i + 1), phase.batch) < phase.batch:
                found["micro_batch"] = self.micro[str(i + 1)]
            phases[i] = phase.model_copy(update=found)
        return recipe.model_copy(update={"phase": phases})


@dataclass
class Identity:
    """A run's recipe as it was asked for, its data, and where it began."""

    place: str
    """Where the source lies."""
    recipe: dict[str, Any]
    classes: list[str]
    counts: dict[str, int]
    """Images by split."""
    fingerprint: str
    """Of the table."""
    machine: dict[str, Any]
    """Device, precision, threads, version of torch: with others the bits may differ."""
    pixels: dict[str, list[str]] = field(default_factory=dict)
    """Split -> what its decoded rows are known by: any one that agrees will do."""
    found: Found = field(default_factory=Found)

    def write(self, folder: Path) -> None:
        """Write run.json, whole or not at all."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1, allow_nan=False)
        write_text(folder / RUN, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> Identity | None:
        """What run.json says; None where there is none."""
        path = folder / RUN
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.pop("format") != FORMAT:
                raise UserError(f"{path}: of another version of linnaeus; resume with that one")
            return cls(**{**found, "found": Found(**found["found"])})
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise JobError(f"{path}: damaged ({error}); remove {folder} to start from the beginning") from None

    def differences(self, other: Identity) -> list[str]:
        """`key: this → other` for all that makes `other` another run."""
        recipes = _compare(self.recipe, other.recipe)
        if recipes and not _compare(self.resolved(), other.recipe):  # its own recipe.toml is the same recipe
            recipes = []
        lines = recipes
        if self.classes != other.classes:
            lines += _compare({"number of classes": len(self.classes)}, {"number of classes": len(other.classes)})
            gone, new = (sorted({*a.classes} - {*b.classes}) for a, b in ((self, other), (other, self)))
            lines += [f"classes: {', '.join(gone) or 'none'} gone, {', '.join(new) or 'none'} new"]
        if self.fingerprint != other.fingerprint:
            lines += _compare(self.counts, other.counts, "images in ")
            lines += _compare({"data": self.fingerprint[:12]}, {"data": other.fingerprint[:12]})
        return lines

    def other_pixels(self, other: Identity) -> list[str]:
        """As `differences`, of the decoded images: one may have been replaced by another of as many bytes."""
        return [
            f"images in {split}: their pixels are others"
            for split, names in self.pixels.items()
            if not set(names) & set(other.pixels.get(split, ()))
        ]

    def other_machine(self, other: Identity) -> list[str]:
        """As `differences`, of what may only change the last bits."""
        return _compare(self.machine, other.machine)

    def resolved(self) -> dict[str, Any]:
        """The recipe with what was found, as the run's recipe.toml holds it."""
        return plain(self.found.apply(Recipe.model_validate(self.recipe)))

    def refuse(self, path: Path, lines: list[str]) -> None:
        """Raise UserError where there are differences."""
        if lines:
            more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
            raise UserError(
                f"{path}: cannot be resumed, it is another run now: {'; '.join(lines[:SHOWN])}{more}; "
                "go back to what it was, or give another --out"
            )


def identify(recipe: Recipe, table: Table, machine: dict[str, Any], place: str) -> Identity:
    """The identity of a run of `recipe` on a table that is split."""
    counts = {split: len(table.where(split)) for split in SPLITS}
    return Identity(place, plain(recipe), list(table.classes), counts, table.fingerprint(), machine)


def known_by(rows: Rows) -> list[str]:
    """What decoded images are known by: where they lie and when they were changed; and their pixels, if stored.

    The first says that nothing was touched; the second, that a copy elsewhere is the same.
    """
    store = rows.rows if isinstance(rows, Subset) else rows
    content = [f"{store.checksum()} {len(rows)}"] if isinstance(store, PixelStore) else []
    return [content_key(rows), *content]


def plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON holds it, without what is not said."""
    return json.loads(recipe.model_dump_json(exclude_none=True))


def _compare(old: Any, new: Any, key: str = "") -> list[str]:
    """Where two nested values differ, by dotted keys as --set takes them."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        start = key if key.endswith(" ") or not key else f"{key}."
        found = [_compare(old.get(k), new.get(k), f"{start}{k}") for k in dict.fromkeys([*old, *new])]
        return [line for lines in found for line in lines]
    if isinstance(old, list) and isinstance(new, list) and any(isinstance(each, Mapping) for each in [*old, *new]):
        numbered = [{str(i): value for i, value in enumerate(values, start=1)} for values in (old, new)]
        return _compare(numbered[0], numbered[1], key)
    return [] if old == new else [f"{key}: {_short(old)} → {_short(new)}"]


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
