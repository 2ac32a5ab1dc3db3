"""Influence of training images: the first-order approximation, and solving again, against true removal.

For a run with a solved head, training images are removed one by one: half of them those that influence a validation
answer most, the others at random. True removal standardizes the features and solves the head again without the image,
at the penalty of the run. The change of the log-odds of each validation answer is compared with what
`explain --influence` computes, once by its first-order approximation and once by solving again in the standardization
of the run.

    python benchmarks/influence.py RUN [--images 20]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from linnaeus.console import Console
from linnaeus.explain.influence import SolvedHead
from linnaeus.inference.classifier import Classifier, load
from linnaeus.training.derived.influence import TrainingInfluence
from linnaeus.training.derived.solved_run import SolvedRun


def answers(classifier: Classifier, influence: TrainingInfluence) -> torch.Tensor:
    """(n, d): the features of the validation images."""
    valid = SolvedRun.read(classifier.path.parent, "").samples(influence.table)["valid"]
    parts = []
    for indices in np.array_split(np.arange(len(valid)), 1 + len(valid) // 64):
        pixels, shapes = valid.rows.gather(indices)
        with torch.no_grad():
            x = classifier.preprocessing(torch.from_numpy(pixels), shapes)
            parts.append(classifier.network.pooled_features(x))
    return torch.cat(parts)


def log_odds(logits: torch.Tensor, target: np.ndarray) -> np.ndarray:
    """(n,): log-odds of the predicted class of each answer, without the temperature."""
    z = logits.clone()
    chosen = z[torch.arange(len(z)), torch.from_numpy(target)].clone()
    z[torch.arange(len(z)), torch.from_numpy(target)] = -torch.inf
    return (chosen - z.logsumexp(1)).numpy()


def removed(influence: TrainingInfluence, image: int) -> SolvedHead:
    """The head without a training image, standardized and solved on the others."""
    head = influence.head
    kept = torch.from_numpy(head.image != image)
    weights = head.problem.weights[kept]
    x, y = influence.features[kept], head.problem.y[kept]
    problem = replace(head.problem, x=x, y=y, weights=weights / weights.sum())
    start = torch.zeros(head.problem.classes, influence.features.shape[1] + 1)
    return SolvedHead.of(problem, head.penalty, head.image[kept.numpy()], start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--images", type=int, default=20, help="training images to remove")
    arguments = parser.parse_args()
    classifier = load(arguments.run)
    influence = TrainingInfluence(classifier, Console())
    features = answers(classifier, influence)
    before = influence.head.logits(features)
    target = before.argmax(1).numpy()
    shares = before.clone()
    shares[torch.arange(len(shares)), torch.from_numpy(target)] = -torch.inf
    slopes = -shares.softmax(1)
    slopes[torch.arange(len(slopes)), torch.from_numpy(target)] = 1.0
    started = time.perf_counter()
    first_order = influence.head.first_order(features, slopes)  # (answers, images)
    seconds = time.perf_counter() - started
    generator = np.random.default_rng(0)
    strongest = np.argsort(-np.abs(first_order).max(0))[: arguments.images // 2]
    others = np.setdiff1d(np.arange(first_order.shape[1]), strongest)
    chosen = np.concatenate([strongest, generator.choice(others, arguments.images - len(strongest), replace=False)])
    here = log_odds(before, target)
    true = np.stack([log_odds(removed(influence, int(j)).logits(features), target) - here for j in chosen], 1)
    strong = np.unravel_index(np.argsort(-np.abs(true), axis=None)[: len(chosen)], true.shape)
    solved = np.array(
        [
            log_odds(
                torch.from_numpy(influence.head.without(features[i : i + 1], chosen[j : j + 1])), target[i : i + 1]
            )
            - here[i]
            for i, j in zip(*strong, strict=True)
        ]
    )[:, 0]
    pairs = first_order[:, chosen]
    print(f"{len(features)} answers x {first_order.shape[1]} training images: first order in {seconds:.1f} s")
    print(f"first order, all {true.size} pairs: r = {np.corrcoef(pairs.ravel(), true.ravel())[0, 1]:.4f}")
    print(f"first order, {len(chosen)} strongest pairs: r = {np.corrcoef(pairs[strong], true[strong])[0, 1]:.4f}")
    print(f"solved again, the same pairs: r = {np.corrcoef(solved, true[strong])[0, 1]:.4f}")
    print(f"median of |first order| / |true| of these: {np.median(np.abs(pairs[strong] / true[strong])):.3f}")
    print(f"median of |solved again| / |true| of these: {np.median(np.abs(solved / true[strong])):.3f}")


if __name__ == "__main__":
    main()
