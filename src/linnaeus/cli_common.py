"""What several commands share. torch is imported inside, so that --help is instant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from linnaeus.predict import Classifier


def verbosity(command):
    """-q and -v, which every command has."""
    command = click.option("-v", "--verbose", is_flag=True, help="Say more.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")(command)


def load_model(model: str, device: str, code: str | None) -> Classifier:
    """The model, with the user's own network where `code` names it."""
    from linnaeus.modelfile import model_path, read_header
    from linnaeus.models import load_module
    from linnaeus.predict import load

    module = None
    if code:
        arch = read_header(model_path(model)).arch
        module = load_module(code, int(arch["classes"]), int(arch["channels"]))
    return load(model, device=device, model=module)
