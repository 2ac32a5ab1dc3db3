"""What a server tells of its model: GET /model, and the page. No place on the server's disk is in it."""

from __future__ import annotations

from typing import Any

from linnaeus.data.decode import FORMATS
from linnaeus.serve.service import Service


def model_info(service: Service, name: str, *, report: bool) -> dict[str, Any]:
    """The model's card as JSON: what it is, how good with counts and intervals, and what this server takes.

    `report`: whether GET /report shows one.
    """
    c, limits = service.classifier, service.limits
    about, calibration = c.about, c.calibration
    gallery = service.gallery
    return {
        "name": name,
        "file": c.path.name,
        "network": about.arch["name"],
        "classes": [{"class": each, "name": shown} for each, shown in zip(c.classes, c.names, strict=True)],
        "preprocessing": c.preprocessing.to_dict(),
        "calibrated": calibration is not None,
        "threshold": c.threshold,
        "rule": None if calibration is None else str(calibration.rule),
        "metrics": about.metrics,
        "data": {key: about.data[key] for key in ("kind", "counts", "fingerprint") if key in about.data},
        "recipe": {key: about.recipe[key] for key in ("name",) if key in about.recipe},
        "versions": about.versions,
        "explains": service.explains,
        "neighbors": None if gallery is None else len(gallery),
        "report": report,
        "formats": list(FORMATS),
        "limits": {
            "request_bytes": limits.request_bytes,
            "pictures": limits.images,
            "pixels": limits.pixels,
            "queue": limits.queue,
        },
    }
