"""`serve`: a model behind HTTP, and a page to use it by. Heavy things are imported inside: --help is instant."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from linnaeus.cli.options import fastest_model, load_model, verbosity
from linnaeus.console import Console
from linnaeus.errors import UserError
from linnaeus.runs.layout import REPORT
from linnaeus.runs.parsing import recorded_source

MIB = 1 << 20


@click.command()
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 for every network.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--token", envvar="LINNAEUS_TOKEN", help="Asked of every client.  [env: LINNAEUS_TOKEN]")
@click.option("--allow-host", "hosts", metavar="NAME", multiple=True, help="Answer to this Host too.")
@click.option("--like", metavar="SOURCE|none", help="Training images to compare with.  [default: the run's own]")
@click.option("--max-mb", default=32, show_default=True, type=click.IntRange(1, 1024), help="MiB of a request.")
@click.option("--max-images", default=32, show_default=True, type=click.IntRange(1, 1000), help="Of a request.")
@click.option("--max-megapixels", type=click.FloatRange(0, min_open=True), help="Of an image, by its header.")
@click.option("--queue", default=256, show_default=True, type=click.IntRange(1), help="Images that may wait.")
@click.option(
    "--batch", default=16, show_default=True, type=click.IntRange(1, 1024), help="Through the network at once."
)
@click.option("--body-seconds", default=30.0, show_default=True, type=click.FloatRange(0.1), help="For a body to come.")
@click.option("--model", "code", metavar="FILE.py:FUNCTION", help="The network, where it is your own code.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@verbosity
def serve(
    model: str, host: str, port: int, token: str | None, hosts: tuple[str, ...], like: str | None, max_mb: int,
    max_images: int, max_megapixels: float | None, queue: int, batch: int, body_seconds: float, code: str | None,
    device: str, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Serve MODEL, a run folder or a model file: a page at /, and POST /predict for programs.

    Images are sent as multipart/form-data, as the bytes of one image, or as base64 in JSON; /docs describes it.
    Only this machine can reach the server unless --host says otherwise. Ctrl-C ends it when all in hand is answered.
    """
    from linnaeus.modelfile.safetensors import MODEL

    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
        raise UserError("--token: printable ASCII without blanks at its ends; leave it out to ask for none")
    if max_images > queue:
        raise UserError(f"--max-images {max_images}: a full request never fits into --queue {queue}")
    try:
        from linnaeus.serve.access import is_loopback
        from linnaeus.serve.app import Settings
        from linnaeus.serve.limits import Limits
        from linnaeus.serve.server import serve as run_server
        from linnaeus.serve.service import Service
    except ImportError as error:
        raise UserError(f'serving needs {error.name}: pip install "linnaeus[serve]"') from None
    console = Console(quiet=quiet, verbose=verbose, stream=sys.stderr)
    if token is None and not is_loopback(host):
        console.warn(f"--host {host}: whoever reaches this machine can use the model; --token asks them for one")
    limits = Limits(
        request_bytes=max_mb * MIB, held_bytes=max(256, 4 * max_mb) * MIB, images=max_images, queue=queue,
        batch=batch, body_seconds=body_seconds,
        pixels=None if max_megapixels is None else int(max_megapixels * 1e6),
    )  # fmt: skip
    chosen = fastest_model(model, device, code, console)
    console.say(f"loading   {chosen}")
    classifier = load_model(chosen, device, code)
    folder = classifier.path.parent
    original = None
    if Path(model).is_dir() and classifier.path.name != MODEL:  # an export of this very model
        original = load_model(str(folder / MODEL), device, None)
    known = frozenset(name.lower() for name in hosts) if hosts or is_loopback(host) else None
    settings = Settings(_name(Path(model)), token, known, _report(folder))
    console.say(f"model     {classifier.path} on {classifier.device}")
    service = Service(classifier, limits, original)
    run_server(service, settings, host, port, console, _source(folder, like))


def _name(model: Path) -> str:
    """What to call a model: its run's folder, or its file."""
    path = model.absolute()
    return path.name if path.is_dir() else path.parent.name if path.stem == "model" else path.stem


def _report(folder: Path) -> str | None:
    report = folder / REPORT
    return report.read_text(encoding="utf-8") if report.is_file() else None


def _source(folder: Path, like: str | None) -> str | None:
    """Where the training images are: as `like` says, or as the run notes; None where that is not known."""
    if like is not None:
        return None if like == "none" else like
    source = recorded_source(folder)
    return source if source and Path(source).exists() else None
