"""`probe`: compare pretrained backbones on the user's images."""

from __future__ import annotations

import sys

import click

from linnaeus.cli import early
from linnaeus.cli.options import device_option, make_console, seed_option, verbosity
from linnaeus.cli.settings import parse_settings, settings_option
from linnaeus.console import counted, echo, echo_text


@click.command()
@click.argument("source")
@click.option(
    "--backbones",
    default="auto",
    show_default=True,
    metavar="A,B,C",
    help="Networks, weights, files or NETWORK=FILE. A+B concatenates two. auto takes the weights on this machine and "
    "downloads some.",
)
@click.option(
    "--out", metavar="DIR", help="Folder for the results; earlier ones are replaced.  [default: runs/probe-<n>]"
)
@settings_option
@device_option
@seed_option
@verbosity
def probe(
    source: str, backbones: str, out: str | None, settings: tuple[str, ...], device: str, seed: int | None
) -> None:
    """Compare pretrained backbones on a dataset.

    Each backbone computes the features of all images once, without training, and a linear head is solved on them. The
    table states accuracy with its 95 % interval on images that the head has not seen, the p-value of McNemar's test
    against the best, corrected for the number of backbones, and the cost. Test images are not used. The arrow marks the
    fastest backbone that is close to the best and not significantly worse. The last line is the command that trains it.

    Features and decoded images stay in the cache, so the same command continues after an interruption, and a further
    backbone costs only its own time.
    """
    early.check_device(device)
    early.check_source(source)
    from linnaeus.probe.result_files import render
    from linnaeus.probe.run import probe as run_probe

    console = make_console(sys.stderr)
    result = run_probe(
        source,
        backbones,
        out=out,
        settings=parse_settings(settings),
        seed=seed,
        device=device,
        console=console,
    )
    comparison = result.comparison
    echo_text(render(comparison))
    echo_text(f"\naccuracy {result.protocol}")
    if len(comparison.results) > 1:
        echo_text("the best of several was selected on these images, so its score is slightly optimistic")
    if comparison.no_better:
        echo_text(f"the best accuracy is {comparison.no_better}")
    for name in ("probe.json", "probe.csv", "probe.png"):
        echo(f"{name:10} {result.path / name}")
    if comparison.failures:
        console.warn(f"{counted(len(comparison.failures), 'backbone')} could not be compared")
    if result.command is not None:
        echo(f"\n{result.command}")
