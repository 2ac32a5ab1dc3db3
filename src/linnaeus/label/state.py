"""The data that the page receives: the state of a session, and images as cards."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from linnaeus.label.acceptance import SURE
from linnaeus.label.estimate import AUDIT_EVERY, AUDIT_FIRST, ENOUGH
from linnaeus.label.features import Features
from linnaeus.label.finish import Finish
from linnaeus.label.journal import ACCEPTED, HUMAN, UNKNOWN
from linnaeus.label.session import Session
from linnaeus.label.thumbnails import Thumbnails
from linnaeus.serve.limits import Limits


@dataclass
class LabelServer:
    """What the routes share."""

    session: Session
    thumbnails: Thumbnails
    finish: Finish
    limits: Limits
    name: str
    notes: list[str]

    async def start(self) -> None:
        self.session.start()

    async def stop(self) -> None:
        await asyncio.to_thread(self.session.stop)
        await asyncio.to_thread(self.finish.stop)


def describe(server: LabelServer) -> dict[str, Any]:
    """The state of a session, as the page receives it."""
    session, features = server.session, server.session.features
    view, classes = session.view, session.classes
    # A review leaves out the images that the model was trained on, whose labels may be in the same CSV.
    labels = {path: label for path, label in session.labels.items() if path in session.position}
    learned = view.learned
    counts: dict[str, int] = dict.fromkeys(classes, 0)
    kinds = {HUMAN: 0, ACCEPTED: 0}
    for label in labels.values():
        if label.label != UNKNOWN:
            counts[label.label] = counts.get(label.label, 0) + 1
        kinds[ACCEPTED if label.provenance == ACCEPTED else HUMAN] += 1
    held_out = {figure.name: [figure.correct, figure.n] for figure in learned.figures}
    return {
        "version": view.version,
        "folder": server.name,
        "images": len(features.paths),
        "labelled": len(labels),
        "unknown": sum(label.label == UNKNOWN for label in labels.values()),
        "skipped": len(session.skipped),
        "provenance": kinds,
        "features": _progress(features, server.notes),
        "classes": [{"name": name, "n": n, "held_out": held_out.get(name)} for name, n in counts.items()],
        "suggested_classes": [name for name in session.folders if name not in counts],
        "accuracy": None if learned.estimate is None else learned.estimate.to_dict(),
        "sample": {
            # Of the answers, whether or not the network has read these images.
            "n": len(session.learner.audit.sample(labels, session.passed_over)[0]),
            "enough": ENOUGH,
            "possible": len(session.learner.audit.reserved) >= ENOUGH,
            "every": AUDIT_EVERY,
            "first": AUDIT_FIRST,
        },
        "course": session.learning_curve.thinned(),
        "milliseconds": round(1000 * learned.seconds, 1),
        "sure": view.sure[SURE],
        "sure_at": {str(level): n for level, n in view.sure.items()},
        "suspects": len(session.suspects()),
        "groups": [len(group) for group in view.groups],
        "reviews": session.learner.model is not None,
        "order": session.order,
        "csv": str(session.store.csv),
        "problem": session.store.problem,
        "finish": server.finish.to_dict(),
    }


def _progress(features: Features, notes: list[str]) -> dict[str, Any]:
    """How far the images are read, and by what."""
    return {
        "done": features.done,
        "unreadable": len(features.unreadable),
        "seconds_left": features.seconds_left,
        "failure": features.failure,
        "backbone": features.backbone.name,
        "notes": notes,
    }


def card(server: LabelServer, image: int, reason: str) -> dict[str, Any]:
    """An image for the page.

    A random question shows neither guesses nor an accepted label: they would bias the answer that measures them.
    """
    session = server.session
    path = session.features.paths[image]
    label = session.labels.get(path)
    shown: dict[str, Any] = {"image": image, "path": path, "reason": reason}
    if reason == "random":
        return shown
    if label is not None:
        shown |= {"label": label.label, "provenance": label.provenance}
    return shown | {"guesses": session.guesses(image)}
