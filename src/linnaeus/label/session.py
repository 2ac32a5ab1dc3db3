"""A labelling session: answers go to the disk at once; head, figures and predictions follow in a thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.console import Console
from linnaeus.data.class_names import class_name, natural_order
from linnaeus.errors import UserError
from linnaeus.label.acceptance import Batches
from linnaeus.label.estimate import ENOUGH, Audit
from linnaeus.label.features import Features
from linnaeus.label.journal import ACCEPTED, HUMAN, UNKNOWN, Answer, Label
from linnaeus.label.labels_csv import LabelStore
from linnaeus.label.learner import FinishedModel, Learned, Learner
from linnaeus.label.selection import Pool, Question, Selection, most_alike, new_groups

POLL = 1.0  # seconds after which the answers of other servers are looked for
COURSE = 24  # points of the course that are computed again when a folder is opened
MAX_NAME = 100  # characters of a class
MAX_CLASSES = 1000


@dataclass
class Session:
    """What the server of one folder knows. All methods are thread-safe."""

    store: LabelStore
    features: Features
    learner: Learner
    order: str
    console: Console
    learned: Learned = field(default_factory=lambda: Learned(None))
    course: list[dict[str, Any]] = field(default_factory=list)
    """Labels by people, and the accuracy that they gave: {"labels", "accuracy", "low", "high"}."""
    skipped: set[int] = field(default_factory=set)
    batches: Batches = field(default_factory=Batches)
    groups: list[list[int]] = field(default_factory=list)
    """Images far from all classes, which may be of a new one."""
    version: int = 0
    """Grows whenever the figures have changed."""
    _work: threading.Event = field(default_factory=threading.Event)
    _stop: bool = False
    _mutex: threading.RLock = field(default_factory=threading.RLock)
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.pool = Pool(self.learner)
        self.selection = Selection(self.order, self.learner, self.pool)
        self.position = {path: i for i, path in enumerate(self.features.paths)}
        self.features.changed = self._work.set

    @classmethod
    def open(cls, store: LabelStore, features: Features, order: str, console: Console) -> Session:
        """A session over the images of `features`, with a head that learns from the answers in `store`."""
        learner = Learner(features, Audit.of(features.paths), FinishedModel.of(features))
        return cls(store, features, learner, order, console)

    @property
    def labels(self) -> dict[str, Label]:
        return self.store.journal.labels

    def start(self) -> None:
        """Begin to compute features and to learn."""
        self.features.start()
        self._thread = threading.Thread(target=self._learn, name="learner", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop = True
        self._work.set()
        self.features.stop()
        if self._thread is not None:
            self._thread.join(30)

    # Answers

    def answer(self, images: Sequence[int], label: str | None, provenance: str = HUMAN) -> int:
        """Label images with a class, UNKNOWN, or None to take the label away. Durable when it returns.

        Returns the number of the record, for `undo`. Raises UserError for an impossible class or image.
        """
        paths = [self._path(i) for i in dict.fromkeys(images)]
        if not paths:
            raise UserError("no images to label; name at least one")
        name = label if label is None or label == UNKNOWN else self._checked(label)
        with self._mutex:
            number = self.store.answer([Answer(path, name, provenance) for path in paths])
            self.skipped -= set(images)
        self.features.hurry(images)
        self._work.set()
        return number

    def undo(self, number: int) -> list[int]:
        """Take back record `number`. Returns the images whose labels have changed."""
        with self._mutex:
            restored = self.store.undo(number)
        self._work.set()
        return [self.position[answer.path] for answer in restored if answer.path in self.position]

    def skip(self, images: Sequence[int]) -> None:
        """Do not ask about these images again in this session."""
        for i in images:
            self._path(i)
        self.skipped |= set(images)

    def add_class(self, name: str) -> str:
        """Add a class that has no image yet. Returns its name."""
        name = self._checked(name)
        if name not in self.classes:
            self.store.answer([], [name])
            self.version += 1
        return name

    def accept(self, number: int) -> tuple[int, int]:
        """Label the images of a verified batch as the head says. Returns (record, number of images)."""
        with self._mutex:
            answers = self.batches.accept(number, self.features.paths, self.labels)
            record = self.store.answer(answers) if answers else -1
        self._work.set()
        return record, len(answers)

    # Questions

    @property
    def classes(self) -> list[str]:
        """In the order in which they were named, which gives them their keys."""
        return list(self.store.journal.classes)

    def questions(self, n: int, excluded: Sequence[int] = ()) -> list[Question]:
        """The next n questions, without images that the page shows already."""
        with self._mutex:
            labels = self.labels
            barred = {*excluded, *self.skipped, *self.features.unreadable, *self._labelled(labels)}
            asked = sum(label.provenance == HUMAN for label in labels.values()) + len(set(excluded))
            return self.selection.choose(self.learned, labels, barred, n, asked)

    def guesses(self, images: Sequence[int], k: int = 3) -> dict[int, list[tuple[str, float]]]:
        """Image -> the k most probable classes, for images with features."""
        answers = self.learned.answers
        ready = [i for i in images if self.features.ready[i]]
        if answers is None or not ready:
            return {}
        found = {}
        for i, p in zip(ready, answers.probabilities(np.array(ready, np.int64)), strict=True):
            top = np.argsort(-p, kind="stable")[:k]
            found[i] = [(answers.classes[c], float(p[c])) for c in top.tolist()]
        return found

    def duplicates(self, image: int) -> list[int]:
        """Near duplicates of an image that have no label."""
        found = self.features.near_duplicates(image).tolist()
        return [i for i in found if self.features.paths[i] not in self.labels]

    def alike(self, image: int, n: int) -> list[int]:
        """The n unlabelled images most similar to an image."""
        self._path(image)
        barred = {*self.features.unreadable, *self._labelled(self.labels)}
        return most_alike(self.features, self.learner, image, barred, n)

    def propose_batch(self, at_least: float) -> dict[str, Any]:
        """The images that the head is sure of, as the page receives them."""
        barred = {*self.features.unreadable, *self._labelled(self.labels)}
        return self.batches.propose(self.features, self.learned, barred, at_least).to_dict()

    # The thread

    def _learn(self) -> None:
        """Follow the answers, here and of other servers, and the features as they appear."""
        first = True
        while not self._stop:
            self._work.wait(POLL)
            changed = self._work.is_set()
            self._work.clear()
            changed |= self.store.journal.refresh()
            if self._stop or not (changed or first):
                continue
            try:
                if first:
                    self._replay()
                self._update()
            except Exception as error:  # labelling goes on; the next answer tries again
                self.console.warn(f"the head could not be solved: {error}")
            first = False

    def _update(self) -> None:
        labels = dict(self.labels)
        learned = self.learner.learn(labels, {*self.skipped, *self.features.unreadable})
        with self._mutex:
            self.pool.update(learned.rows)
            groups = new_groups(self.pool, learned, set(self._labelled(labels)))
            self.learned, self.groups = learned, groups
        people = sum(label.provenance != ACCEPTED for label in labels.values())
        if learned.estimate is not None:
            self._add_to_course(people, learned)
        self.version += 1

    def _add_to_course(self, n: int, learned: Learned) -> None:
        estimate = learned.estimate
        assert estimate is not None
        point = {"labels": n, "accuracy": estimate.accuracy, "low": estimate.low, "high": estimate.high}
        self.course = [p for p in self.course if p["labels"] < n] + [point]

    def _replay(self) -> None:
        """Compute the course of earlier sessions again."""
        records = self.store.journal.records
        if len(records) < ENOUGH:
            return
        learner = Learner(self.features, self.learner.audit, self.learner.model)
        for stop in sorted({int(k) for k in np.linspace(ENOUGH, len(records) - 1, COURSE)}):
            labels: dict[str, Label] = {}
            for number, record in enumerate(records[:stop]):
                for answer in record.answers:
                    labels.pop(answer.path, None)
                    if answer.label is not None:
                        labels[answer.path] = Label(answer.label, answer.provenance, record.time, number)
            learned = learner.learn(labels, self.features.unreadable)
            if learned.estimate is not None:
                self._add_to_course(sum(label.provenance != ACCEPTED for label in labels.values()), learned)

    def _labelled(self, labels: Mapping[str, Label]) -> list[int]:
        return [self.position[path] for path in list(labels) if path in self.position]

    def _path(self, image: int) -> str:
        if not 0 <= image < len(self.features.paths):
            raise UserError(f"no image {image}; the folder has {len(self.features.paths)}")
        return self.features.paths[image]

    def _checked(self, name: str) -> str:
        """A class name as tables of images have it. Raises UserError where it is empty, too long or not printable."""
        clean = class_name(" ".join(name.split()))
        if not clean or len(clean) > MAX_NAME or not clean.isprintable():
            raise UserError(f"class {name[:40]!r}: a name of 1 to {MAX_NAME} printable characters is needed")
        if clean not in self.store.journal.classes and len(self.store.journal.classes) >= MAX_CLASSES:
            raise UserError(f"class {clean!r}: there are {MAX_CLASSES} already; use one of them")
        return clean


def list_images(folder: Path) -> list[str]:
    """The images below a folder, relative to it, with forward slashes, in natural order. UserError if none."""
    from linnaeus.inference.inputs import expand

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of images")
    top = len(str(folder)) + 1
    return [path[top:].replace("\\", "/") for path in expand([str(folder)])]


def folder_classes(paths: Sequence[str]) -> list[str]:
    """Subfolder names, as suggestions for classes."""
    return list(natural_order([path.split("/")[0] for path in paths if "/" in path]))
