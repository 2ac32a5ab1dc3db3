"""Importance of the keys of a sweep: shares only where chance does not explain them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from linnaeus.sweeps.importance import importances

optuna = pytest.importorskip("optuna")
MAXIMIZE = optuna.study.StudyDirection.MAXIMIZE


def trials(seed: int, keys: str, value: Callable[[dict[str, float], random.Random], float], n: int = 20):
    generator = random.Random(seed)
    distributions = {key: optuna.distributions.FloatDistribution(0, 1) for key in keys}
    made = []
    for _ in range(n):
        params = {key: generator.random() for key in keys}
        result = value(params, generator)
        made.append(optuna.trial.create_trial(params=params, distributions=distributions, value=result))
    return made


def test_keys_without_any_effect_have_no_share():
    found = [importances(trials(seed, "abc", lambda params, chance: chance.random()), MAXIMIZE) for seed in range(8)]
    assert sum(map(bool, found)) <= 2


def test_a_key_with_an_effect_has_the_largest_share():
    for seed in range(3):
        found = importances(trials(seed, "abc", lambda params, chance: params["b"] + 0.01 * chance.random()), MAXIMIZE)
        assert next(iter(found)) == "b"
        assert found["b"] > 0.5
        assert sum(found.values()) == pytest.approx(1)


def test_nothing_is_said_of_one_key_or_few_trials():
    assert importances(trials(0, "b", lambda params, chance: params["b"]), MAXIMIZE) == {}
    assert importances(trials(0, "ab", lambda params, chance: params["b"], n=3), MAXIMIZE) == {}
