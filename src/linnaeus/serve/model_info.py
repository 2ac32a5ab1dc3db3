"""The response of GET /model, which the page shows too. It contains no paths of the server's disk."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from linnaeus.data.images.formats import formats
from linnaeus.inference.classifier import Classifier
from linnaeus.inference.runners import OnnxRunner
from linnaeus.inference.source import stopped
from linnaeus.metrics.classification import no_better_than_one_class
from linnaeus.metrics.label_calibration import NEVER

if TYPE_CHECKING:
    from linnaeus.serve.service import Service


def model_info(service: Service, name: str, *, report: bool) -> dict[str, Any]:
    """The model as JSON: classes, metrics with counts and intervals, and the limits of this server.

    `report`: whether GET /report is available.
    """
    limits, gallery = service.limits, service.explainer.gallery
    return describe_classifier(service.classifier, name) | {
        "explains": bool(service.explainer.stages),
        "neighbors": None if gallery is None else len(gallery),
        "report": report,
        "formats": list(formats()),
        "limits": {
            "request_bytes": limits.request_bytes,
            "images": limits.images,
            # The key keeps its name of the first version, since clients read it.
            "pixels": limits.pixels,
            "queue": limits.queue,
        },
    }


def describe_classifier(classifier: Classifier, name: str) -> dict[str, Any]:
    """The part that holds wherever the model answers, as JSON."""
    about, calibration, run = classifier.about, classifier.calibration, classifier.run
    return {
        "name": name,
        "file": classifier.path.name,
        "kind": run.kind if isinstance(run, OnnxRunner) else "torch",
        "agreement": asdict(run.agreement) if isinstance(run, OnnxRunner) and run.agreement else None,
        "network": about.arch["name"],
        "task": "multi-label" if classifier.several else "single-label",
        "classes": [
            {"class": label, "name": shown} for label, shown in zip(classifier.classes, classifier.names, strict=True)
        ],
        "preprocessing": classifier.preprocessing.to_dict(),
        "calibrated": (calibration or classifier.label_calibration) is not None,
        "threshold": classifier.threshold,
        "thresholds": _label_thresholds(classifier),
        "notice": classifier.notice,
        "unfinished": bool(stopped(about)),
        "rule": None if calibration is None else str(calibration.rule),
        "answers": "all" if calibration is None else calibration.rule.answers,
        "metrics": about.metrics,
        # Splits whose accuracy is not significantly better than always answering the most frequent class.
        "no_better": [split for split, figures in about.metrics.items() if no_better_than_one_class(figures)],
        "data": {key: about.data[key] for key in ("kind", "counts", "fingerprint") if key in about.data},
        "recipe": {key: about.recipe[key] for key in ("name",) if key in about.recipe},
        "versions": about.versions,
    }


def _label_thresholds(classifier: Classifier) -> list[float | None] | None:
    """The probability from which on each label is given, None for a label that never is; None without several."""
    if classifier.thresholds is None:
        return None
    return [threshold if threshold < NEVER else None for threshold in classifier.thresholds.tolist()]
