"""The best model of a run so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from linnaeus.metrics.classification import Figures
from linnaeus.models import Network


@dataclass
class Best:
    """The best model so far, over all phases."""

    by: str
    figures: Figures | None = None
    phase: int = 0
    epoch: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    def beaten_by(self, figures: Figures) -> bool:
        """Better by the recipe's measure; ties go to the lower loss, then to the earlier epoch."""
        return self.figures is None or self._key(figures) > self._key(self.figures)

    def _key(self, figures: Figures) -> tuple[float, float]:
        value = -figures.loss if self.by == "loss" else getattr(figures, self.by)
        return value, -figures.loss

    def keep(self, figures: Figures, phase: int, epoch: int, model: Network, trained: tuple[str, ...]) -> None:
        """Remember `model`. Only the stages that train have to be copied again."""
        self.figures, self.phase, self.epoch = figures, phase, epoch
        for name, tensor in model.state_dict().items():
            if name not in self.state or model.stage_of(name) in trained:
                self.state[name] = tensor.detach().clone()
