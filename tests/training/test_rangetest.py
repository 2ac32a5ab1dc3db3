"""lr = "auto": the range test finds a rate that trains, and does not change the network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
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
from linnaeus.training.tuning.rangetest import DIVERGED, STEPS, choose, range_test, smooth

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
        loss[factor] = min(epoch.train_loss for epoch in fit(phase_run(mini(), trained, data), engine))
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
    assert "a tenth of the largest rate at which the loss did not rise" in test.reason


def test_a_loss_that_falls_to_the_end_of_the_range_has_no_lowest_point():
    """As when a few images are memorized: half of the fall is reached at 1e-4, and 1e-2 would be far too high."""
    losses = 3 / (1 + (RATES / 1e-4) ** 1.5)
    test = choose(RATES, list(losses))
    assert 0.5e-4 < test.chosen < 2e-4
    assert "half of its total decrease" in test.reason


def test_a_trained_network_gets_a_tenth_of_the_largest_harmless_rate():
    losses = 0.5 + 50 * np.maximum(0, RATES - 1e-3)
    test = choose(RATES, list(losses))
    assert 0.9e-4 < test.chosen < 4e-4, test
    assert "did not rise" in test.reason


def curves(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Losses of range tests: falls by 0 to 100 %, many of about the 10 % that may be noise, then a rise, or none."""
    decades = np.log10(RATES)
    for fall in (*rng.uniform(0, 1, 10), *rng.uniform(0.02, 0.3, 30)):
        middle, slope = rng.uniform(-5.5, -2), rng.uniform(0.5, 6)
        fallen = fall / (1 + 10 ** (-slope * (decades - middle)))
        rise = rng.choice([0.0, 1.0]) * rng.uniform(0.1, 20) * np.maximum(0, decades - middle - rng.uniform(0, 2)) ** 2
        noise = rng.choice([0.0, 0.01, 0.05]) * rng.normal(size=STEPS)
        losses = rng.uniform(0.1, 5) * (1 - fallen + rise) * np.exp(noise)
        ended = np.flatnonzero(losses > DIVERGED * np.minimum.accumulate(losses) + 1)
        yield losses[: ended[0] + 1] if len(ended) else losses


@pytest.mark.parametrize(("rounding", "most"), [(1e-6, 1.001), (1e-4, 1.03), (1e-3, 1.3)])
def test_rounding_moves_the_rate_no_further_than_the_losses(rounding: float, most: float):
    """Another processor rounds differently. The old rule jumped by a factor of 8 at a fall of 10 %, and by up to 55."""
    rng = np.random.default_rng(0)
    for losses in curves(rng):
        rate = choose(RATES, list(losses)).exact
        for _ in range(5):
            moved = choose(RATES, list(losses * np.exp(rounding * rng.normal(size=len(losses))))).exact
            assert 1 / most < moved / rate < most, (rate, moved, losses)


def test_the_rate_does_not_jump_as_the_fall_grows():
    """From a network that is good already to one that learns: the rule changes, the rate only gradually."""
    decades = np.log10(RATES)
    for middle in (-5.0, -4.0, -3.0, -2.0):
        shape = 1 / (1 + 10 ** (-3 * (decades - middle)))
        rise = 2 * np.maximum(0, decades + 1.7) ** 2
        rates = [choose(RATES, list(2 - 2 * fall * shape + rise)).exact for fall in np.linspace(0, 0.6, 601)]
        assert max(np.abs(np.diff(np.log(rates)))) < np.log(1.1)


def test_a_step_more_or_less_before_the_end_changes_little():
    """Whether a loss near the limit ends the test depends on rounding."""
    decades = np.log10(RATES)
    losses = 2 - 1.5 / (1 + 10 ** (-3 * (decades + 4))) + 40 * np.maximum(0, decades + 3) ** 2
    end = int(np.flatnonzero(losses > DIVERGED * losses.min() + 1)[0])
    rates = [choose(RATES, list(losses[: end + more])).exact for more in (1, 2, 3)]
    assert max(rates) < 1.2 * min(rates)


def test_a_loss_of_zero_is_a_small_loss():
    losses = [*np.linspace(2, 0.001, 20), 0.0, 1e-9, 0.0, 0.5, 2.0, 5.0]
    other = [*losses[:20], 1e-8, 0.0, 1e-7, *losses[23:]]
    assert choose(RATES, losses).exact == pytest.approx(choose(RATES, other).exact, rel=0.01)


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
