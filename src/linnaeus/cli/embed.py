"""`embed`: write the features of images to a file."""

from __future__ import annotations

import sys

import click

from linnaeus.cli import early
from linnaeus.cli.options import (
    device_option,
    devices_option,
    join_processes,
    make_console,
    process_group,
    verbosity,
)
from linnaeus.cli.settings import parse_settings, settings_option
from linnaeus.console import counted, echo

ADVICE = "run the same command again to continue"


@click.command()
@click.argument("model")
@click.argument("source")
@click.option("--out", metavar="FILE", required=True, help="Output file: .npz, .parquet or .safetensors.")
@settings_option
@device_option
@devices_option
@verbosity
def embed(model: str, source: str, out: str, settings: tuple[str, ...], device: str, devices: int | None) -> None:
    """Write the features of images to a file.

    MODEL is a run folder, a model file, or a backbone that `linnaeus probe` accepts, such as
    timm/tf_efficientnet_lite0. SOURCE is any source of `linnaeus train`, or a folder of loose images. The features of
    an image are the input of the model's last layer, or the pooled output of a backbone.

    The file has one row for each readable image: features (float32), id, path, label and split. Exit status 1 if any
    image cannot be read. Features stay in the cache, so the same command continues after an interruption.

    Several machines: torchrun --nproc-per-node N -m linnaeus embed ..., or srun linnaeus embed ...
    """
    # All mistakes of the command line are reported at once, before torch is imported.
    with early.one_report():
        early.check_device(device)
        early.check_output("--out", out, (".npz", ".parquet", ".safetensors"))
    here = join_processes(devices, ADVICE)
    from linnaeus.probe.embed import embed as write_embeddings

    console = make_console(sys.stderr, silent=not here.is_main)
    with process_group(here, devices, device, ADVICE) as group:
        result = write_embeddings(
            model, source, out, settings=parse_settings(settings), device=device, console=console, group=group
        )
    if not here.is_main:
        return
    echo(f"{counted(result.images, 'image')}, {result.width:,} features each, in {result.path}")
    for sample, reason in result.left_out:
        console.warn(f"{sample}: {reason}")
    if result.left_out:
        console.warn(f"{counted(len(result.left_out), 'image')} could not be read and are not in the file")
        raise SystemExit(1)
