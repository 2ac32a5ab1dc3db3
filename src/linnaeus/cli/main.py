"""The commands: parse, call, print. torch and pydantic are imported inside commands, so that --help is instant."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import click

from linnaeus._version import __version__
from linnaeus.cli.catalog import data, models, recipes, weights
from linnaeus.cli.evaluate import compare, evaluate, report
from linnaeus.cli.explain import explain
from linnaeus.cli.export import export
from linnaeus.cli.options import one_of, several, verbosity
from linnaeus.cli.predict import predict
from linnaeus.cli.serve import serve
from linnaeus.cli.sweep import sweep
from linnaeus.console import ESCAPED, Console, duration
from linnaeus.errors import LostError, UserError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="linnaeus")
def cli() -> None:
    """From a folder of images to a classifier you can read, trust and ship."""


@cli.command()
@click.argument("source")
@click.option("--recipe", metavar="NAME|FILE", help="What to train, how; chosen from the data without it.")
@click.option("--model", metavar="NAME|FILE.py:FUNCTION", help="Another network than the recipe's.")
@click.option("--weights", metavar="NAME|FILE|none", help="Other weights to start from than the recipe's.")
@click.option("--epochs", metavar="N[,N]", help="Epochs, a number for each phase.")
@click.option("--out", metavar="DIR", help="The run folder.  [default: runs/<recipe>-<n>]")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Any key of the recipe: phase.1.lr=1e-3.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@several
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of everything random.")
@click.option("--strict", is_flag=True, help="Refuse unreadable images, and copies of one image in two splits.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with a run that was cut: in --out, or the last of SOURCE and recipe.",
)
@click.option(
    "--checkpoint-every", default="auto", show_default=True, metavar="auto|TIME|STEPS",
    help="How often to write what --resume needs: 5min, 90s, 100steps; auto takes 2 % of the time.",
)  # fmt: skip
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard events too.")
@verbosity
def train(
    source: str, settings: tuple[str, ...], devices: int | None, quiet: bool, verbose: bool, **options: Any
) -> None:
    """Train a classifier on SOURCE.

    SOURCE is a folder of class folders, a list file or a folder with train.txt and test.txt, a CSV, CIFAR binaries, IDX
    files, a folder or an address of shards, or a name that `linnaeus data list` shows; with --resume, a run folder too.

    Exit status 0 if the run came to its end, 1 if it failed or Ctrl-C stopped it, 2 if the input was wrong, 143 if
    SIGTERM stopped it. After any of them --resume goes on.

    Several machines: torchrun --nproc-per-node N -m linnaeus train ..., or srun linnaeus train ...
    """
    here = one_of(devices, "--resume goes on from the last checkpoint")
    from linnaeus.recipe import parse_setting
    from linnaeus.training.run import train as run_training

    console = Console(quiet=quiet, verbose=verbose, silent=not here.is_main)
    run = run_training(source, settings=dict(map(parse_setting, settings)), console=console, devices=devices, **options)
    best = f"phase {run.best.phase}, epoch {run.best.epoch}"
    console.say()
    for split, found in run.figures.items():
        console.say(f"{split:9} {found}")
    for line in run.trust:
        console.say(line)
    console.say(f"best      {best}, by {run.best.by} on validation")
    console.say(f"time      {duration(run.seconds['total'])}")
    for name in ("model.safetensors", "curves.png", "predictions.png", "confusion.png", "report.html"):
        if (run.path / name).exists():
            word = "images" if name == "predictions.png" else name.partition(".")[0]
            console.say(f"{word:9} {run.path / name}")
    if run.interrupted:
        again = f"linnaeus train {run.path} --resume"
        console.warn(f"stopped before its end: this is the best model until then; to go on: {again}")
        raise SystemExit(1)


@cli.command()
@click.argument("source")
@click.option("--json", "json_file", metavar="FILE", help="Write all findings there.")
@click.option("--gallery", metavar="FILE.html", help="Write a page that shows them side by side.")
@click.option("--weights", metavar="NAME|none", help="Weights that compare images.  [default: ImageNet's, at hand]")
@click.option("--groups", metavar="COLUMN", help="Of a CSV: which images belong together.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@verbosity
def check(source: str, quiet: bool, verbose: bool, **options: Any) -> None:
    """Say what is wrong with SOURCE: files, images, duplicates, leaks, classes, labels.

    Exit status 0 if there is no error among the findings, 1 if there is one, 2 if SOURCE cannot be read at all.
    """
    from linnaeus.check.command import run

    if run(source, Console(quiet=quiet, verbose=verbose, stream=sys.stderr), **options):
        raise SystemExit(1)


for command in (evaluate, compare, explain, report, predict, export, serve, models, recipes, weights, data, sweep):
    cli.add_command(command)


def main() -> None:
    """Run the command line. Wrong input is one line on stderr and exit status 2; a failed job, 1."""
    # A name may hold bytes that are no UTF-8, or letters that a terminal cannot show. Neither may end a run: they are
    # read as they come and written as \udcxx, which JSON reads back.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, ESCAPED), (sys.stderr, ESCAPED)):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    try:
        cli(standalone_mode=False)
    except UserError as error:
        if error.told:
            raise SystemExit(LostError.status) from None
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.status) from None
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # since click 8.2; before, help is shown and status is 0
            click.echo(error.format_message(), err=True)
            raise SystemExit(2) from None
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        click.echo(f"error: {error.format_message()}" + (f" (see {where} --help)" if where else ""), err=True)
        raise SystemExit(2) from None
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        raise SystemExit(1) from None
    except BrokenPipeError:  # whoever read our output has enough; what is left to flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
