"""The request for a run: the arguments of train() that say what is trained, on which data, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from linnaeus.data.table import Table
from linnaeus.recipe import Recipe
from linnaeus.runs.changes import RunChanges
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.ownership import is_vacant
from linnaeus.stores.samples import Samples


@dataclass(frozen=True, eq=False)
class EarlierRun:
    """A run with the same network and some of the same images, whose stored activations are reused."""

    table: Table  # every sample has a split
    samples: dict[str, Samples]  # its readable images by split; none where they are gone
    exact: bool = False  # whether the new run must be, bit for bit, one that computes everything again
    # What was removed from this run and from those before it, for the model file.
    forgotten: tuple[dict[str, Any], ...] = ()
    # Number of views -> the mark of a store of this run whose rows were partly reused (metrics.json).
    taken_over: Mapping[str, str] = field(default_factory=dict)
    changes: RunChanges | None = None  # written into the folder of the new run before its report, which shows them


@dataclass(frozen=True)
class Request:
    """What train() was asked for."""

    source: str | Path | Table
    recipe: str | Recipe | None = None
    model: str | nn.Module | None = None
    weights: str | None = None
    epochs: int | str | list[int] | None = None
    settings: dict[str, Any] | None = None
    seed: int | None = None
    device: str = "auto"
    out: Path | None = None
    strict: bool = False
    resume: bool = False
    earlier: EarlierRun | None = None

    @property
    def continues(self) -> bool:
        """Whether an earlier run in `out` is to be resumed."""
        return self.resume and self.out is not None and self.out.is_dir() and not is_vacant(self.out)

    @property
    def finished(self) -> bool:
        """Whether the run that is to be resumed has finished already."""
        return self.continues and self.out is not None and RunFolder(self.out).finished()


def absolute_source(source: str) -> str:
    """The absolute path of a source, which is valid from any folder; the name of a known source as it is."""
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source
