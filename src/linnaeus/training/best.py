"""The best model of a run so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from linnaeus.metrics.multilabel import Headline
from linnaeus.models import Network


@dataclass
class Best:
    """The best model over all phases so far, and the validation metrics that chose it."""

    by: str  # the metric that decides: `accuracy`, `balanced_accuracy`, `loss` or `map`
    figures: Headline | None = None  # validation metrics; None before the first epoch
    phase: int = 0  # from 1
    epoch: int = 0  # from 1, inside the phase
    state: dict[str, Tensor] = field(default_factory=dict)  # the tensors of the network

    def __repr__(self) -> str:
        """Without the tensors, which would fill the screen."""
        return f"Best(by {self.by}, phase {self.phase}, epoch {self.epoch})" if self.figures else f"Best(by {self.by})"

    def beaten_by(self, figures: Headline) -> bool:
        """Whether `figures` are better; ties go to the lower loss, then to the earlier epoch."""
        return self.figures is None or self._key(figures) > self._key(self.figures)

    def _key(self, figures: Headline) -> tuple[float, float]:
        value = -figures.loss if self.by == "loss" else getattr(figures, self.by)
        return value, -figures.loss

    def keep(self, figures: Headline, phase: int, epoch: int, model: Network, trained: tuple[str, ...]) -> None:
        """Copy `model`, of which only the `trained` stages have changed since the last copy."""
        self.figures, self.phase, self.epoch = figures, phase, epoch
        for name, tensor in model.state_dict().items():
            if name not in self.state or model.stage_of(name) in trained:
                self.state[name] = tensor.detach().clone()
