"""`export`: convert a model for other runtimes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from linnaeus.cli import early
from linnaeus.cli.options import Finite, ModelCommand, code_option, load_model, make_console, model_name, verbosity
from linnaeus.console import echo
from linnaeus.environment import cache_dir
from linnaeus.errors import UserError

if TYPE_CHECKING:
    from linnaeus.export.onnx import GateResult
    from linnaeus.inference.classifier import Classifier
    from linnaeus.web.export import WebFolder

LARGE_PAGE = 20e6  # bytes of a network above which a page takes long to load on a phone: 16 s at 10 Mbit/s


@click.command(cls=ModelCommand)
@click.argument("model")
@click.option(
    "--to", "kind", required=True, type=click.Choice(["onnx", "onnx-int8", "web", "torchvision"]), help="Output format."
)
@click.option("--data", metavar="SOURCE", help="Real images for the comparison.  [default: those of the run]")
@click.option("--split", metavar="NAME", help="Split of --data.  [default: valid, else test, else all]")
@click.option(
    "--out",
    metavar="PATH",
    help="Output file, or folder of web.  [default: model.onnx, model-int8.onnx, web or torchvision.pth, in the folder "
    "of MODEL]",
)
@click.option("--title", metavar="TEXT", help="Heading of the page of web.  [default: the name of the run folder]")
@click.option("--examples", metavar="DIR", help="Images that the page of web shows to click, at most 24.")
@click.option(
    "--agree",
    type=Finite(0, 1),
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
    title: str | None,
    examples: str | None,
    agree: float | None,
    code: str | None,
    json_file: str | None,
) -> None:
    """Export a model to ONNX, a web page, or torchvision.

    MODEL is a run folder or a model file.

    onnx and onnx-int8 contain preprocessing, network and calibration in one graph: pixels in, probabilities out. The
    export is compared with MODEL on real images and written only if both agree; otherwise the exit status is 1.
    web writes a folder for any static host: a page that runs the ONNX file in the visitor's browser, also without
    a network. MODEL may then be an exported ONNX file, too.
    torchvision writes a plain state dict for torchvision.models, with a model card beside it.
    """
    _check_options(model, kind, data, split, agree, json_file)
    _check_page(kind, title, examples)
    place = _place(model, out)
    if kind == "torchvision":
        _export_torchvision(load_model(model, "cpu", code), place)
        return
    from linnaeus.export.onnx import export_onnx
    from linnaeus.export.onnx_file import require
    from linnaeus.modelfile.agreement import AGREEMENT

    require(kind)
    classifier, console = load_model(model, "cpu", code), make_console(sys.stderr)
    if kind == "web":
        from linnaeus.web.export import export_web

        folder, heading = place or classifier.path.with_name("web"), title or model_name(Path(model))
        page, compared = export_web(
            classifier, folder, heading, examples=examples, data=data, split=split, console=console
        )
        _print_page(page, compared, json_file)
        return
    gate = AGREEMENT if agree is None else agree
    written, result = export_onnx(classifier, kind, data=data, split=split, out=place, agree=gate, console=console)
    _print_comparison(written, result, json_file)
    echo(written)


def _export_torchvision(classifier: Classifier, place: Path | None) -> None:
    from linnaeus.export.torchvision import export_torchvision

    weights, card = export_torchvision(classifier, place)
    echo(f"{weights}\n{card}")


def _place(model: str, out: str | None) -> Path | None:
    """The value of --out as a path. Raises UserError or JobError if it is needed, or cannot be written."""
    if out is None and Path(model).is_relative_to(cache_dir()):
        raise UserError(f"--out: is needed for a model of the hub, because {model} lies in the cache folder")
    if out is not None and not Path(out).exists():  # else it would be found out only after the comparison
        early.check_output("--out", out)
    if out is None:
        early.check_beside(model)
        return None
    return Path(out)


def _check_options(
    model: str,
    kind: str,
    data: str | None,
    split: str | None,
    agree: float | None,
    json_file: str | None,
) -> None:
    """Raise UserError for an option that does nothing in this export, and for what can be told before the work."""
    exported = model.lower().endswith(".onnx")
    if exported and kind != "web":
        raise UserError(f"{model}: already an ONNX file; give the run folder or its model.safetensors")
    early.check_model(model)
    reason = "--to torchvision makes no comparison" if kind == "torchvision" else f"{model} was compared when exported"
    for option, value in (("--data", data), ("--split", split), ("--agree", agree), ("--json", json_file)):
        if value is not None and (exported or kind == "torchvision"):
            raise UserError(f"{option} {value}: {reason}; omit {option}")
    early.check_output("--json", json_file, (".json",), "export")
    if data is not None:
        early.check_source(data)
    # Only int8 changes answers by design; any other format must reproduce the original.
    if agree is not None and kind in ("onnx", "web"):
        raise UserError(f"--agree {agree}: --to {kind} must agree on every image; --agree is for onnx-int8 only")


def _check_page(kind: str, title: str | None, examples: str | None) -> None:
    """Raise UserError for an option of the page in another export, and for examples that are no folder of images."""
    for option, value in (("--title", title), ("--examples", examples)):
        if value is not None and kind != "web":
            raise UserError(f"{option} {value}: only --to web writes a page; omit {option}")
    early.check_examples(examples)


def _print_page(page: WebFolder | None, compared: GateResult | None, json_file: str | None) -> None:
    """Print the comparison if there was one, the folder that was written, its size, and how to look at it."""
    if compared is not None:
        _print_comparison(None if page is None else page.path, compared, json_file)
    assert page is not None
    echo(page.path)
    for line in page_lines(page, is_float=compared is not None):
        make_console(sys.stderr).say(line)


def page_lines(page: WebFolder, *, is_float: bool) -> list[str]:
    """The size of a page, how to look at it, and how a large float network becomes smaller."""
    parts = ", ".join(f"{file} {page.sizes[file] / 1e6:.1f}" for file in ("model.onnx", "ort-wasm.wasm"))
    size = f"{page.size / 1e6:.1f} MB ({parts}) for any static host"
    lines = [f"{size}; to preview: python -m http.server -d {page.path}"]
    if is_float and page.sizes["model.onnx"] > LARGE_PAGE:
        lines.append(
            "every visitor downloads all of this; to make it smaller, train a smaller backbone, such as "
            "EfficientNet-Lite0, or use int8: linnaeus export RUN --to onnx-int8, then linnaeus export "
            "RUN/model-int8.onnx --to web"
        )
    return lines


def _print_comparison(written: Path | None, result: GateResult, json_file: str | None) -> None:
    """Print the comparison. Exits with status 1 if nothing was written."""
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
