"""The entry point, `train` and `check`. Commands import torch and pydantic when they run, so that --help stays fast."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from linnaeus._version import __version__
from linnaeus.cli import early
from linnaeus.cli.catalog import data, models, recipes, weights
from linnaeus.cli.classes import classes
from linnaeus.cli.embed import embed
from linnaeus.cli.evaluate import compare, evaluate, report
from linnaeus.cli.explain import explain
from linnaeus.cli.export import export
from linnaeus.cli.forget import forget
from linnaeus.cli.label import label
from linnaeus.cli.options import (
    device_option,
    devices_option,
    join_processes,
    make_console,
    recipe_option,
    seed_option,
    show_next,
    verbosity,
)
from linnaeus.cli.other_names import other_name, refuse_other_names
from linnaeus.cli.predict import predict
from linnaeus.cli.probe import probe
from linnaeus.cli.push import push
from linnaeus.cli.serve import serve
from linnaeus.cli.settings import ShortcutCommand, parse_settings, settings_option, shortcuts
from linnaeus.cli.sweep import sweep
from linnaeus.cli.system import COMPLETE, completion, env
from linnaeus.console import Console, discard, duration, echo_error, finish_streams, prepare_streams
from linnaeus.errors import JobError, LostError, UserError, exhausted, out_of
from linnaeus.training.stop import StopSignals, Terminated, status_of

if TYPE_CHECKING:
    from linnaeus.training.run import Run

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@contextmanager
def closed_pipe_is_no_error() -> Iterator[None]:
    """End the command with status 0 where the reader has closed the pipe; click would make it status 1."""
    try:
        yield
    except BrokenPipeError:
        discard(sys.stdout)
        raise SystemExit(0) from None


class SectionedGroup(click.Group):
    """The commands. Help lists them under `SECTIONS`; a reader that closes the pipe, like `head`, is not an error."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with closed_pipe_is_no_error():
            return super().make_context(info_name, args, parent, **extra)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        refuse_other_names(ctx, self.get_command(ctx, args[0]), args)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with closed_pipe_is_no_error():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        limit = formatter.width - width - 6  # indentation and the gap between the two columns
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{c.name:{width}}", c.get_short_help_str(limit)) for c in commands])


@click.group(cls=SectionedGroup, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="linnaeus")
def cli() -> None:
    """From a folder of images to a classifier you can read, trust and ship."""


@click.command(
    cls=ShortcutCommand,
    epilog="Exit status: 0 completed, 1 failed, 2 invalid input, 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.",
)
@click.argument("source")
@recipe_option
@click.option("--model", metavar="NAME|FILE.py:FUNCTION", help="Network to train, instead of the recipe's.")
@click.option("--weights", metavar="NAME|FILE|none", help="Initial weights, instead of the recipe's.")
@click.option("--epochs", metavar="N[,N]", help="Number of epochs, one value per phase, instead of the recipe's.")
@shortcuts
@settings_option
@seed_option
@click.option("--out", metavar="DIR", help="Run folder.  [default: runs/<recipe>-<n>]")
@device_option
@devices_option
@click.option("--strict", is_flag=True, help="Fail on unreadable images and on duplicates across splits.")
@click.option(
    "--resume", is_flag=True, help="Resume an interrupted run: --out, or else the last run of this source and recipe."
)
@click.option(
    "--checkpoint-every",
    default="auto",
    show_default=True,
    metavar="auto|TIME|STEPS",
    help="Checkpoint interval: 5min, 90s, 100steps, or auto (about 2 % of the run time).",
)
@click.option(
    "--track", multiple=True, metavar="NAME", help="Send metrics to tensorboard, mlflow or trackio. Repeatable."
)
@click.option("--tensorboard", is_flag=True, help="Short for --track tensorboard.")
@click.option(
    "--no-report", is_flag=True, help="Skip the plots and the report; `linnaeus report` writes the report later."
)
@verbosity
def train(
    source: str,
    recipe: str | None,
    model: str | None,
    weights: str | None,
    epochs: str | None,
    out: str | None,
    settings: tuple[str, ...],
    device: str,
    devices: int | None,
    seed: int | None,
    strict: bool,
    resume: bool,
    checkpoint_every: str,
    track: tuple[str, ...],
    tensorboard: bool,
    no_report: bool,
) -> None:
    """Train a classifier on SOURCE and write a run folder.

    SOURCE is a folder with one subfolder per class, a .zip or .tar.gz of one, a list file, a folder with train.txt and
    test.txt, a CSV file, CIFAR binaries, IDX files, a folder or URL of shards, a name from `linnaeus data list`, or
    with --resume a run folder.

    Several machines: torchrun --nproc-per-node N -m linnaeus train ..., or srun linnaeus train ...
    """
    early.check_training(click.get_current_context().params)
    console = make_console(silent=not join_processes(devices, "--resume continues from a checkpoint").is_main)
    from linnaeus.training.run import train as run_training

    run = run_training(
        source,
        recipe,
        model=model,
        weights=weights,
        epochs=epochs,
        out=out,
        settings=parse_settings(settings),
        device=device,
        devices=devices,
        seed=seed,
        strict=strict,
        resume=resume,
        checkpoint_every=checkpoint_every,
        track=(*["tensorboard"] * tensorboard, *track),
        draw=not no_report,
        console=console,
    )
    _print_run(run, console)


def _print_run(run: Run, console: Console) -> None:
    """Print what chose the model and the files to look at. Exits with status 130 if Ctrl-C ended the run."""
    if run.selection is not None and (run.selection.by_validation or run.selection.solved):
        console.say(f"{run.selection.title.split()[0].lower():9} {run.selection}")
    console.say(f"time      {duration(run.seconds['total'])}")
    for name in ("model.safetensors", "curves.png", "predictions.png", "confusion.png", "report.html"):
        if (run.path / name).exists():
            label = "images" if name == "predictions.png" else name.partition(".")[0]
            console.say(f"{label:9} {run.path / name}")
    if not run.interrupted:
        show_next(run.path, console)
    else:
        resume = f"linnaeus train {shlex.quote(str(run.path))} --resume"
        console.warn(f"the run was interrupted; the saved model is the best one so far. To resume: {resume}")
        raise SystemExit(status_of(signal.SIGINT))


@click.command()
@click.argument("source")
@click.option("--json", "json_file", metavar="FILE", help="Write all findings as JSON.")
@click.option("--gallery", metavar="FILE.html", help="Write an HTML page that shows the images of each finding.")
@click.option(
    "--weights",
    metavar="NAME|FILE|none",
    help="Weights for comparing images.  [default: ImageNet weights, if downloaded]",
)
@click.option("--groups", metavar="COLUMN", help="CSV column that groups images, such as the patient.")
@device_option
@verbosity
def check(
    source: str, json_file: str | None, gallery: str | None, weights: str | None, groups: str | None, device: str
) -> None:
    """Check a dataset for problems before training.

    Reports unreadable files, suspicious images, duplicates, leaks between splits, and problems with classes and
    labels. Exit status: 0 if no finding is an error, 1 if one is, 2 if SOURCE cannot be read.
    """
    early.check_output("--json", json_file, (".json",), "check")
    early.check_output("--gallery", gallery, (".html", ".htm"))
    from linnaeus.check.command import run

    errors = run(
        source,
        make_console(sys.stderr),
        json_file=json_file,
        gallery=gallery,
        weights=weights,
        groups=groups,
        device=device,
    )
    if errors:
        raise SystemExit(1)


SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Data": (check, label, data),
    "Train": (train, probe, sweep, classes, forget, models, weights, recipes),
    "Trust": (evaluate, compare, explain, report),
    "Ship": (predict, embed, export, push, serve),
    "System": (env, completion),
}
"""Section of the help page -> its commands, in the order of a project."""
for command in chain(*SECTIONS.values()):
    cli.add_command(command)


def main() -> None:
    """Run the command line. Invalid input is one line on stderr and exit status 2; a failed job has exit status 1.

    A signal removes what the command was about to write, and ends it with the status that a shell expects.
    """
    prepare_streams()
    if COMPLETE in os.environ:
        from linnaeus.cli.completing import complete_values

        complete_values(cli)
    try:
        try:
            _run()
        finally:
            finish_streams()
    except JobError as error:
        echo_error(f"error: {error}")
        raise SystemExit(error.status) from None


def _run() -> None:
    """Run the command line, with every exception that the user can act on as one line."""
    try:
        early.check_process()  # the numerical libraries end the process without one
        with StopSignals().listening():
            cli(standalone_mode=False)
    except UserError as error:
        if error.told:  # process 0 prints the same message
            raise SystemExit(LostError.status) from None
        echo_error(f"error: {error}")
        raise SystemExit(error.status) from None
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and later; earlier versions exit with status 0
            echo_error(error.format_message())
            raise SystemExit(2) from None
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        message = other_name(error) or " ".join(error.format_message().split())  # click lists choices one a line
        echo_error(f"error: {message}" + (f" (see {command} --help)" if command else ""))
        raise SystemExit(2) from None
    except Terminated as stop:
        echo_error(f"stopped by {signal.Signals(stop.number).name}")
        raise SystemExit(status_of(stop.number)) from None
    except (click.Abort, KeyboardInterrupt):
        echo_error("stopped")
        raise SystemExit(status_of(signal.SIGINT)) from None
    except (MemoryError, RuntimeError, ImportError) as error:
        if not (lack := exhausted(error)):
            raise
        echo_error(f"error: {out_of(lack)}")
        raise SystemExit(JobError.status) from None
    except OSError as error:
        from linnaeus.files import explained

        echo_error(f"error: {explained(error)}")
        raise SystemExit(JobError.status) from None
