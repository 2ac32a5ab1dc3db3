"""Read recipes by name or from a file, with overrides; every mistake in a recipe is one line of error."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from linnaeus.console import counted
from linnaeus.errors import UserError, did_you_mean, next_step, visible
from linnaeus.recipe.keys import expand, is_table, refuse_unused
from linnaeus.recipe.mistakes import explain
from linnaeus.recipe.renamed import with_present_names
from linnaeus.recipe.spec import Recipe

RECIPES = Path(__file__).parents[1] / "recipes"
LONGEST = 256 * 1024  # most characters of a recipe file; the packaged recipes have about two thousand
MOST_PARTS = 1000  # most parts of a dotted key


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def recipe_text(name: str) -> tuple[str, str]:
    """The TOML of a packaged recipe, a file or a run folder: (origin for error messages, text)."""
    packaged = RECIPES / f"{name}.toml"
    if name in recipe_names():
        return f"recipe {name}", packaged.read_text(encoding="utf-8")
    path = Path(name)
    try:
        # A run folder stands for its recipe, so a run can be repeated by naming it.
        if (path / "recipe.toml").is_file():
            path = path / "recipe.toml"
        if path.is_file():
            # TOML parses slowly; a data file given by mistake would take minutes.
            if path.stat().st_size > 4 * LONGEST:
                raise UserError(f"{path}: {path.stat().st_size:,} bytes, too large for a recipe; give a recipe file")
            return str(path), path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); give a recipe file") from None
    except OSError as error:
        raise UserError(
            f"recipe {name[:300]!r}: cannot be read ({error.strerror}); {next_step(error, 'give a name or a file')}"
        ) from None
    suggestion = did_you_mean(name, recipe_names())
    raise UserError(f"recipe {name!r}: no such file or recipe{suggestion}; `linnaeus recipes` lists all recipes")


def parse_toml(origin: str, text: str) -> dict[str, Any]:
    """Parse TOML. Raises UserError, which names `origin`, if the text is not TOML or too complex to be a recipe."""
    # tomllib takes quadratic time in the parts of a key: 40 kB would take seconds, a megabyte an hour.
    parts = max((piece.count(".") for line in text.split("\n") for piece in line.split("=")), default=0)
    if len(text) > LONGEST or parts > MOST_PARTS:
        reason = f"{len(text):,} characters" if len(text) > LONGEST else f"a key of {parts:,} parts"
        raise UserError(f"{origin}: not a recipe: {reason}")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number with too many digits is a plain ValueError
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{origin}: not TOML: {reason}") from None


def load_recipe(name: str, overrides: dict[str, Any] | None = None, epochs: list[int] | None = None) -> Recipe:
    """Read a built-in recipe or a recipe file.

    `overrides` maps dotted keys to values (`phase.1.lr`, or `lr` for all phases); `epochs` has one number per phase.
    Raises UserError that names the file, the key and the value.
    """
    origin, text = recipe_text(name)
    raw = with_present_names(parse_toml(origin, text))
    raw.setdefault("name", visible(Path(name).stem).replace("\\", "_").replace(":", "_") or "recipe")
    return override(raw, origin, overrides or {}, epochs)


def override(raw: dict[str, Any], origin: str, overrides: dict[str, Any], epochs: list[int] | None) -> Recipe:
    """Validate a parsed recipe with overrides, as `keys.expand` reads them, and the epochs of each phase."""
    for key, value in expand(raw, origin, overrides):
        _set(raw, key, value)
    refuse_unused(raw, origin, overrides)
    if epochs is not None:
        phases = raw.get("phase") or []
        if not (isinstance(phases, list) and all(isinstance(phase, dict) for phase in phases)):
            raise UserError(f"{origin}: phase: expected a list of tables, each with the heading [[phase]]")
        if len(epochs) != len(phases):
            numbers, form = ",".join(map(str, epochs)), ",".join("N" for _ in phases)
            raise UserError(
                f"--epochs {numbers}: {origin} has {counted(len(phases), 'phase')}; give one number for "
                f"each: --epochs {form}"
            )
        for phase, number in zip(phases, epochs, strict=True):
            phase["epochs"] = number
    return validate(raw, origin)


def without_recipe(error: UserError, name: str) -> str:
    """The message of a mistake in recipe `name` in terms of a setting, where the user has named no recipe."""
    message, prefix = str(error), f"recipe {name}: "
    if not message.startswith(prefix):
        return message
    mistake = message.removeprefix(prefix)
    # Keys that contradict each other are a mistake of their table, which nobody sets.
    return mistake if is_table(mistake.partition(":")[0]) else f"--set {mistake}"


def validate(raw: dict[str, Any], origin: str) -> Recipe:
    """Validate a parsed recipe. Raises UserError with the first mistake, as one line."""
    try:
        recipe = Recipe.model_validate(raw)
        recipe.model_dump_json()
    except ValidationError as error:
        raise UserError(f"{origin}: {explain(error)}") from None
    except PydanticSerializationError:  # the name of a file, which may have any bytes
        raise UserError(f"{origin}: a text that is not UTF-8; rename the file that it names") from None
    return recipe


def parse_setting(setting: str) -> tuple[str, Any]:
    """Parse `KEY=VALUE` of --set: the value is TOML, or else a string."""
    key, equals, value = setting.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set {setting!r}: expected KEY=VALUE, such as lr=1e-3 or phase.1.lr=1e-3")
    try:
        return key, parse_toml("--set", f"value = {value}")["value"]
    except UserError:
        return key, value.strip()


def parse_epochs(epochs: int | str | list[int] | None) -> list[int] | None:
    """`5`, `"5,2"` or [5, 2] -> the number of epochs of each phase."""
    if epochs is None or isinstance(epochs, list):
        return epochs
    parts = str(epochs).split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--epochs {epochs}: expected a number from 1 on, or one for each phase, such as 5,2")
    return [int(part) for part in parts]


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set the key `dotted` to `value`; phases are numbered from 1."""
    *parents, last = dotted.split(".")
    table: Any = raw
    for i, part in enumerate(parents):
        if isinstance(table, list):
            table = table[_phase_index(table, part, dotted)]
        else:
            _check_table(table, parents[:i], dotted)
            # Optional tables such as [phase.augment] may be absent in the recipe.
            table = table.setdefault(part, {})
    if isinstance(table, list):
        table[_phase_index(table, last, dotted)] = value
    else:
        _check_table(table, parents, dotted)
        table[last] = value


def _phase_index(phases: list[Any], part: str, dotted: str) -> int:
    """The index of the phase that `part` of a dotted key names."""
    if not part.isdigit() or not 1 <= int(part) <= len(phases):
        raise UserError(f"--set {dotted}: the recipe has phases 1 to {len(phases)}, not {part!r}")
    return int(part) - 1


def _check_table(table: Any, parts: list[str], dotted: str) -> None:
    """Raise UserError if the value at `parts` is not a table."""
    if not isinstance(table, dict):
        raise UserError(f"--set {dotted}: {'.'.join(parts)} is {table!r} and has no keys")
