"""head = "auto": solve the linear head on stored features instead of training it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linnaeus.console import Console, counted
from linnaeus.data.batches import Batches
from linnaeus.distributed.engine import Engine
from linnaeus.errors import UserError
from linnaeus.metrics.classification import no_better_than_one_class
from linnaeus.metrics.intervals import proportion_interval
from linnaeus.metrics.multilabel import Headline, LabelFigures, headline, label_figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.stratification import stratified_folds
from linnaeus.models import Network
from linnaeus.models.linear_probe import LinearProbe, fit_linear_probe
from linnaeus.runs.penalties import Trial, in_groups
from linnaeus.stores.feature_matrix import feature_matrix
from linnaeus.stores.samples import Samples
from linnaeus.text import percent, percent_range
from linnaeus.training.loop import Epoch, validate
from linnaeus.training.loss import balanced_weights
from linnaeus.training.phase import PhaseRun
from linnaeus.training.recorder import Recorder

BATCH = 512  # images whose features are read at once


@dataclass(frozen=True)
class SolvedHead:
    """A linear head and its metrics on the training features."""

    weight: Tensor  # (classes, features)
    bias: Tensor  # (classes,)
    train: Headline
    trials: list[Trial]  # the penalties tried


def solve_head(run: PhaseRun, samples: Samples, recorder: Recorder, engine: Engine, console: Console) -> Epoch:
    """Put the best linear head into the network. Returns the only epoch of the phase.

    `samples` are the training images: their `folds` are what cross-validation keeps together, and images with accepted
    labels are never held out. `recorder` gets the penalties tried, and the predictions of held-out images. Raises
    UserError if the head is not one linear layer.
    """
    started = time.perf_counter()
    linear = linear_head(run.net.model)
    # Solved on rank 0 only: two machines might differ in the last bits.
    solved = engine.broadcast(lambda: _solve(run, samples, recorder, engine, console))
    with torch.no_grad():
        linear.weight.copy_(solved.weight)
        linear.bias.copy_(solved.bias)
    valid = validate(run.net, run.valid, engine)
    seconds = time.perf_counter() - started
    accuracy = None if isinstance(solved.train, LabelFigures) else solved.train.accuracy
    recorder.record_penalties(run.number, solved.trials)
    return Epoch(1, 0.0, solved.train.loss, accuracy, valid, seconds, run.net.model)


def _solve(run: PhaseRun, samples: Samples, recorder: Recorder, engine: Engine, console: Console) -> SolvedHead:
    """Solve the head on the features of all views of the training images."""
    batches = run.train.batches
    views, width, windows = batches.views, linear_head(run.net.model).in_features, run.net.model.windows**2
    with feature_matrix(views * len(batches.labels) * windows, width, engine.device) as rows:
        features = rows if windows == 1 else rows.unflatten(0, (-1, windows))
        labels = _fill(features, run, engine, console)
        return _solve_on(features, labels, run, samples, recorder, console)


def _solve_on(
    features: Tensor,
    labels: np.ndarray,
    run: PhaseRun,
    samples: Samples,
    recorder: Recorder,
    console: Console,
) -> SolvedHead:
    views = run.train.batches.views
    n, groups = len(labels) // views, samples.folds
    # Where people were asked what a classifier doubts, or a classifier gave labels, they say little of other images.
    at_random, accepted = samples.accepted is None, samples.accepted if samples.accepted is not None else False
    weights = balanced_weights(labels, run.classes) if run.phase.class_weights == "balanced" else None
    fold = np.where(accepted, -1, stratified_folds(labels[:n], seed=run.seed, groups=groups))
    # All views of an image are in the same fold: another view in training would reveal its label.
    fold = np.tile(fold, views)
    with console.progress("solving the head", unit="passes") as advance:
        head = fit_linear_probe(
            features, labels, run.classes, fold=fold, weights=weights, all_folds=False, advance=advance
        )
    if not run.seen:
        recorder.record_held_out(*_held_out_probabilities(head, views))
    # Views of one image are not independent, and neither are images of one group.
    images_of = groups if views == 1 else np.tile(np.arange(n) if groups is None else groups, views)
    windows = f" in each of {features.shape[1]} windows" if features.ndim == 3 else ""
    images = counted(n, "image") + (f" in {views} views each" if views > 1 else "")
    train = headline(Outputs(labels, head.training_logits.cpu().numpy()))
    interval = _interval(head, labels, images_of) if at_random else None
    held_out_groups = None if groups is None else len(np.unique(groups[head.held_out % n]))
    if run.seen or not at_random:
        why = "the network below has been trained on these images" if run.seen else "these were not labelled at random"
        quality = f"no cross-validated accuracy, because {why}"
    else:
        quality = _quality(head, labels, interval, held_out_groups, views)
    console.say(f"  linear head on {features.shape[-1]:,} features{windows} of {images}; {quality}")
    console.detail(f"  penalty {head.penalty:g}, chosen from {len(head.losses)}")
    if head.at_bound:
        console.warn(f"the penalty {head.penalty:g} is at the end of the search range; a better one may lie beyond it")
    chosen: tuple[Any, ...] = ()
    if interval is not None:
        chosen = _held_out_images(head, n), interval, _most_frequent(head, labels[:n]), held_out_groups
    trials = [
        Trial(penalty, loss, head.accuracies.get(penalty), *(chosen if penalty == head.penalty else ()))
        for penalty, loss in head.losses.items()
    ]
    return SolvedHead(head.weight.cpu(), head.bias.cpu(), train, trials)


def _fill(features: Tensor, run: PhaseRun, engine: Engine, console: Console) -> np.ndarray:
    """Write the features of all views of the training images, one view after the other. Returns their labels (n, …)."""
    stored, views, labels = run.train.batches.rows, run.train.batches.views, run.train.batches.labels
    batches = Batches(stored, labels, batch=BATCH, views=views, device=engine.device)
    done = 0
    with console.progress("features") as advance:
        # View after view, as the folds above repeat.
        for view in range(views):
            for batch in batches.epoch(view):
                part = run.train.prepare(batch, view)
                features[done : done + len(part)] = part
                done += len(part)
                advance(done, len(features))
    return np.concatenate([batches.labels] * views)


def _held_out_probabilities(head: LinearProbe, views: int) -> tuple[np.ndarray, np.ndarray]:
    """(m,) of the images, and their probabilities (m, classes) by heads that had not seen them: means over views."""
    # One view after the other, with the same images held out in each.
    images, probabilities = head.held_out[: len(head.held_out) // views], head.probabilities
    return images, probabilities.reshape(views, len(images), probabilities.shape[-1]).mean(0)


def _held_out_images(head: LinearProbe, n: int) -> int:
    """Number of the n images of which some view has a held-out probability."""
    return len(np.unique(head.held_out % n))


def _most_frequent(head: LinearProbe, labels: np.ndarray) -> int:
    """Number of these images of the most frequent class; `labels` (n,)."""
    return int(np.bincount(labels[np.unique(head.held_out % len(labels))]).max())


def _interval(head: LinearProbe, labels: np.ndarray, groups: np.ndarray | None) -> tuple[float, float] | None:
    """95 % interval of the accuracy of the held-out probabilities; None with several labels, and without any of them.

    `labels` (n, …) and `groups` (n,), which numbers correlated samples, are those of all samples of the head.
    """
    if labels.ndim > 1 or not len(head.held_out):
        return None
    hits = head.probabilities.argmax(1) == labels[head.held_out]
    return proportion_interval(hits, None if groups is None else groups[head.held_out])


def _quality(
    head: LinearProbe,
    labels: np.ndarray,
    interval: tuple[float, float] | None,
    groups: int | None = None,
    views: int = 1,
) -> str:
    """Accuracy with its interval, or with several labels mean average precision, of the held-out probabilities.

    `labels` (n, …) are those of all samples of the head: all images once for each of their `views`. The held-out images
    come in so many `groups`, None for none.
    """
    n = len(labels) // views
    held_out, labels = _held_out_images(head, n), labels[head.held_out]
    if not held_out:
        return "no cross-validated accuracy, because each class has only one image, or one group of them"
    images = counted(held_out, "image") + in_groups(groups)
    how = "cross-validated training" if head.folds > 1 else "one fold was held out: its"
    if interval is not None:
        hits = head.probabilities.argmax(1) == labels
        # Of the views of an image, some may be hit and others not: there is no number of images that are hit.
        counts = f"{hits.sum():,} of {len(hits):,}{in_groups(groups)}" if views == 1 else f"all views of {images}"
        values = {"n": len(labels), "most_frequent": np.bincount(labels).max(), "accuracy_ci95": interval}
        no_better = no_better_than_one_class(values)
        text = f"{how} accuracy {percent(hits.mean())} ({counts}, 95 % interval {percent_range(interval)})"
        return f"{text}, {no_better}" if no_better else text
    probabilities = np.clip(head.probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
    logits = np.log(probabilities) - np.log1p(-probabilities)
    return f"{how} mAP {percent(label_figures(Outputs(labels, logits)).map)} ({images})"


def linear_head(model: Network) -> nn.Linear:
    """The only linear layer of the head. Raises UserError if there are others, or none."""
    head = model.stages[-1]
    linear = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and model.stage_of(name) == head]
    if len(linear) != 1:
        raise UserError(
            f'head = "auto": the head of {model.arch["name"]} is not a single linear layer; use head = "train"'
        )
    return linear[0]
