"""`export`: convert a model for other runtimes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from linnaeus.cli import early
from linnaeus.cli.options import code_option, load_model, make_console, verbosity
from linnaeus.console import echo
from linnaeus.errors import UserError

if TYPE_CHECKING:
    from linnaeus.export.onnx import GateResult


@click.command()
@click.argument("model")
@click.option(
    "--to", "kind", required=True, type=click.Choice(["onnx", "onnx-int8", "torchvision"]), help="Output format."
)
@click.option("--data", metavar="SOURCE", help="Real images for the comparison.  [default: those of the run]")
@click.option("--split", metavar="NAME", help="Split of --data.  [default: valid, else test, else all]")
@click.option(
    "--out",
    metavar="FILE",
    help="Output file.  [default: model.onnx, model-int8.onnx or torchvision.pth, in the folder of MODEL]",
)
@click.option(
    "--agree",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Share of images on which int8 must predict the same class.  [default: 0.99]",
)
@code_option
@click.option("--json", "json_file", metavar="FILE", help="Write the comparison as JSON, whether or not it passed.")
@verbosity
def export(
    model: str,
    kind: str,
    data: str | None,
    split: str | None,
    out: str | None,
    agree: float | None,
    code: str | None,
    json_file: str | None,
) -> None:
    """Export a model to ONNX or torchvision.

    MODEL is a run folder or a model file.

    onnx and onnx-int8 contain preprocessing, network and calibration in one graph: pixels in, probabilities out. The
    export is compared with MODEL on real images and written only if both agree; otherwise the exit status is 1.
    torchvision writes a plain state dict for torchvision.models, with a model card beside it.
    """
    if model.lower().endswith(".onnx"):
        raise UserError(f"{model}: already an ONNX file; give the run folder or its model.safetensors")
    early.check_model(model)
    if kind == "torchvision":
        for option, value in (("--data", data), ("--split", split), ("--agree", agree), ("--json", json_file)):
            if value is not None:
                raise UserError(f"{option} {value}: --to torchvision compares no images; omit {option}")
        _export_torchvision(model, out, code)
        return
    early.check_output("--json", json_file, (".json",))
    if data is not None:
        early.check_source(data)
    if agree is not None and kind == "onnx":
        raise UserError(f"--agree {agree}: --to onnx must agree on every image; --agree is for onnx-int8 only")
    from linnaeus.export.onnx import export_onnx
    from linnaeus.export.onnx_file import require
    from linnaeus.modelfile.agreement import AGREEMENT

    require(kind)
    written, result = export_onnx(
        load_model(model, "cpu", code),
        kind,
        data=data,
        split=split,
        out=None if out is None else Path(out),
        agree=AGREEMENT if agree is None else agree,
        console=make_console(sys.stderr),
    )
    _print_comparison(written, result, json_file)


def _export_torchvision(model: str, out: str | None, code: str | None) -> None:
    from linnaeus.export.torchvision import export_torchvision

    weights, card = export_torchvision(load_model(model, "cpu", code), None if out is None else Path(out))
    echo(f"{weights}\n{card}")


def _print_comparison(written: Path | None, result: GateResult, json_file: str | None) -> None:
    """Print the comparison and the exported file. Exits with status 1 if nothing was written."""
    from linnaeus.export.gate_table import render
    from linnaeus.files import write_text

    console = make_console(sys.stderr)
    echo(render(result))
    if json_file:
        write_text(Path(json_file), result.to_json())
    if written is None:
        console.warn("no file was written: " + (result.attempts[0].refused or "no variant passed"))
        raise SystemExit(1)
    for line in result.warnings():
        console.warn(line)
    echo(written)
