"""Labelling with simulated users: labels needed by order of the questions, and time.

A folder is split into images to label (70 %) and validation images, anew for each seed. A simulated user answers the
questions of `linnaeus label`, four at a time, with the true class; after each four the head is solved again. Recorded
after each: the accuracy on the validation images, which nothing else sees, and that of leave-one-out on all labels.
Features are computed once and kept in the cache.

- labels: over the seeds, the median number of labels from which on the accuracy of three steps in a row is reached;
- time: processor milliseconds from an answer to new figures, in one thread, with random features.

    OMP_NUM_THREADS=1 python benchmarks/label.py FOLDER[,FOLDER] [--backbone FILE] [--seeds 10] [--labels 320]
        [--orders mixed,margin,diverse,random] [--times] [--kills 100] [--out docs/results/label.json]

`--out` adds to a file that exists, so that parts can be measured one by one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.data.readers.cifar import find_cifar
from linnaeus.data.readers.idx import find_idx
from linnaeus.data.sources import open_source
from linnaeus.label.backbone import Backbone, colors, open_backbone
from linnaeus.label.estimate import Audit
from linnaeus.label.features import BATCH, Features
from linnaeus.label.journal import ACCEPTED, HUMAN, Label
from linnaeus.label.learner import Learned, LearnedHead, Learner
from linnaeus.label.selection import Pool, Selection, SelectionContext
from linnaeus.label.session import list_images

STEP = 4  # labels between two solutions of the head
TARGETS = (0.80, 0.85, 0.90)
MAX_ARRAYS = 12_000  # images of CIFAR or IDX files
MAX_FOLDER = 1000  # images that are labelled; all others validate
TESTS = Path(__file__).resolve().parents[1] / "tests"


@dataclass(frozen=True)
class Images:
    """Features and classes of the images of a folder."""

    name: str
    features: Features
    classes: list[str]


def images_of(source: Path, backbone: str | None) -> Images:
    """The images of a source: below a folder, where the class is the name of the folder, or of CIFAR or IDX files."""
    opened = open_backbone(backbone, "cpu")
    if find_cifar(source) or find_idx(source):
        return _from_arrays(source, opened)
    features = Features(source, list_images(source), opened)
    features.start()
    assert features._thread is not None
    features._thread.join()
    assert not features.failure, features.failure
    name = source.parent.name if source.name == "images" else source.name
    return Images(name, features, [path.split("/")[-2] for path in features.paths])


def _from_arrays(source: Path, backbone: Backbone) -> Images:
    table = open_source(source)
    table = table.select(np.sort(np.random.default_rng(0).permutation(len(table))[:MAX_ARRAYS]))
    features = Features(source, [table.sample_id(i) for i in range(len(table))], backbone)
    for start in range(0, len(table), BATCH):
        rows = np.arange(start, min(start + BATCH, len(table)))
        pixels = np.stack([backbone.preprocessing.load(table.image(i)) for i in rows.tolist()])
        features.values[rows] = backbone.features(pixels, len(table) - start)
    features.ready[:] = True  # without hashes: near duplicates are not looked for
    return Images(source.name, features, [table.classes[label] for label in table.labels.tolist()])


def part(images: Images, rows: np.ndarray, seed: int) -> Features:
    """Some of the images as the features of a folder of their own; `seed` decides their random order."""
    features = Features(Path(), [f"{seed}/{images.features.paths[i]}" for i in rows], images.features.backbone)
    features.values, features.hashes = images.features.values[rows], images.features.hashes[rows]
    features.ready = images.features.ready[rows]
    return features


@dataclass
class User:
    """A simulated user of one folder."""

    learner: Learner
    selection: Selection
    truth: list[str]

    def steps(self, labels: int) -> Iterator[tuple[Learned, dict[str, Label]]]:
        """What was learned after each four answers, and the answers, up to `labels` of them."""
        paths, answers = self.learner.features.paths, dict[str, Label]()
        learned, pool = Learned(), Pool()
        while len(answers) < labels:
            now = SelectionContext(
                answers, set(), len(answers), self.learner.position[next(reversed(answers))] if answers else None
            )
            questions = self.selection.choose(learned, pool, now, STEP)
            if not questions:
                break
            for question in questions:
                answers[paths[question.image]] = Label(self.truth[question.image], HUMAN, "", len(answers))
            learned = self.learner.learn(answers)
            pool = pool.updated(self.learner, learned.taught)
            yield learned, answers


@dataclass(frozen=True)
class Split:
    """A folder to label and the images that validate."""

    user: User
    x: np.ndarray
    """(m, width) float32: features of the images that validate."""
    expected: np.ndarray
    """(m,) their classes."""

    def hits(self, learned: Learned) -> np.ndarray:
        """(m,) bool: the validation images that the head classifies correctly."""
        head = learned.answers
        assert isinstance(head, LearnedHead)
        x = self.x - head.mean
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return np.array(head.classes)[head.head.probabilities(x).argmax(1)] == self.expected


def split_images(images: Images, order: str, seed: int) -> Split:
    """A user of one part of the images; the others validate."""
    shuffled = np.random.default_rng(seed).permutation(np.flatnonzero(images.features.ready))
    cut = min(round(0.7 * len(shuffled)), MAX_FOLDER)
    rows, others = np.sort(shuffled[:cut]), shuffled[cut:]
    features = part(images, rows, seed)
    learner = Learner(features, Audit(features.paths))
    user = User(learner, Selection(order, learner), [images.classes[i] for i in rows])
    expected = np.array([images.classes[i] for i in others])
    return Split(user, images.features.values[others].astype(np.float32), expected)


def simulate(images: Images, order: str, seed: int, labels: int) -> list[dict[str, Any]]:
    """The course of one user: a row per step."""
    split, rows = split_images(images, order, seed), []
    for learned, answers in split.user.steps(labels):
        if learned.answers is not None:
            naive = float((learned.held_out.argmax(1) == learned.labels).mean())
            rows.append({"labels": len(answers), "accuracy": float(split.hits(learned).mean()), "naive": naive})
    return rows


def labels_needed(course: list[dict[str, Any]], target: float) -> int | None:
    """The number of labels at the first of three steps in a row that reach the accuracy; None if there are none."""
    for rows in zip(course, course[1:], course[2:], strict=False):
        if all(row["accuracy"] >= target for row in rows):
            return rows[0]["labels"]
    return None


def summarize(courses: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The figures of one order over the seeds."""
    result: dict[str, Any] = {}
    for target in TARGETS:
        needed = [labels_needed(course, target) for course in courses]
        reached = sorted(n for n in needed if n is not None)
        result[f"{target:.2f}"] = {
            "median": statistics.median_low(reached) if 2 * len(reached) > len(needed) else None,
            "range": [reached[0], reached[-1]] if reached else None,
            "reached": len(reached),
        }
    rows = [row for course in courses for row in course if row["labels"] % 20 == 0 and row["labels"] >= 40]
    result["naive bias"] = float(np.mean([row["naive"] - row["accuracy"] for row in rows]))
    for n in (80, 160, 320):
        at = [row["accuracy"] for course in courses for row in course if row["labels"] == n]
        result[f"at {n}"] = float(np.mean(at)) if at else None
    return result


def durations(n: int, width: int, classes: int, repeats: int = 5) -> dict[str, Any]:
    """Processor milliseconds from an answer to new figures with n labels: usually, and where the penalty is chosen."""
    generator = np.random.default_rng(0)
    features = Features(Path(), [f"{i}.jpg" for i in range(n + repeats)], colors())
    labels = np.arange(n + repeats) % classes
    means = generator.standard_normal((classes, width))
    features.values = (means[labels] + 2 * generator.standard_normal((n + repeats, width))).astype(np.float16)
    features.ready[:] = True
    features.hashes = generator.integers(1, 2**63, (n + repeats, 2), dtype=np.uint64)
    learner, pool = Learner(features, Audit(features.paths)), Pool()
    known = {f"{i}.jpg": Label(f"{labels[i]}", ACCEPTED if i % 2 else "human", "", i) for i in range(n)}
    pool = pool.updated(learner, learner.learn(known).taught)
    taken = []
    for i in range(n, n + repeats):
        known[f"{i}.jpg"] = Label(f"{labels[i]}", "human", "", i)
        started = time.process_time()
        learned = learner.learn(known)
        pool = pool.updated(learner, learned.taught)
        learned.suspects()
        taken.append(1000 * (time.process_time() - started))
    learner.solver._inverted_at = 0
    started = time.process_time()
    learner.learn(known)
    return {"median": statistics.median(taken), "new penalty": 1000 * (time.process_time() - started)}


def kills(n: int) -> dict[str, int]:
    """Kill servers that label n times, by the test that does so; raises AssertionError if an answer is lost."""
    sys.path[:0] = [str(TESTS), str(TESTS / "label")]
    from test_label_kills import kill_servers

    with tempfile.TemporaryDirectory() as folder:
        return {"kills": n, "acknowledged": kill_servers(Path(folder), n), "lost": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", help="folders of class folders, with commas; empty for the times alone")
    parser.add_argument("--backbone")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--labels", type=int, default=320)
    parser.add_argument("--orders", default="mixed,margin,diverse,random")
    parser.add_argument("--times", action="store_true", help="measure times, too")
    parser.add_argument("--kills", type=int, default=0, help="kill two servers of one folder so often")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    if options.out is not None and options.out.exists():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    results["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
    if options.times:
        sizes = [(100, 1280, 16), (1000, 1280, 16), (10_000, 1280, 16), (1000, 2048, 100)]
        results["milliseconds"] = {f"{n:,} x {d:,} x {c}": durations(n, d, c) for n, d, c in sizes}
        print(json.dumps(results["milliseconds"], indent=1), flush=True)
    if options.kills:
        results["kills"] = kills(options.kills)
        print(json.dumps(results["kills"]), flush=True)
    for folder in filter(None, options.folders.split(",")):
        images = images_of(Path(folder).resolve(), options.backbone)
        shown = results.setdefault(images.name, {})
        shown |= {"images": len(images.classes), "backbone": images.features.backbone.name, "labels": options.labels}
        for order in options.orders.split(","):
            started = time.perf_counter()
            courses = [simulate(images, order, seed, options.labels) for seed in range(options.seeds)]
            shown[order] = {"seeds": options.seeds, **summarize(courses)}
            print(images.name, order, f"{time.perf_counter() - started:.0f} s", json.dumps(shown[order]), flush=True)
            if options.out is not None:
                options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
