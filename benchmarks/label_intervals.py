"""How honest the figures of `linnaeus label` are, over many splits: the interval, and the errors of a batch.

The user, the folder and the validation images are those of `label.py`, but each split is simulated once, with one of
the orders. Checks of one split share their images, so standard errors are those of the means of the splits.

- interval: at each 40th label from 80 on, whether the interval contains the accuracy on the images that the head has
  never seen. These are the validation images and the reserved ones not asked about yet. Their accuracy has an error of
  its own. So two more figures are given: the share that perfect 95 % intervals would reach, and the share that the
  same intervals reach for random samples, by the hypergeometric distribution;
- batches: at each 40th label from 120 on, the errors in the batch of images that the head is sure of, before a person
  has verified a sample and in the rest after it, and what the page states about both.

    OMP_NUM_THREADS=1 python benchmarks/label_intervals.py FOLDER[,FOLDER] [--backbone FILE] [--splits 200]
        [--first 1000] [--orders mixed,margin] [--rows rows.jsonl] [--out docs/results/label.json]

`--rows` keeps what was measured on each split; splits that are there are not simulated again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from label import Images, Split, images_of, split_images
from scipy.stats import hypergeom, norm

from linnaeus.label.acceptance import LEVELS, Batch, Batches
from linnaeus.label.journal import Label
from linnaeus.label.learner import Learned
from linnaeus.metrics.intervals import NORMAL_QUANTILE, exact_interval, most_successes

LABELS = range(80, 321, 40)
BATCHES_FROM = 120  # labels


def checks(images: Images, order: str, seed: int) -> list[dict[str, Any]]:
    """One row per number of LABELS."""
    split, rows = split_images(images, order, seed), []
    for learned, answers in split.user.steps(LABELS[-1]):
        if len(answers) in LABELS and learned.estimate is not None:
            row = {"images": images.name, "order": order, "split": seed, "labels": len(answers)}
            row |= _interval(split, learned, answers)
            rows.append(row | ({"batches": _batches(split, learned, answers)} if len(answers) >= BATCHES_FROM else {}))
    return rows


def _interval(split: Split, learned: Learned, answers: dict[str, Label]) -> dict[str, Any]:
    """The sample of the interval, and the images that the head has never seen and that are not in it."""
    user, estimate = split.user, learned.estimate
    assert learned.answers is not None
    assert estimate is not None
    audit = user.learner.audit
    sample = set(audit.sample(answers, ())[0])
    rest = np.array([i for i in audit.reserved if i not in sample], np.int64)
    predicted = learned.answers.probabilities(rest).argmax(1).tolist()
    right = sum(learned.answers.classes[p] == user.truth[i] for p, i in zip(predicted, rest.tolist(), strict=True))
    validation = split.hits(learned)
    return {
        "n": estimate.n,
        "correct": estimate.correct,
        "interval": [estimate.low, estimate.high],
        "unseen": len(rest) + len(validation),
        "unseen correct": right + int(validation.sum()),
    }


def _batches(split: Split, learned: Learned, answers: dict[str, Label]) -> dict[str, dict[str, Any]]:
    """Level -> the batch that would be proposed: its size, its errors, those in the sample, what is known before."""
    user = split.user
    features = user.learner.features
    excluded = {user.learner.position[path] for path in answers}
    assert learned.answers is not None
    rows = {}
    for level in LEVELS:
        batch = Batches().propose(features, learned, excluded, level)
        wrong = {i for i, name in batch.answers.items() if name != user.truth[i]}
        rows[str(level)] = {
            "n": len(batch.answers),
            "wrong": [features.paths[i].split("/", 1)[1] for i in sorted(wrong)],
            "sample": len(batch.sample),
            "sample wrong": len(wrong.intersection(batch.sample)),
            "doubts": batch.doubt * len(batch.answers),
            "held out": batch.known,
        }
    return rows


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one set of images: of the interval by order and together, and of the batches by level."""
    orders = list(dict.fromkeys(row["order"] for row in rows))
    result: dict[str, Any] = {
        order: _interval_figures([row for row in rows if row["order"] == order]) for order in orders
    }
    return result | {
        "together": _interval_figures(rows),
        "batches": {str(at): _batch_figures(rows, at) for at in LEVELS},
    }


def _over_splits(rows: list[dict[str, Any]], values: list[float]) -> dict[str, float]:
    """Mean of the splits' means of `values`, one per row, and its standard error."""
    splits = np.array([row["split"] for row in rows])
    means = [float(np.mean(np.array(values)[splits == split])) for split in np.unique(splits)]
    return {"mean": float(np.mean(means)), "error": float(np.std(means, ddof=1) / math.sqrt(len(means)))}


def _interval_figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    inside = [low <= row["unseen correct"] / row["unseen"] <= high for row in rows for low, high in [row["interval"]]]
    differences = [row["correct"] / row["n"] - row["unseen correct"] / row["unseen"] for row in rows]
    perfect = [2 * norm.cdf(NORMAL_QUANTILE / math.sqrt(1 + row["n"] / row["unseen"])) - 1 for row in rows]
    return {
        "splits": len({row["split"] for row in rows}),
        "n": len(rows),
        "inside": int(sum(inside)),
        "coverage": _over_splits(rows, inside),
        "perfect": float(np.mean(perfect)),
        "random": float(np.mean([_coverage_of_random_samples(row) for row in rows])),
        "difference": _over_splits(rows, differences),
        "width": float(np.mean([row["interval"][1] - row["interval"][0] for row in rows])),
    }


def _coverage_of_random_samples(row: dict[str, Any]) -> float:
    """How often the interval of a random sample of the images contains the accuracy on the rest of them."""
    n, rest = row["n"], row["unseen"]
    total = row["correct"] + row["unseen correct"]
    coverage = 0.0
    for correct in range(max(0, total - rest), min(n, total) + 1):
        low, high = exact_interval(np.arange(n) < correct)
        if low <= (total - correct) / rest <= high:
            coverage += float(hypergeom.pmf(correct, n + rest, total, n))
    return coverage


def _batch_figures(rows: list[dict[str, Any]], level: float) -> dict[str, Any]:
    """Sums over the batches of a level that are not empty, before the verification of a sample and after it."""
    rows = [row for row in rows if row.get("batches") and row["batches"][str(level)]["n"]]
    batches = [row["batches"][str(level)] for row in rows]
    wrong = [path for batch in batches for path in batch["wrong"]]
    result: dict[str, Any] = {"batches": len(rows), "splits": len({row["split"] for row in rows})}
    result |= {"different": len(set(wrong)), "doubts": sum(batch["doubts"] for batch in batches)}
    result["unknown"] = sum(not batch["held out"][0] for batch in batches)
    for time_of, verified in (("before", False), ("after", True)):
        stated = [_batch(batch, verified).errors() for batch in batches]
        errors = [len(batch["wrong"]) - verified * batch["sample wrong"] for batch in batches]
        held = [e <= most for e, (_, most) in zip(errors, stated, strict=True)]
        result[time_of] = {
            "images": sum(batch["n"] - verified * batch["sample"] for batch in batches),
            "wrong": sum(errors),
            "expected": sum(expected for expected, _ in stated),
            "most": sum(most for _, most in stated),
            "held": sum(held),
            "share held": _over_splits(rows, held),
        }
    alone = [most_successes(b["sample wrong"], b["sample"], b["n"] - b["sample"]) for b in batches]
    return result | {"most by the sample alone": sum(alone)}


def _batch(row: dict[str, Any], verified: bool) -> Batch:
    """The batch of a row, with its sample verified or not."""
    sample = list(range(row["sample"]))
    answers = {k: k >= row["sample wrong"] for k in sample} if verified else {}
    images = dict.fromkeys(range(row["n"]), "")
    return Batch(0, images, row["doubts"] / row["n"], tuple(row["held out"]), sample, answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", help="folders of class folders, with commas")
    parser.add_argument("--backbone")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--first", type=int, default=1000, help="seed of the first split")
    parser.add_argument("--orders", default="mixed,margin", help="of the splits, in turn")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.rows is not None and options.rows.exists():
        rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    results = {} if options.out is None else json.loads(options.out.read_text(encoding="utf-8"))
    orders = options.orders.split(",")
    for folder in options.folders.split(","):
        images = images_of(Path(folder).resolve(), options.backbone)
        known = {row["split"] for row in rows if row["images"] == images.name}
        started = time.process_time()
        for k in range(options.splits):
            seed = options.first + k
            if seed in known:
                continue
            new = checks(images, orders[k % len(orders)], seed)
            rows += new
            if options.rows is not None:
                with options.rows.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row) + "\n" for row in new)
        figures = summarize([row for row in rows if row["images"] == images.name])
        print(images.name, f"{time.process_time() - started:.0f} s", json.dumps(figures), flush=True)
        results.setdefault(images.name, {})["many splits"] = figures
        if options.out is not None:
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
