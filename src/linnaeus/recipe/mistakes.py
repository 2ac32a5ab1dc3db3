"""The mistakes that pydantic finds in a recipe, in our own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from linnaeus.console import counted
from linnaeus.errors import did_you_mean
from linnaeus.recipe.keys import explain_unknown

MOST = 5  # mistakes that are told at once
SCHEDULES = ("constant", "step", "plateau", "cosine", "onecycle")
UNION = ("float", "str")  # what pydantic adds to the location of a key that may have either type
Context = Mapping[str, Any]

EXPECTED: dict[str, str] = {
    "bool": "true or false",
    "dict": "a table",
    "finite_number": "a finite number",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "model": "a table",
    "model_attributes": "a table",
    "string": "text in quotes",
    "tuple": "a list",
    "union_tag_not_found": 'a table with a name, such as { name = "cosine" }',
}
"""Beginning of the type of an error -> what was expected."""
LIMITS: dict[str, Callable[[Context], str]] = {
    "greater_than": lambda context: f"a number above {context['gt']:g}",
    "greater_than_equal": lambda context: f"{context['ge']:g} or more",
    "less_than": lambda context: f"a number below {context['lt']:g}",
    "less_than_equal": lambda context: f"{context['le']:g} or less",
    "literal_error": lambda context: str(context["expected"]).replace("'", '"'),
    "too_short": lambda context: f"at least {counted(context['min_length'], 'value')}",
    "too_long": lambda context: f"at most {counted(context['max_length'], 'value')}",
    "string_too_short": lambda context: f"at least {counted(context['min_length'], 'character')}",
    "string_too_long": lambda context: f"at most {context['max_length']} characters",
    "union_tag_invalid": lambda context: f"{', '.join(SCHEDULES)}, not {context['tag']!r}",
    "missing": lambda context: "a value",
}
"""Type of an error -> what was expected, from its limits."""


def explain(error: ValidationError) -> str:
    """The first MOST mistakes as one line, with the keys as the user writes them."""
    # Unknown keys come first: a misspelled key is the cause of the one that is missing.
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
    mistakes: dict[str, str] = {}
    for detail in details:  # a key that may have several types has a mistake for each of them
        mistakes.setdefault(key := _key(detail), _mistake(key, detail))
    more = f" (and {len(mistakes) - MOST} more)" if len(mistakes) > MOST else ""
    return f"{'; '.join(list(mistakes.values())[:MOST])}{more}"


def _key(detail: Mapping[str, Any]) -> str:
    # A discriminated union adds the chosen name to the location, which is not a key of the recipe.
    place = [part for part in detail["loc"] if not (isinstance(part, str) and part in (*SCHEDULES, *UNION))]
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in place)


def _mistake(key: str, detail: Mapping[str, Any]) -> str:
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key{explain_unknown(key)}"
    if detail["type"] == "missing":
        complete = "; `linnaeus recipes photos` prints a complete recipe" if key in ("model", "data") else ""
        return f"{key}: missing{complete}"
    value = "" if isinstance(detail["input"], dict | list) else f" = {detail['input']!r}"
    return f"{key}{value}: {reason(detail)}" if key else reason(detail)


def reason(detail: Mapping[str, Any]) -> str:
    """What was expected instead of the value."""
    kind, context = str(detail["type"]), detail.get("ctx", {})
    if kind in LIMITS:
        hint = ""
        if kind == "literal_error" and isinstance(detail["input"], str):
            hint = did_you_mean(detail["input"], [word.strip("'") for word in context["expected"].split(" ")])
        return f"expected {LIMITS[kind](context)}{hint}"
    expected = EXPECTED.get(kind) or EXPECTED.get(kind.partition("_")[0])
    return f"expected {expected}" if expected else str(detail["msg"]).removeprefix("Value error, ")
