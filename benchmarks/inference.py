"""ResNet-18 and ResNet-50 on CPU: eager, fused, torch.compile, ONNX and int8, with accuracy beside speed.

    python benchmarks/inference.py [--run RUN] [--data SOURCE] [--batch 1,32] [--turns 5]

`--run` is a run folder of either network; its model.onnx and model-int8.onnx, which `linnaeus export` wrote, are
measured as they are, and accuracy is that on the validation images of `--data`. A network without a run has fresh
weights and is only timed. All ways take turns in one process, on the same uint8 squares, so that other programs on the
machine slow all alike; shown are medians over the turns, and the median of the ratios to eager within each turn, by the
clock and by the processor's time. With OMP_NUM_THREADS=1 the latter holds on a busy machine too; with more threads it
counts those that wait. Eager is the network as anybody would write it, in the usual memory layout, without gradients.

`torch.compile` is left out, by name, where it cannot compile, as without a C++ compiler.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from plain import SHARED, machine
from torch import Tensor

from linnaeus.export.assemble import assemble
from linnaeus.inference.classifier import load
from linnaeus.inference.runners import OnnxRunner, Runner
from linnaeus.metrics.classification import figures
from linnaeus.metrics.mcnemar import McNemar
from linnaeus.metrics.outputs import Outputs
from linnaeus.models import Network, create
from linnaeus.models.onnx_graph import export_graph, fuse_batchnorms, inference_session
from linnaeus.models.quantize import quantize
from linnaeus.preprocess import Preprocessing

Way = Callable[[Tensor], np.ndarray]
"""(N, size, size, 3) uint8 -> logits."""


def ways(network: Network, p: Preprocessing, folder: Path | None) -> dict[str, Way]:
    """Every way to answer, by name; those that do not work here are said and left out."""
    example = torch.randint(0, 256, (2, p.size, p.size, p.channels), dtype=torch.uint8)
    x = p.normalize(example)
    fused = fuse_batchnorms(network, x)
    network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    found = {"eager": of_module(network, p, contiguous=True), "channels-last fused": of_module(fused, p)}
    found["channels-last fused bf16"] = of_module(fused, p, bf16=True)
    compiled = of_module(torch.compile(fused), p)  # type: ignore[arg-type]
    try:
        compiled(example)
        found["torch.compile"] = compiled
    except Exception as error:  # its many kinds
        print(f"torch.compile: left out, {(str(error).strip().splitlines() or ['?'])[0][:100]}")
    graph = None
    for name, file in (("onnx", "model.onnx"), ("onnx int8", "model-int8.onnx")):
        if folder is not None and (folder / file).is_file():
            found[name] = _logits_of(load(folder / file).run)
        elif folder is not None:
            print(f"{name}: left out, {folder / file} is not there")
        else:
            graph = graph or export_graph(fused, x)
            made = graph if name == "onnx" else quantize(graph, [x.numpy()])
            whole = assemble(made, p, network.arch["classes"], 1.0)
            found[name] = _logits_of(OnnxRunner(inference_session(whole.SerializeToString()), p, name))
    return found


def _logits_of(runner: Runner) -> Way:
    return lambda images: runner.scores(images).logits


def of_module(module: torch.nn.Module, p: Preprocessing, contiguous: bool = False, bf16: bool = False) -> Way:
    @torch.inference_mode()
    def run(images: Tensor) -> np.ndarray:
        x = p.normalize(images)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return module(x.contiguous() if contiguous else x).float().numpy()

    return run


def in_turns(found: dict[str, Way], images: Tensor, turns: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each way, turn by turn: by the clock, and of the processor. One more turn before warms up."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for turn in range(turns + 1):
        for name, run in found.items():
            since, spent = time.perf_counter(), time.process_time()
            run(images)
            if turn:
                seconds[name].append((time.perf_counter() - since, time.process_time() - spent))
    return seconds


def accuracy(found: dict[str, Way], p: Preprocessing, run: Path, data: str) -> dict[str, str]:
    """What each way gets right of the validation images, and the exact test against eager."""
    images = load(run, device="cpu").images(data, "valid")
    right: dict[str, np.ndarray] = {}
    said = {}
    for name, way in found.items():
        logits = []
        for start in range(0, len(images.labels), 32):
            rows, shapes = images.rows.gather(np.arange(start, min(start + 32, len(images.labels))))
            logits.append(way(p.crop(torch.from_numpy(rows), shapes)))
        out = Outputs(images.labels, np.concatenate(logits))
        right[name] = out.predicted == out.labels
        said[name] = f"{figures(out).accuracy:.2%} of {len(out.labels)}"
        if name != "eager":
            said[name] += f", p = {McNemar.of(right['eager'], right[name]).p:.2g}"
    return said


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, action="append", default=[])
    parser.add_argument("--data", default=str(SHARED / "flowers16"))
    parser.add_argument("--models", default="resnet18,resnet50")
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    print(machine("cpu"))
    runs = {load(run, device="cpu").about.arch["name"]: run for run in given.run}
    for name in given.models.split(","):
        folder = runs.get(name)
        if folder is not None:
            model = load(folder, device="cpu")
            network, p = model.network, model.preprocessing
        else:
            network, p = create(name, 16).eval(), Preprocessing(256, 224)
        print(f"\n{name} at {p.size} pixels, {folder or 'fresh weights'}")
        found = ways(network, p, folder)
        said = accuracy(found, p, folder, given.data) if folder is not None else {}
        for size in map(int, given.batch.split(",")):
            images = torch.randint(0, 256, (size, p.size, p.size, p.channels), dtype=torch.uint8)
            seconds = in_turns(found, images, given.turns)
            for way, each in seconds.items():
                pairs = list(zip(seconds["eager"], each, strict=True))
                clock, processor = (statistics.median(e[i] / s[i] for e, s in pairs) for i in (0, 1))
                ms = 1000 * statistics.median(wall for wall, _ in each) / size
                print(
                    f"  batch {size:3}  {way:20} {ms:8.1f} ms an image  {clock:5.2f}x eager, "
                    f"{processor:5.2f}x by processor  {said.get(way, '')}"
                )


if __name__ == "__main__":
    main()
