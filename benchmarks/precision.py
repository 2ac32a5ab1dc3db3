"""ResNet-50 on CPU in float32 and bfloat16: the frozen stages on real photos, with their error, and a training step.

    python benchmarks/precision.py [--data SOURCE] [--weights FILE] [--batch 16] [--turns 4]

All ways take turns. The time is that of the processor in this process, which with OMP_NUM_THREADS=1 holds on a busy
machine too.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from plain import SHARED
from safetensors.torch import load_file
from torch import Tensor, nn

from linnaeus.data.images.decode import RowSpec, load_row
from linnaeus.models import create
from linnaeus.models.executors import FrozenPart
from linnaeus.models.onnx_graph import fuse_batchnorms
from linnaeus.preprocess import Preprocessing

SIZE = 224
IMAGENET = Preprocessing(SIZE, SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def photos(source: Path, n: int) -> Tensor:
    """`n` photos from all over a folder, (n, 3, 224, 224) in channels-last memory."""
    files = sorted(source.rglob("*.jpg"))
    rows = [load_row(file.read_bytes(), RowSpec(SIZE, "squash")) for file in files[:: max(1, len(files) // n)][:n]]
    x = IMAGENET.normalize(torch.stack([torch.from_numpy(row.copy()) for row in rows]))
    return x.contiguous(memory_format=torch.channels_last)


def in_turns(ways: Mapping[str, Callable[[], object]], images: int, turns: int) -> None:
    """Print images a second of each way, and the ratio to the first one. One more turn before warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, run in ways.items():
            started = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - started)
    first = next(iter(seconds.values()))
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, taken, strict=True))
        print(f"  {name:28} {images / statistics.median(taken):6.1f} images/s, ratio {ratio:.2f}")


def bfloat16(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return module(x).float()


def train(network: nn.Module, x: Tensor, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    network.zero_grad()
    F.cross_entropy(forward(network, x), torch.arange(len(x)) % 16).backward()


def plain(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "flowers16")
    parser.add_argument("--weights", type=Path, default=SHARED / "weights" / "resnet50-v1-imagenet.safetensors")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=4)
    arguments = parser.parse_args()
    x = photos(arguments.data, arguments.batch)
    network = create("resnet50", 1000)
    network.load_state_dict(load_file(arguments.weights), strict=False)
    part = FrozenPart(network, "head").eval()
    fused, contiguous = fuse_batchnorms(part, x[:2]), x.contiguous()
    print(f"frozen stages, {len(x)} photos at once")
    with torch.inference_mode():
        expected = part(contiguous)
        for name, outputs in (("fused", fused(x)), ("fused bf16", bfloat16(fused, x))):
            error = (outputs - expected).square().mean().sqrt() / expected.square().mean().sqrt()
            print(f"  {name}: error {100 * float(error):.2g} % of the features (RMS)")
        ways = {"eager": lambda: part(contiguous), "fused": lambda: fused(x), "fused bf16": lambda: bfloat16(fused, x)}
        in_turns(ways, len(x), arguments.turns)
    x = x[: max(2, len(x) // 2)]
    contiguous, usual = x.contiguous(), create("resnet50", 16).train()
    last = copy.deepcopy(usual).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    print(f"training step, {len(x)} photos")
    steps = {
        "float32": lambda: train(usual, contiguous, plain),
        "channels-last": lambda: train(last, x, plain),
        "channels-last bf16": lambda: train(last, x, bfloat16),
    }
    in_turns(steps, len(x), arguments.turns)


if __name__ == "__main__":
    main()
