"""`evaluate`, `compare` and `report`. Heavy modules are imported when a command runs."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from linnaeus.cli import early
from linnaeus.cli.options import (
    Finite,
    ModelCommand,
    code_option,
    device_option,
    devices_option,
    join_processes,
    load_model,
    make_console,
    process_group,
    verbosity,
)
from linnaeus.console import Console, counted, echo, echo_text

if TYPE_CHECKING:
    import numpy as np

    from linnaeus.data.table import Table
    from linnaeus.inference.evaluate import Evaluation
    from linnaeus.inference.outside import Outside

RESTART = "run it again"


@click.command(cls=ModelCommand)
@click.argument("model")
@click.argument("source")
@click.option(
    "--split",
    metavar="NAME",
    help="Split: train, valid, test, all, or unseen, which are all images that MODEL was not trained on.  "
    "[default: test, else valid, else all]",
)
@click.option("--tta", is_flag=True, help="Also evaluate with test-time augmentation: mirrored and shifted views.")
@click.option(
    "--error",
    type=Finite(0, 1, min_open=True, max_open=True),
    metavar="RATE",
    help="Error rate allowed among the answered images.  [default: the model's own, usually 0.02]",
)
@click.option(
    "--slice",
    "column",
    metavar="COLUMN",
    help="Also report accuracy by the values of a CSV column, such as the camera.",
)
@click.option(
    "--outside",
    multiple=True,
    metavar="DIR",
    help="Folder of images that belong to no class: measure how many are recognized as unknown. Repeatable.",
)
@code_option
@click.option("--json", "json_file", metavar="FILE", help="Write all metrics as JSON, including those per class.")
@device_option
@devices_option
@verbosity
def evaluate(
    model: str,
    source: str,
    split: str | None,
    tta: bool,
    error: float | None,
    column: str | None,
    outside: tuple[str, ...],
    code: str | None,
    json_file: str | None,
    device: str,
    devices: int | None,
) -> None:
    """Evaluate a model on a split of a dataset.

    Images that MODEL was trained on are recognized by their content, wherever they lie in SOURCE, and left out; images
    that selected it are reported separately. --split train evaluates on the training images. MODEL is not changed. Its
    thresholds for "unsure" were fitted by `linnaeus train`; --error selects others for this evaluation only.

    Several machines: torchrun --nproc-per-node N -m linnaeus evaluate ..., or srun linnaeus evaluate ...
    """
    with early.one_report():
        early.check_device(device)
        early.check_output("--json", json_file, (".json",), "evaluate")
        early.check_model(model)
        early.check_source(source)
        early.check_images(outside)
    here = join_processes(devices, RESTART)
    from linnaeus.inference.evaluate import evaluate_model, open_images
    from linnaeus.inference.outside import detector_of, measure_outside
    from linnaeus.inference.slicing import slice_values

    console = make_console(sys.stderr, silent=not here.is_main)
    with process_group(here, devices, device, RESTART) as group:
        with group.propagate_errors():
            classifier = load_model(model, device, code)
            if outside:
                detector_of(classifier)  # before the work
        images = open_images(classifier, source, split, console, group)
        with group.propagate_errors():  # before the work
            values = slice_values(images, column) if column is not None and group.is_main else []
        search = partial(_copies, console)
        evaluation = evaluate_model(
            classifier, images, error=error, tta=tta, copies=search, console=console, group=group
        )
    if evaluation is None:  # only the main process gets the result and prints it
        return
    evaluation = evaluation if column is None else evaluation.by_slice(column, values)
    measured = measure_outside(evaluation, outside, console) if outside else []
    _write_evaluation(evaluation, measured, json_file)


def _copies(console: Console, table: Table) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A number of each sample that copies share, and the samples with a copy in an earlier split, by split."""
    from linnaeus.check.data_check import copies, leaks

    numbers = copies(table, console=console)
    return numbers, leaks(table, numbers)


def _write_evaluation(evaluation: Evaluation, outside: list[Outside], json_file: str | None) -> None:
    """Print an evaluation and what was measured outside, and write both to `json_file` if one is given."""
    from linnaeus.files import write_text
    from linnaeus.inference.outside import detector_of
    from linnaeus.metrics.label_assessment import LabelAssessment
    from linnaeus.report import evaluation_text, label_text

    assessment, classifier = evaluation.assessment, evaluation.classifier
    echo_text(f"{evaluation.split} of {evaluation.images.source}: {counted(assessment.metrics.n, 'image')}\n")
    if isinstance(assessment, LabelAssessment):
        echo_text(label_text.render(assessment, classifier.names))
    else:
        verdicts = evaluation.verdicts
        answers = () if verdicts is None else verdicts.lines()
        echo_text(evaluation_text.render(assessment, classifier.names, answers))
    if evaluation.validation is not None:
        metric = "" if classifier.several else "accuracy "
        echo_text(f"\nimages that selected the model, reported separately: {metric}{evaluation.validation}")
    if evaluation.column:
        echo_text(f"\n{evaluation_text.slices(evaluation.column, evaluation.slices)}")
    for rejection in outside:
        echo_text(f"\n{rejection.render()}")
    if outside and (line := detector_of(classifier).near_kinds()):
        echo_text(f"\n{line}")
    if json_file:
        more = {"outside": [rejection.to_dict() for rejection in outside]} if outside else {}
        write_text(Path(json_file), evaluation.to_json(more))


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@click.option(
    "--split",
    type=click.Choice(["valid", "test"]),
    help="Split to compare on.  [default: test if every run has it, else valid]",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the comparison as JSON.")
@verbosity
def compare(runs: tuple[str, ...], split: str | None, json_file: str | None) -> None:
    """Compare run folders on the same images.

    Each pair of runs is compared with McNemar's exact test on paired answers, with Holm's correction for multiple
    pairs. If p is 0.05 or larger, the data do not show that either model is better. The test compares these models
    only: training the same recipe with another seed gives another model.
    """
    early.check_output("--json", json_file, (".json",), "compare")
    from linnaeus.files import write_text
    from linnaeus.runs.compare import compare_runs

    comparison = compare_runs(runs, split)
    console = make_console(sys.stderr)
    for line in comparison.warnings:
        console.warn(line)
    echo_text(comparison.render())
    if json_file:
        write_text(Path(json_file), comparison.to_json())


@click.command()
@click.argument("run")
@click.option("--source", metavar="SOURCE", help="Current location of the run's images, if they were moved.")
@code_option
@device_option
@verbosity
def report(run: str, source: str | None, code: str | None, device: str) -> None:
    """Rebuild the HTML report of a run.

    The report is made from the files of the run folder RUN. The page is a single file that needs no network connection.
    It omits the images if they are no longer available, and the heat maps if the code of a custom network is not given.
    """
    from linnaeus.report.heat_maps import heat_maps
    from linnaeus.report.page import write_report
    from linnaeus.runs.reader import read_run

    console = make_console(sys.stderr)
    maps = None
    contents = read_run(Path(run))
    for line in contents.check.damage if contents.check else ():
        console.warn(line)
    if contents.model.arch["name"] == "custom" and code is None:
        console.say("no heat maps: the network's code is needed (--model FILE.py:FUNCTION)")
    else:
        maps = heat_maps(load_model(run, device, code))
    path, missing = write_report(contents, source=source, heat=maps)
    if missing:
        console.warn(f"no images in the report: {missing}")
    echo(path)
