"""`serve`: a model behind HTTP, with a web page. Heavy modules are imported when the command runs."""

from __future__ import annotations

import re
import sys
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
    load_model,
    make_console,
    model_name,
    use_option,
    verbosity,
)
from linnaeus.console import Console
from linnaeus.errors import UserError
from linnaeus.runs.layout import REPORT
from linnaeus.runs.parsing import recorded_source

if TYPE_CHECKING:
    from linnaeus.serve.limits import Limits
    from linnaeus.serve.service import Service

MIB = 1 << 20


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
@click.option(
    "--max-mb",
    default=32,
    show_default=True,
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Maximum request size in MiB.",
)
@click.option(
    "--max-images",
    "--max-pictures",  # the former name
    default=32,
    show_default=True,
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Maximum number of images per request.",
)
@click.option(
    "--max-megapixels",
    type=Finite(0, min_open=True),
    metavar="X",
    help="Maximum image size in megapixels.  [default: 80, or 178 for JPEG]",
)
@click.option(
    "--queue",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Maximum number of images in progress.",
)
@click.option(
    "--batch",
    default=16,
    show_default=True,
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Maximum batch size of the network.",
)
@click.option(
    "--body-seconds",
    default=30.0,
    show_default=True,
    type=Finite(0.1),
    metavar="X",
    help="Time limit for receiving a request body, in seconds.",
)
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
    max_mb: int,
    max_images: int,
    max_megapixels: float | None,
    queue: int,
    batch: int,
    body_seconds: float,
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
    _check_options(model, device, place.token, max_images, queue, origins)
    early.check_examples(examples)
    try:
        from linnaeus.serve.access import is_loopback
        from linnaeus.serve.app import Settings
        from linnaeus.serve.examples import read_examples
        from linnaeus.serve.server import serve as run_server
    except ImportError as error:
        raise UserError(f'serving needs {error.name}: pip install "linnaeus[serve]"') from None
    console = make_console(sys.stderr)
    if place.token is None and not is_loopback(place.host):
        console.warn(f"--host {place.host}: anyone who can reach this machine can use the model; --token prevents that")
    limits = _limits(max_mb, max_images, max_megapixels, queue, batch, body_seconds)
    service = _load_service(model, device, code, use, limits, console)
    # On this machine only, the Host header is checked: pages of other sites could reach the server by DNS rebinding.
    allowed = frozenset(map(str.lower, hosts)) if hosts or is_loopback(place.host) else None
    pages = frozenset(origin.lower().rstrip("/") for origin in origins)
    folder = service.classifier.path.parent
    shown = () if examples is None else read_examples(examples, service.classifier.preprocessing)
    settings = Settings(title or model_name(Path(model)), place.token, allowed, pages, _read_report(folder), shown)
    run_server(service, settings, place.host, place.port, console, _training_source(folder, like))


def _check_options(
    model: str, device: str, token: str | None, max_images: int, queue: int, origins: tuple[str, ...]
) -> None:
    """Raise UserError for a token that a header cannot carry, a queue that a single request would overfill, and for
    origins that no browser sends."""
    early.check_device(device)
    early.check_model(model)
    early.check_token(token)
    if max_images > queue:
        raise UserError(f"--max-images {max_images}: exceeds --queue {queue}, so a full request could never be served")
    for origin in origins:
        if origin != "*" and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+/?", origin, re.IGNORECASE) is None:
            raise UserError(f"--allow-origin {origin}: must have the form https://example.com, without a path")


def _limits(
    max_mb: int, max_images: int, max_megapixels: float | None, queue: int, batch: int, body_seconds: float
) -> Limits:
    """The limits of the server from the options."""
    from linnaeus.serve.limits import Limits

    return Limits(
        request_bytes=max_mb * MIB,
        images=max_images,
        pixels=None if max_megapixels is None else int(max_megapixels * 1e6),
        queue=queue,
        explanations=max(Limits.explanations, max_images),
        total_bytes=max(256, 4 * max_mb) * MIB,
        batch=batch,
        body_seconds=body_seconds,
    )


def _load_service(
    model: str, device: str, code: str | None, use: str | None, limits: Limits, console: Console
) -> Service:
    """Load the file of `model` that answers; for an export also the original network, which explains answers."""
    from linnaeus.modelfile.safetensors import MODEL
    from linnaeus.serve.service import Service

    file = chosen_model(model, device, code, use, console)
    console.say(f"loading   {file}")
    classifier = load_model(file, device, code)
    original = None
    if Path(model).is_dir() and classifier.path.name != MODEL:
        original = load_model(str(classifier.path.parent / MODEL), device, None)
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
