"""Training on a GPU beside hand-written loops, in turns.

    python benchmarks/gpu.py [--only small head finetune] [--compiled]

`small`: images of 32 pixels with crop and flip, augmented on the device by both sides; images per second of an epoch,
and milliseconds of the host for a step of Linnaeus. `head`: a linear head by epochs on features in GPU memory, seconds
of 20 epochs. `finetune`: all of ResNet-50 at 224 pixels. The hand-written loops are what a careful user would write:
data on the device, bfloat16 autocast, channels last, fused SGD, no waiting for the device inside an epoch.
`--compiled` adds torch.compile to both sides of `small`. Images are random numbers: nothing here measures accuracy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from plain import machine
from torch import Tensor, nn

from linnaeus.augment.pipeline import Augmentation
from linnaeus.data.batches import Batches, InMemoryRows, Sampling
from linnaeus.distributed.engine import Engine
from linnaeus.models import Network, create
from linnaeus.preprocess import Preprocessing
from linnaeus.recipe import Augment, Phase
from linnaeus.training.loop import Step, fit
from linnaeus.training.optim import freeze
from linnaeus.training.phase import PhaseRun, Stream, TrainablePart
from linnaeus.training.streams import augmented, stored

CUDA = torch.device("cuda", 0)
CLASSES = 10
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
PAD = 4

PARTS = ("small", "head", "finetune")

Epochs = Iterator[float]
"""Yields the seconds of one epoch after the other, by the clock and with the device at rest at both ends."""


def timed(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def network(name: str, size: int) -> Network:
    net = create(name, CLASSES, stem="small") if name == "resnet18" and size == 32 else create(name, CLASSES)
    return net.to(CUDA).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def by_hand(name: str, images: Tensor, labels: Tensor, batch: int, compiled: bool = False) -> Epochs:
    """The loop of a careful user; images (n, H, W, 3) uint8 on the device, cropped after padding by PAD, flipped."""
    n, size = len(images), images.shape[1]
    net = network(name, size)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    forward = torch.compile(net) if compiled else net
    mean, std = (torch.tensor(values, device=CUDA) * 255 for values in (MEAN, STD))
    steps = torch.arange(size, device=CUDA)

    def epoch() -> None:
        net.train()
        order = torch.randperm(n, device=CUDA)
        tops, lefts = torch.randint(0, 2 * PAD + 1, (2, n), device=CUDA)
        flips = torch.rand(n, device=CUDA) < 0.5
        loss_sum = torch.zeros((), device=CUDA)
        for first in range(0, n - n % batch, batch):
            here = order[first : first + batch]
            s = slice(first, first + batch)
            columns = torch.where(flips[s, None], size - 1 - steps, steps) + lefts[s, None]
            rows = tops[s, None] + steps
            padded = F.pad(images[here], (0, 0, PAD, PAD, PAD, PAD))
            x = padded[torch.arange(batch, device=CUDA)[:, None, None], rows[:, :, None], columns[:, None, :]]
            x = ((x.float() - mean) / std).permute(0, 3, 1, 2)
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(forward(x), labels[here])
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach()

    while True:
        yield timed(epoch)


class Watch:
    """Time that the host needs for a step, over the first ones of an epoch: later ones may wait for the device."""

    FIRST, LAST = 2, 12

    def __init__(self) -> None:
        self.started, self.milliseconds = 0.0, 0.0

    def __call__(self, step: Step) -> None:
        if step.step == self.FIRST:
            self.started = time.perf_counter()
        elif step.step == self.LAST:
            self.milliseconds = 1e3 * (time.perf_counter() - self.started) / (self.LAST - self.FIRST)


def ours(run: PhaseRun, watch: Watch | None = None) -> Epochs:
    """`fit`, which validates after every epoch; the validation images are few."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in fit(run, Engine("cuda"), on_step=watch):
        torch.cuda.synchronize()
        yield time.perf_counter() - started
        started = time.perf_counter()


def phase_run(name: str, images: Tensor, labels: np.ndarray, batch: int, compiled: bool = False) -> PhaseRun:
    size = images.shape[1]
    phase = Phase.model_validate(
        {"epochs": 1000, "batch": batch, "lr": 0.1, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
    )
    changes = Augmentation(Augment(pad_crop=PAD, hflip=0.5), size=size, mean=MEAN, std=STD, seed=0)
    # As by hand, where the last, shorter batch is dropped.
    whole = len(images) - len(images) % batch
    train = Batches(
        InMemoryRows(images[:whole]), labels[:whole], batch=batch, device=CUDA, sampling=Sampling(shuffle=True)
    )
    train.draw_epoch = partial(changes.draw_epoch, images[:whole])
    valid = Batches(InMemoryRows(images[:batch]), labels[:batch], batch=batch, device=CUDA)
    preprocessing = Preprocessing(resize=size, size=size, mean=MEAN, std=STD)
    net = TrainablePart(network(name, size))
    run = PhaseRun(
        phase,
        net,
        Stream(train, partial(augmented, changes)),
        Stream(valid, lambda b, epoch: preprocessing(b.pixels, b.shapes)),
        CLASSES,
        compiled=compiled,
    )
    return run


def head_run(net: Network, features: Tensor, labels: np.ndarray, classes: int, epochs: int) -> PhaseRun:
    phase = Phase.model_validate({"train": ["head"], "epochs": epochs, "batch": 64, "lr": 1e-3, "optimizer": "adam"})
    train = Batches(InMemoryRows(features), labels, batch=64, device=CUDA, sampling=Sampling(shuffle=True))
    valid = Batches(InMemoryRows(features[:171]), labels[:171], batch=256, device=CUDA)
    take = lambda batch, epoch: stored(batch)
    return PhaseRun(phase, TrainablePart(net, "head"), Stream(train, take), Stream(valid, take), classes)


def head_by_hand(features: Tensor, labels: Tensor, classes: int, epochs: int) -> None:
    linear = nn.Linear(features.shape[1], classes, device=CUDA)
    optimizer = torch.optim.Adam(linear.parameters(), lr=1e-3, fused=True)
    for _ in range(epochs):
        order = torch.randperm(len(features), device=CUDA)
        for here in order.split(64):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(linear(features[here].float()), labels[here])
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            int((linear(features[:171].float()).argmax(1) == labels[:171]).sum())


def small(compiled: bool, repeats: int) -> None:
    rng = np.random.default_rng(0)
    for name, n, batch in (("resnet18", 50_000, 512), ("resnet20", 50_000, 128)):
        images = torch.from_numpy(rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)).to(CUDA)
        labels = rng.integers(0, CLASSES, n)
        on_device, watch = torch.from_numpy(labels).to(CUDA), Watch()
        sides = {
            "by hand": by_hand(name, images, on_device, batch),
            "linnaeus": ours(phase_run(name, images, labels, batch), watch),
        }
        if compiled:
            sides["by hand, compiled"] = by_hand(name, images, on_device, batch, compiled=True)
            sides["linnaeus, compiled"] = ours(phase_run(name, images, labels, batch, compiled=True))
        whole = n - n % batch
        report(f"{name}, 32 pixels, batch {batch}", sides, whole, repeats)
        print(f"    host: {watch.milliseconds:.2f} ms a step in the training thread", flush=True)


def report(title: str, sides: dict[str, Epochs], images: int, repeats: int) -> None:
    """Time one epoch of each side in turns, the first of which does not count."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    first = {side: next(epochs) for side, epochs in sides.items()}
    for _ in range(repeats):
        for side, epochs in sides.items():
            seconds[side].append(next(epochs))
    print(f"{title}, {images} images an epoch, median of {repeats} in turns")
    for side, values in seconds.items():
        middle = statistics.median(values)
        spread = f"{images / max(values):,.0f} to {images / min(values):,.0f}"
        print(
            f"    {side:20} {images / middle:10,.0f} images/s ({spread}); first epoch {first[side]:.2f} s", flush=True
        )


def head(repeats: int) -> None:
    n, features, classes, epochs = 1159, 2048, 16, 20
    x = torch.randn(n, features, device=CUDA).half()
    labels = np.random.default_rng(0).integers(0, classes, n)
    on_device = torch.from_numpy(labels).to(CUDA)
    net = create("resnet50", classes).to(CUDA)
    freeze(net, ["head"])
    sides = {
        "by hand": lambda: head_by_hand(x, on_device, classes, epochs),
        "linnaeus": lambda: list(fit(head_run(net, x, labels, classes, epochs), Engine("cuda"))),
    }
    print(f"head, {n} x {features}, {classes} classes, {epochs} epochs, batch 64, median of {repeats} in turns")
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats + 1):
        for side, work in sides.items():
            taken = timed(work)
            if repeat:
                seconds[side].append(taken)
    for side, values in seconds.items():
        print(f"    {side:20} {statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f})", flush=True)


def finetune(repeats: int) -> None:
    rng = np.random.default_rng(0)
    n, batch = 1024, 64
    images = torch.from_numpy(rng.integers(0, 256, (n, 224, 224, 3), dtype=np.uint8)).to(CUDA)
    labels = rng.integers(0, CLASSES, n)
    watch = Watch()
    sides = {
        "by hand": by_hand("resnet50", images, torch.from_numpy(labels).to(CUDA), batch),
        "linnaeus": ours(phase_run("resnet50", images, labels, batch), watch),
    }
    report(f"resnet50, 224 pixels, batch {batch}, everything trained", sides, n, repeats)
    print(f"    host: {watch.milliseconds:.2f} ms a step in the training thread", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=["small", "head", "finetune"], default=["small", "head", "finetune"]
    )
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this torch sees no CUDA device")
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    print(machine("cuda"), flush=True)
    if "small" in arguments.only:
        small(arguments.compiled, arguments.repeats)
    if "head" in arguments.only:
        head(arguments.repeats)
    if "finetune" in arguments.only:
        finetune(arguments.repeats)


if __name__ == "__main__":
    main()
