"""Options and helpers shared by several commands. torch is imported inside functions, so that --help stays fast."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from linnaeus.console import Console
from linnaeus.distributed.environment import ProcessInfo, exit_with_launcher, process_info
from linnaeus.errors import LostError, UserError

if TYPE_CHECKING:
    from linnaeus.distributed.group import ProcessGroup
    from linnaeus.inference.classifier import Classifier

META = "linnaeus.verbosity"  # key of the -q and -v flags in click's `Context.meta`

device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="Device: auto, cpu, cuda or mps."
)
devices_option = click.option(
    "--devices",
    type=click.IntRange(1),
    metavar="N",
    help="Number of processes, one per GPU (or sharing the CPU).  [default: 1]",
)
use_option = click.option(
    "--use",
    type=click.Choice(["torch", "onnx", "onnx-int8"]),
    help="File of the run that predicts.  [default: the fastest that agrees with the model]",
)
code_option = click.option(
    "--model", "code", metavar="FILE.py:FUNCTION", help="Code that builds the network, for a custom network."
)
recipe_option = click.option(
    "--recipe", metavar="NAME|FILE", help="Built-in recipe or TOML file.  [default: chosen from the data]"
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", help="Random seed, instead of the recipe's."
)


def together(*options):
    """Several options as one decorator. Help lists them in this order, though click applies the last one first."""
    return lambda command: reduce(lambda decorated, option: option(decorated), reversed(options), command)


def hidden(meta: str, *names: str, **settings: Any) -> Any:
    """An option that a command gets not as a parameter, but from the dictionary `meta` in click's `Context.meta`."""

    def store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        context.meta.setdefault(meta, {})[parameter.name] = value

    return click.option(*names, expose_value=False, callback=store, **settings)


verbosity = together(
    hidden(META, "-q", "--quiet", is_flag=True, help="Print warnings and errors only."),
    hidden(META, "-v", "--verbose", is_flag=True, help="Print more details."),
)
"""Adds -q and -v to a command, which calls `make_console` instead of receiving them as parameters."""


def make_console(stream: TextIO | None = None, *, silent: bool = False) -> Console:
    """A console that follows the running command's -q and -v. `stream`: stdout unless given."""
    flags: dict[str, bool] = click.get_current_context().meta[META]
    return Console(quiet=flags["quiet"], verbose=flags["verbose"], silent=silent, stream=stream)


class Finite(click.FloatRange):
    """A range of numbers that excludes `nan`, which no comparison does."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        number = super().convert(value, parameter, context)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", parameter, context)
        return number


def join_processes(devices: int | None, advice: str) -> ProcessInfo:
    """This process's place among those of its command.

    With `--devices N` and no launcher yet, N processes are started here instead, and the command exits with their
    status. `advice`: the next step for the user if the system killed one of them.
    """
    from linnaeus.distributed.launch import launch

    here = process_info()
    if devices is not None and devices > 1 and here.world_size == 1:
        raise SystemExit(launch(devices, sys.argv[1:], advice))
    exit_with_launcher()
    return here


@contextmanager
def process_group(here: ProcessInfo, devices: int | None, device: str, advice: str) -> Iterator[ProcessGroup]:
    """The process group of a command that does not train. Raises LostError if another process of it has died."""
    from linnaeus.distributed.group import ProcessGroup, is_connection_error

    if devices is not None and devices != here.local_world_size:
        raise UserError(
            f"--devices {devices}: this command already runs in {here.local_world_size} processes on this machine; "
            "omit --devices"
        )
    try:
        if here.world_size == 1:
            yield ProcessGroup(here)
        else:
            from linnaeus.distributed.engine import join_process_group

            yield join_process_group(device)
    except RuntimeError as error:
        # A process that waits for a dead one gets a connection error, which would hide the first cause.
        if here.world_size > 1 and is_connection_error(error):
            raise LostError(f"another process of this command has ended; {advice}") from error
        raise


def chosen_model(model: str, device: str, code: str | None, use: str | None, console: Console) -> str:
    """The model file of a run folder that `--use` names, or that predicts fastest here; `model` if it is not a folder.

    Prints which file was chosen, and which exports were passed over.
    """
    from linnaeus.modelfile.exports import fastest, named
    from linnaeus.modelfile.safetensors import model_path

    if use is not None and not Path(model).is_dir():
        raise UserError(f"--use {use}: needs a run folder, but {model} is a file; omit --use")
    if use not in (None, "torch") and device not in ("auto", "cpu"):
        raise UserError(f"--use {use}: runs on CPU only; omit --device {device}")
    # Code of the user fits the model file only, not an export.
    if not Path(model).is_dir() or (code is not None and use is None):
        return model
    folder = model_path(model).parent
    choice = fastest(folder, device) if use is None else named(folder, use)
    for line in choice.passed_over:
        console.say(line)
    if choice.reason:
        console.say(choice.reason)
    return str(choice.path)


class ModelCommand(click.Command):
    """A command whose MODEL may be `hf:OWNER/NAME` on the hub, which becomes the path of the downloaded file."""

    def invoke(self, ctx: click.Context) -> Any:  # not while options are parsed, which must ask nobody
        model = str(ctx.params["model"])
        if model.startswith("hf:"):
            from linnaeus.modelfile.hub_models import fetch_model

            with make_console(sys.stderr).progress(model, "bytes") as advance:
                ctx.params["model"] = str(fetch_model(model, progress=advance))
        return super().invoke(ctx)


def model_name(model: Path) -> str:
    """The name shown for a model: its run folder, or the stem of its file."""
    path = model.absolute()
    return path.name if path.is_dir() else path.parent.name if path.stem == "model" else path.stem


def load_model(model: str, device: str, code: str | None) -> Classifier:
    """Load a run folder or model file, with the user's own network if `code` names one."""
    from linnaeus.inference.classifier import load
    from linnaeus.inference.source import stopped
    from linnaeus.modelfile.safetensors import model_path, read_header
    from linnaeus.models import load_module

    module = None
    if code and model.lower().endswith(".onnx"):
        raise UserError(f"--model {code}: {model} already contains its network; omit --model")
    if code:
        arch = read_header(model_path(model)).arch
        module = load_module(code, int(arch["classes"]), int(arch["channels"]))
    classifier = load(model, device=device, model=module)
    console = make_console(sys.stderr, silent=not process_info().is_main)
    for line in (stopped(classifier.about), classifier.notice):
        if line:
            console.warn(f"{model}: {line}")
    return classifier


def show_next(run: Path, console: Console) -> None:
    """Print what to do with a finished run."""
    folder = shlex.quote(str(run))
    console.say(f"next      linnaeus predict {folder} IMAGE, or linnaeus serve {folder}")
