"""What several commands share. torch is imported inside, so that --help is instant."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from linnaeus.console import Console
from linnaeus.distributed.environment import ProcessInfo, exit_with_launcher, process_info
from linnaeus.errors import LostError, UserError

if TYPE_CHECKING:
    from linnaeus.distributed.group import ProcessGroup
    from linnaeus.inference.classifier import Classifier


def verbosity(command):
    """-q and -v, which every command has."""
    command = click.option("-v", "--verbose", is_flag=True, help="Say more.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")(command)


def several(command):
    """--devices, of commands that several processes can share."""
    return click.option(
        "--devices", type=click.IntRange(1), metavar="N", help="Work in N processes: on N GPUs, or on CPU."
    )(command)


def one_of(devices: int | None, advice: str) -> ProcessInfo:
    """Which process of its command this is. With --devices N the N processes run here instead, and the command ends.

    `advice`: what to do where the system ended one of them.
    """
    from linnaeus.distributed.launch import launch

    here = process_info()
    if devices is not None and devices > 1 and here.world_size == 1:
        raise SystemExit(launch(devices, sys.argv[1:], advice))
    exit_with_launcher()
    return here


@contextmanager
def peers(here: ProcessInfo, devices: int | None, device: str, advice: str) -> Iterator[ProcessGroup]:
    """This process among those of a command that trains nothing. Raises LostError where one of them is gone."""
    from linnaeus.distributed.group import ProcessGroup, is_connection_error

    if devices is not None and devices != here.local_world_size:
        raise UserError(
            f"--devices {devices}: this is one process of {here.local_world_size} on this machine already; leave it out"
        )
    try:
        if here.world_size == 1:
            yield ProcessGroup(here)
        else:
            from linnaeus.distributed.engine import join_process_group

            yield join_process_group(device)
    except RuntimeError as error:
        if here.world_size > 1 and is_connection_error(error):
            raise LostError(f"another process of this command has ended; {advice}") from error
        raise


def fastest_model(model: str, device: str, code: str | None, console: Console) -> str:
    """For predicting: of a run folder the file that is fastest here, and a line that says so; else `model` itself."""
    from linnaeus.modelfile.exports import fastest
    from linnaeus.modelfile.safetensors import model_path

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
    from linnaeus.inference.classifier import load
    from linnaeus.modelfile.safetensors import model_path, read_header
    from linnaeus.models import load_module

    module = None
    if code and model.lower().endswith(".onnx"):
        raise UserError(f"--model {code}: {model} holds its network; leave it out")
    if code:
        arch = read_header(model_path(model)).arch
        module = load_module(code, int(arch["classes"]), int(arch["channels"]))
    return load(model, device=device, model=module)
