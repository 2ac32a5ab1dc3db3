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
    """A parsed recipe, or its part at `place`, with every key under its present name.

    A former key beside its present one keeps its name, so that the recipe is refused: either value could be meant.
    """
    if isinstance(value, list) and place == "phase.":
        return [with_present_names(phase, place) for phase in value]
    if not isinstance(value, dict) or not any(key.startswith(place) for key in RENAMED):
        return value
    renamed = {}
    for key, part in value.items():
        present = RENAMED.get(f"{place}{key}", key)
        renamed[key if present in value else present] = with_present_names(part, f"{place}{key}.")
    return renamed
