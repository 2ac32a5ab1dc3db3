"""The interval of checkpoints, as `--checkpoint-every` gives it."""

from __future__ import annotations

from dataclasses import dataclass

from linnaeus.errors import UserError


@dataclass(frozen=True)
class CheckpointInterval:
    """Time or number of steps between two checkpoints; neither: as often as TIME_SHARE allows."""

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> CheckpointInterval:
        """Parse `auto`, `30s`, `5min` or `100steps`."""
        if text == "auto":
            return cls()
        for unit, seconds in (("steps", 0), ("step", 0), ("min", 60), ("s", 1)):
            number = text.removesuffix(unit).strip()
            if text.endswith(unit) and number.isdigit() and int(number) > 0:
                return cls(seconds=float(number) * seconds) if seconds else cls(steps=int(number))
        raise UserError(
            f"--checkpoint-every {text}: expected auto, a time such as 5min, or a number of steps such as 100steps"
        )
