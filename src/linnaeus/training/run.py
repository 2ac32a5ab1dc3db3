"""train(): from a source and a recipe to a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from linnaeus.console import Console
from linnaeus.data.table import SPLITS, Table
from linnaeus.device import choose_device
from linnaeus.errors import JobError, UserError
from linnaeus.evaluate import Figures, Outputs, answer_pixels
from linnaeus.modelfile import ModelFile, read_model, versions, write_model
from linnaeus.models import Network
from linnaeus.preprocess import Preprocessing
from linnaeus.recipe import Recipe
from linnaeus.stores import default_cache
from linnaeus.stores.frozen import Frozen, Samples
from linnaeus.training.engine import Engine, hardware
from linnaeus.training.inspect import inspect, without_leaks
from linnaeus.training.optim import training_stages
from linnaeus.training.phases import Best, Phases
from linnaeus.training.prepare import (
    build_network,
    check_size,
    load_samples,
    measure_pixels,
    open_split,
    preprocessing_of,
    resolve_recipe,
)
from linnaeus.training.rangetest import RangeTest
from linnaeus.training.results import Judged, prediction_rows, write_pictures
from linnaeus.training.runfolder import RunFolder
from linnaeus.training.streams import Streams

BATCH = 64  # pictures at once in the final evaluation


@dataclass
class Run:
    """A finished run: where it is, and how good its best model is."""

    path: Path
    best: Best
    figures: dict[str, Figures]
    """By split: `valid`, and `test` where the source has one."""
    seconds: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False
    trust: list[str] = field(default_factory=list)
    """Lines for a person: figures without leaked pictures, how far probabilities can be trusted, when it is unsure."""

    @property
    def valid(self) -> Figures:
        return self.figures["valid"]

    @property
    def test(self) -> Figures | None:
        return self.figures.get("test")


def train(
    source: str | Path,
    recipe: str | Recipe | None = None,
    *,
    model: str | nn.Module | None = None,
    weights: str | None = None,
    epochs: int | str | list[int] | None = None,
    out: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    device: str = "auto",
    seed: int | None = None,
    strict: bool = False,
    tensorboard: bool = False,
    console: Console | None = None,
    trial: Callable[[int, Figures], None] | None = None,
) -> Run:
    """Train a classifier on `source` and leave everything about it in a run folder.

    `recipe` is a name, a file, or a Recipe; without one it is chosen from the data. `model` is the name of a network,
    `file.py:function`, or a module of your own; `weights` a name, a file or "none"; `epochs` a number for each phase;
    `settings` dotted keys on the recipe, such as {"phase.1.lr": 1e-3}. `strict` refuses a source with unreadable
    pictures instead of leaving them out. Ctrl-C ends the run with the best model so far.

    `trial(number, figures)` is told the validation of every epoch, counted over all phases, and ends the run by an
    exception. A run with it is one of many, of which only figures are wanted: it leaves its recipe and history, and
    neither a model nor what is made from one, and no test picture is looked at.
    Raises UserError for wrong input, and JobError where the input was right and the run failed all the same.
    """
    job = _Job(console or Console(), RunTimes(), trial)
    try:
        job.prepare(source, recipe, model, weights, epochs, settings, seed, device, out, strict)
        return job.run(tensorboard)
    except BaseException:
        if hasattr(job, "folder"):
            job.folder.abandon()
        raise


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


class _Job:
    """The state that the steps of train() share. Each step is a method; they run in the order in which they stand."""

    recipe: Recipe
    table: Table
    folder: RunFolder
    engine: Engine
    network: Network
    preprocessing: Preprocessing
    samples: dict[str, Samples]
    place: str

    def __init__(self, console: Console, seconds: RunTimes, trial: Callable[[int, Figures], None] | None = None):
        self.console, self.seconds, self.trial = console, seconds, trial

    def prepare(self, source, recipe, model, weights, epochs, settings, seed, device, out, strict) -> None:
        """Everything before the first epoch. What can be wrong with the input is found here, the cheap things first."""
        since = time.perf_counter()
        choose_device(device)  # a device that is not there is the cheapest thing to find
        self.recipe, table = resolve_recipe(source, recipe, model, weights, epochs, settings, seed, self.console)
        self.engine = Engine(device, self.recipe.precision)
        self.table = open_split(table, self.recipe, self.console)
        self.place = place(self.table.source)  # before there is a run folder, which may have the name of the source
        RunFolder.check(out)
        torch.manual_seed(self.recipe.seed)
        wanted = self.recipe.data.channels
        channels = (self.table.channels or 3) if wanted == "auto" else wanted
        module = model if isinstance(model, nn.Module) else None
        self.network, normalisation = build_network(
            self.recipe, len(self.table.classes), channels, module, self.console
        )
        check_size(self.network, self.recipe, channels)
        for phase in self.recipe.phase:
            training_stages(self.network, phase.train)
        self.folder = RunFolder.create(out, self.recipe.name)
        self.folder.write_recipe(self.recipe)
        self.folder.write_split(self.table)
        self.preprocessing = preprocessing_of(self.recipe, channels, normalisation)
        self.samples, bad = load_samples(self.table, self.recipe, self.preprocessing, strict, self.console)
        self.folder.write_bad_images(bad)
        if bad and strict:
            first, advice = ": ".join(bad[0]), "remove them, or go on without --strict, which names them all"
            raise UserError(f"{source}: {len(bad)} unreadable picture(s), such as {first}; {advice}")
        self.inspection = inspect(self.table, self.console)
        self.folder.write_check(self.inspection)
        if self.inspection.leaked and strict:
            counts = " and ".join(f"{len(found)} {split}" for split, found in self.inspection.leaked.items())
            raise UserError(
                f"{source}: copies of {counts} picture(s) stand in an earlier split; remove them (`linnaeus check` "
                "names them), or go on without --strict: figures then come with and without them"
            )
        if self.recipe.data.normalise == "data":
            self.preprocessing = measure_pixels(self.samples["train"], self.preprocessing)
        self.bad = len(bad)
        self.seconds.lap("prepare", since)
        self._introduce()

    def _introduce(self) -> None:
        """Say what will be trained on what, where."""
        say, table, network = self.console.say, self.table, self.network
        counts = ", ".join(f"{split} {len(self.samples[split])}" for split in SPLITS if split in self.samples)
        left_out = f"; {self.bad} unreadable, left out (bad_images.csv)" if self.bad else ""
        say(f"run       {self.folder.path}")
        say(f"device    {self.engine.describe()}")
        say(f"source    {table.source} ({table.kind}): {counts}{left_out}")
        say(f"classes   {len(table.classes)}: {_class_map(table)}")
        for line in self.inspection.lines:
            self.console.warn(line)
        if self.recipe.data.valid == "test":
            self.console.warn('valid = "test": the best model is selected on the test pictures, so its figure flatters')
        total = sum(p.numel() for p in network.parameters())
        p = self.preprocessing
        say(f"network   {network.arch['name']}, {total:,} parameters, weights: {self.recipe.model.weights}")
        kind = "gray" if p.channels == 1 else "color"
        say(f"pictures  {p.fit} to {p.resize}, center {p.size}, {kind}, {p.interpolation}")

    def run(self, tensorboard: bool) -> Run:
        """The phases, then the final figures from the saved file, on pixels."""
        int8 = self.samples["train"] if self.recipe.model.frozen == "int8" else None
        frozen = Frozen(self.network, self.preprocessing, self.engine, self.console, default_cache(), int8)
        train, valid = self.samples["train"], self.samples["valid"]
        streams = Streams(frozen, train, valid, self.recipe.phase, self.recipe.seed)
        phases = Phases(
            self.recipe, self.network, streams, len(self.table.classes), self.engine, self.console, self._save,
            self.folder.add, self._divided, self._tuned, self.seconds, trial=self.trial,
        )  # fmt: skip
        interrupted = False
        with self.folder.tensorboard(tensorboard):
            try:
                best = phases.run()
            except KeyboardInterrupt:
                if self.trial is not None:
                    raise
                interrupted, best = True, phases.best
                if best.figures is None:
                    raise JobError(
                        f"{self.folder.path}: stopped before the first epoch was over; nothing to keep"
                    ) from None
                self.console.say("stopped; the best model so far is kept. Evaluating it (Ctrl-C again to skip)")
            except JobError as error:
                if phases.best.figures is None or self.trial is not None:
                    raise
                where = f"phase {phases.best.phase}, epoch {phases.best.epoch}"
                raise JobError(f"{error}; the best model so far ({where}) is in {self.folder.model}") from None
        if self.trial is not None:
            assert best.figures is not None
            return Run(self.folder.path, best, {"valid": best.figures}, dict(self.seconds))
        return self._finish(best, phases, frozen, interrupted)

    def _divided(self, number: int, micro: int) -> None:
        """Keep in the recipe how a phase's batches were divided: with BatchNorm the result depends on it."""
        self._resolve(number, micro_batch=micro)

    def _tuned(self, number: int, test: RangeTest) -> None:
        """Keep the learning rate that was found in the recipe, and the plot of how it was found."""
        from linnaeus.report.plots import ranges

        path = self.folder.path / f"lr-phase{number}.png"
        ranges(test.rates, test.losses, test.smoothed, test.chosen, test.why, path)
        self._resolve(number, lr=test.chosen)

    def _resolve(self, number: int, **found: Any) -> None:
        """Put what the run found out about a phase into its recipe, so that the recipe repeats it."""
        phases = list(self.recipe.phase)
        phases[number - 1] = phases[number - 1].model_copy(update=found)
        self.recipe = self.recipe.model_copy(update={"phase": phases})
        self.folder.write_recipe(self.recipe)

    def _save(self, best: Best) -> None:
        """Write the best model so far, with the figures by which it was chosen."""
        assert best.figures is not None
        if self.trial is not None:
            return
        write_model(self.folder.model, best.state, self._about({"valid": best.figures.to_dict()}))

    def _about(self, metrics: dict[str, Any]) -> ModelFile:
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
        if not hasattr(self, "_fingerprint"):
            self._fingerprint = self.table.fingerprint()
        return self._fingerprint

    def _finish(self, best: Best, phases: Phases, frozen: Frozen, interrupted: bool) -> Run:
        since = time.perf_counter()
        # From here on only the file counts: what is reported is what somebody who is given the file will find.
        network, about = read_model(self.folder.model, self.network if self.network.arch["name"] == "custom" else None)
        network.to(self.engine.device)
        outputs: dict[str, Outputs] = {}
        for split in ("valid", "test"):
            if split in self.samples:
                rows, labels = self.samples[split].rows, self.samples[split].labels
                outputs[split] = answer_pixels(
                    network, self.preprocessing, rows, labels,
                    batch=BATCH, device=self.engine.device, autocast=self.engine.autocast,
                )  # fmt: skip
        judged = Judged(outputs)
        judged.without_leaks = without_leaks(self.table, self.samples, judged.calibrated, self.inspection.leaked)
        result = judged.figures
        assert best.figures is not None
        if result["valid"].correct != best.figures.correct:
            self.console.warn(
                f"the saved model has {result['valid'].correct} of {result['valid'].n} right on validation, "
                f"and had {best.figures.correct} while training"
            )
        about.metrics = {split: found.to_dict() for split, found in result.items()}
        about.calibration = judged.calibration.to_dict()
        write_model(self.folder.model, network.state_dict(), about)
        self.folder.write_predictions(prediction_rows(self.table, self.samples, judged.calibrated))
        self.folder.write_evaluation(judged.long_dict(self.table))
        self.seconds.lap("evaluate", since)
        from linnaeus.report.plots import advice  # matplotlib is slow to import: only where something is drawn

        since = time.perf_counter()
        missing = write_pictures(
            self.folder, self.table, self.samples, judged.calibrated, self.preprocessing, best, judged.threshold
        )
        if missing:
            self.console.warn(advice(missing))
        self.seconds.lap("pictures", since)
        self.seconds.total()
        metrics = {
            **judged.to_dict(),
            "source": {"path": self.place, "kind": self.table.kind},
            "selected_on": "test" if self.recipe.data.valid == "test" else "valid",
            "best": {"by": best.by, "phase": best.phase, "epoch": best.epoch},
            "epochs": len(self.folder.rows),
            "interrupted": interrupted,
            "bad_images": self.bad,
            "micro_batch": {f"phase {number}": micro for number, micro in phases.micro.items()},
            "executors": frozen.made_by,
            "seconds": _rounded(self.seconds),
            "hardware": hardware(),
            "versions": versions(),
            "fingerprint": self.fingerprint,
        }
        self._report(metrics)
        return Run(self.folder.path, best, result, dict(self.seconds), interrupted, judged.lines())

    def _report(self, metrics: dict[str, Any]) -> None:
        """metrics.json, and the page that is made from it. Whatever happens to the page, the model is there."""
        from linnaeus.predict import load
        from linnaeus.report.maps import heat_maps
        from linnaeus.report.page import write_report

        self.folder.write_metrics(metrics)
        since = time.perf_counter()
        try:
            own = self.network if self.network.arch["name"] == "custom" else None
            classifier = load(self.folder.model, device=self.engine.device.type, model=own)
            write_report(self.folder.path, self.table, heat=heat_maps(classifier))
        except Exception as error:
            again = f"linnaeus report {self.folder.path} tries again"
            self.console.warn(f"report.html was not written ({type(error).__name__}: {error}); {again}")
        self.seconds.lap("report", since)
        self.seconds.total()
        self.folder.write_metrics({**metrics, "seconds": _rounded(self.seconds)})


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    """Milliseconds are enough; the total stands last."""
    return {name: round(seconds[name], 3) for name in sorted(seconds, key=lambda name: name == "total")}


def place(source: str) -> str:
    """Where a source lies, to be found from any folder; a known name stays one."""
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


def _class_map(table: Table, most: int = 12) -> str:
    """`0 daisy, 1 rose …`: index and display name, shortened where there are many."""
    shown = [name if name == str(i) else f"{i} {name}" for i, name in enumerate(table.names)]
    return ", ".join(shown) if len(shown) <= most else ", ".join(shown[:most]) + f", … {shown[-1]}"
