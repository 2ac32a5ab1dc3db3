"""`serve`: a model behind HTTP, with a web page. Heavy modules are imported when the command runs."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from linnaeus.cli import early
from linnaeus.cli.address import address, address_options
from linnaeus.cli.options import (
    Finite,
    ModelCommand,
    chosen_model,
    code_option,
    device_option,
    hidden,
    load_model,
    make_console,
    model_name,
    together,
    use_option,
    verbosity,
)
from linnaeus.console import Console
from linnaeus.errors import UserError, install
from linnaeus.runs.layout import REPORT
from linnaeus.runs.parsing import recorded_source
from linnaeus.serve.limits import MIB, Limits

if TYPE_CHECKING:
    from linnaeus.serve.service import Service

LIMITS = "linnaeus.limits"  # key of the limits in click's `Context.meta`
limit = partial(hidden, LIMITS, show_default=True)
limit_options = together(
    limit("--max-mb", default=32, type=click.IntRange(1, 1024), metavar="N", help="Maximum request size in MiB."),
    limit(
        "--max-images",
        default=32,
        type=click.IntRange(1, 1000),
        metavar="N",
        help="Maximum number of images per request.",
    ),
    limit(
        "--max-megapixels",
        type=Finite(0, 1e6, min_open=True),
        metavar="X",
        help="Maximum image size in megapixels.  [default: 80, or 178 for JPEG]",
    ),
    limit("--queue", default=256, type=click.IntRange(1), metavar="N", help="Maximum number of images in progress."),
    limit("--batch", default=16, type=click.IntRange(1, 1024), metavar="N", help="Maximum batch size of the network."),
    limit(
        "--body-seconds",
        default=30.0,
        type=Finite(0.1),
        metavar="X",
        help="Time limit for receiving a request body, in seconds.",
    ),
)
"""Adds the limits to a command, which gets them from `_limits`."""


@click.command(cls=ModelCommand)
@click.argument("model")
@address_options("env: LINNAEUS_TOKEN")
@click.option("--title", metavar="TEXT", help="Heading of the page.  [default: the name of the run folder]")
@click.option("--examples", metavar="DIR", help="Images that the page shows to click, at most 24.")
@click.option("--allow-host", "hosts", metavar="NAME", multiple=True, help="Accepted Host header. Repeatable.")
@click.option(
    "--allow-origin",
    "origins",
    metavar="ORIGIN",
    multiple=True,
    help="Origin whose pages may use the API, such as https://example.com; * for any. Repeatable.",
)
@click.option("--like", metavar="SOURCE|none", help="Training images to compare with.  [default: those of the run]")
@limit_options
@code_option
@use_option
@device_option
@verbosity
def serve(
    model: str,
    title: str | None,
    examples: str | None,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    like: str | None,
    code: str | None,
    use: str | None,
    device: str,
) -> None:
    """Serve a model over HTTP, with a web page and an API.

    MODEL is a run folder or a model file. The page is at /, the API at /predict, its description at /docs. Only this
    machine can connect unless --host says otherwise. After Ctrl-C the server completes the requests in progress and
    exits.
    """
    place = address()
    _check_options(model, device, place.token, origins)
    limits = _limits()
    early.check_examples(examples)
    try:
        from linnaeus.serve.access import is_loopback
        from linnaeus.serve.app import Settings
        from linnaeus.serve.examples import read_examples
        from linnaeus.serve.server import serve as run_server
    except ImportError as error:
        raise UserError(f"serving needs {error.name}: {install('serve')}") from None
    console = make_console(sys.stderr)
    if place.token is None and not is_loopback(place.host):
        console.warn(f"--host {place.host}: anyone who can reach this machine can use the model; --token prevents that")
    service = _load_service(model, device, code, use, limits, console)
    # On this machine only, the Host header is checked: pages of other sites could reach the server by DNS rebinding.
    allowed = frozenset(map(str.lower, hosts)) if hosts or is_loopback(place.host) else None
    pages = frozenset(origin.lower().rstrip("/") for origin in origins)
    folder = service.classifier.path.parent
    shown = () if examples is None else read_examples(examples, service.classifier.preprocessing)
    settings = Settings(title or model_name(Path(model)), place.token, allowed, pages, _read_report(folder), shown)
    run_server(service, settings, place.host, place.port, console, _training_source(folder, like))


def _check_options(model: str, device: str, token: str | None, origins: tuple[str, ...]) -> None:
    """Raise UserError for a missing device or model, a token that no header can carry, and origins no browser sends."""
    early.check_device(device)
    early.check_model(model)
    early.check_token(token)
    for origin in origins:
        if origin != "*" and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+/?", origin, re.IGNORECASE) is None:
            raise UserError(f"--allow-origin {origin}: must have the form https://example.com, without a path")


def _limits() -> Limits:
    """The limits of the running command. Raises UserError for a queue that a single request would overfill."""
    options = click.get_current_context().meta[LIMITS]
    images, queue, megapixels = options["max_images"], options["queue"], options["max_megapixels"]
    if images > queue:
        raise UserError(f"--max-images {images}: exceeds --queue {queue}, so a full request could never be served")
    return Limits(
        request_bytes=options["max_mb"] * MIB,
        images=images,
        pixels=None if megapixels is None else int(megapixels * 1e6),
        queue=queue,
        explanations=max(Limits.explanations, images),
        total_bytes=max(256, 4 * options["max_mb"]) * MIB,
        batch=options["batch"],
        body_seconds=options["body_seconds"],
    )


def _load_service(
    model: str, device: str, code: str | None, use: str | None, limits: Limits, console: Console
) -> Service:
    """Load the file of `model` that answers; for an export also the original network, which explains answers."""
    from linnaeus.inference.classifier import load
    from linnaeus.modelfile.safetensors import MODEL
    from linnaeus.serve.service import Service

    file = chosen_model(model, device, code, use, console)
    console.say(f"loading   {file}")
    classifier = load_model(file, device, code)
    original = None
    if Path(model).is_dir() and classifier.path.name != MODEL:
        original = load(classifier.path.parent / MODEL, device=device)  # whose warnings the export has given
    console.say(f"model     {classifier.path} on {classifier.device}")
    return Service(classifier, limits, original)


def _read_report(folder: Path) -> str | None:
    report = folder / REPORT
    return report.read_text(encoding="utf-8") if report.is_file() else None


def _training_source(folder: Path, like: str | None) -> str | None:
    """The source of training images: `like`, or the one recorded in the run folder; None if there is none."""
    if like is not None:
        return None if like == "none" else like
    source = recorded_source(folder)
    return source if source and Path(source).exists() else None
