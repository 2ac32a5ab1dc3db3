"""The search space of a sweep: the recipe keys that vary and their values, read from TOML.

    "phase.1.lr" = { low = 1e-4, high = 1e-1, log = true }      a range of numbers, here on a logarithmic scale
    "phase.1.epochs" = { low = 5, high = 30, step = 5 }         a range of integers, because both bounds are integers
    "phase.1.optimizer" = { choices = ["sgd", "adamw"] }        a list of TOML values of any type, including tables

Any other entry is an error.
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
ATTEMPTS = 50  # random settings of the other keys, at least one of which must be valid with a value
FIXED = ("name", "best", "data.train", "data.valid", "data.test", "data.split")
"""Keys that must not vary: they decide how and on which images a trial is evaluated, so trials would not be
comparable."""


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both inclusive."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether the values are integers."""
        return isinstance(self.low, int)

    @property
    def count(self) -> int | None:
        """Number of values; None for a continuous range."""
        if self.step is not None:
            return round((self.high - self.low) / self.step) + 1
        return int(self.high - self.low) + 1 if self.whole else None

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that `load_space` tries."""
        return (self.low, self.high)

    @property
    def between(self) -> float:
        """A value of a real range that is neither end nor, without a step, a whole number."""
        return self.low + (self.step or (self.high - self.low) / math.pi)

    def values(self) -> list[Any]:
        """All values of a finite range."""
        assert self.count is not None
        return [self.low + k * (1 if self.step is None else self.step) for k in range(self.count)]

    def value(self, drawn: Any) -> Any:
        """The value for the recipe from the parameter in the study."""
        return drawn

    def draw(self, generator: random.Random) -> Any:
        """A random value."""
        if self.count is not None:
            return self.low + generator.randrange(self.count) * (1 if self.step is None else self.step)
        if self.log:
            return math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return generator.uniform(self.low, self.high)

    def describe(self) -> dict[str, Any]:
        """The entry as in the TOML file."""
        entry = {"low": self.low, "high": self.high, "log": self.log or None, "step": self.step}
        return {key: value for key, value in entry.items() if value is not None}


@dataclass(frozen=True)
class Choices:
    """A list of values. The study stores strings only, so any other value is stored as its JSON text."""

    options: tuple[Any, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label(value) for value in self.options)

    @property
    def count(self) -> int:
        return len(self.options)

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.options

    def values(self) -> list[str]:
        """All values, as stored in the study."""
        return list(self.labels)

    def value(self, drawn: str) -> Any:
        return deepcopy(self.options[self.labels.index(drawn)])

    def draw(self, generator: random.Random) -> Any:
        return generator.choice(self.options)

    def describe(self) -> dict[str, Any]:
        return {"choices": list(self.options)}


Dimension = Interval | Choices
Space = dict[str, Dimension]  # dotted key of the recipe -> its range or choices


def load_space(space: str | Path | Mapping[str, Any], recipe: Recipe, settings: Mapping[str, Any]) -> Space:
    """Read a space from a TOML file or from its content, and check bounds and choices against `recipe`.

    `settings` are fixed overrides that `recipe` includes. Raises UserError naming the file, the key and the value.
    """
    origin = "space" if isinstance(space, Mapping) else str(space)
    dimensions = {key: _dimension(origin, key, entry) for key, entry in _entries(origin, _read(space))}
    if not dimensions:
        raise UserError(f'{origin}: no key varies; add a line such as "phase.1.lr" = {{ low = 1e-4, high = 0.1 }}')
    for key in dimensions:
        _check_key(origin, key, dimensions, settings)
    raw = recipe.model_dump(mode="json", exclude_none=True)
    generator = random.Random(0)
    for key, dimension in dimensions.items():
        # The ends stand for the range: keys of a recipe have bounds, and no gaps but those between whole numbers.
        for value in dimension.ends:
            _check_value(origin, key, value, dimensions, raw, generator)
        if isinstance(dimension, Interval) and not dimension.whole:
            try:
                _check_value(origin, key, dimension.between, dimensions, raw, generator)
            except UserError as error:
                raise UserError(f"{error}; it lies in the range: write low, high and step without a point") from None
    return dimensions


def settings_of(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a trial -> overrides of its recipe."""
    return {key: dimension.value(params[key]) for key, dimension in space.items()}


def combinations(space: Space) -> int | None:
    """Number of different trials; None if a range is continuous."""
    counts = [dimension.count for dimension in space.values()]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def every_combination(space: Space) -> Iterator[dict[str, Any]]:
    """The parameters of every trial of a finite space, as stored in the study."""
    for values in itertools.product(*(dimension.values() for dimension in space.values())):
        yield dict(zip(space, values, strict=True))


def label(value: Any) -> str:
    """A choice as stored in the study."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _read(space: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(space, Mapping):
        return dict(space)
    path = Path(space)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); --space must be a TOML file") from None
    return parse_toml(str(path), text)


def _entries(origin: str, tables: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, its entry): keys are quoted, or nested tables, which is how TOML reads unquoted dots."""
    for name, value in tables.items():
        key = f"{above}{name}"
        if not isinstance(value, dict):
            raise UserError(
                f"{origin}: {key} = {value!r}: expected a range or choices, such as {{ low = 1, high = 5 }}; set fixed "
                "values in the recipe or by --set"
            )
        if not value or set(value) & set(KEYS) or not all(isinstance(inner, dict) for inner in value.values()):
            yield key, value
        else:
            yield from _entries(origin, value, f"{key}.")


def _dimension(origin: str, key: str, entry: dict[str, Any]) -> Dimension:
    where = f"{origin}: {key}"
    for name in entry:
        if name not in KEYS:
            raise UserError(f"{where}: unknown key {name!r}{did_you_mean(name, KEYS)}; use {', '.join(KEYS)}")
    if "choices" in entry:
        if len(entry) > 1:
            raise UserError(f"{where}: choices and {', '.join(sorted(set(entry) - {'choices'}))}; use one or the other")
        return _choices(where, entry["choices"])
    for name in ("low", "high"):
        if name not in entry:
            raise UserError(f"{where}: {name} is missing; set low and high, or choices")
    return _interval(where, entry)


def _choices(where: str, options: Any) -> Choices:
    if not isinstance(options, list) or len(options) < 2:
        raise UserError(f"{where}: choices = {options!r}: expected a list of at least two values")
    try:
        choices = Choices(tuple(options))
        labels = choices.labels
    except (TypeError, ValueError):  # a date has no JSON text
        raise UserError(f"{where}: choices = {options!r}: a recipe cannot have such a value") from None
    for i, text in enumerate(labels):
        if text in labels[:i]:
            raise UserError(f"{where}: choices = {options!r}: {text} occurs twice; remove one")
    return choices


def _interval(where: str, entry: dict[str, Any]) -> Interval:
    for name in ("low", "high", "step"):
        value = entry.get(name, 1)
        # In Python, True is an int.
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{where}: {name} = {value!r}: expected a number")
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{where}: log = {log!r}: expected true or false")
    low, high, step = entry["low"], entry["high"], entry.get("step")
    if low >= high:
        raise UserError(f"{where}: low = {low!r} must be less than high = {high!r}")
    if log and low <= 0:
        raise UserError(f"{where}: low = {low!r}: a logarithmic range must start above 0")
    if log and step is not None:
        raise UserError(f"{where}: step = {step!r}: a logarithmic range has no steps; remove step or log")
    # One float makes the whole range real.
    if not all(isinstance(value, int) for value in (low, high, 1 if step is None else step)):
        low, high, step = float(low), float(high), None if step is None else float(step)
    if step is not None and step <= 0:
        raise UserError(f"{where}: step = {step!r}: expected a number above 0")
    if step is not None:
        steps = (high - low) / step
        # A tolerance, because 0.3 / 0.1 is not 3 in floating point.
        if steps < 1 or abs(steps - round(steps)) > 1e-9 * steps:
            raise UserError(f"{where}: step = {step!r}: does not divide the range from {low!r} to {high!r} evenly")
    return Interval(low, high, log, step)


def _check_key(origin: str, key: str, space: Space, settings: Mapping[str, Any]) -> None:
    for fixed in FIXED:
        if key == fixed or key.startswith(fixed + "."):
            raise UserError(f"{origin}: {key}: must not vary, or trials would not be comparable; set it by --set")
    for other in [*settings, *(name for name in space if name != key)]:
        if key == other or key.startswith(other + ".") or other.startswith(key + "."):
            conflict = f"--set {other} fixes" if other in settings else f"{other} varies"
            raise UserError(f"{origin}: {key}: {conflict} it too; keep one of the two")


def _check_value(
    origin: str, key: str, value: Any, space: Space, raw: dict[str, Any], generator: random.Random
) -> None:
    """Raise UserError if `value` is invalid with the recipe's other settings and with random ones from the space."""
    first: UserError | None = None
    for attempt in range(ATTEMPTS + 1):
        # A value may be valid only together with others, so random companions get a chance.
        others = {name: at.draw(generator) for name, at in space.items() if name != key} if attempt else {}
        try:
            override(deepcopy(raw), origin, {**others, key: deepcopy(value)}, None)
            return
        except UserError as error:
            first = first or error
    assert first is not None
    reason = str(first).removeprefix(f"{origin}: ").removeprefix("--set ")
    if not reason.startswith(f"{key} = "):  # the message lacks the value, which the user must see
        reason = f"{key} = {label(value)}: {reason.removeprefix(f'{key}: ')}"
    raise UserError(f"{origin}: {reason}")
