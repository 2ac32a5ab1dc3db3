"""What somebody asked train() for; with --resume, completed from the run that is to go on."""

from __future__ import annotations

import glob
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.recipe import Recipe
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.layout import CHECKPOINT, RECIPE, SPLIT
from linnaeus.runs.parsing import recorded_source
from linnaeus.training.identity import Identity


@dataclass(frozen=True)
class Request:
    """The arguments of train() that say what is trained, on what, where."""

    source: str | Path | Table
    recipe: str | Recipe | None
    model: str | nn.Module | None
    weights: str | None
    epochs: int | str | list[int] | None
    settings: dict[str, Any] | None
    seed: int | None
    device: str
    out: Path | None
    strict: bool
    resume: bool

    def completed(self) -> Request:
        """With --resume: where SOURCE is a run folder, its source; without a recipe, the one of the run."""
        if not self.resume or isinstance(self.source, Table):
            return self
        out, source = self.out, self.source
        folder = Path(source)
        is_run = (folder / CHECKPOINT).is_dir() or ((folder / RECIPE).is_file() and (folder / SPLIT).is_file())
        if is_run:
            if out is not None and out.resolve() != folder.resolve():
                raise UserError(f"{source}: is a run, which goes on where it is; leave --out {out} out")
            out = folder
        known = None if out is None else Identity.read(out / CHECKPOINT)
        if is_run and known is None and not RunFolder(folder).finished():
            raise UserError(f"{source}: was cut before its first step; give its source, --out {source} and --resume")
        if known is None:
            return replace(self, out=out)
        recipe = self.recipe
        if recipe is None:
            recipe = Recipe.model_validate(known.recipe)
        return replace(self, out=out, source=known.place if is_run else source, recipe=recipe)

    @property
    def continues(self) -> bool:
        """Whether there is something to go on with."""
        return self.resume and self.out is not None and self.out.is_dir() and any(self.out.iterdir())

    @property
    def finished(self) -> bool:
        """Whether what is to go on has come to its end."""
        return self.continues and self.out is not None and RunFolder(self.out).finished()


def latest(name: str, place: str) -> Path | None:
    """The last of runs/<name>-<n> on the source that lies at `place`, or None."""
    numbers = [path.name.removeprefix(f"{name}-") for path in Path("runs").glob(f"{glob.escape(name)}-*")]
    for number in sorted((int(number) for number in numbers if number.isdigit()), reverse=True):
        path = Path("runs") / f"{name}-{number}"
        if _place(path) == place:
            return path
    return None


def _place(run: Path) -> str | None:
    """Where the source of a run lies; None where the folder does not tell."""
    cut = Identity.read(run / CHECKPOINT)
    if cut is not None:
        return cut.place
    return recorded_source(run)
