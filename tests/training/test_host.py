"""The training loop reads nothing back from its device inside an epoch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny import mini, phase, phase_run

from linnaeus.augment.pipeline import Augmentation
from linnaeus.data.batches import Batch, Batches, Resident, Sampling
from linnaeus.distributed.engine import Engine, seed_step
from linnaeus.recipe import Augment
from linnaeus.training.loop import BufferBackup, _Loop
from linnaeus.training.optim import build_optimizer, train_mode
from linnaeus.training.phase import Stream


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_steps_of_an_epoch_read_nothing_from_the_device(optimizer: str):
    """On the meta device, which has no values: `.item()`, `.cpu()`, `.tolist()` and `float()` raise there."""
    engine = Engine("cpu", "32")
    engine.device = torch.device("meta")
    rows = Resident(torch.empty(96, 32, 32, 1, dtype=torch.uint8, device="meta"))
    batches = Batches(rows, np.arange(96) % 3, batch=16, device=engine.device, sampling=Sampling(shuffle=True))
    changes = Augmentation(Augment(pad_crop=2, hflip=0.5), size=28, mean=[0.0], std=[1.0], seed=0)

    def prepare(batch: Batch, epoch: int) -> torch.Tensor:
        assert batch.epoch_draws is not None
        return changes.crops(batch.pixels, batch.epoch_draws, batch.start, epoch)

    stream = Stream(batches, prepare)
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
    assert type(build_optimizer(twin, phase(optimizer="sgd"))) is torch.optim.SGD


def test_a_step_is_seeded_as_torch_seeds_and_without_a_stack_trace(monkeypatch: pytest.MonkeyPatch):
    seed_step(3, 2, 1)
    state = torch.get_rng_state()
    torch.manual_seed((3 * 1_000_003 + 2) * 1_000_003 + 1)
    assert torch.equal(torch.get_rng_state(), state)

    def format_stack() -> list[str]:
        raise AssertionError("formats a stack trace")

    monkeypatch.setattr("traceback.format_stack", format_stack)
    seed_step(3, 2, 1)
