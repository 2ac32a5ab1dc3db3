"""--set KEY=VALUE, and --lr, --batch and --size, which are short for keys of the recipe."""

from __future__ import annotations

from typing import Any

import click

from linnaeus.cli.options import together
from linnaeus.errors import UserError

SHORTCUTS = "linnaeus.shortcuts"  # key of the values of --lr, --batch and --size, as TOML, in click's `Context.meta`

settings_option = click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a recipe key, such as lr=1e-3 or phase.1.lr=1e-3. Repeatable.",
)


def _store_shortcut(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None:
        context.meta.setdefault(SHORTCUTS, {})[parameter.name] = value


def _rates(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """`1e-3`, `auto`, or one of them for each phase that trains."""
    if value is None:
        return
    rates = [rate.strip() for rate in value.split(",")]
    if not all(rate == "auto" or _is_positive(rate) for rate in rates):
        raise click.BadParameter(f"{value}: expected a number above 0, auto, or one value per phase, such as 1e-3,1e-4")
    entries = ['"auto"' if rate == "auto" else str(float(rate)) for rate in rates]  # as in TOML
    _store_shortcut(context, parameter, entries[0] if len(entries) == 1 else f"[{', '.join(entries)}]")


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


shortcuts = together(
    click.option(
        "--lr",
        metavar="X[,X]",
        expose_value=False,
        callback=_rates,
        help="Learning rate or auto, one value per phase, instead of the recipe's.",
    ),
    click.option(
        "--batch",
        type=click.IntRange(1),
        metavar="N",
        expose_value=False,
        callback=_store_shortcut,
        help="Images in one optimizer step, instead of the recipe's.",
    ),
    click.option(
        "--size",
        type=click.IntRange(1, 8192),
        metavar="PIXELS",
        expose_value=False,
        callback=_store_shortcut,
        help="Side of the network's input, instead of the recipe's.",
    ),
)
"""Adds --lr, --batch and --size to a command, which gets them from `parse_settings`: they are keys of the recipe."""


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """`--set KEY=VALUE` options, after the shortcuts of the running command -> dotted key to TOML value."""
    from linnaeus.recipe import parse_setting

    context = click.get_current_context(silent=True)
    short = context.meta.get(SHORTCUTS, {}) if context else {}
    # The shortcuts come before --set, which may name a single phase.
    typed = {f"--{name} {value}": f"{name}={value}" for name, value in short.items()}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for option, setting in (*typed.items(), *((f"--set {setting}", setting) for setting in settings)):
        key, value = parse_setting(setting)
        if key in values and values[key] != value:
            raise UserError(f"{origins[key]} and {option} contradict each other; leave one out")
        values[key], origins[key] = value, option
    return values


class ShortcutCommand(click.Command):
    """A command with `shortcuts`, whose error messages name a key as the user has: `--lr` instead of `--set lr`."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            message = str(error)
            for name in ctx.meta.get(SHORTCUTS, {}):
                message = message.replace(f"--set {name}:", f"--{name}:")
            error.args = (message,)
            raise
