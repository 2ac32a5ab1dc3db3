"""The end of a run: evaluate the saved model on pixels, and write metrics, predictions, plots and report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnaeus.check.inspection import without_leaks
from linnaeus.console import Console
from linnaeus.distributed.engine import hardware
from linnaeus.errors import JobError, described
from linnaeus.metrics.multilabel import Headline, read_headline
from linnaeus.modelfile.safetensors import MODEL, ModelFile, read_header, read_model, versions, write_model
from linnaeus.models import Network
from linnaeus.runs.label_predictions import write_label_predictions
from linnaeus.runs.layout import CHECK, LABEL_CHECK, PREDICTIONS
from linnaeus.runs.model_selection import ModelSelection
from linnaeus.runs.parsing import read_metrics
from linnaeus.runs.predictions import write_predictions
from linnaeus.runs.reader import label_lines
from linnaeus.text import html_table, percent
from linnaeus.training.best import Best
from linnaeus.training.finish.evaluation import FinalEvaluation, long_dict, published
from linnaeus.training.finish.label_evaluation import LabelEvaluation
from linnaeus.training.finish.measuring import AnyEvaluation, evaluated
from linnaeus.training.finish.plots import stored_rows, write_plots
from linnaeus.training.finish.rounding import rounding_error
from linnaeus.training.recorder import RunRecorder
from linnaeus.training.setup.prepare import Prepared
from linnaeus.training.streams import Streams
from linnaeus.training.timings import Timings

if TYPE_CHECKING:
    from linnaeus.inference.classifier import Classifier


@dataclass
class Run:
    """A finished run: its folder, and the metrics of its best model."""

    path: Path
    """The run folder."""
    best: Best
    """The best epoch: the metric that chose it, its phase and number. A solved head is the only epoch of its phase."""
    figures: dict[str, Headline]
    """By split: `valid`, and `test` if the source has one."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Durations of the parts of the run, and `total`."""
    interrupted: bool = False
    """Whether the run was stopped before its end."""
    trust: list[str] = field(default_factory=list)
    """Lines for the terminal: metrics without leaked images, calibration, and when the model abstains."""
    selection: ModelSelection | None = None
    """What chose the model, in words; None before the training ended."""

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read a finished run folder, without the weights of the model."""
        metrics = read_metrics(path)
        figures: dict[str, Headline] = {
            split: read_headline(metrics[split]) for split in ("valid", "test") if split in metrics
        }
        best = Best(metrics["best"]["by"], figures["valid"], metrics["best"]["phase"], metrics["best"]["epoch"])
        recipe = read_header(path / MODEL).recipe
        selection = ModelSelection.of(recipe, metrics["best"], int(metrics.get("epochs", 1)))
        return cls(path, best, figures, metrics["seconds"], metrics["interrupted"], selection=selection)

    def load(self) -> Classifier:
        """The model of the run, for prediction."""
        from linnaeus.inference.classifier import load

        return load(self.path)

    def __repr__(self) -> str:
        """The folder and the figures, without the weights."""
        results = "".join(f", {split} {text}" for split, text in self._results())
        return f"Run({str(self.path)!r}{results}{', interrupted' if self.interrupted else ''})"

    def _repr_html_(self) -> str:
        chosen = [] if self.selection is None else [(self.selection.title.lower(), str(self.selection))]
        return html_table(f"run {self.path}", [*self._results(), *chosen])

    def _results(self) -> list[tuple[str, str]]:
        """(split, "93.41 % of 91 images") of every split."""
        return [(split, f"{percent(f.accuracy, 2)} of {f.n:,} images") for split, f in self.figures.items()]

    @property
    def valid(self) -> Headline:
        """The validation metrics, which chose the best epoch if there are several."""
        return self.figures["valid"]

    @property
    def test(self) -> Headline | None:
        """The test metrics; None if the source has no test split."""
        return self.figures.get("test")


@dataclass
class TrainingOutcome:
    """How the training ended."""

    best: Best
    interrupted: bool
    timings: Timings
    draw: bool  # whether to make plots and report
    streams: Streams  # the data of the phases, with the stored features of the training images


def finalize(prepared: Prepared, recorder: RunRecorder, outcome: TrainingOutcome) -> Run:
    """Evaluate the saved model; on rank 0, write everything that is made of the result."""
    started = time.perf_counter()
    # The file is read back, so that the published figures are those of what was saved.
    network, header = _saved_model(prepared, recorder)
    evaluation = evaluated(prepared, network, header, outcome.streams)
    # A second evaluation, but of few images: those without copies.
    if prepared.engine.is_main:
        evaluation.without_leaks = without_leaks(
            prepared.table, prepared.samples, prepared.inspection.leaked, evaluation.measure
        )
        _write_results(prepared, outcome, evaluation, network, header, started)
    # Only rank 0 has the history and the figures without leaked images.
    trust, selection = prepared.engine.broadcast(
        lambda: (evaluation.lines(), recorder.selection(outcome.best.phase, outcome.best.epoch))
    )
    figures, seconds = dict(evaluation.figures), dict(outcome.timings)
    return Run(prepared.folder.path, outcome.best, figures, seconds, outcome.interrupted, trust, selection)


def _saved_model(prepared: Prepared, recorder: RunRecorder) -> tuple[Network, ModelFile]:
    """The network and header of the model file, on all ranks.

    The results are those of the file, not of the network in memory, so that users of the file get the same.
    """
    engine, network = prepared.engine, prepared.network
    header = recorder.model_file({})
    with engine.propagate_errors():
        if engine.is_main:
            network, header = _verified_model(prepared, recorder.digest)
    state = engine.broadcast(network.state_dict)
    if not engine.is_main:
        network.load_state_dict(state, strict=False)  # the file has no auxiliary heads
    return network.to(engine.device), header


def _verified_model(prepared: Prepared, digest: str) -> tuple[Network, ModelFile]:
    """The network and header of the model file. Raises JobError unless its tensors have the SHA-256 `digest`."""
    path, network = prepared.folder.model, prepared.network
    # The code of the caller's own network is not in the model file.
    network, header = read_model(path, network if network.arch["name"] == "custom" else None)
    if header.digest != digest:
        raise JobError(
            f"{path}: is not the model that this run has written, so another program changed it; linnaeus train "
            f"{prepared.folder.path} --resume writes it again"
        )
    return network, header


def _write_results(
    prepared: Prepared,
    outcome: TrainingOutcome,
    evaluation: AnyEvaluation,
    network: Network,
    header: ModelFile,
    started: float,
) -> None:
    """Write model file, predictions, metrics, plots and report."""
    folder, chosen = prepared.folder, outcome.best.figures
    assert chosen is not None
    if warning := evaluation.difference(chosen, rounding_error(prepared)):
        prepared.console.warn(warning)
    for line in evaluation.warnings:
        prepared.console.say(line)
    if not outcome.interrupted:
        header.data.pop("unfinished", None)
    header.metrics = published(evaluation.figures, evaluation.without_leaks, evaluation.held_out)
    header.calibration = evaluation.calibration.to_dict()
    if isinstance(evaluation, FinalEvaluation) and evaluation.fitted_detector is not None:
        header.unknown = evaluation.fitted_detector.detector.to_dict()
        header.unknown_tensors = evaluation.fitted_detector.detector.tensors()
    folder.require()
    write_model(folder.model, network.state_dict(), header)
    if isinstance(evaluation, LabelEvaluation):
        rows = evaluation.prediction_rows(prepared.table, prepared.samples)
        write_label_predictions(folder.file(PREDICTIONS), rows, prepared.table.classes)
    else:
        write_predictions(folder.file(PREDICTIONS), evaluation.prediction_rows(prepared.table, prepared.samples))
    folder.write_evaluation(long_dict(evaluation.assessments, prepared.table))
    if prepared.changes is not None:
        leaked = prepared.inspection.leaked.items()
        names = {(split, prepared.table.sample_id(i)) for split, images in leaked for i in images.tolist()}
        prepared.changes.write(folder.path, names)
    outcome.timings.add_since("evaluate", started)
    rest = [line for line in evaluation.lines() if line not in evaluation.warnings]
    say_figures(evaluation.figures, rest + label_lines(folder.path), prepared.console)  # plots and report take seconds
    outcome.timings.update_total()
    metrics = _metrics(prepared, outcome, evaluation)
    # Written before the plots, whose failure must not cost it, and again after each step with its duration.
    folder.write_metrics(metrics)
    if outcome.draw:
        _draw_plots(prepared, outcome, evaluation)
        _write_seconds(prepared, outcome, metrics)
        _write_report(prepared, outcome, network, header)
        _write_seconds(prepared, outcome, metrics)


def say_figures(figures: Mapping[str, Headline], lines: Sequence[str], console: Console) -> None:
    """Print the figures of each split, and what else there is to know of them."""
    console.say()
    for split, headline in figures.items():
        console.say(f"{split:9} {headline}")
    for line in lines:
        console.say(line)


def _metrics(prepared: Prepared, outcome: TrainingOutcome, evaluation: AnyEvaluation) -> dict[str, Any]:
    """The contents of metrics.json."""
    identity, best = prepared.identity, outcome.best
    return {
        **evaluation.to_dict(),
        "source": {"path": identity.source, "kind": prepared.table.kind},
        "selected_on": "test" if prepared.recipe.data.valid == "test" else "valid",
        "best": {"by": best.by, "phase": best.phase, "epoch": best.epoch},
        **({} if prepared.recipe.sweep is None else {"sweep": {"trials": prepared.recipe.sweep.trials}}),
        "epochs": len(prepared.folder.rows),
        "interrupted": outcome.interrupted,
        "bad_images": prepared.unreadable,
        "checks": [name for name in (CHECK, LABEL_CHECK) if prepared.folder.file(name).is_file()],
        "micro_batch": {f"phase {number}": micro for number, micro in sorted(identity.tuned.micro.items())},
        "executors": identity.tuned.executors,
        "precision": {
            f"phase {number}": identity.tuned.precisions.get(str(number), prepared.engine.precision)
            for number in sorted({row.phase for row in prepared.folder.rows})
        },
        "compiled": {f"phase {number}": compiled for number, compiled in sorted(identity.tuned.compiled.items())},
        **({"taken_over": marks} if (marks := outcome.streams.taken_over()) else {}),
        "seconds": outcome.timings.rounded(),
        "hardware": hardware(prepared.engine.device),
        "versions": versions(prepared.network.arch["name"]),
        "fingerprint": identity.fingerprint,
    }


def _draw_plots(prepared: Prepared, outcome: TrainingOutcome, evaluation: AnyEvaluation) -> None:
    started = time.perf_counter()
    if missing := write_plots(prepared, outcome.best, evaluation):
        from linnaeus.report.fonts import advice  # matplotlib takes long to import, and fails with a bad MPLBACKEND

        prepared.console.warn(advice(missing))
    outcome.timings.add_since("plots", started)


def _write_seconds(prepared: Prepared, outcome: TrainingOutcome, metrics: dict[str, Any]) -> None:
    """Write metrics.json again, with the durations so far."""
    outcome.timings.update_total()
    prepared.folder.write_metrics({**metrics, "seconds": outcome.timings.rounded()})


def _write_report(prepared: Prepared, outcome: TrainingOutcome, network: Network, header: ModelFile) -> None:
    """Write report.html; an error there is a warning, because the model is complete without it.

    `network` and `header` are those of the model file, which is not read a second time.
    """
    from linnaeus.inference.classifier import Classifier
    from linnaeus.inference.runners import TorchRunner

    started, folder = time.perf_counter(), prepared.folder
    try:
        from linnaeus.report.heat_maps import heat_maps
        from linnaeus.report.page import write_report

        classifier = Classifier(folder.model, header, TorchRunner.of(header, network, prepared.engine.device))
        write_report(folder.path, prepared.table, heat=heat_maps(classifier), stored=stored_rows(prepared))
    except Exception as error:
        prepared.console.warn(
            f"report.html was not written ({described(error)}); linnaeus report {folder.path} tries again"
        )
    outcome.timings.add_since("report", started)
