"""Find the training images that influence a prediction of a run with a solved head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from linnaeus.console import Console
from linnaeus.data.table import Table
from linnaeus.distributed.engine import Engine
from linnaeus.errors import UserError
from linnaeus.explain.influence import SolvedHead
from linnaeus.explain.influential import InfluentialImage, InfluentialImages
from linnaeus.explain.leave_one_out import leave_one_out
from linnaeus.explain.neighbors import Neighbor, training_image
from linnaeus.inference.classifier import Classifier, Prediction
from linnaeus.modelfile.safetensors import MODEL
from linnaeus.models.linear_probe import problem_of
from linnaeus.runs.layout import SPLIT
from linnaeus.runs.penalties import read_penalties
from linnaeus.stores.frozen import FrozenStages
from linnaeus.stores.samples import Samples
from linnaeus.training.derived.solved_run import SolvedRun
from linnaeus.training.loss import balanced_weights
from linnaeus.training.solve import linear_head
from linnaeus.training.streams import Streams

PURPOSE = "the influence of its training images cannot be computed"


class TrainingInfluence:
    """The training images of a run, and how much each of them influences an answer.

    Raises UserError if the head of the run was not solved on stored features, or its images are gone.
    """

    def __init__(self, classifier: Classifier, console: Console):
        self.classifier = classifier
        if classifier.path.name != MODEL or not (classifier.path.parent / SPLIT).is_file():
            raise UserError(
                f"{classifier.path}: is not a run folder with a split.csv, so {PURPOSE}; give the run folder"
            )
        if classifier.network.windows > 1:
            raise UserError(f"{classifier.path}: its head looks at windows of each image, so {PURPOSE}; use --class")
        run = SolvedRun.read(classifier.path.parent, PURPOSE)
        self.table: Table = run.table()
        samples = run.samples(self.table)
        if "train" not in samples or "valid" not in samples:
            raise UserError(f"{run.path}: its images cannot be read any more, so {PURPOSE}")
        self.samples: Samples = samples["train"]
        self.indices = self.samples.kept(self.table.where("train"))
        engine = Engine(classifier.device.type)
        # Prepared as in the run, or the stored features would not be found again.
        frozen = FrozenStages.on_engine(classifier.network, classifier.preprocessing, engine, console)
        frozen.round_as(run.recipe.model.frozen_precision, samples["train"])
        frozen.made_by = dict(run.metrics.get("executors") or {})
        streams = Streams(frozen, samples["train"], samples["valid"], run.recipe.phase, run.recipe.seed)
        rows = streams.head_features()
        trials = read_penalties(run.path).get(len(run.recipe.phase))
        if rows is None or not trials:
            lacking = "features of the training images" if rows is None else "penalty of its head"
            raise UserError(f"{run.path}: the {lacking} are not stored, so {PURPOSE}; train it again")
        self.features = torch.from_numpy(rows.gather(np.arange(len(rows)))[0]).float()
        """(rows, d): the stored features of the training images, one image after the other."""
        # With several views, each image has as many rows; its influence is that of all of them.
        image = np.arange(len(rows)) // (len(rows) // len(self.samples))
        labels = self.samples.labels[image]
        classes, balanced = len(classifier.classes), run.recipe.phase[-1].class_weights == "balanced"
        weights = balanced_weights(labels, classes) if balanced else None
        penalty = min(trials, key=lambda trial: trial.loss).penalty
        linear = linear_head(classifier.network)
        head = torch.cat([linear.weight.detach(), linear.bias.detach()[:, None]], 1).cpu()
        problem = problem_of(self.features, labels, classes, weights)
        self.head = SolvedHead.of(problem, penalty, image, head)

    def of(self, prediction: Prediction, target: int, top: int) -> InfluentialImages:
        """The `top` images that raise the log-odds of class `target` most, and the `top` that lower them most."""
        assert prediction.image is not None
        x = self.classifier.preprocessing.normalize(torch.from_numpy(prediction.image)[None].to(self.classifier.device))
        with torch.inference_mode():
            features = self.classifier.network.pooled_features(x).cpu().clone()
        logits = self.head.logits(features).numpy()
        here = self._log_odds(logits, target)[0]
        without = leave_one_out(self.head, features)
        if without is None:
            effects = -self.head.first_order(features, torch.from_numpy(self._slopes(logits, target)))[0]
        else:
            effects = here - self._log_odds(without, target)
        order = np.argsort(-effects, kind="stable")
        # An image of the training has itself as its strongest support, which explains nothing.
        order = order[[not self._is(prediction.path, k) for k in order.tolist()]]
        proponents, opponents = order[:top], order[::-1][:top]
        proponents, opponents = proponents[effects[proponents] > 0], opponents[effects[opponents] < 0]
        chosen = np.concatenate([proponents, opponents])
        # The ranking is an estimate; the shown values are solved exactly.
        solved = self.head.without(features, chosen) if len(chosen) else np.zeros((0, logits.shape[1]))
        exact = here - self._log_odds(solved, target)
        calibrated = self.classifier.calibrated_logits(solved)
        probabilities = calibrated.probabilities[:, target] if len(chosen) else np.zeros(0)
        extremes = [
            InfluentialImage(self._shown(k), float(effects[k]), float(influence), float(probability))
            for k, influence, probability in zip(chosen.tolist(), exact, probabilities, strict=True)
        ]
        first, second = extremes[: len(proponents)], extremes[len(proponents) :]
        return InfluentialImages(
            sorted(first, key=lambda image: -image.influence), sorted(second, key=lambda image: image.influence)
        )

    def _shown(self, k: int) -> Neighbor:
        return training_image(self.classifier, self.table, int(self.indices[k]), self.samples.rows, k)

    def _is(self, path: str, k: int) -> bool:
        return self.table.paths is not None and str(Path(path).absolute()) == self.table.paths[self.indices[k]]

    def _log_odds(self, logits: np.ndarray, target: int) -> np.ndarray:
        """(k,): log-odds of the calibrated probability of class `target`."""
        z = self.classifier.calibrated_logits(logits).logits
        if self.classifier.several:
            return z[:, target]
        others = np.delete(z, target, axis=1)
        return z[:, target] - np.logaddexp.reduce(others, axis=1)

    def _slopes(self, logits: np.ndarray, target: int) -> np.ndarray:
        """(1, classes): the derivative of the log-odds by the logits of an answer."""
        zero = self.classifier.calibrated_logits(np.zeros_like(logits)).logits
        scale = self.classifier.calibrated_logits(np.ones_like(logits)).logits - zero
        slopes = np.zeros_like(logits)
        if not self.classifier.several:
            z = self.classifier.calibrated_logits(logits).logits.copy()
            z[:, target] = -np.inf
            slopes = -np.exp(z - np.logaddexp.reduce(z, axis=1)[:, None])
        slopes[:, target] = 1.0
        return slopes * scale
