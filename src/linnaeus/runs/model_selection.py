"""What chose the model of a run: validation among several epochs, or held-out training images for a solved head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from linnaeus.console import counted

METRICS = {"balanced_accuracy": "balanced accuracy", "loss": "log loss", "map": "mAP"}
"""Recipe name of a metric -> its name in a sentence, where they differ."""


def sweep_note(trials: int, on_test: bool) -> str:
    """What to know of the figures where a sweep selected the recipe on the same images; `on_test`: the test images."""
    split = "test" if on_test else "validation"
    return (
        f"a sweep of {counted(trials, 'trial')} selected this recipe on these images, so the {split} figures are "
        "optimistic, and their intervals do not account for it"
    )


@dataclass(frozen=True)
class ModelSelection:
    """What chose the model of a run, in words for terminal, report and model card."""

    by: str  # the validation metric that selects among epochs: `accuracy`, `balanced_accuracy`, `loss` or `map`
    phase: int  # phase of the kept model, from 1
    epoch: int  # from 1, inside the phase
    epochs: int  # number of models that were compared on validation: the epochs, and 1 for each solved head
    solved: bool  # whether the phase of the kept model solved its head (`head = "auto"`)
    trials: int = 0  # of a sweep that compared them on the same images to select the recipe; 0 without a sweep

    @classmethod
    def of(cls, recipe: Mapping[str, Any], best: Mapping[str, Any], epochs: int) -> ModelSelection:
        """From a resolved recipe, `best` of metrics.json (may be empty), and the number of rows of history.csv."""
        phase, phases = int(best.get("phase", 1)), recipe.get("phase") or [{}]
        solved = phase <= len(phases) and phases[phase - 1].get("head") == "auto"
        trials = int((recipe.get("sweep") or {}).get("trials", 0))
        return cls(str(best.get("by", "accuracy")), phase, int(best.get("epoch", 1)), epochs, solved, trials)

    @property
    def by_validation(self) -> bool:
        """Whether validation images chose the model, which makes its figures on them slightly optimistic."""
        return self.epochs > 1

    @property
    def place(self) -> str:
        """The phase, and the epoch if the phase has epochs."""
        return f"phase {self.phase}, " + ("the solved head" if self.solved else f"epoch {self.epoch}")

    @property
    def title(self) -> str:
        """What `str(self)` describes, in a word or two."""
        if self.solved:
            return "Best model" if self.by_validation else "Head"
        return "Best epoch" if self.by_validation else "Epoch"

    def __str__(self) -> str:
        if self.by_validation:
            return f"{self.place}, by {METRICS.get(self.by, self.by)} on validation"
        return (
            "solved in one step; its penalty was chosen on held-out training images" if self.solved else "the only one"
        )

    @property
    def of_sweep(self) -> str:
        """How a sweep selected the recipe; empty without one."""
        return f"a sweep of {counted(self.trials, 'trial')} selected the recipe on them" if self.trials else ""

    @property
    def sentence(self) -> str:
        """The role of the validation images."""
        if self.by_validation:
            sentence = f"The {self.title.lower()} was selected on validation images"
            return f"{sentence}, and {self.of_sweep}" if self.trials else sentence
        chosen = (
            "The penalty of the head was chosen on held-out training images"
            if self.solved
            else "There was only one epoch"
        )
        if self.trials:
            return f"{chosen}; validation images chose the temperature and the thresholds, and {self.of_sweep}"
        return f"{chosen}; validation images chose only the temperature and the thresholds"
