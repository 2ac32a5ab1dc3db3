"""A labelling session: answers go to the disk at once; head, figures and predictions follow in a thread."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.console import Console
from linnaeus.data.class_names import class_name, natural_order, printable
from linnaeus.errors import UserError
from linnaeus.label.acceptance import LEVELS, Batches
from linnaeus.label.estimate import Audit
from linnaeus.label.features import Features
from linnaeus.label.journal import ACCEPTED, HUMAN, SKIPPED, UNKNOWN, Answer, Label
from linnaeus.label.labels_csv import LabelStore
from linnaeus.label.learner import FinishedModel, Learned, Learner, Suspect
from linnaeus.label.learning_curve import LearningCurve
from linnaeus.label.selection import Pool, Question, Selection, SelectionContext, most_alike, new_groups

POLL = 1.0  # seconds after which the answers of other servers are looked for
MAX_NAME = 100  # characters of a class
MAX_CLASSES = 1000
GUESSES = 3  # classes shown for an image


@dataclass(frozen=True)
class View:
    """What was learned last. It is replaced as a whole, so that no reader waits for the head."""

    learned: Learned = field(default_factory=Learned)
    pool: Pool = field(default_factory=Pool)
    groups: tuple[list[int], ...] = ()  # images far from all classes, which may be of a new one
    suspects: tuple[Suspect, ...] = ()
    # Level -> about how many unlabelled images a batch would hold, by the share of the pool.
    sure: Mapping[float, int] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0))
    version: int = 0  # grows whenever the figures have changed


@dataclass
class Session:
    """What the server of one folder knows. All methods are thread-safe."""

    store: LabelStore
    features: Features
    learner: Learner
    order: str
    console: Console
    view: View = field(default_factory=View)
    batches: Batches = field(default_factory=Batches)
    _work: threading.Event = field(default_factory=threading.Event)
    _stop: bool = False
    _thread: threading.Thread | None = None
    _answered: int | None = None  # the image that was answered last

    def __post_init__(self) -> None:
        self.selection = Selection(self.order, self.learner)
        self.position = self.learner.position
        self.learning_curve = LearningCurve.open(self.store.journal.path.with_name("course.jsonl"))
        self.folders = subfolders(self.features.paths)
        self.features.changed = self._work.set

    @classmethod
    def open(cls, store: LabelStore, features: Features, order: str, console: Console) -> Session:
        """A session over the images of `features`, with a head that learns from the answers in `store`."""
        learner = Learner(features, Audit(features.paths), FinishedModel.of(features))
        return cls(store, features, learner, order, console)

    @property
    def labels(self) -> dict[str, Label]:
        """A copy of the current labels."""
        return dict(self.store.journal.labels)

    @property
    def skipped(self) -> set[int]:
        """Images about which a person could not tell."""
        return set(self.learner.positions(list(self.store.journal.skipped)))

    @property
    def passed_over(self) -> set[int]:
        """Images that are not asked about: skipped and unreadable ones."""
        return self.skipped | set(self.features.unreadable)

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
        self.store.catch_up()

    # Answers

    def answer(self, images: Sequence[int], label: str | None, batch: int | None = None) -> int:
        """Label images with a class, UNKNOWN, or None to take the label away. Durable when it returns.

        `batch`: the images are of the sample of this batch and verify it. Returns the number of the record, for
        `undo`. Raises UserError for an impossible class, image or batch.
        """
        verified = None if batch is None else self.batches.sampled(batch, images)
        name = label if label is None or label == UNKNOWN else self._checked(label)
        number = self._record(images, name, HUMAN)
        if verified is not None:
            verified.verified |= {image: verified.answers[image] == name for image in images}
        self._answered = images[-1]
        self.features.hurry(images)
        return number

    def skip(self, images: Sequence[int]) -> int:
        """Do not ask about these images again, unless it is undone. Returns the number of the record."""
        return self._record(images, None, SKIPPED)

    def undo(self, number: int) -> list[int]:
        """Take back record `number`. Returns the images whose labels have changed."""
        changed = self.store.undo(number)
        self._work.set()
        return self.learner.positions(changed)

    def add_class(self, name: str) -> tuple[str, int]:
        """Add a class that has no image yet. Returns its name and the number of the record."""
        name = self._checked(name)
        number = self.store.answer([], [name]) if name not in self.classes else -1
        self._work.set()
        return name, number

    def accept(self, number: int) -> tuple[int, int]:
        """Label the images of a verified batch as the head says. Returns (record, number of images)."""
        answers = self.batches.accept(number, self.features.paths, self.labels)
        record = self.store.answer(answers) if answers else -1
        self._work.set()
        return record, len(answers)

    def _record(self, images: Sequence[int], label: str | None, provenance: str) -> int:
        if not images:
            raise UserError("no images; name at least one")
        answers = [Answer(self._path(image), label, provenance) for image in dict.fromkeys(images)]
        number = self.store.answer(answers)
        self._work.set()
        return number

    # Questions

    @property
    def classes(self) -> list[str]:
        """In the order in which they were named, which gives them their keys."""
        return list(self.store.journal.classes)

    def questions(self, n: int, shown: Sequence[int] = ()) -> list[Question]:
        """The next n questions. `shown`: images that the page shows already, in order."""
        labels, view = self.labels, self.view
        excluded = {*shown, *self.passed_over}
        previous = next((i for i in reversed(shown) if 0 <= i < len(self.features.paths)), self._answered)
        now = SelectionContext(labels, excluded, len(self.store.journal.records) + len(shown), previous)
        return self.selection.choose(view.learned, view.pool, now, n)

    def guesses(self, image: int) -> list[tuple[str, float]]:
        """The most probable classes of an image; none where it has no features."""
        answers = self.view.learned.answers
        if answers is None or not self.features.ready[image]:
            return []
        probabilities = answers.probabilities(np.array([image], np.int64))[0]
        top = np.argsort(-probabilities, kind="stable")[:GUESSES]
        return [(answers.classes[c], float(probabilities[c])) for c in top.tolist()]

    def duplicates(self, image: int) -> list[int]:
        """Near duplicates of an image that have no label."""
        duplicates = self.features.near_duplicates(image).tolist()
        return [i for i in duplicates if self.features.paths[i] not in self.labels]

    def alike(self, image: int, n: int) -> list[tuple[int, bool]]:
        """The n unlabelled images most similar to an image, each with whether it may be of the same kind."""
        self._path(image)
        return most_alike(self.learner, image, {*self.features.unreadable, *self.learner.positions(self.labels)}, n)

    def propose_batch(self, at_least: float) -> dict[str, Any]:
        """The images that the head is sure of, as the page receives them."""
        excluded = {*self.passed_over, *self.learner.positions(self.labels)}
        accepted = [path for path, label in self.labels.items() if label.provenance == ACCEPTED]
        of_head = set(self.learner.positions(accepted))
        return self.batches.propose(self.features, self.view.learned, excluded, at_least, of_head).to_dict()

    def suspects(self) -> list[Suspect]:
        """Labels that the held-out answer contradicts and that nobody has confirmed or changed since."""
        labels = self.labels
        suspects = []
        for suspect in self.view.suspects:
            label = labels.get(self.features.paths[suspect.image])
            if label is not None and label.label == suspect.label and not label.confirmed:
                suspects.append(suspect)
        return suspects

    # The thread

    def _learn(self) -> None:
        """Follow the answers, here and of other servers, and the features as they appear."""
        known: tuple[int, ...] = ()
        while not self._stop:
            try:
                self.store.catch_up()
                self.store.journal.refresh()
                ready = int(self.features.ready.sum())
                labels = self.labels
                # New features matter where a labelled image has got some, or where they are many more.
                now = (
                    len(self.store.journal.records),
                    self.learner.with_features(labels),
                    int(10 * math.log1p(ready)),
                    len(self.features.unreadable),
                )
                if now != known:
                    known = now
                    self._update(labels)
            except Exception as error:  # labelling goes on; the next answer tries again
                self.console.warn(f"the head could not be solved: {error}")
            self._work.wait(POLL)
            self._work.clear()

    def _update(self, labels: Mapping[str, Label]) -> None:
        learned = self.learner.learn(labels, self.passed_over)
        pool = self.view.pool.updated(self.learner, learned.taught)
        groups = new_groups(self.learner, pool, learned, set(self.learner.positions(labels)))
        suspects = learned.suspects()
        unlabelled = int(self.features.ready.sum()) - len(learned.rows)
        shares = pool.share_of_sure(learned, LEVELS)
        sure = {level: round(share * unlabelled) for level, share in shares.items()}
        self.view = View(learned, pool, tuple(groups), tuple(suspects), sure, self.view.version + 1)
        if learned.estimate is not None:
            self.learning_curve.add(sum(label.provenance != ACCEPTED for label in labels.values()), learned.estimate)

    def places(self, images: Sequence[int], paths: Sequence[str] | None) -> list[int]:
        """Numbers of images named by number and path. The path decides: a restart may change the numbers."""
        if paths is None:
            return [i for i in images if self._path(i)]
        if len(paths) != len(images):
            raise UserError(f"{len(images)} images with {len(paths)} paths; name each image once")
        return [self._place(i, path) for i, path in zip(images, paths, strict=True)]

    def _place(self, image: int, path: str) -> int:
        if 0 <= image < len(self.features.paths) and printable(self.features.paths[image]) == path:
            return image
        matches = [i for i, known in enumerate(self.features.paths) if printable(known) == path]
        if len(matches) != 1:
            raise UserError(f"{path}: no such image in the folder any more; reload the page")
        return matches[0]

    def _path(self, image: int) -> str:
        if not 0 <= image < len(self.features.paths):
            raise UserError(f"no image {image}; the folder has {len(self.features.paths)}")
        return self.features.paths[image]

    def _checked(self, name: str) -> str:
        """A class name as tables of images have it. Raises UserError if it is empty, too long or not printable."""
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
    # Elsewhere than on Windows, a backslash is a letter of a name.
    return [path[top:].replace(os.sep, "/") for path in expand([str(folder)])]


def subfolders(paths: Sequence[str]) -> list[str]:
    """Names of the subfolders that hold images, which may be classes."""
    return [class_name(name) for name in natural_order([path.split("/")[-2] for path in paths if "/" in path])]
