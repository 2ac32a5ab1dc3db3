"""Recorded and replayed passes: what is recorded and when; on a GPU, that the results stay the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from linnaeus.augment.pipeline import Augmentation
from linnaeus.data.batches import Batches, InMemoryRows, Sampling
from linnaeus.distributed.engine import Engine
from linnaeus.models import Network, create, wrap
from linnaeus.recipe import Augment, Phase
from linnaeus.training import graph as graphs
from linnaeus.training.graph import WARM_UP, GraphedPass
from linnaeus.training.loop import Step, fit
from linnaeus.training.phase import PhaseRun, Stream, TrainablePart
from linnaeus.training.step import StepSums
from linnaeus.training.streams import augmented

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: make test-gpu")


class Recorder:
    """Stands in for CUDA graphs on a CPU: a replay calls the recorded function on the recorded memory again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, weight: nn.Parameter):
        self.weight, self.computed, self.recorded, self.replayed = weight, 0, 0, 0
        self.recording, self.refuse = False, False
        self.work: Callable[[], None] = lambda: None
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "graph", self.context)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    @contextlib.contextmanager
    def context(self, graph: object, **options: object) -> Iterator[None]:
        self.recording = True
        self.recorded += 1
        try:
            yield
        finally:
            self.recording = False

    def replay(self) -> None:
        self.replayed += 1
        self.work()

    def compute(self, x: Tensor, targets: Tensor, total: int, counted: bool) -> StepSums:
        """The sum of weight * x, and its gradient."""
        if self.recording:
            if self.refuse:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            loss, gradient = torch.zeros(()), torch.zeros_like(self.weight)

            def work() -> None:
                loss.copy_((self.weight.detach() * x).sum())
                gradient.copy_(x.sum(0))

            self.work, self.weight.grad = work, gradient
            return StepSums(loss, None)
        self.computed += 1
        self.weight.grad = x.sum(0)
        return StepSums((self.weight.detach() * x).sum(), None)


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, 2.0]))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, weight: nn.Parameter) -> Recorder:
    return Recorder(monkeypatch, weight)


def call(graphed: GraphedPass, weight: nn.Parameter, rows: int, value: float) -> tuple[float, list[float]]:
    """(loss, gradient) of a batch of `rows` times (value, value)."""
    weight.grad = None
    sums = graphed(torch.full((rows, 2), float(value)), torch.zeros(rows), rows, False)
    assert weight.grad is not None
    return float(sums.loss), weight.grad.tolist()


def test_a_shape_is_recorded_after_some_batches_and_replayed_with_new_values(recorder: Recorder, weight):
    graphed = GraphedPass(recorder.compute, [weight], batches=100)
    for step in range(WARM_UP + 3):
        assert call(graphed, weight, 4, step) == (4 * 3 * step, [4 * step, 4 * step])
    assert (recorder.computed, recorder.recorded, recorder.replayed) == (WARM_UP, 1, 3)


def test_the_last_shorter_batch_has_a_recording_of_its_own_and_a_third_shape_none(recorder: Recorder, weight):
    graphed = GraphedPass(recorder.compute, [weight], batches=100)
    for rows in (4, 3, 2):
        for _ in range(WARM_UP + 1):
            assert call(graphed, weight, rows, 1.0) == (3 * rows, [rows, rows])
    assert recorder.recorded == 2
    assert recorder.computed == 2 * WARM_UP + WARM_UP + 1


def test_what_cannot_be_recorded_is_computed_as_before(recorder: Recorder, weight, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    recorder.refuse = True
    graphed = GraphedPass(recorder.compute, [weight], batches=100)
    for step in range(WARM_UP + 3):
        assert call(graphed, weight, 4, step) == (4 * 3 * step, [4 * step, 4 * step])
    assert recorder.recorded == 1
    assert recorder.computed == WARM_UP + 3
    assert graphed.failure == "operation not permitted when stream is capturing"


def test_few_batches_are_not_recorded(recorder: Recorder, weight):
    graphed = GraphedPass(recorder.compute, [weight], batches=WARM_UP)
    for _ in range(2 * WARM_UP):
        call(graphed, weight, 4, 1.0)
    assert recorder.recorded == 0


def gpu_run(net: Network, n: int = 330, batch: int = 32, epochs: int = 3) -> PhaseRun:
    """Random images of 16 pixels with crop and flip, in GPU memory; the last batch is shorter."""
    cuda = torch.device("cuda", 0)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)).to(cuda)
    labels = rng.integers(0, 4, n)
    changes = Augmentation(Augment(pad_crop=2, hflip=0.5), size=16, mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    train = Batches(InMemoryRows(images), labels, batch=batch, device=cuda, sampling=Sampling(shuffle=True))
    train.draw_epoch = partial(changes.draw_epoch, images)
    valid = Batches(InMemoryRows(images[:40]), labels[:40], batch=40, device=cuda)
    phase = Phase.model_validate({"epochs": epochs, "batch": batch, "lr": 0.05, "optimizer": "sgd", "ema": 0.9})
    stream = Stream(train, partial(augmented, changes))
    return PhaseRun(
        phase, TrainablePart(net), stream, Stream(valid, lambda b, epoch: b.pixels.permute(0, 3, 1, 2) / 255), 4
    )


def with_dropout() -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return wrap(nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(128, 4)), 4)


class Reads(nn.Module):
    """Reads a number from the device, which no graph can record."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = with_dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x * (1.0 + 0.0 * float(x.mean())))


def trained(net: Network) -> dict[str, Tensor]:
    run = gpu_run(net)
    for _ in fit(run, Engine("cuda", "32")):
        pass
    return run.net.model.state_dict()


@needs_gpu
@pytest.mark.parametrize("make", [with_dropout, lambda: create("resnet20", 4)], ids=["dropout", "resnet20"])
def test_replayed_steps_have_the_bits_of_computed_ones(make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(Engine, "kernel_search", lambda self, enabled: contextlib.nullcontext())
    torch.manual_seed(0)
    net = make()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    replays: list[int] = []
    replay = graphs.Recording.replay

    def counted(*arguments: Any) -> None:
        replays.append(1)
        replay(*arguments)

    monkeypatch.setattr(graphs.Recording, "replay", counted)
    replayed = trained(net)
    assert len(replays) > 20
    monkeypatch.setattr(graphs, "WARM_UP", 10**9)
    again = make()
    again.load_state_dict(state)
    computed = trained(again)
    assert len(replays) < 33
    for name, tensor in computed.items():
        assert torch.equal(tensor, replayed[name]), name


@needs_gpu
def test_a_network_that_reads_from_the_device_trains_without_a_recording():
    state = trained(wrap(Reads(), 4))
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


@needs_gpu
def test_no_step_waits_for_the_device():
    run = gpu_run(create("resnet20", 4), n=32 * 120, epochs=2)
    steps = len(run.train.batches)

    def watch(step: Step) -> None:
        # The first steps choose kernels and record; the last one is followed by the figures of the epoch.
        inside = 2 * WARM_UP < step.step < steps - 1
        torch.cuda.set_sync_debug_mode("error" if inside else "default")

    try:
        for _ in fit(run, Engine("cuda"), on_step=watch):
            torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.cuda.set_sync_debug_mode("default")
