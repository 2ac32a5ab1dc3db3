"""`--host`, `--port` and `--token` of the commands that start a server, `serve` and `label`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from linnaeus.cli.options import hidden, together

META = "linnaeus.address"  # key of the three options in click's `Context.meta`


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
    return together(
        hidden(
            META,
            "--host",
            metavar="ADDRESS",
            default="127.0.0.1",
            show_default=True,
            help="Address to listen on; 0.0.0.0 for all networks.",
        ),
        hidden(
            META,
            "--port",
            default=8000,
            show_default=True,
            type=click.IntRange(0, 65535),
            metavar="N",
            help="Port; 0 picks a free one.",
        ),
        hidden(
            META,
            "--token",
            metavar="TOKEN",
            envvar="LINNAEUS_TOKEN",
            help=f"Token that clients must present.  [{token_default}]",
        ),
    )


def address() -> Address:
    """The address of the running command."""
    return Address(**click.get_current_context().meta[META])
