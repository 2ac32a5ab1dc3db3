"""`push`: upload a model to the Hugging Face hub."""

from __future__ import annotations

import sys

import click

from linnaeus.cli import early
from linnaeus.cli.options import load_model, make_console, verbosity
from linnaeus.console import echo
from linnaeus.environment import offline
from linnaeus.errors import UserError


@click.command()
@click.argument("model")
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
@click.option("--license", metavar="ID", help="License for the card, such as cc-by-4.0.  [default: unknown]")
@verbosity
def push(model: str, repository: str, private: bool, license: str | None) -> None:
    """Upload a model to the Hugging Face hub.

    MODEL is a run folder or a model file. The repository gets model.safetensors, and a model card unless it has one.
    `linnaeus predict hf:OWNER/NAME IMAGES` then works anywhere. HF_TOKEN must hold a token with write access.
    """
    early.check_model(model)
    if offline():
        raise UserError(f"{repository}: nothing can be uploaded while LINNAEUS_OFFLINE is set")
    from linnaeus.export.push import push as upload
    from linnaeus.modelfile.hub_models import parse_repository

    parse_repository(repository)
    console = make_console(sys.stderr)
    classifier = load_model(model, "cpu", None)
    if classifier.about.data.get("contents"):
        console.warn("whether an image was among the training images can be tested with this file (see the model card)")
    address, fresh = upload(classifier, repository, private=private, license=license)
    if not fresh:
        console.warn("the repository has a model card already, which was kept: check its figures")
    echo(address)
