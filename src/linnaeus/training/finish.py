"""The end of a run: figures from the saved model, on pixels, and all that is made of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from linnaeus.check.inspection import without_leaks
from linnaeus.distributed.engine import hardware
from linnaeus.inference.forward import answer, local_batches
from linnaeus.metrics.classification import Figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.modelfile.safetensors import ModelFile, read_model, versions, write_model
from linnaeus.models import Network
from linnaeus.runs.parsing import read_metrics
from linnaeus.training.best import Best
from linnaeus.training.job import Job
from linnaeus.training.results import Judged, prediction_rows, write_images

BATCH = 64  # images at once in the final evaluation


@dataclass
class Run:
    """A finished run: where it is, and how good its best model is."""

    path: Path
    """The run folder."""
    best: Best
    """The best epoch: by which figure, its phase and number."""
    figures: dict[str, Figures]
    """By split: `valid`, and `test` where the source has one."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By what they were spent on, and `total`."""
    interrupted: bool = False
    """Whether it was stopped before its end."""
    trust: list[str] = field(default_factory=list)
    """Lines for a person: figures without leaked images, how far probabilities can be trusted, when it is unsure."""

    @classmethod
    def read(cls, path: Path) -> Run:
        """The run in a folder that is finished, without the best model's weights."""
        metrics = read_metrics(path)
        figures: dict[str, Figures] = {
            split: Figures.from_dict(metrics[split]) for split in ("valid", "test") if split in metrics
        }
        best = Best(metrics["best"]["by"], figures["valid"], metrics["best"]["phase"], metrics["best"]["epoch"])
        return cls(path, best, figures, metrics["seconds"], metrics["interrupted"])

    @property
    def valid(self) -> Figures:
        """The figures on validation, which chose the best epoch."""
        return self.figures["valid"]

    @property
    def test(self) -> Figures | None:
        """The figures on test; None where the source has none."""
        return self.figures.get("test")


def finish(job: Job, best: Best, interrupted: bool) -> Run:
    """The final figures, from the saved file and on pixels; then everything that is made of them."""
    since = time.perf_counter()
    engine = job.engine
    network, about = _saved(job, best)
    outputs: dict[str, Outputs] = {}
    for split in ("valid", "test"):
        if split in job.samples:
            samples = job.samples[split]
            batches = local_batches(samples.rows, samples.labels, BATCH, engine.device, engine)
            found = answer(network, batches, lambda b: job.preprocessing(b.pixels, b.shapes), engine, engine.autocast)
            outputs[split] = replace(found, groups=samples.groups)
    judged = Judged(outputs)
    if not engine.is_main:
        return Run(job.folder.path, best, judged.figures, dict(job.seconds), interrupted, judged.lines())
    judged.without_leaks = without_leaks(job.table, job.samples, judged.calibrated, job.inspection.leaked)
    result = judged.figures
    assert best.figures is not None
    if result["valid"].correct != best.figures.correct:
        job.console.warn(
            f"the saved model has {result['valid'].correct} of {result['valid'].n} right on validation, "
            f"and had {best.figures.correct} while training"
        )
    about.metrics = {split: found.to_dict() for split, found in result.items()}
    about.calibration = judged.calibration.to_dict()
    write_model(job.folder.model, network.state_dict(), about)
    job.folder.write_predictions(prediction_rows(job.table, job.samples, judged.calibrated))
    job.folder.write_evaluation(judged.long_dict(job.table))
    job.seconds.lap("evaluate", since)
    if job.draw:
        _draw(job, best, judged)
    job.seconds.total()
    metrics = {
        **judged.to_dict(),
        "source": {"path": job.identity.place, "kind": job.table.kind},
        "selected_on": "test" if job.recipe.data.valid == "test" else "valid",
        "best": {"by": best.by, "phase": best.phase, "epoch": best.epoch},
        "epochs": len(job.folder.rows),
        "interrupted": interrupted,
        "bad_images": job.bad,
        "micro_batch": {f"phase {number}": micro for number, micro in sorted(job.identity.found.micro.items())},
        "executors": job.identity.found.executors,
        "seconds": _rounded(job.seconds),
        "hardware": hardware(),
        "versions": versions(),
        "fingerprint": job.fingerprint,
    }
    job.folder.write_metrics(metrics)
    if job.draw:
        _report(job, metrics)
    return Run(job.folder.path, best, result, dict(job.seconds), interrupted, judged.lines())


def _saved(job: Job, best: Best) -> tuple[Network, ModelFile]:
    """The network that was saved, and what its file says of it.

    From here on only the file counts: what is reported is what somebody who is given the file will find.
    """
    if job.engine.is_main:
        network, about = read_model(job.folder.model, job.network if job.network.arch["name"] == "custom" else None)
    else:
        network, about = job.network, job.about({})
    state = job.engine.broadcast(network.state_dict)
    if not job.engine.is_main:  # auxiliary heads, which the file does not have, answer nothing
        network.load_state_dict(state, strict=False)
    return network.to(job.engine.device), about


def _draw(job: Job, best: Best, judged: Judged) -> None:
    """Curves, the grid of images, the confusion matrix."""
    from linnaeus.report.plots import advice  # matplotlib is slow to import: only where something is drawn

    since = time.perf_counter()
    missing = write_images(
        job.folder, job.table, job.samples, judged.calibrated, job.preprocessing, best, judged.threshold
    )
    if missing:
        job.console.warn(advice(missing))
    job.seconds.lap("pictures", since)


def _report(job: Job, metrics: dict[str, Any]) -> None:
    """The page that is made from metrics.json. Whatever happens to the page, the model is there."""
    from linnaeus.inference.classifier import load
    from linnaeus.report.maps import heat_maps
    from linnaeus.report.page import write_report

    since = time.perf_counter()
    try:
        own = job.network if job.network.arch["name"] == "custom" else None
        classifier = load(job.folder.model, device=job.engine.device.type, model=own)
        write_report(job.folder.path, job.table, heat=heat_maps(classifier))
    except Exception as error:
        again = f"linnaeus report {job.folder.path} tries again"
        job.console.warn(f"report.html was not written ({type(error).__name__}: {error}); {again}")
    job.seconds.lap("report", since)
    job.seconds.total()
    job.folder.write_metrics({**metrics, "seconds": _rounded(job.seconds)})


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    """Milliseconds are enough; the total stands last."""
    return {name: round(seconds[name], 3) for name in sorted(seconds, key=lambda name: name == "total")}
