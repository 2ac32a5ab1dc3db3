"""How many wrong labels the check ranks first, beside cleanlab on the same probabilities, and on its own.

A share of the labels is flipped to another class at random, with several seeds. The images' vectors come from
published weights at hand and are made once. "ours": the check's ranking. "cleanlab, same": cleanlab's scores of our
cross-validated probabilities. "cleanlab, own": cleanlab with scikit-learn's cross-validated logistic regression, as its
tutorial has it, on the same vectors standardised.

    python benchmarks/labels.py [--data DIR] [--flipped 0.05] [--top 0.08] [--seeds N] [--own]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from linnaeus.cache import default_cache
from linnaeus.check.labels import rank_labels
from linnaeus.console import Console
from linnaeus.data.sources import open_source
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.stores.embeddings import default_weights, embed

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "flowers16"


def flip(labels: np.ndarray, classes: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) labels, of which `share` are another class; (n,) bool: which."""
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(labels), round(share * len(labels)), replace=False)
    flipped = labels.copy()
    flipped[chosen] = (labels[chosen] + generator.integers(1, classes, len(chosen))) % classes
    return flipped, flipped != labels


def sklearn_probabilities(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Out-of-sample probabilities as cleanlab's tutorials make them."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    return cross_val_predict(model, vectors, labels, cv=5, method="predict_proba")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--flipped", type=float, default=0.05)
    parser.add_argument("--top", type=float, default=0.08)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--own", action="store_true", help="cleanlab with scikit-learn's probabilities too: slow")
    arguments = parser.parse_args()
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    weights = default_weights()
    if weights is None:
        parser.error("no published weights at hand: linnaeus weights list")
    table = open_source(arguments.data)
    vectors = embed(table, weights, cache=default_cache(), console=Console())
    assert vectors is not None
    x, true, classes = vectors.values, table.labels[vectors.indices], len(table.classes)
    top = round(arguments.top * len(x))
    print(f"{arguments.data.name}: {len(x)} images, {arguments.flipped:.0%} flipped, in the first {top} of the ranking")
    recalls: dict[str, list[float]] = {}

    def note(name: str, ranking: np.ndarray, wrong: np.ndarray) -> None:
        recalls.setdefault(name, []).append(wrong[ranking[:top]].sum() / wrong.sum())

    for seed in range(arguments.seeds):
        labels, wrong = flip(true, classes, arguments.flipped, seed)
        started = time.perf_counter()
        head = fit_linear_probe(torch.from_numpy(x.copy()), labels, classes)
        found = rank_labels(labels, head.probabilities)
        seconds = time.perf_counter() - started
        note("ours", found.order, wrong)
        for method in ("self_confidence", "normalized_margin"):
            scores = get_label_quality_scores(labels, head.probabilities, method=method)
            note(f"cleanlab, same, {method}", np.argsort(scores, kind="stable"), wrong)
        if arguments.own:
            scores = get_label_quality_scores(labels, sklearn_probabilities(x, labels), method="self_confidence")
            note("cleanlab, own", np.argsort(scores, kind="stable"), wrong)
        theirs = find_label_issues(labels, head.probabilities, filter_by="confident_learning")
        listed = found.predicted != labels
        last = int(np.flatnonzero(wrong[found.order]).max()) + 1
        joint, likely, cleanlab = (f"{w.sum()} ({wrong[w].sum()} flips)" for w in (found.confident, listed, theirs))
        print(
            f"  seed {seed}: ours {recalls['ours'][-1]:.1%} in {seconds:.1f} s, the last flip at place {last}; "
            f"warned of {joint}, listed {likely}; cleanlab's confident learning lists {cleanlab}",
            flush=True,
        )
    for name, values in recalls.items():
        print(f"  {name:34} mean {np.mean(values):.1%}, least {min(values):.1%}, n = {len(values)} seeds")


if __name__ == "__main__":
    main()
