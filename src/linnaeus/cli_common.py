"""What several commands share. torch is imported inside, so that --help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from linnaeus.console import Console
from linnaeus.errors import UserError

if TYPE_CHECKING:
    from linnaeus.predict import Classifier


def verbosity(command):
    """-q and -v, which every command has."""
    command = click.option("-v", "--verbose", is_flag=True, help="Say more.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")(command)


def fastest_model(model: str, device: str, code: str | None, console: Console) -> str:
    """For predicting: of a run folder the file that is fastest here, and a line that says so; else `model` itself."""
    from linnaeus.fastest import fastest
    from linnaeus.modelfile import model_path

    if code is not None or not Path(model).is_dir():
        return model
    choice = fastest(model_path(model).parent, device)
    for line in choice.passed_over:
        console.say(line)
    if choice.said:
        console.say(choice.said)
    return str(choice.path)


def load_model(model: str, device: str, code: str | None) -> Classifier:
    """The model, with the user's own network where `code` names it."""
    from linnaeus.modelfile import model_path, read_header
    from linnaeus.models import load_module
    from linnaeus.predict import load

    module = None
    if code and model.lower().endswith(".onnx"):
        raise UserError(f"--model {code}: {model} holds its network; leave it out")
    if code:
        arch = read_header(model_path(model)).arch
        module = load_module(code, int(arch["classes"]), int(arch["channels"]))
    return load(model, device=device, model=module)
