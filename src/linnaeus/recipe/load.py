"""Reading recipes: by name or from a file, with overrides, and one line for whatever is wrong with one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from linnaeus.errors import UserError, did_you_mean, visible
from linnaeus.recipe.spec import (
    Augment,
    Constant,
    Cosine,
    Data,
    HeadOf,
    Model,
    OneCycle,
    Phase,
    Plateau,
    Recipe,
    Split,
    Step,
)

RECIPES = Path(__file__).parents[1] / "recipes"
LONGEST = 256 * 1024  # characters; ours have two thousand
MOST_PARTS = 1000


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def recipe_text(name: str) -> tuple[str, str]:
    """The TOML of a recipe that comes with the package, or of a file: (origin to name in errors, text)."""
    packaged = RECIPES / f"{name}.toml"
    if name in recipe_names():
        return f"recipe {name}", packaged.read_text(encoding="utf-8")
    path = Path(name)
    try:
        if (path / "recipe.toml").is_file():
            path = path / "recipe.toml"
        if path.is_file():
            if path.stat().st_size > 4 * LONGEST:
                raise UserError(f"{path}: {path.stat().st_size:,} bytes are too many for a recipe; is it one?")
            return str(path), path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); is it a recipe?") from None
    except OSError as error:
        raise UserError(f"recipe {name[:80]!r}: cannot be read ({error.strerror}); give a name or a file") from None
    near = did_you_mean(name, recipe_names())
    raise UserError(f"recipe {name!r} is neither a file nor one of the recipes{near}: `linnaeus recipes` lists them")


def parse_toml(origin: str, text: str) -> dict[str, Any]:
    """What a TOML text holds. Raises UserError naming its origin."""
    # Python's reader takes the square of a key's parts: a file of 40 kB would take seconds, one of a megabyte an hour.
    parts = max((piece.count(".") for line in text.split("\n") for piece in line.split("=")), default=0)
    if len(text) > LONGEST or parts > MOST_PARTS:
        what = f"{len(text):,} characters" if len(text) > LONGEST else f"a key of {parts:,} parts"
        raise UserError(f"{origin}: not a recipe, nor a part of one: {what}")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{origin}: not TOML: {reason}") from None


def load_recipe(name: str, overrides: dict[str, Any] | None = None, epochs: list[int] | None = None) -> Recipe:
    """Read a recipe by name or file, with dotted overrides (`phase.1.lr`) and a number of epochs for each phase.

    Raises UserError naming the origin, the key and the value.
    """
    origin, text = recipe_text(name)
    raw = parse_toml(origin, text)
    raw.setdefault("name", visible(Path(name).stem).replace("\\", "_").replace(":", "_") or "recipe")
    return override(raw, origin, overrides or {}, epochs)


def override(raw: dict[str, Any], origin: str, overrides: dict[str, Any], epochs: list[int] | None) -> Recipe:
    """A Recipe from what a TOML file held, with dotted overrides and a number of epochs for each phase."""
    for key, value in overrides.items():
        _set(raw, key, value)
    if epochs is not None:
        phases = raw.get("phase") or []
        if not (isinstance(phases, list) and all(isinstance(phase, dict) for phase in phases)):
            raise UserError(f"{origin}: phase: expected a list of tables, each under [[phase]]")
        if len(epochs) != len(phases):
            given, form = ",".join(map(str, epochs)), ",".join("N" for _ in phases)
            raise UserError(f"--epochs {given}: {origin} has {len(phases)} phase(s); give a number for each, as {form}")
        for phase, number in zip(phases, epochs, strict=True):
            phase["epochs"] = number
    return validate(raw, origin)


def validate(raw: dict[str, Any], origin: str) -> Recipe:
    """A Recipe from what a TOML file held. Raises UserError with the first thing wrong, as one line."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{origin}: {_explain(error)}") from None


def parse_setting(setting: str) -> tuple[str, Any]:
    """`KEY=VALUE` of --set: the value is TOML, and a bare word is a string."""
    key, equals, value = setting.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set {setting!r}: expected KEY=VALUE, as in data.size=288 or phase.1.lr=1e-3")
    try:
        return key, parse_toml("--set", f"value = {value}")["value"]
    except UserError:
        return key, value.strip()


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Put `value` at `dotted`, where a number after `phase` counts from 1."""
    parts = dotted.split(".")
    at: Any = raw
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(at, list):
            if not part.isdigit() or not 1 <= int(part) <= len(at):
                raise UserError(f"--set {dotted}: there are phases 1 to {len(at)}, not {part!r}")
            if last:
                at[int(part) - 1] = value
            else:
                at = at[int(part) - 1]
        elif not isinstance(at, dict):
            raise UserError(f"--set {dotted}: {'.'.join(parts[:i])} is {at!r} and has no keys")
        elif last:
            at[part] = value
        else:
            at = at.setdefault(part, {})


def _explain(error: ValidationError) -> str:
    """The first of pydantic's findings as one line with the key as the user writes it."""
    # A misspelt key comes first: it is the cause where the right one is missing.
    first = min(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
    # A discriminated union puts the chosen name into the location, where the user wrote no such key.
    place = [part for part in first["loc"] if not (isinstance(part, str) and part in _SCHEDULES)]
    key = ".".join(str(part + 1) if isinstance(part, int) else part for part in place)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(str(place[-1]), _ALL_KEYS)}{more}"
    if first["type"] == "missing":
        return f"{key}: missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    value = "" if isinstance(first["input"], dict | list) else f" = {first['input']!r}"
    return f"{key}{value}: {message}{more}" if key else f"{message}{more}"


_PARTS = (Recipe, Model, HeadOf, Data, Split, Phase, Augment, Constant, Step, Plateau, Cosine, OneCycle)
_ALL_KEYS = sorted({key for part in _PARTS for key in part.model_fields})
_SCHEDULES = ("constant", "step", "plateau", "cosine", "onecycle")
