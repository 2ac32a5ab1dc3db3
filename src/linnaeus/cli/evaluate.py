"""The commands that measure and tell: evaluate, compare, report. Heavy things are imported inside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from linnaeus.cli.options import load_model, one_of, peers, several, verbosity
from linnaeus.console import Console, counted

if TYPE_CHECKING:
    import numpy as np

    from linnaeus.data.table import Table

AGAIN = "start it again"


@click.command()
@click.argument("model")
@click.argument("source")
@click.option("--split", help="train, valid, test, or all.  [default: test, else valid, else all]")
@click.option("--tta", is_flag=True, help="Measure mirrored and shifted views too, beside the plain answers.")
@click.option(
    "--error", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="SHARE",
    help="Mistakes allowed among the answered.  [default: what the model keeps to, 0.02]",
)  # fmt: skip
@click.option("--model", "code", metavar="FILE.py:FUNCTION", help="The network, where it is your own code.")
@click.option("--json", "json_file", metavar="FILE", help="Write all figures there, those of every class too.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@several
@verbosity
def evaluate(
    model: str, source: str, split: str | None, tta: bool, error: float | None, code: str | None,
    json_file: str | None, device: str, devices: int | None, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Measure MODEL on a split of SOURCE. A source that the model was trained on is split as it was then.

    MODEL stays as it is. Its temperature and the thresholds below which it is unsure were stored by `linnaeus train`,
    fitted on validation; --error looks up other thresholds, for this report only.

    Several machines: torchrun --nproc-per-node N -m linnaeus evaluate ..., or srun linnaeus evaluate ...
    """
    here = one_of(devices, AGAIN)
    from linnaeus.check.run import leaks, near_duplicates
    from linnaeus.files import write_text
    from linnaeus.inference.evaluate import evaluate_model, open_images
    from linnaeus.report.tables import render

    console = Console(quiet=quiet, verbose=verbose, silent=not here.is_main, stream=sys.stderr)

    def copies(table: Table) -> dict[str, np.ndarray]:
        return leaks(table, near_duplicates(table, console=console))

    with peers(here, devices, device, AGAIN) as group:
        with group.propagate_errors():
            classifier = load_model(model, device, code)
        images = open_images(classifier, source, split, console, group)
        done = evaluate_model(classifier, images, error=error, tta=tta, leaks=copies, console=console, group=group)
    if done is None:  # the first process tells
        return
    click.echo(f"{done.split} of {source}: {counted(done.assessment.metrics.n, 'image')}\n")
    click.echo(render(done.assessment, classifier.names))
    if json_file:
        write_text(Path(json_file), done.to_json())


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--split", type=click.Choice(["valid", "test"]), help="[default: test where every run has it]")
@click.option("--json", "json_file", metavar="FILE", help="Write the comparison there.")
@verbosity
def compare(runs: tuple[str, ...], split: str | None, json_file: str | None, quiet: bool, verbose: bool) -> None:
    """Compare run folders side by side, on the same images.

    The difference of two runs is tested image by image: McNemar's exact test, corrected for how many pairs there
    are (Holm). Where p is 0.05 or more, the images do not show that one is better. The test is of these very
    models: the same recipe with another seed gives another model.
    """
    from linnaeus.files import write_text
    from linnaeus.runs.compare import compare_runs

    found = compare_runs(runs, split)
    for line in found.warnings:
        Console(quiet=quiet, verbose=verbose, stream=sys.stderr).warn(line)
    click.echo(found.render())
    if json_file:
        write_text(Path(json_file), found.to_json())


@click.command()
@click.argument("run")
@click.option("--source", metavar="SOURCE", help="Where the run's images are now, if they were moved.")
@click.option("--model", "code", metavar="FILE.py:FUNCTION", help="The network, where it is your own code.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@verbosity
def report(run: str, source: str | None, code: str | None, device: str, quiet: bool, verbose: bool) -> None:
    """Rebuild the page report.html of RUN, a run folder, from what is in it.

    The page is one file that needs no network. Where the images are no longer there it goes without, and says so.
    Without the code of a network of your own there are no heat maps.
    """
    from linnaeus.report.maps import heat_maps
    from linnaeus.report.page import write_report
    from linnaeus.runs.reader import read_run

    console = Console(quiet=quiet, verbose=verbose, stream=sys.stderr)
    found = read_run(Path(run))
    heat = None
    if found.model.arch["name"] == "custom" and code is None:
        console.say("heat maps take the network's code: --model FILE.py:FUNCTION")
    else:
        heat = heat_maps(load_model(run, device, code))
    path, missing = write_report(run, source=source, heat=heat)
    if missing:
        console.warn(f"no images in the report: {missing}")
    click.echo(path)
