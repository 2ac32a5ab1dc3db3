"""The run folder while a run works in it: locked, and removed if the run fails before anything is worth keeping."""

from __future__ import annotations

import shlex
from pathlib import Path

from linnaeus.data.split import write_split
from linnaeus.data.table import Table
from linnaeus.recipe import Recipe
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.layout import MANIFEST, SPLIT
from linnaeus.runs.lock import Lock
from linnaeus.training.setup.identity import Identity
from linnaeus.training.setup.request import Request


class Workspace:
    """The run folder of this process. With several processes only rank 0 locks it and writes to it."""

    def __init__(self, *, derived: bool = False):
        self.derived = derived
        """Whether the command is `classes` or `forget`, which have no --resume: the same command continues."""
        self.folder: RunFolder | None = None  # None until the folder is open
        self._lock: Lock | None = None

    def lock(self, folder: Path) -> None:
        """Keep other processes out of `folder`. Raises UserError if another process trains in it."""
        self._lock = Lock(folder)

    def open(self, request: Request, recipe: Recipe, table: Table, identity: Identity) -> RunFolder:
        """Create the run folder, or open the one to resume, and write identity, recipe and split. For rank 0."""
        if request.continues:
            assert request.out is not None
            folder = RunFolder.resume(request.out)
        else:
            folder = RunFolder.create(request.out, recipe.name)
            self.lock(folder.path)
        self.folder = folder  # assigned before the first write, so that an error there removes the folder
        if not folder.resumed:
            identity.write(folder.checkpoint)
        folder.write_recipe(recipe)
        write_split(table, folder.file(SPLIT))
        return folder

    def abandon(self) -> None:
        """Remove a folder that holds neither a model nor a checkpoint, so that the next run can have its name."""
        if self.folder is not None and self._lock is not None:
            self.folder.abandon()

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.release()

    def advice(self) -> str:
        """What the user can do after the run has stopped, for error messages."""
        if self.derived:
            place = "" if self.folder is None else f" with --out {shlex.quote(str(self.folder.path))}"
            return f"the same command{place} continues"
        if self.folder is None or not (self.folder.checkpoint / MANIFEST).exists():
            return "there is no checkpoint yet, so the same command starts from the beginning"
        return (
            f"--resume continues from the last checkpoint: linnaeus train {shlex.quote(str(self.folder.path))} --resume"
        )
