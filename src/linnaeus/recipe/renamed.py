"""Recipe keys that had another name: files that users keep, such as those of runs, are read with the present names."""

from __future__ import annotations

from typing import Any

RENAMED = {
    "data.normalise": "normalize",
    "model.frozen": "frozen_precision",
    "phase.augment.trivial": "trivial_augment",
    "phase.schedule.rise": "pct_start",
    "phase.schedule.start_div": "div",
    "phase.schedule.end_div": "div_final",
}
"""Former dotted key, without the number of the phase -> the present name of its last part."""


def with_present_names(value: Any, place: str = "") -> Any:
    """A parsed recipe, or its part at `place`, with every key under its present name."""
    if isinstance(value, list) and place == "phase.":
        return [with_present_names(phase, place) for phase in value]
    if not isinstance(value, dict) or not any(key.startswith(place) for key in RENAMED):
        return value
    return {
        RENAMED.get(f"{place}{key}", key): with_present_names(part, f"{place}{key}.") for key, part in value.items()
    }
