"""The training loop reads nothing back from its device inside an epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CPU, mini, phase, phase_run, samples, settings, stream

from linnaeus.augment.crops import draw_crops
from linnaeus.augment.pipeline import Augmentation
from linnaeus.console import Console
from linnaeus.data.batches import Batches, InMemoryRows, Sampling
from linnaeus.distributed.engine import Engine, seed_step
from linnaeus.recipe import Augment, Recipe
from linnaeus.training.loop import BufferBackup, Step, _Loop, fit
from linnaeus.training.loss import EpochTotals
from linnaeus.training.optim import build_optimizer, train_mode
from linnaeus.training.phase import Stream
from linnaeus.training.phases import Phases
from linnaeus.training.streams import augmented
from linnaeus.training.timings import StepTimer


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_steps_of_an_epoch_read_nothing_from_the_device(optimizer: str):
    """On the meta device, which has no values: `.item()`, `.cpu()`, `.tolist()` and `float()` raise there."""
    engine = Engine("cpu", "32")
    engine.device = torch.device("meta")
    rows = InMemoryRows(torch.empty(96, 32, 32, 1, dtype=torch.uint8, device="meta"))
    batches = Batches(rows, np.arange(96) % 3, batch=16, device=engine.device, sampling=Sampling(shuffle=True))
    changes = Augmentation(Augment(pad_crop=2, hflip=0.5), size=28, mean=[0.0], std=[1.0], seed=0)

    batches.draw_epoch = partial(changes.draw_epoch, rows.tensor)
    stream = Stream(batches, partial(augmented, changes))
    run = phase_run(mini(), phase(optimizer=optimizer), stream)
    loop = _Loop(run, engine, None, None)
    train_mode(run.net.model, run.stages)
    buffers = BufferBackup(run.net)
    for step, batch in enumerate(batches.epoch(0)):
        loop._train_batch(batch, buffers)
        loop.state.step = step + 1
    assert loop.state.totals.samples == 96
    with pytest.raises(RuntimeError):
        loop.state.totals.means()  # reading is what raises here


def test_channels_last_weights_are_saved_under_the_same_names_and_values():
    """As on a GPU."""
    model = mini()
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for (name, tensor), (other, moved) in zip(model.state_dict().items(), twin.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(tensor, moved)
    assert isinstance(build_optimizer(twin, phase(optimizer="sgd")), torch.optim.SGD)


def test_a_step_is_seeded_as_torch_seeds_and_without_a_stack_trace(monkeypatch: pytest.MonkeyPatch):
    seed_step(3, 2, 1)
    state = torch.get_rng_state()
    torch.manual_seed((3 * 1_000_003 + 2) * 1_000_003 + 1)
    assert torch.equal(torch.get_rng_state(), state)

    def format_stack() -> list[str]:
        raise AssertionError("formats a stack trace")

    monkeypatch.setattr("traceback.format_stack", format_stack)
    seed_step(3, 2, 1)


READING = ("item", "cpu", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__")


@pytest.mark.parametrize("spec", [{"optimizer": "adamw", "clip": 1.0}, {"optimizer": "sgd", "mixup": 0.2, "ema": 0.9}])
def test_a_phase_reads_no_tensor_between_its_first_step_and_validation(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """With real numbers, through the callbacks of `Phases`. A GPU has no check of the loss after every step."""
    reads: list[str] = []
    shown: list[tuple[int, int, str]] = []
    inside = False

    def spy(name: str) -> Callable[..., Any]:
        real = getattr(torch.Tensor, name)

        def call(self: torch.Tensor, *args: Any, **more: Any) -> Any:
            if inside:
                reads.append(name)
            return real(self, *args, **more)

        return call

    images, labels = samples(96)
    rows = InMemoryRows(torch.from_numpy(images[..., None]))
    batches = Batches(rows, labels, batch=16, device=CPU, sampling=Sampling(shuffle=True))
    changes = Augmentation(Augment(pad_crop=2, hflip=0.5), size=28, mean=[0.0], std=[1.0], seed=0)
    batches.draw_epoch = lambda draws, epoch: draw_crops(changes.spec, (28, 28), 28, 0, epoch, draws, CPU)
    run = phase_run(
        mini(), phase(epochs=2, **spec), Stream(batches, partial(augmented, changes)), stream(images, labels)
    )
    for name in READING:
        monkeypatch.setattr(torch.Tensor, name, spy(name))
    monkeypatch.setattr(EpochTotals, "check_finite", lambda *args, always=False: None)
    engine = Engine("cpu", "32")
    recipe = Recipe.model_validate({**settings(), "phase": [{"epochs": 2, "batch": 16, "lr": 0.1}]})
    streams = SimpleNamespace(console=Console(quiet=True), frozen=SimpleNamespace(model=None))
    phases = Phases(recipe, streams, 3, engine)  # type: ignore[arg-type]

    def after(step: Step) -> None:
        nonlocal inside
        phases._after_step(run, lambda *args: shown.append(args), StepTimer(), step)
        inside = step.step < step.steps  # the epoch ends with its last step

    for _ in fit(run, engine, on_step=after):
        assert reads == []
    assert (shown[0], shown[-1]) == ((16, 192, "epoch 1/2"), (192, 192, "epoch 2/2"))
    inside = True
    float(torch.zeros(()))
    assert reads, "the spy sees nothing"
