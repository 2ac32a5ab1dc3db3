"""Images a second of `predict` over a folder: decoding and network at once, against what each takes alone.

Where both share the cores, the most that can be had is 1 / (1/decode + 1/network): 100 % means that nothing is lost by
doing the two at once. On a GPU the slower of the two sets the pace. The three are measured in turns, on the same
images; medians. Peak memory is that of the process, for two lengths of the list.

    python benchmarks/predict.py RUN [--data DIR] [--images 256] [--turns 5]
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from plain import SHARED, machine

import linnaeus
from linnaeus.inference.classifier import BATCH
from linnaeus.inference.inputs import expand


def decode(classifier: linnaeus.Classifier, paths: list[str]) -> float:
    """Images a second that all cores decode."""
    started = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(classifier.preprocessing.load, paths):
            pass
    return len(paths) / (time.perf_counter() - started)


def network(classifier: linnaeus.Classifier, images: np.ndarray, n: int) -> float:
    """Images a second through the network alone, already decoded."""
    started, done = time.perf_counter(), 0
    while done < n:
        classifier.answers(images)
        done += len(images)
    return done / (time.perf_counter() - started)


def both(classifier: linnaeus.Classifier, paths: list[str]) -> float:
    """Images a second that `predict` makes of files."""
    started = time.perf_counter()
    n = sum(1 for _ in classifier.stream(paths))
    return n / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder or a model file")
    parser.add_argument("--data", type=Path, default=SHARED / "flowers16")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    classifier = linnaeus.load(arguments.run)
    found = list(expand([str(arguments.data)]))
    paths = list(itertools.islice(itertools.cycle(found), arguments.images))
    images = np.stack([classifier.preprocessing.load(path) for path in paths[:BATCH]])
    classifier.answers(images)
    rates: dict[str, list[float]] = {"decode": [], "network": [], "both": []}
    for _ in range(arguments.turns):
        rates["decode"].append(decode(classifier, paths))
        rates["network"].append(network(classifier, images, len(paths)))
        rates["both"].append(both(classifier, paths))
    print(
        f"{Path(arguments.run).name}, {len(paths)} images of {arguments.data.name}, {arguments.turns} turns; ", end=""
    )
    print(machine(classifier.device.type))
    for name, values in rates.items():
        print(f"  {name:8} {statistics.median(values):7.1f} a second ({min(values):.1f} to {max(values):.1f})")
    parts = zip(rates["decode"], rates["network"], rates["both"], strict=True)
    if classifier.device.type == "cpu":
        shares = [b * (1 / d + 1 / n) for d, n, b in parts]
        print(f"  {statistics.median(shares):.0%} of 1 / (1/decode + 1/network); at least 85 % wanted")
    else:
        shares = [b / min(d, n) for d, n, b in parts]
        print(f"  {statistics.median(shares):.0%} of the slower of the two; at least 85 % wanted")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    more = sum(1 for _ in classifier.stream(itertools.islice(itertools.cycle(found), 4 * len(paths))))
    later = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  peak memory {peak:.0f} MB; after {more} images more {later:.0f} MB; {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
