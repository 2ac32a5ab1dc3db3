"""Unknown images: the two scores of a model beside those of the literature, on the same features and the same head.

Three questions, with images of which the truth is known:

- far: images of something else entirely (--outside DIR) against the validation images of SOURCE;
- near: SOURCE without some of its classes (--hold-out K, as many turns as they fill), whose images are then unknown;
- a finished run (--model RUN): its own network and head.

Energy (Liu et al. 2020), Mahalanobis (Lee et al. 2018) and ViM (Wang et al. 2022, dimension of the subspace as in its
section 4.3) are those of pytorch-ood, which imports torchvision. Neither is a dependency:

    pip install --no-deps pytorch-ood==0.4.0 torchvision==0.28.0

    OMP_NUM_THREADS=1 python benchmarks/unknown.py SOURCE --model BACKBONE|RUN [--outside DIR]...
        [--hold-out 4] [--out unknown.json]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from linnaeus.console import counted
from linnaeus.metrics.intervals import wilson
from linnaeus.metrics.ood import auroc, combined_scores, distances, passes_as_known, unit
from linnaeus.metrics.outputs import Outputs, softmax
from linnaeus.metrics.reference_vectors import reference_vectors
from linnaeus.metrics.temperature import fit_temperature
from linnaeus.modelfile.safetensors import model_path, read_model
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.probe.embed import embed
from linnaeus.training.finish.leave_class_out import mean_interval
from linnaeus.training.finish.unknown import SAMPLE, balanced_sample

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference import torchvision

PAIRS = (
    ("probability", "distance"),
    ("energy", "distance"),
    ("probability", "Mahalanobis"),
    ("probability", "ViM"),
)
"""Scores that are evaluated together, as a model combines its own two."""


@dataclass(frozen=True)
class Features:
    """Features (n, d) float32 of the images of a source, with their class names and splits."""

    values: np.ndarray
    labels: np.ndarray
    splits: np.ndarray

    @classmethod
    def of(cls, model: str, source: str) -> Features:
        """Computed once and kept in the cache of Linnaeus."""
        with tempfile.TemporaryDirectory() as folder:
            file = embed(model, source, Path(folder) / "features.npz").path
            with np.load(file) as arrays:
                return cls(arrays["features"], arrays["labels"], arrays["splits"])


@dataclass(frozen=True)
class Head:
    """A linear head with its temperature, and the training features that it was solved on."""

    weight: np.ndarray
    bias: np.ndarray
    temperature: float
    features: np.ndarray
    labels: np.ndarray

    @classmethod
    def solved(cls, features: np.ndarray, names: np.ndarray) -> Head:
        """A linear probe; its temperature is fitted to the answers for the images that each fold held out."""
        classes, labels = np.unique(names, return_inverse=True)
        probe = fit_linear_probe(torch.from_numpy(features.copy()), labels, len(classes))
        held_out = Outputs(labels, np.log(np.maximum(probe.probabilities, 1e-30)))
        return cls(probe.weight.numpy(), probe.bias.numpy(), fit_temperature(held_out), features, labels)

    @classmethod
    def of_run(cls, run: str, features: np.ndarray, names: np.ndarray) -> Head:
        """The head of a finished run, on a sample of its training images, as the run itself takes one."""
        network, about = read_model(model_path(run))
        (layer,) = (module for module in network.fc.modules() if isinstance(module, torch.nn.Linear))
        labels = np.array([about.classes.index(name) for name in names])
        chosen = balanced_sample(labels, SAMPLE)
        weight, bias = (tensor.detach().numpy() for tensor in (layer.weight, layer.bias))
        return cls(
            weight, bias, float((about.calibration or {}).get("temperature", 1)), features[chosen], labels[chosen]
        )

    def logits(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight.T + self.bias


Score = Callable[[np.ndarray], np.ndarray]
"""(n, d) features -> (n,) scores, larger for images that are less known."""


def probability(head: Head) -> Score:
    return lambda x: -softmax(head.logits(x) / head.temperature).max(1)


def distance(head: Head) -> Score:
    references = reference_vectors(head.features, head.labels)
    return lambda x: distances(x, references)


def distance_to_all(head: Head) -> Score:
    references = unit(head.features)
    return lambda x: distances(x, references)


def distance_standardized(head: Head) -> Score:
    mean, std = head.features.mean(0), head.features.std(0)
    std = np.where(std > 1e-6 * std.max(), std, 1)
    references = reference_vectors((head.features - mean) / std, head.labels)
    return lambda x: distances((x - mean) / std, references)


def energy(head: Head) -> Score:
    from pytorch_ood.detector import EnergyBased

    return lambda x: EnergyBased(None).predict_logits(torch.from_numpy(head.logits(x))).numpy()


def mahalanobis(head: Head) -> Score:
    from pytorch_ood.detector import Mahalanobis

    # Fewer images than features leave a singular covariance, whose inverse overflows in float32.
    torch.set_default_dtype(torch.float64)
    try:
        detector = Mahalanobis(None).fit_features(
            torch.from_numpy(head.features).double(), torch.from_numpy(head.labels)
        )
    finally:
        torch.set_default_dtype(torch.float32)
    return lambda x: detector.predict_features(torch.from_numpy(x).double()).numpy()


def vim(head: Head) -> Score:
    from pytorch_ood.detector import ViM

    width = head.features.shape[1]
    subspace = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
    detector = ViM(None, subspace, torch.from_numpy(head.weight), torch.from_numpy(head.bias))
    detector.fit_features(torch.from_numpy(head.features), torch.from_numpy(head.labels))
    return lambda x: detector.predict_features(torch.from_numpy(x)).numpy()


SCORES: dict[str, Callable[[Head], Score]] = {
    "probability": probability,
    "distance": distance,
    "distance to all images": distance_to_all,
    "distance, standardized": distance_standardized,
    "energy": energy,
    "Mahalanobis": mahalanobis,
    "ViM": vim,
}


def compare(head: Head, known: np.ndarray, unknown: np.ndarray) -> dict[str, dict[str, Any]]:
    """Every score, and every pair of PAIRS, on known and on unknown images."""
    columns: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    seconds: dict[str, float] = {}
    for name, make in SCORES.items():
        started = time.process_time()
        score = make(head)
        columns[name] = score(known), score(unknown)
        seconds[name] = time.process_time() - started
    for pair in PAIRS:
        base = [columns[name][0] for name in pair]
        inside, outside = (combined_scores(base, [columns[name][i] for name in pair]) for i in (0, 1))
        columns[" + ".join(pair)] = inside, outside
    return {name: figures(*column) | {"seconds": seconds.get(name)} for name, column in columns.items()}


def figures(known: np.ndarray, unknown: np.ndarray) -> dict[str, Any]:
    """AUROC, and the share of unknown images let through where 95 % of the known ones are accepted."""
    let_through = int(passes_as_known(known, unknown).sum())
    area, interval = auroc(known, unknown)
    return {
        "known": len(known),
        "unknown": len(unknown),
        "auroc": area,
        "auroc_ci95": list(interval),
        "let_through": let_through,
        "let_through_share": let_through / len(unknown),
        "let_through_ci95": list(wilson(let_through, len(unknown))),
    }


def hold_out(features: Features, count: int, rounds: int) -> dict[str, Any]:
    """The figures over the turns; in each, `count` classes are held out. Each class is held out once in each round."""
    classes, generator = np.unique(features.labels), np.random.default_rng(0)
    orders = [generator.permutation(classes) for _ in range(rounds)]
    turns = [names[start : start + count] for names in orders for start in range(0, len(names) - count + 1, count)]
    training = features.splits == "train"
    rows = []
    for held_out in turns:
        unknown = np.isin(features.labels, held_out)
        fit, known = training & ~unknown, ~training & ~unknown
        head = Head.solved(features.values[fit], features.labels[fit])
        rows.append(compare(head, features.values[known], features.values[unknown]))
    return {name: over_turns([row[name] for row in rows]) for name in rows[0]}


def over_turns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of the areas with Student's interval over the turns, and the sum of the counts."""
    areas = np.array([row["auroc"] for row in rows])
    known, unknown, let_through = (sum(row[key] for row in rows) for key in ("known", "unknown", "let_through"))
    times = [row["seconds"] for row in rows if row["seconds"] is not None]
    return {
        "known": known,
        "unknown": unknown,
        "auroc": float(areas.mean()),
        "auroc_ci95": list(mean_interval(areas)),
        "auroc_by_turn": areas.tolist(),
        "let_through": let_through,
        "let_through_share": let_through / unknown,
        "let_through_ci95": list(wilson(let_through, unknown)),
        "seconds": math.fsum(times) if times else None,
    }


def table(found: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| score | AUROC | 95 % interval | let through at 95 % accepted | 95 % interval | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        low, high = row["auroc_ci95"]
        few, many = (100 * share for share in row["let_through_ci95"])
        spent = "" if row["seconds"] is None else f"{row['seconds']:.2f}"
        cells = [f"{row['auroc']:.4f}", f"{low:.4f} to {high:.4f}"]
        cells += [f"{100 * row['let_through_share']:.1f} %", f"{few:.1f} to {many:.1f} %", spent]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="images with their classes, in the splits train and valid (or test)")
    parser.add_argument("--model", required=True, help="a backbone, NETWORK=WEIGHTS, or the folder of a finished run")
    parser.add_argument("--outside", action="append", default=[], help="folder of images of none of the classes")
    parser.add_argument("--hold-out", type=int, default=0, metavar="K", help="classes that are held out in each turn")
    parser.add_argument("--rounds", type=int, default=1, help="how often each class is held out")
    parser.add_argument("--out", type=Path, help="JSON file, to which the results are added")
    options = parser.parse_args()
    torchvision()
    torch.set_num_threads(1)
    features = Features.of(options.model, options.source)
    training = features.splits == "train"
    is_run = (Path(options.model) / "model.safetensors").is_file()
    found: dict[str, Any] = {}
    if options.outside:
        make = (lambda x, y: Head.of_run(options.model, x, y)) if is_run else Head.solved
        head = make(features.values[training], features.labels[training])
        for folder in options.outside:
            outside = Features.of(options.model, folder)
            found[f"outside {Path(folder).name}"] = compare(head, features.values[~training], outside.values)
    if options.hold_out:
        title = f"{options.hold_out} classes held out, {counted(options.rounds, 'round')}"
        found[title] = hold_out(features, options.hold_out, options.rounds)
        rows = found[title]
        ours, others = (np.array(rows[f"{name} + distance"]["auroc_by_turn"]) for name in ("probability", "energy"))
        rows["probability + distance"]["minus_energy"] = [float((ours - others).mean())]
    for title, rows in found.items():
        print(f"\n{title}: {rows['probability']['known']} known images\n\n{table(rows)}")
    if options.out is not None:
        before = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        key = f"{Path(options.source).name}, {Path(options.model.partition('=')[0]).name}"
        found = before.get(key, {}) | found
        options.out.write_text(json.dumps(before | {key: found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
