"""`--resume`: find the run to continue, and complete the request from its folder."""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path

from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.recipe import Recipe
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.layout import CHECKPOINT, RECIPE, SPLIT
from linnaeus.runs.ownership import is_in_progress
from linnaeus.runs.parsing import recorded_source
from linnaeus.training.setup.identity import Identity
from linnaeus.training.setup.request import Request, absolute_source


def complete(request: Request) -> Request:
    """Fill in source, folder and recipe from the run to continue; without --resume return `request` as it is.

    The source may be the run folder itself. Raises UserError if that run cannot be continued.
    """
    if not request.resume or isinstance(request.source, Table):
        return request
    out, folder = request.out, Path(request.source)
    # A folder of images may hold a file recipe.toml too, so two files are required.
    source_is_run = is_in_progress(folder) or ((folder / RECIPE).is_file() and (folder / SPLIT).is_file())
    if source_is_run:
        if out is not None and out.resolve() != folder.resolve():
            raise UserError(f"{folder}: this run folder is resumed in place; leave out --out {out}")
        out = folder
    # Without this, --resume with another source would return the figures of the old one.
    if out is not None and not source_is_run:
        _refuse_finished_run_of_another_source(out, str(request.source))
    identity = None if out is None else Identity.read(out / CHECKPOINT)
    if source_is_run and identity is None and not RunFolder(folder).finished():
        raise UserError(
            f"{folder}: this run was interrupted before its first step and does not record its source; run linnaeus "
            f"train SOURCE --out {folder} --resume"
        )
    if identity is None:
        return replace(request, out=out)
    assert out is not None
    if Path(identity.source) == out.absolute() / SPLIT:
        raise UserError(
            f"{out}: was begun by `linnaeus classes` or `linnaeus forget`; to complete it, give the same command again "
            f"with --out {out}"
        )
    # A recipe that the user names again is compared with that of the run later.
    recipe = request.recipe if request.recipe is not None else Recipe.model_validate(identity.recipe)
    return replace(request, out=out, source=identity.source if source_is_run else request.source, recipe=recipe)


def _refuse_finished_run_of_another_source(out: Path, source: str) -> None:
    """It would be reported as the result of this one."""
    recorded = recorded_source(out) if RunFolder(out).finished() else None
    if recorded is not None and recorded != absolute_source(source):
        raise UserError(f"{out}: is a finished run of {recorded}, not of {source}; choose another --out")


def latest_run(name: str, source: str) -> Path | None:
    """The last of runs/<name>-<n> that trains on `source`, an absolute path or a known name; None if there is none."""
    suffixes = [path.name.removeprefix(f"{name}-") for path in Path("runs").glob(f"{glob.escape(name)}-*")]
    for number in sorted((int(suffix) for suffix in suffixes if suffix.isdigit()), reverse=True):
        path = Path("runs") / f"{name}-{number}"
        identity = Identity.read(path / CHECKPOINT)
        # An interrupted run records its source in the checkpoint, a finished one in metrics.json.
        if (recorded_source(path) if identity is None else identity.source) == source:
            return path
    return None
