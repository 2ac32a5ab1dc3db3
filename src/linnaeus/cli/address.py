"""`--host`, `--port` and `--token` of the commands that start a server, `serve` and `label`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

META = "linnaeus.address"
"""Key of the three options in click's `Context.meta`."""


@dataclass(frozen=True)
class Address:
    """Where a server listens, and the token that its clients must present; None for no token."""

    host: str
    port: int
    token: str | None


def address_options(token_default: str) -> Callable[[Any], Any]:
    """Add the options to a command, which gets them from `address`: they concern the place, not the model.

    `token_default`: what the help of --token says in brackets.
    """
    options = (
        click.option(
            "--host",
            metavar="ADDRESS",
            default="127.0.0.1",
            show_default=True,
            expose_value=False,
            callback=_store,
            help="Address to listen on; 0.0.0.0 for all networks.",
        ),
        click.option(
            "--port",
            default=8000,
            show_default=True,
            type=click.IntRange(0, 65535),
            metavar="N",
            expose_value=False,
            callback=_store,
            help="Port; 0 picks a free one.",
        ),
        click.option(
            "--token",
            metavar="TOKEN",
            envvar="LINNAEUS_TOKEN",
            expose_value=False,
            callback=_store,
            help=f"Token that clients must present.  [{token_default}]",
        ),
    )

    def add(command: Any) -> Any:
        # click applies decorators from the bottom up; reversed, the help lists the options in this order.
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    context.meta.setdefault(META, {})[parameter.name] = value


def address() -> Address:
    """The address of the running command."""
    return Address(**click.get_current_context().meta[META])
