"""lr = "auto": the range test finds a rate that trains, and does not change the network."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import mini, phase, phase_run, samples, stream, write_idx, write_recipe

import linnaeus
from linnaeus.console import Console
from linnaeus.data.batches import Sampling
from linnaeus.distributed.engine import Engine
from linnaeus.errors import JobError, UserError
from linnaeus.recipe import load_recipe
from linnaeus.training.loop import fit
from linnaeus.training.rangetest import STEPS, choose, range_test, smooth

RATES = np.logspace(-6, -1, STEPS)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_chosen_rate_trains_and_a_hundredth_of_it_does_not(optimizer: str):
    model, data, engine = mini(), stream(*samples(48)), Engine("cpu", "32")
    before = copy.deepcopy(model.state_dict())
    spec = phase(optimizer=optimizer, lr="auto", epochs=30)
    test = range_test(phase_run(model, spec, data), engine)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert len(test.rates) == len(test.losses) <= STEPS
    loss = {}
    for factor in (0.01, 1):
        trained = spec.model_copy(update={"lr": test.chosen * factor})
        *_, last = fit(phase_run(mini(), trained, data), engine)
        loss[factor] = last.train_loss
    assert loss[1] < 0.5, (test.chosen, loss)
    assert loss[1] < 0.5 * loss[0.01], (test.chosen, loss)


def test_the_same_test_again_gives_the_same_losses():
    data = stream(*samples(30), sampling=Sampling(shuffle=True))
    first, again = (
        range_test(phase_run(mini(), phase(lr="auto"), data, seed=4, first_epoch=2), Engine("cpu", "32"))
        for _ in range(2)
    )
    assert np.array_equal(first.losses, again.losses)


def test_a_tenth_of_the_rate_at_the_lowest_loss():
    """The loss falls steeply before 1e-3 and then rises; noise of 0.05 changes the rate by less than half."""
    generator = np.random.default_rng(0)
    decades = np.log10(RATES) + 3
    losses = np.where(decades < 0, 3 - 2 * np.exp(4 * decades), 1 + 2 * decades) + 0.05 * generator.normal(size=STEPS)
    test = choose(RATES, list(losses))
    assert 1e-4 / 1.5 < test.chosen < 1e-4 * 1.5, test
    assert "a tenth of the rate with the lowest loss" in test.reason


def test_a_loss_that_falls_to_the_end_of_the_range_has_no_lowest_point():
    """As when a few images are memorized: half of the fall is reached at 1e-4, and 1e-2 would be far too high."""
    losses = 3 / (1 + (RATES / 1e-4) ** 1.5)
    test = choose(RATES, list(losses))
    assert 0.5e-4 < test.chosen < 2e-4
    assert "half of the fall" in test.reason


def test_a_trained_network_gets_a_tenth_of_the_largest_harmless_rate():
    losses = 0.5 + 50 * np.maximum(0, RATES - 1e-3)
    test = choose(RATES, list(losses))
    assert 1e-4 < test.chosen < 4e-4, test
    assert "did not rise" in test.reason


def test_divergence_does_not_raise_the_smoothed_loss_before_it():
    losses = [3.0] * 20 + [1.0] * 10 + [1e9]
    assert smooth(np.array(losses))[:25] == pytest.approx(smooth(np.array(losses[:-1]))[:25], abs=0.1)


def test_a_loss_that_becomes_nan_ends_the_test_and_one_that_starts_as_nan_is_an_error():
    test = choose(RATES, [2.0, 1.5, 1.0, float("nan")])
    assert len(test.losses) == 3
    assert test.chosen == pytest.approx(RATES[2] / 10, rel=0.05)
    with pytest.raises(JobError, match="not finite before the first step"):
        choose(RATES, [float("nan")])


def test_a_run_finds_its_rate_keeps_the_plot_and_is_repeated_by_its_recipe(tmp_path: Path):
    source = write_idx(tmp_path / "idx")
    recipe = write_recipe(tmp_path / "r.toml", {"lr": "auto", "epochs": 1})
    run = linnaeus.train(source, str(recipe), out=tmp_path / "run", console=Console(quiet=True))
    assert (run.path / "lr-phase1.png").read_bytes()[:4] == b"\x89PNG"
    resolved = load_recipe(str(run.path)).phase[0].lr
    assert isinstance(resolved, float)
    again = linnaeus.train(source, str(run.path), out=tmp_path / "again", console=Console(quiet=True))
    assert again.valid == run.valid
    assert not (again.path / "lr-phase1.png").exists()


def test_only_auto_or_a_number(tmp_path: Path):
    with pytest.raises(UserError, match=r"phase\.1\.lr"):
        load_recipe(str(write_recipe(tmp_path / "r.toml", {"lr": "fast"})))
