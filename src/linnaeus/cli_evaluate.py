"""The commands that measure: evaluate, compare. Heavy things are imported inside, so that --help is instant."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from linnaeus.cli_common import load_model, verbosity
from linnaeus.console import Console


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
@verbosity
def evaluate(
    model: str, source: str, split: str | None, tta: bool, error: float | None, code: str | None,
    json_file: str | None, device: str, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Measure MODEL on a split of SOURCE. A source that the model was trained on is split as it was then.

    MODEL stays as it is. Its temperature and the thresholds below which it is unsure were stored by `linnaeus train`,
    fitted on validation; --error looks up other thresholds, for this report only.
    """
    from linnaeus.assess import evaluate_model
    from linnaeus.files import write_text
    from linnaeus.report.tables import render

    console = Console(quiet=quiet, verbose=verbose, stream=sys.stderr)
    classifier = load_model(model, device, code)
    done = evaluate_model(classifier, source, split, error=error, tta=tta, console=console)
    click.echo(f"{done.split} of {source}: {done.found.measures.n} pictures\n")
    click.echo(render(done.found, classifier.names))
    if json_file:
        write_text(Path(json_file), done.to_json())


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--split", type=click.Choice(["valid", "test"]), help="[default: test where every run has it]")
@click.option("--json", "json_file", metavar="FILE", help="Write the comparison there.")
@verbosity
def compare(runs: tuple[str, ...], split: str | None, json_file: str | None, quiet: bool, verbose: bool) -> None:
    """Compare run folders side by side, on the same pictures.

    The difference of two runs is tested picture by picture: McNemar's exact test, corrected for how many pairs there
    are (Holm). Where p is 0.05 or more, the pictures do not show that one is better. The test is of these very
    models: the same recipe with another seed gives another model.
    """
    from linnaeus.compare import compare_runs
    from linnaeus.files import write_text

    found = compare_runs(runs, split)
    for line in found.warnings:
        Console(quiet=quiet, verbose=verbose, stream=sys.stderr).warn(line)
    click.echo(found.render())
    if json_file:
        write_text(Path(json_file), found.to_json())
