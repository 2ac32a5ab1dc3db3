"""What training costs as images, classes, resolution and processes grow: one table, in about five minutes.

Made-up images (PNG, a bright square on noise); one epoch of a small residual network for each line, from scratch and
without images and report. One and two processes take turns, three times each, on the same two cores.

    python benchmarks/scale.py [--quick] [--json FILE] [--folder DIR]
    python benchmarks/scale.py --large --json FILE          1,000, 10,000 and 100,000 images instead: half an hour
    python benchmarks/scale.py --plot FILE.png --json FILE  draws what FILE holds, and measures nothing

Each adds what it measures to the JSON file. The plot has the model of a cluster that docs/scaling.md states, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from several import several

import linnaeus
from linnaeus.console import Console
from linnaeus.distributed.engine import Engine, hardware

TURNS = 3
NETWORK = {"name": "mini_resnet", "arguments": {"widths": [16, 32, 64]}}
LIMIT = 3600.0


def make(folder: Path, images: int, classes: int, side: int) -> Path:
    """`images` PNG in `classes` folders."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"{label:04}").mkdir(parents=True, exist_ok=True)
    for i in range(images):
        image = generator.integers(0, 120, (side, side, 3), dtype=np.uint8)
        at = (i % classes) % (side // 2)
        image[at : at + side // 4, at : at + side // 4] += 100
        Image.fromarray(image).save(folder / f"{i % classes:04}" / f"{i:06}.png", compress_level=1)
    return folder


def recipe(side: int, batch: int = 128, network: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "name": "scale",
        "model": network or NETWORK,
        "data": {"resize": side, "size": side, "normalize": "none", "split": {"valid": 0.1}},
        "phase": [{"epochs": 1, "batch": batch, "lr": 1e-3}],
    }


def one(source: Path, raw: dict[str, Any], out: Path) -> dict[str, float]:
    """Seconds by part of a run in this process, and its history's seconds of the epoch."""
    from linnaeus.recipe import Recipe

    run = linnaeus.train(
        source, Recipe.model_validate(raw), out=out, device="cpu", draw=False, console=Console(silent=True)
    )
    return dict(run.seconds)


def in_processes(world: int, threads: int, work: Callable[[int], Any]) -> Any:
    """What `work` gives in the first of `world` processes of so many threads."""

    def child(rank: int) -> Any:
        torch.set_num_threads(threads)
        return work(rank)

    found = several(world, child, LIMIT)
    assert not any(isinstance(each, int) for each in found), f"a process failed: {found}"
    return found[0]


def growth(folder: Path, name: str, sizes: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """A line for each (images, classes, side), in one process of one thread, with a cache of its own."""
    lines = []
    for images, classes, side in sizes:
        here = folder / f"{name}-{images}-{classes}-{side}"
        source = make(here / "pictures", images, classes, side)
        os.environ["LINNAEUS_CACHE"] = str(here / "cache")
        seconds = in_processes(1, 1, lambda rank, s=source, h=here, d=side: one(s, recipe(d), h / "run"))  # type: ignore[misc]
        again = in_processes(1, 1, lambda rank, s=source, h=here, d=side: one(s, recipe(d), h / "again"))  # type: ignore[misc]
        line = {
            "pictures": images, "classes": classes, "side": side,
            "prepare": seconds["prepare"], "prepare_again": again["prepare"],
            "epoch": min(seconds["phase 1"], again["phase 1"]), "evaluate": min(seconds["evaluate"], again["evaluate"]),
            "load": os.getloadavg()[0],
        }  # fmt: skip
        lines.append(line)
        speed = images / line["epoch"]
        print(
            f"{name:10} {images:>7} images {classes:>5} classes {side:>4} px  first look {line['prepare']:6.1f} s, "
            f"again {line['prepare_again']:5.1f} s  epoch {line['epoch']:6.1f} s ({speed:5.0f} a second)  "
            f"evaluation {line['evaluate']:5.1f} s",
            flush=True,
        )
    return lines


def processes(folder: Path, images: int) -> dict[str, Any]:
    """One process of one and of two threads, and two of one each: seconds of an epoch, in turns."""
    source = make(folder / "many" / "pictures", images, 10, 32)
    os.environ["LINNAEUS_CACHE"] = str(folder / "many" / "cache")
    ways = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, str] = {}
    for turn in range(TURNS):
        for number, (way, (world, threads)) in enumerate(ways.items()):
            out = folder / "many" / f"run-{turn}-{number}"
            found = in_processes(world, threads, lambda rank, o=out: one(source, recipe(32), o))  # type: ignore[misc]
            seconds[way].append(found["phase 1"])
            losses[way] = (out / "history.csv").read_text().splitlines()[1].split(",")[3]
    for way, taken in seconds.items():
        print(
            f"{way:28} epoch {statistics.median(taken):6.2f} s ({min(taken):.2f} to {max(taken):.2f}, n = {len(taken)})"
            f"  training loss {losses[way]}",
            flush=True,
        )
    return {"pictures": images, "seconds": seconds, "losses": losses}


def all_reduce(sizes: list[int]) -> list[dict[str, float]]:
    """Bytes -> seconds of adding up so many between two processes on this machine."""

    def work(rank: int) -> list[dict[str, float]]:
        engine = Engine("cpu", "32")
        found = []
        for size in sizes:
            tensor = torch.zeros(size // 4)
            taken = []
            for _ in range(7):
                engine.all_gather(None)  # all begin at once
                started = time.perf_counter()
                engine.all_reduce_sum(tensor)
                taken.append(time.perf_counter() - started)
            found.append({"bytes": float(size), "seconds": statistics.median(taken)})
        return found

    found = in_processes(2, 1, work)
    for line in found:
        rate = line["bytes"] / line["seconds"] / 1e9
        print(
            f"all-reduce of {line['bytes'] / 1e6:8.3f} MB  {1000 * line['seconds']:8.2f} ms  {rate:5.2f} GB/s",
            flush=True,
        )
    return found


def efficiency(
    world: int, gbit: float, seconds: float = 0.2, parameters: float = 25.6e6, latency: float = 50e-6
) -> float:
    """The share of its time that a process of `world` computes, by the model in docs/scaling.md: a ring adds up 4-byte
    gradients after a step of `seconds`. By default ResNet-50 on a GPU."""
    turns = 2 * (world - 1)
    reduce = turns / world * 4 * parameters / (gbit / 8 * 1e9) + turns * latency
    return seconds / (seconds + reduce)


def plot(found: dict[str, Any], path: Path) -> None:
    """Seconds against images as measured, and the model of efficiency against processes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    lines = sorted(found["pictures"], key=lambda line: line["pictures"])
    counts = [line["pictures"] for line in lines]
    names = {
        "prepare": "first look: decode, check",
        "epoch": "epoch",
        "prepare_again": "second run",
        "evaluate": "evaluation",
    }
    for (key, name), mark in zip(names.items(), "osv^", strict=True):
        left.loglog(counts, [line[key] for line in lines], marker=mark, label=name)
    left.set(
        title="Measured: 32 pixels, a small network, one thread", xlabel="pictures", ylabel="seconds", xticks=counts
    )
    left.set_xticks(counts, [f"{count:,}" for count in counts])
    worlds = [1, 2, 4, 8, 16, 32, 64, 128]
    for gbit, mark in ((10, "o"), (25, "s"), (100, "^")):
        right.semilogx(worlds, [100 * efficiency(n, gbit) for n in worlds], marker=mark, label=f"{gbit} Gbit/s")
    right.set(title="A model, not measured: ResNet-50, 0.2 s a step", xlabel="processes", ylabel="efficiency, %")
    right.set_xticks(worlds, [str(n) for n in worlds])
    right.minorticks_off()
    right.set_ylim(0, 105)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the images, to see that it runs")
    parser.add_argument("--large", action="store_true", help="1,000 to 100,000 images, and nothing else")
    parser.add_argument("--json", type=Path, help="add what is measured to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw what the file of --json holds")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    if options.json and options.json.exists():
        found = json.loads(options.json.read_text())
    if options.plot:
        plot(found, options.plot)
        return
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        found |= {"hardware": hardware(torch.device("cpu")), "torch": torch.__version__}
        print(json.dumps({"hardware": found["hardware"], "torch": found["torch"]}), flush=True)
        measure(found, options.folder or Path(temporary), 20 if options.quick else 1, options.large)
    print(f"{time.perf_counter() - started:.0f} s in all")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(found: dict[str, Any], folder: Path, few: int, large: bool) -> None:
    """Put into `found` what there is to measure, on one of `few` images."""
    sizes = [(n // few, 10, 32) for n in (1000, 10_000, 100_000)]
    found["pictures"] = growth(folder, "pictures", sizes if large else sizes[:2])
    if large:
        return
    found["classes"] = growth(folder, "classes", [(3000 // few, c // few or 2, 32) for c in (10, 100, 1000)])
    found["resolution"] = growth(folder, "resolution", [(400 // few, 10, side) for side in (32, 64, 128)])
    found["processes"] = processes(folder, 3000 // few)
    found["all_reduce"] = all_reduce([4_000, 400_000, 4_000_000, 45_000_000, 102_000_000])


if __name__ == "__main__":
    main()
