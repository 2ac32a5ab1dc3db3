"""What a run is while it runs: the state that its steps share, and what it writes down on the way."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

from linnaeus.console import Console
from linnaeus.data.table import Table
from linnaeus.modelfile import ModelFile, write_model
from linnaeus.models import Network
from linnaeus.preprocess import Preprocessing
from linnaeus.recipe import Recipe
from linnaeus.stores.frozen import Samples
from linnaeus.training.engine import Engine
from linnaeus.training.inspect import Inspection
from linnaeus.training.phases import Best
from linnaeus.training.rangetest import RangeTest
from linnaeus.training.runfolder import RunFolder


class RunTimes(dict[str, float]):
    """Seconds by part of the run."""

    def __init__(self) -> None:
        super().__init__()
        self.started = time.perf_counter()

    def lap(self, name: str, since: float) -> None:
        self[name] = self.get(name, 0.0) + time.perf_counter() - since

    def total(self) -> float:
        self["total"] = time.perf_counter() - self.started
        return self["total"]


class Job:
    """A run from its first check to its last file; `training.run` fills it step by step."""

    recipe: Recipe
    table: Table
    folder: RunFolder
    engine: Engine
    network: Network
    preprocessing: Preprocessing
    samples: dict[str, Samples]
    place: str
    """Where the source lies, to be found from any folder."""
    inspection: Inspection
    bad: int
    """Pictures left out."""

    def __init__(self, console: Console, seconds: RunTimes):
        self.console, self.seconds = console, seconds

    def divided(self, number: int, micro: int) -> None:
        """Keep in the recipe how a phase's batches were divided: with BatchNorm the result depends on it."""
        self.resolve(number, micro_batch=micro)

    def tuned(self, number: int, test: RangeTest) -> None:
        """Keep the learning rate that was found in the recipe, and the plot of how it was found."""
        from linnaeus.report.plots import ranges

        path = self.folder.path / f"lr-phase{number}.png"
        ranges(test.rates, test.losses, test.smoothed, test.chosen, test.why, path)
        self.resolve(number, lr=test.chosen)

    def resolve(self, number: int, **found: Any) -> None:
        """Put what the run found out about a phase into its recipe, so that the recipe repeats it."""
        phases = list(self.recipe.phase)
        phases[number - 1] = phases[number - 1].model_copy(update=found)
        self.recipe = self.recipe.model_copy(update={"phase": phases})
        self.folder.write_recipe(self.recipe)

    def save(self, best: Best) -> None:
        """Write the best model so far, with the figures by which it was chosen."""
        assert best.figures is not None
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

    @cached_property
    def fingerprint(self) -> str:
        return self.table.fingerprint()
