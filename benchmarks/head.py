"""Time and memory of the linear head (`head = "auto"`) on features of several sizes, and of scikit-learn at its loss.

Each measurement is a process of its own. Features are Gaussian around a random mean for each class. Three solvers:

- ours: cross-validation of the penalty and the final fit, as `train` runs it;
- sklearn: one `LogisticRegression` (L-BFGS) with the penalty that ours has chosen, on standardized features, without
  any cross-validation. Its tolerance is lowered until its objective is at most 1e-4 above that of ours;
- an earlier version of `models/linear_probe.py`, with `--old REVISION`.

Processor seconds are those of all threads: unlike the wall clock, other programs hardly change them. Memory is the
growth of the peak of the resident set above that with the features loaded, in multiples of the features in float32.
Sizes whose features exceed a quarter of the free memory are left out, and said.

    python benchmarks/head.py [--samples 1000,10000,50000] [--features 512,1280,3072] [--classes 10,100,1000]
        [--solvers ours,sklearn] [--limit SECONDS] [--old REVISION]
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from linnaeus.device import free_memory
from linnaeus.metrics.stratification import FOLDS, stratified_folds
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.models.logistic_regression import Problems, objective

CLOSE = 1e-4
MODULE = "src/linnaeus/models/linear_probe.py"


def features_of(n: int, width: int, classes: int) -> tuple[torch.Tensor, np.ndarray]:
    """(features (n, width) float32, labels (n,)): classes overlap, so that a head is right on a part of the images."""
    torch.manual_seed(0)
    labels = np.arange(n) % classes
    means = torch.randn(classes, width)
    x = torch.randn(n, width).mul_(4 * (width / 64) ** 0.5)
    for label in range(classes):  # in place, or the peak of the memory would be here
        x[label::classes] += means[label]
    return x, labels


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """(result of `work`, wall and processor seconds, growth of the peak memory in bytes)."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return result, taken | {"bytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024.0}


def loss_of(x: torch.Tensor, labels: np.ndarray, weight: Any, bias: Any, penalty: float) -> float:
    """The objective of a head on standardized features."""
    solution = torch.cat([torch.as_tensor(weight), torch.as_tensor(bias)[:, None]], 1).float()[None]
    weights = torch.full((len(x), 1), 1 / len(x))
    return float(objective(Problems(x, torch.from_numpy(labels), weights, solution.shape[1]), penalty, solution)[0])


def run_ours(n: int, width: int, classes: int) -> dict[str, float]:
    x, labels = features_of(n, width, classes)
    mean, std = x.mean(0), x.std(0, correction=0)
    fold = stratified_folds(labels)
    head, taken = measured(lambda: fit_linear_probe(x, labels, classes, fold=fold, all_folds=False))
    # `x` is overwritten now, and the head is for features that are not standardized.
    x = features_of(n, width, classes)[0].sub_(mean).div_(std)
    loss = loss_of(x, labels, head.weight * std, head.bias + head.weight @ mean, head.penalty)
    return {**taken, "loss": loss, "penalty": head.penalty, "penalties": len(head.losses)}


def run_sklearn(n: int, width: int, classes: int, penalty: float, target: float) -> dict[str, float]:
    from sklearn.linear_model import LogisticRegression

    x, labels = features_of(n, width, classes)
    x.sub_(x.mean(0)).div_(x.std(0, correction=0))
    array, tolerance = x.numpy(), 1e-3

    def fit() -> Any:
        return LogisticRegression(C=1 / (penalty * n), tol=tolerance, max_iter=2000).fit(array, labels)

    while True:
        model, taken = measured(fit)
        loss = loss_of(x, labels, model.coef_, model.intercept_, penalty)
        if loss <= target + CLOSE or tolerance < 1e-7:
            return {**taken, "loss": loss, "tolerance": tolerance}
        tolerance /= 10


def run_old(n: int, width: int, classes: int, revision: str) -> dict[str, float]:
    source = subprocess.run(["git", "show", f"{revision}:{MODULE}"], capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "old_linear_probe.py"
        file.write_bytes(source)
        spec = importlib.util.spec_from_file_location("old_linear_probe", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["old_linear_probe"] = module
        spec.loader.exec_module(module)
    x, labels = features_of(n, width, classes)
    head, taken = measured(lambda: module.fit_linear_probe(x, labels, classes))
    return {**taken, "penalty": head.penalty}


def in_process(solver: str, size: tuple[int, ...], *more: object, limit: float) -> dict[str, float] | None:
    """The measurement of a solver in a new process; None where it takes longer than `limit` seconds."""
    command = [sys.executable, __file__, "--run", solver, *map(str, (*size, *more))]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=True).stdout
    except subprocess.TimeoutExpired:
        return None
    return json.loads(output.splitlines()[-1])


def report(name: str, taken: dict[str, float] | None, size: tuple[int, ...], limit: float) -> None:
    label = f"{size[0]:>7,} x {size[1]:>5,}, {size[2]:>5,} classes  {name:8}"
    if taken is None:
        print(f"{label} left out: more than {limit:.0f} s", flush=True)
        return
    times = taken["bytes"] / (4 * size[0] * size[1])
    loss = f"  objective {taken['loss']:.5f}" if "loss" in taken else ""
    print(
        f"{label} {taken['wall']:7.1f} s, {taken['cpu']:7.1f} s of processors, memory + {times:4.2f} x features"
        f"  penalty {taken.get('penalty', float('nan')):g}{loss}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("samples", "1000,10000,50000"), ("features", "512,1280,3072"), ("classes", "10,100,1000")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--solvers", default="ours,sklearn")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one measurement")
    parser.add_argument("--old", metavar="REVISION")
    options = parser.parse_args()
    sizes = itertools.product(*(map(int, getattr(options, k).split(",")) for k in ("samples", "features", "classes")))
    for size in sizes:
        if size[0] < FOLDS * size[2]:
            print(f"{size[0]:>7,} x {size[1]:>5,}, {size[2]:>5,} classes  left out: fewer than {FOLDS} images a class")
            continue
        if 16 * size[0] * size[1] > free_memory(torch.device("cpu")):
            print(f"{size[0]:>7,} x {size[1]:>5,}, {size[2]:>5,} classes  left out: too little free memory")
            continue
        ours = in_process("ours", size, limit=options.limit)
        report("ours", ours, size, options.limit)
        if ours is not None and "sklearn" in options.solvers.split(","):
            args = (ours["penalty"], ours["loss"])
            report("sklearn", in_process("sklearn", size, *args, limit=options.limit), size, options.limit)
        if options.old:
            report("earlier", in_process("old", size, options.old, limit=options.limit), size, options.limit)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        solver, (n, width, classes), rest = sys.argv[2], map(int, sys.argv[3:6]), sys.argv[6:]
        if solver == "ours":
            print(json.dumps(run_ours(n, width, classes)))
        elif solver == "sklearn":
            print(json.dumps(run_sklearn(n, width, classes, float(rest[0]), float(rest[1]))))
        else:
            print(json.dumps(run_old(n, width, classes, rest[0])))
    else:
        main()
