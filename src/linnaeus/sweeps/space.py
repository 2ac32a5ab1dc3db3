"""The space of a sweep: which keys of a recipe vary, and over what; read from strict TOML.

    "phase.1.lr" = { low = 1e-4, high = 1e-1, log = true }      numbers between two, on a logarithmic scale
    "phase.1.epochs" = { low = 5, high = 30, step = 5 }         whole numbers, where both ends are
    "phase.1.optimizer" = { choices = ["sgd", "adamw"] }        any values that TOML has, tables too

Any other entry is refused.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linnaeus.errors import UserError, did_you_mean
from linnaeus.recipe import Recipe, override, parse_toml

KEYS = ("low", "high", "log", "step", "choices")
TRIED = 50  # random draws of the other keys, among which one must agree with each value
MEASURES = ("name", "best", "data.train", "data.valid", "data.test", "data.split")
"""What decides which images a trial is measured on, and how; trials that differ in it cannot be compared."""


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int)

    @property
    def count(self) -> int | None:
        """How many values there are; None where they are not counted."""
        if self.step is not None:
            return round((self.high - self.low) / self.step) + 1
        return int(self.high - self.low) + 1 if self.whole else None

    @property
    def ends(self) -> tuple[Any, ...]:
        return (self.low, self.high)

    def values(self) -> list[Any]:
        """All values of an interval that can be counted."""
        assert self.count is not None
        return [self.low + k * (1 if self.step is None else self.step) for k in range(self.count)]

    def value(self, drawn: Any) -> Any:
        return drawn

    def draw(self, generator: random.Random) -> Any:
        if self.count is not None:
            return self.low + generator.randrange(self.count) * (1 if self.step is None else self.step)
        if self.log:
            return math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return generator.uniform(self.low, self.high)

    def describe(self) -> dict[str, Any]:
        given = {"low": self.low, "high": self.high, "log": self.log or None, "step": self.step}
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class Choices:
    """One of several values. A value that is no word stands in the study as its JSON text, since it knows no tables."""

    given: tuple[Any, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label(value) for value in self.given)

    @property
    def count(self) -> int:
        return len(self.given)

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.given

    def values(self) -> list[str]:
        """All of them, as they stand in the study."""
        return list(self.labels)

    def value(self, drawn: str) -> Any:
        return deepcopy(self.given[self.labels.index(drawn)])

    def draw(self, generator: random.Random) -> Any:
        return generator.choice(self.given)

    def describe(self) -> dict[str, Any]:
        return {"choices": list(self.given)}


Dimension = Interval | Choices
Space = dict[str, Dimension]
"""Dotted key of the recipe -> what it takes."""


def load_space(given: str | Path | Mapping[str, Any], recipe: Recipe, settings: Mapping[str, Any]) -> Space:
    """Read a space from a TOML file, or from what such a file holds, and try every value of it on `recipe`.

    `settings` are fixed overrides that the recipe has already. Raises UserError naming the file, the key and the value.
    """
    origin = "space" if isinstance(given, Mapping) else str(given)
    space = {key: _dimension(origin, key, value) for key, value in _leaves(origin, _read(given))}
    if not space:
        raise UserError(f'{origin}: no key varies; write one a line, as "phase.1.lr" = {{ low = 1e-4, high = 0.1 }}')
    for key in space:
        _check_key(origin, key, space, settings)
    raw = recipe.model_dump(mode="json", exclude_none=True)
    generator = random.Random(0)
    for key, dimension in space.items():
        for value in dimension.ends:
            _check_value(origin, key, value, space, raw, generator)
    return space


def settings_of(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial drew -> overrides for its recipe."""
    return {key: dimension.value(drawn[key]) for key, dimension in space.items()}


def combinations(space: Space) -> int | None:
    """How many different trials there are; None where they are not counted."""
    counts = [dimension.count for dimension in space.values()]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def every_combination(space: Space) -> Iterator[dict[str, Any]]:
    """All trials of a space that can be counted, as they stand in the study."""
    for values in itertools.product(*(dimension.values() for dimension in space.values())):
        yield dict(zip(space, values, strict=True))


def label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _read(given: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    path = Path(given)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); give a TOML file of ranges") from None
    return parse_toml(str(path), text)


def _leaves(origin: str, tables: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, what it takes): keys may be quoted, or stand in tables, as TOML reads dots."""
    for name, value in tables.items():
        key = f"{above}{name}"
        if not isinstance(value, dict):
            raise UserError(
                f"{origin}: {key} = {value!r}: expected a range or choices, as {{ low = 1, high = 5 }}; a value that "
                "does not vary belongs into the recipe, or --set"
            )
        if not value or set(value) & set(KEYS) or not all(isinstance(inner, dict) for inner in value.values()):
            yield key, value
        else:
            yield from _leaves(origin, value, f"{key}.")


def _dimension(origin: str, key: str, given: dict[str, Any]) -> Dimension:
    where = f"{origin}: {key}"
    for name in given:
        if name not in KEYS:
            raise UserError(f"{where}: unknown key {name!r}{did_you_mean(name, KEYS)}; use {', '.join(KEYS)}")
    if "choices" in given:
        if len(given) > 1:
            raise UserError(
                f"{where}: choices and {', '.join(sorted(set(given) - {'choices'}))}; give one or the other"
            )
        return _choices(where, given["choices"])
    for name in ("low", "high"):
        if name not in given:
            raise UserError(f"{where}: {name} is missing; give low and high, or choices")
    return _interval(where, given)


def _choices(where: str, given: Any) -> Choices:
    if not isinstance(given, list) or len(given) < 2:
        raise UserError(f"{where}: choices = {given!r}: expected a list of two or more")
    try:
        found = Choices(tuple(given))
        labels = found.labels
    except (TypeError, ValueError):  # a date
        raise UserError(f"{where}: choices = {given!r}: no recipe takes such a value") from None
    for i, text in enumerate(labels):
        if text in labels[:i]:
            raise UserError(f"{where}: choices = {given!r}: {text} stands there twice; remove one")
    return found


def _interval(where: str, given: dict[str, Any]) -> Interval:
    for name in ("low", "high", "step"):
        value = given.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{where}: {name} = {value!r}: expected a number")
    log = given.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{where}: log = {log!r}: expected true or false")
    low, high, step = given["low"], given["high"], given.get("step")
    if low >= high:
        raise UserError(f"{where}: low = {low!r} is not below high = {high!r}")
    if log and low <= 0:
        raise UserError(f"{where}: low = {low!r}: a logarithmic scale begins above 0")
    if log and step is not None:
        raise UserError(f"{where}: step = {step!r}: a logarithmic scale has no even steps; leave out step or log")
    if not all(isinstance(value, int) for value in (low, high, 1 if step is None else step)):
        low, high, step = float(low), float(high), None if step is None else float(step)
    if step is not None:
        steps = (high - low) / step
        if step <= 0 or steps < 1 or abs(steps - round(steps)) > 1e-9 * steps:
            raise UserError(f"{where}: step = {step!r}: does not lead from {low!r} to {high!r} in whole steps")
    return Interval(low, high, log, step)


def _check_key(origin: str, key: str, space: Space, settings: Mapping[str, Any]) -> None:
    for measured in MEASURES:
        if key == measured or key.startswith(measured + "."):
            raise UserError(
                f"{origin}: {key}: decides what trials are measured on, and they could not be compared; fix it by --set"
            )
    for other in [*settings, *(name for name in space if name != key)]:
        if key == other or key.startswith(other + ".") or other.startswith(key + "."):
            how = f"--set {other} fixes" if other in settings else f"{other} varies"
            raise UserError(f"{origin}: {key}: {how} it too; keep one of the two")


def _check_value(
    origin: str, key: str, value: Any, space: Space, raw: dict[str, Any], generator: random.Random
) -> None:
    """Raise UserError where `value` is wrong, whatever the other keys are."""
    wrong: UserError | None = None
    for attempt in range(TRIED + 1):
        others = {name: at.draw(generator) for name, at in space.items() if name != key} if attempt else {}
        try:
            override(deepcopy(raw), origin, {**others, key: deepcopy(value)}, None)
            return
        except UserError as error:
            wrong = wrong or error
    assert wrong is not None
    what = str(wrong).removeprefix(f"{origin}: ").removeprefix("--set ")
    if not what.startswith(f"{key} = "):  # it names the key at most: the value belongs to the line
        what = f"{key} = {label(value)}: {what.removeprefix(f'{key}: ')}"
    raise UserError(f"{origin}: {what}")
