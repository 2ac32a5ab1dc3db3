"""The commands: parse, call, print. torch and pydantic are imported inside commands, so that --help is instant."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from linnaeus import __version__
from linnaeus.cli_common import load_model, verbosity
from linnaeus.cli_evaluate import compare, evaluate, report
from linnaeus.cli_explain import explain
from linnaeus.console import Console, duration
from linnaeus.errors import UserError

if TYPE_CHECKING:
    from linnaeus.predict import Prediction

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
ESCAPED = "backslashreplace"
GRID_MOST = 64  # pictures that a grid shows; more would be too small to see


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="linnaeus")
def cli() -> None:
    """From a folder of pictures to a classifier you can read, trust and ship."""


@cli.command()
@click.argument("source")
@click.option("--recipe", metavar="NAME|FILE", help="What to train, how; chosen from the data without it.")
@click.option("--model", metavar="NAME|FILE.py:FUNCTION", help="Another network than the recipe's.")
@click.option("--weights", metavar="NAME|FILE|none", help="Other weights to start from than the recipe's.")
@click.option("--epochs", metavar="N[,N]", help="Epochs, a number for each phase.")
@click.option("--out", metavar="DIR", help="The run folder.  [default: runs/<recipe>-<n>]")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Any key of the recipe: phase.1.lr=1e-3.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of everything random.")
@click.option("--strict", is_flag=True, help="Refuse unreadable pictures, and copies of one picture in two splits.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard events too.")
@verbosity
def train(source: str, settings: tuple[str, ...], quiet: bool, verbose: bool, **options: Any) -> None:
    """Train a classifier on SOURCE.

    SOURCE is a folder of class folders, a list file or a folder with train.txt and test.txt, a CSV, CIFAR binaries, IDX
    files, or a name that `linnaeus data list` shows.
    """
    from linnaeus.recipe import parse_setting
    from linnaeus.training.run import train as run_training

    console = Console(quiet=quiet, verbose=verbose)
    run = run_training(source, settings=dict(map(parse_setting, settings)), console=console, **options)
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
            word = "pictures" if name == "predictions.png" else name.partition(".")[0]
            console.say(f"{word:9} {run.path / name}")
    if run.interrupted:
        console.warn("stopped before its end: this is the best model until then")
        raise SystemExit(1)


@cli.command()
@click.argument("source")
@click.option("--json", "json_file", metavar="FILE", help="Write all findings there.")
@click.option("--gallery", metavar="FILE.html", help="Write a page that shows them side by side.")
@click.option("--weights", metavar="NAME|none", help="Weights that compare pictures.  [default: ImageNet's, at hand]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@verbosity
def check(source: str, quiet: bool, verbose: bool, **options: Any) -> None:
    """Say what is wrong with SOURCE: files, pictures, duplicates, leaks, classes, labels.

    Exit status 0 if there is no error among the findings, 1 if there is one, 2 if SOURCE cannot be read at all.
    """
    from linnaeus.check.command import run

    if run(source, Console(quiet=quiet, verbose=verbose, stream=sys.stderr), **options):
        raise SystemExit(1)


@cli.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option("--top", default=1, show_default=True, type=click.IntRange(1), help="Classes to show.")
@click.option("--format", "form", type=click.Choice(["table", "csv", "jsonl"]), default="table", show_default=True)
@click.option("--out", metavar="FILE", help="Write the answers there.")
@click.option("--grid", metavar="FILE.png", help=f"Draw the first {GRID_MOST} pictures with their answers.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--model", "code", metavar="FILE.py:FUNCTION", help="The network, where it is your own code.")
@verbosity
def predict(
    model: str, images: tuple[str, ...], top: int, form: str, out: str | None, grid: str | None, device: str,
    code: str | None, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Predict IMAGES with MODEL, a run folder or a model file.

    An image is a file, a folder, a glob, or - for paths on standard input. Exit status 1 if any cannot be read. Where
    the first class is less likely than the threshold that the model was given on validation, the answer is unsure.
    """
    from linnaeus.answers import Write, writer
    from linnaeus.files import disk_errors
    from linnaeus.predict import expand

    classifier = load_model(model, device, code)
    if grid and Path(grid).suffix.lower() != ".png":
        raise UserError(f"--grid {grid}: must end in .png")
    console = Console(quiet=quiet, verbose=verbose, stream=sys.stderr)
    shown: list[tuple[Prediction, int | None]] = []
    failed = done = 0
    with disk_errors(Path(out or "-")), _open_out(out) as file:
        write: Write = writer(form, file, min(top, len(classifier.classes)))
        for prediction in classifier.stream(expand(images, sys.stdin)):
            write(prediction)
            done += 1
            if prediction.error is not None:
                failed += 1
                console.warn(f"{prediction.path}: {prediction.error}")
            elif grid and len(shown) < GRID_MOST:
                shown.append((prediction, classifier.true_class(prediction.path)))
    if grid and shown:
        _draw_grid(grid, shown, console)
    if failed:
        console.warn(f"{failed} of {done} pictures could not be read")
        raise SystemExit(1)


def _open_out(out: str | None) -> AbstractContextManager[TextIO]:
    """A file to write answers to, or standard output; UTF-8 in any case."""
    file = click.open_file(out or "-", "w", encoding="utf-8", errors=ESCAPED)
    return cast(AbstractContextManager[TextIO], file)


def _draw_grid(path: str, shown: Iterable[tuple[Prediction, int | None]], console: Console) -> None:
    """The pictures with predicted and true name."""
    from linnaeus.report.plots import Shown, advice, picture_grid

    tiles = [
        Shown(
            picture=p.picture,
            predicted=p.name,
            probability=p.probability,
            true=None if true is None else p.names[true],
            note="unsure" if p.unsure else None,
        )
        for p, true in shown
        if p.picture is not None
    ]
    missing = picture_grid(tiles, Path(path))
    if missing:
        console.warn(advice(missing))


cli.add_command(evaluate)
cli.add_command(compare)
cli.add_command(explain)
cli.add_command(report)


@cli.command()
@click.argument("name", required=False)
@click.option(
    "--size", default=0, type=click.IntRange(0), help="Pixels of the picture's side.  [default: 224, or what suits]"
)
@click.option("--classes", default=1000, show_default=True, type=click.IntRange(1))
@click.option("--channels", default=3, show_default=True, type=click.IntRange(1))
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="An argument of the network: stem=small.")
@verbosity
def models(
    name: str | None, size: int, classes: int, channels: int, settings: tuple[str, ...], quiet: bool, verbose: bool
) -> None:
    """List the networks; or show one, layer by layer, with shapes, parameters and multiply-adds.

    A convolution from c_in to c_out channels with a k x k kernel, in g groups, giving H x W outputs, has
    k * k * c_in / g * c_out weights and does H * W multiply-adds with each. Its output's side is
    floor((side + 2 * padding - k) / stride) + 1.
    """
    from linnaeus.models import create
    from linnaeus.models.layers import layer_table, render, summary
    from linnaeus.recipe import parse_setting

    if name is None:
        click.echo(summary())
        return
    network = create(name, classes, channels, **dict(map(parse_setting, settings)))
    click.echo(render(layer_table(network, size or None, channels)))


@cli.command()
@click.argument("name", required=False)
@verbosity
def recipes(name: str | None, quiet: bool, verbose: bool) -> None:
    """List the recipes; or print one, ready to edit."""
    from linnaeus.recipe import recipe_names, recipe_text

    if name is not None:
        click.echo(recipe_text(name)[1], nl=False)
        return
    for each in recipe_names():
        first = recipe_text(each)[1].splitlines()[0].lstrip("# ")
        click.echo(f"{each:16} {first}")


@cli.group()
def weights() -> None:
    """Published weights: list, download, import."""


@weights.command("list")
@verbosity
def weights_list(quiet: bool, verbose: bool) -> None:
    """List the published weights, and which are at hand."""
    from linnaeus.models.weights import render_list

    click.echo(render_list())


@weights.command("pull")
@click.argument("name")
@verbosity
def weights_pull(name: str, quiet: bool, verbose: bool) -> None:
    """Download weights, verified; an interrupted download goes on where it stopped."""
    from linnaeus.data.download import fetch
    from linnaeus.models.weights import pull

    with Console(quiet=quiet, verbose=verbose, stream=sys.stderr).progress(name, "bytes") as advance:
        path = pull(name, fetch=fetch, progress=advance)
    click.echo(path)


@weights.command("import")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@verbosity
def weights_import(name: str, file: Path, quiet: bool, verbose: bool) -> None:
    """Take in a weights FILE that you brought, under the NAME that `linnaeus weights list` has for them.

    A file that nobody published needs no import: `linnaeus train --weights FILE` takes it as it is.
    """
    from linnaeus.models.weights import import_file

    path, notes = import_file(name, file)
    for note in notes:
        Console(quiet=quiet, stream=sys.stderr).say(note)
    click.echo(path)


@cli.group()
def data() -> None:
    """Known data sets, and the cache of decoded pictures."""


@data.command("list")
@verbosity
def data_list(quiet: bool, verbose: bool) -> None:
    """List the sources that have a name."""
    from linnaeus.data.builtin import known_sources

    for known in known_sources():
        size = f"{known.size / 1e6:,.0f} MB" if known.size else ""
        at_hand = "at hand" if known.present else "to fetch"
        click.echo(f"{known.name:14} {at_hand:9} {size:>8}  {known.description}")


@data.command("pull")
@click.argument("name")
@verbosity
def data_pull(name: str, quiet: bool, verbose: bool) -> None:
    """Fetch a known source; an interrupted download goes on where it stopped."""
    from linnaeus.data.builtin import pull

    with Console(quiet=quiet, verbose=verbose, stream=sys.stderr).progress(name, "bytes") as advance:
        path = pull(name, progress=advance)
    click.echo(path)


@data.command("cache")
@click.option("--clear", is_flag=True, help="Empty it; what is needed again is computed again.")
@verbosity
def data_cache(clear: bool, quiet: bool, verbose: bool) -> None:
    """Show what is kept of decoded pictures and frozen networks, newest first; or empty it."""
    from datetime import datetime

    from linnaeus.stores import default_cache

    cache = default_cache()
    if clear:
        click.echo(f"{cache.clear() / 1e6:,.0f} MB freed in {cache.root}")
        return
    entries = cache.entries()
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        rows = "unfinished" if entry.unfinished else f"{entry.about.get('rows', entry.about.get('n', '?'))} rows"
        click.echo(f"{used}  {entry.bytes / 1e6:>10,.1f} MB  {rows:>14}  {entry.name}")
    held = sum(entry.bytes for entry in entries) / 1e9
    click.echo(f"{held:.2f} of {cache.budget / 1e9:g} GB in {cache.root} (LINNAEUS_CACHE, LINNAEUS_CACHE_GB)")


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
