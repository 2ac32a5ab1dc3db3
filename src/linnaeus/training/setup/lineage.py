"""Images that the initial weights were trained on: they stay in training, and no metric counts them as unseen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linnaeus.check.inspection import Inspection
from linnaeus.console import Console
from linnaeus.data.table import SPLITS, Table
from linnaeus.errors import UserError
from linnaeus.inference.membership import held_in, images_of_weights
from linnaeus.recipe import Recipe
from linnaeus.training.setup.resolve import open_split


@dataclass(frozen=True, eq=False)
class Lineage:
    """The images that the initial weights of a run were trained on, and which of its own are among them."""

    weights: str
    contents: np.ndarray  # (k,) uint64: the content hashes of all that are known
    trained: np.ndarray | None  # (n,) bool, by the table of the run; None where none is known

    @classmethod
    def of(cls, recipe: Recipe, table: Table) -> Lineage:
        """Read the images where the weights are a run or a model file, and hash those of the table to compare them."""
        weights = recipe.model.weights
        contents = images_of_weights(weights, with_head=any(phase.head != "auto" for phase in recipe.phase))
        if not len(contents):
            return cls(weights, contents, None)
        return cls(weights, contents, held_in(contents, table))

    def split(self, table: Table, recipe: Recipe, strict: bool, console: Console) -> Table:
        """Split the table, and draw none of these to measure. Where the source does, warn, or raise if `strict`."""
        after = open_split(table, recipe, console, self.trained)
        if self.trained is None or not self.trained.any():
            return after
        if (table.split == "").any() or not len(table.where("valid")):
            count = f"{int(self.trained.sum()):,} of {len(after):,}"
            console.say(f"split     the initial weights were trained on {count} images: these stay in training")
        for split, images in self._measured(after).items():
            share = f"{len(images):,} of {len(after.where(split)):,} {split} images"
            if strict:
                raise UserError(
                    f"{table.source}: the initial weights ({self.weights}) were trained on {share}; remove them, or "
                    "run without --strict, which reports the results with and without them"
                )
            console.warn(
                f"the initial weights ({self.weights}) were trained on {share}: the {split} figures are optimistic, "
                "and accuracy is also given without these images"
            )
        return after

    def add_to(self, inspection: Inspection, table: Table) -> None:
        """Count those that measure the run among the leaked images."""
        for split, images in self._measured(table).items():
            copies = inspection.leaked.get(split, images[:0])
            inspection.leaked[split] = np.union1d(copies, images)

    def _measured(self, table: Table) -> dict[str, np.ndarray]:
        """valid, test -> the samples that trained the weights, where there are any."""
        if self.trained is None:
            return {}
        splits = {split: np.flatnonzero(self.trained & (table.split == split)) for split in SPLITS[1:]}
        return {split: images for split, images in splits.items() if len(images)}
