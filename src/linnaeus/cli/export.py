"""`export`: a model for other machines."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from linnaeus.cli.options import load_model, verbosity
from linnaeus.console import Console
from linnaeus.errors import UserError


@click.command()
@click.argument("model")
@click.option(
    "--to", "kind", required=True, type=click.Choice(["onnx", "onnx-int8", "torchvision"]), help="What to write."
)
@click.option("--data", metavar="SOURCE", help="Real images to compare on.  [default: those of the run]")
@click.option("--split", metavar="NAME", help="Which of them.  [default: valid, else test, else all]")
@click.option("--out", metavar="FILE", help="[default: model.onnx, model-int8.onnx or torchvision.pth, beside MODEL]")
@click.option(
    "--agree", type=click.FloatRange(0, 1), metavar="SHARE",
    help="Images to which int8 must give the same class.  [default: 0.99]",
)  # fmt: skip
@click.option("--model", "code", metavar="FILE.py:FUNCTION", help="The network, where it is your own code.")
@click.option("--json", "json_file", metavar="FILE", help="Write the comparison there, passed or not.")
@verbosity
def export(
    model: str, kind: str, data: str | None, split: str | None, out: str | None, agree: float | None, code: str | None,
    json_file: str | None, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Write MODEL, a run folder or a model file, for others to use.

    onnx and onnx-int8 hold preprocessing, network and calibration in one graph: pixels in, probabilities out. They are
    compared with MODEL on real images and written only where they agree; exit status 1 where they do not.
    torchvision is a plain state dict for torchvision.models, with a model card beside it.
    """
    console = Console(quiet=quiet, verbose=verbose, stream=sys.stderr)
    if model.lower().endswith(".onnx"):
        raise UserError(f"{model}: is an export already; give the run folder or its model.safetensors")
    if kind == "torchvision":
        for option, value in (("--data", data), ("--split", split), ("--agree", agree), ("--json", json_file)):
            if value is not None:
                raise UserError(f"{option} {value}: nothing is compared for --to torchvision; leave it out")
        from linnaeus.export.torchvision import export_torchvision

        path, card = export_torchvision(load_model(model, "cpu", code), None if out is None else Path(out))
        click.echo(f"{path}\n{card}")
        return
    if agree is not None and kind == "onnx":
        raise UserError(f"--agree {agree}: float must agree on all images; only onnx-int8 takes a share")
    from linnaeus.export.files import require
    from linnaeus.export.gate import AGREEMENT
    from linnaeus.export.run import export_onnx
    from linnaeus.export.table import render
    from linnaeus.files import write_text

    require(kind)
    classifier = load_model(model, "cpu", code)
    written, gate = export_onnx(
        classifier, kind, data=data, split=split, out=None if out is None else Path(out),
        agree=AGREEMENT if agree is None else agree, console=console,
    )  # fmt: skip
    click.echo(render(gate))
    if json_file:
        write_text(Path(json_file), gate.to_json())
    if written is None:
        console.warn("no file was written: " + (gate.tried[0].refused or "nothing passed"))
        raise SystemExit(1)
    for line in gate.warnings():
        console.warn(line)
    click.echo(written)
