"""Importance of the keys of a search space for the result, as far as the trials show it."""

from __future__ import annotations

import random
import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import optuna

FEWEST = 4  # complete trials below which nothing is said
SHUFFLES = 19
"""Random assignments of the results to the trials: the real one is above all of them by chance once in twenty times."""


def importances(trials: list[optuna.trial.FrozenTrial], direction: optuna.study.StudyDirection) -> dict[str, float]:
    """Dotted key -> its share of the effect on the objective, in 0..1; they sum to 1.

    By PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) on the best quarter of the complete trials. Shares look
    informative even where no key has an effect: with 20 trials of 3 keys that do nothing, the largest share is 64 % in
    the median. So they are empty unless the largest effect is above that of all random assignments of the results; also
    with fewer than two keys, with too few trials, and where most trials are equal.
    """
    if len(trials) < FEWEST or len({t.value for t in trials}) < 2 or len(trials[0].params) < 2:
        return {}
    effects = _effects(trials, [t.value for t in trials], direction)
    generator = random.Random(0)
    for _ in range(SHUFFLES if effects else 0):
        values = [t.value for t in trials]
        generator.shuffle(values)
        by_chance = _effects(trials, values, direction)
        if max(by_chance.values(), default=0.0) >= max(effects.values()):
            return {}
    total = sum(effects.values())
    return {key: effect / total for key, effect in effects.items()}


def _effects(
    trials: list[optuna.trial.FrozenTrial], values: list[float | None], direction: optuna.study.StudyDirection
) -> dict[str, float]:
    """Key -> its effect, if the trials had these values; empty where it cannot be computed. The largest comes first."""
    import optuna

    with warnings.catch_warnings():
        # Optuna warns if the best quarter comprises all trials, which happens where many are equal.
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # The best quarter: with the default tenth, a sweep of twenty trials would depend on two of them.
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        study = optuna.create_study(direction=direction)
        study.add_trials(
            [
                optuna.trial.create_trial(params=t.params, distributions=t.distributions, value=value)
                for t, value in zip(trials, values, strict=True)
            ]
        )
        try:
            effects = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)
        except UserWarning:
            return {}
    return {key: float(effect) for key, effect in effects.items() if np.isfinite(effect)}
