"""What a run is while it runs: the state that its steps share, and what it writes down on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linnaeus.check.inspection import Inspection
from linnaeus.console import Console
from linnaeus.data.table import Table
from linnaeus.distributed.engine import Engine
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.models import Network
from linnaeus.preprocess import Preprocessing
from linnaeus.recipe import Recipe
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.layout import MANIFEST
from linnaeus.runs.lock import Lock
from linnaeus.stores.samples import Samples
from linnaeus.training.best import Best
from linnaeus.training.identity import Identity
from linnaeus.training.rangetest import RangeTest
from linnaeus.training.stop import Stop
from linnaeus.training.times import RunTimes


class Job:
    """A run from its first check to its last file; `training.run` fills it step by step.

    Where several processes train together each has one, and only the first one's writes.
    """

    recipe: Recipe
    table: Table
    folder: RunFolder
    engine: Engine
    network: Network
    preprocessing: Preprocessing
    samples: dict[str, Samples]
    identity: Identity
    inspection: Inspection
    bad: int
    """Images left out."""
    lock: Lock | None = None
    """On the run folder; the first process's."""

    def __init__(self, console: Console, draw: bool = True):
        self.console, self.seconds, self.stop = console, RunTimes(), Stop()
        self.draw = draw
        """Whether curves, images and the report are made at the end."""

    def hold(self, folder: Path) -> None:
        """Keep other processes out of the run folder. Raises UserError where one is in it."""
        self.lock = Lock(folder)

    def release(self) -> None:
        """Let them in again."""
        if self.lock is not None:
            self.lock.release()

    def divided(self, number: int, micro: int) -> None:
        """Keep how a phase's batches were divided: with BatchNorm the result depends on it."""
        if self.identity.found.micro.get(str(number)) != micro:
            self.identity.found.micro[str(number)] = micro
            self.note()

    def tuned(self, number: int, test: RangeTest) -> None:
        """Keep the learning rate that was found in the recipe, and the plot of how it was found."""
        from linnaeus.report.plots import ranges

        path = self.folder.path / f"lr-phase{number}.png"
        if self.engine.is_main:
            ranges(test.rates, test.losses, test.smoothed, test.chosen, test.why, path)
        self.identity.found.rates[str(number)] = test.chosen
        self.note()

    def note(self) -> None:
        """Write down what the run has found out: for resuming it, and in its recipe, so that the recipe repeats it."""
        if self.engine.is_main:
            self.identity.write(self.folder.checkpoint)
        self.resolve()

    def resolve(self) -> None:
        """Put what was found into the recipe."""
        recipe = self.identity.found.apply(self.recipe)
        if recipe != self.recipe:
            self.recipe = recipe
            if self.engine.is_main:
                self.folder.write_recipe(recipe)

    def save(self, best: Best) -> None:
        """Write the best model so far, with the figures by which it was chosen."""
        assert best.figures is not None
        if not self.engine.is_main:
            return
        write_model(self.folder.model, best.state, self.about({"valid": best.figures.to_dict()}))

    def about(self, metrics: dict[str, Any]) -> ModelFile:
        arch = dict(self.network.arch)
        if arch["arguments"].get("aux"):  # auxiliary heads end with training
            arch["arguments"] = {**arch["arguments"], "aux": False}
        counts = {split: len(samples) for split, samples in self.samples.items()}
        return ModelFile(
            arch=arch,
            classes=self.table.classes,
            names=self.table.names,
            preprocessing=self.preprocessing,
            metrics=metrics,
            data={"kind": self.table.kind, "counts": counts, "fingerprint": self.fingerprint},
            recipe=self.recipe.model_dump(mode="json"),
        )

    @property
    def fingerprint(self) -> str:
        return self.identity.fingerprint

    def to_go_on(self) -> str:
        """What somebody can do after the run was stopped, in words."""
        if not hasattr(self, "folder") or not (self.folder.checkpoint / MANIFEST).exists():
            return "there is no checkpoint yet, so --resume will start from the beginning"
        return f"--resume goes on where it was: linnaeus train {self.folder.path} --resume"
