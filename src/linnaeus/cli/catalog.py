"""`models`, `recipes`, `weights` and `data`: the networks, recipes, weights and sources that are available."""

from __future__ import annotations

import sys
from itertools import takewhile
from pathlib import Path

import click

from linnaeus.cli.options import make_console, verbosity
from linnaeus.cli.settings import parse_settings
from linnaeus.console import counted, echo, echo_text
from linnaeus.errors import UserError
from linnaeus.text import local_time, such_as


@click.command()
@click.argument("name", required=False)
@click.option(
    "--size",
    default=0,
    type=click.IntRange(0),
    metavar="PIXELS",
    help="Side of the input.  [default: 224, or as needed]",
)
@click.option("--classes", type=click.IntRange(1), metavar="N", help="Number of classes.  [default: the network's own]")
@click.option(
    "--channels",
    type=click.IntRange(1),
    metavar="N",
    help="Input channels: 1 gray, 3 color.  [default: the network's own]",
)
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Network argument, such as stem=small.")
@verbosity
def models(name: str | None, size: int, classes: int | None, channels: int | None, settings: tuple[str, ...]) -> None:
    """List the networks, or describe one layer by layer.

    The table shows output shapes, parameters and multiply-adds.

    A convolution from c_in to c_out channels with a k x k kernel, g groups and H x W outputs has k * k * c_in / g *
    c_out weights and performs H * W multiply-adds per weight. The side of its output is
    floor((side + 2 * padding - k) / stride) + 1.
    """
    from linnaeus.models import create
    from linnaeus.models.layers import COSTS, layer_table, render, summary, totals

    if name is None:
        values = {"--size": size, "--classes": classes, "--channels": channels, "--set": settings}
        option = next((option for option, value in values.items() if value), None)
        if option is not None:
            raise UserError(f"{option}: is for one network; name it, as in linnaeus models resnet18 {option} ...")
        echo_text(summary())
        return
    defaults = COSTS.get(name, COSTS["resnet50"])  # create() reports an unknown name
    network = create(name, classes or defaults.classes, channels or defaults.channels, **parse_settings(settings))
    table = layer_table(network, size or None)
    echo(render(table))
    # Auxiliary heads have parameters, but the table follows one image to its answer and never meets them.
    auxiliary = sum(p.numel() for p in network.parameters()) - totals(table)[0]
    if auxiliary:
        echo(f"and {auxiliary:,} parameters of auxiliary heads, which are used in training only")


@click.command()
@click.argument("name", required=False)
@verbosity
def recipes(name: str | None) -> None:
    """List the recipes, or print one as TOML."""
    from linnaeus.recipe import recipe_names, recipe_text

    if name is not None:
        echo(recipe_text(name)[1], end="")
        return
    for recipe in recipe_names():
        # The first paragraph of the comment at its beginning.
        comment = takewhile(lambda line: line.strip("# "), recipe_text(recipe)[1].splitlines())
        echo_text(f"{recipe:15}  {' '.join(line.strip('# ') for line in comment)}")


@click.group()
def weights() -> None:
    """List, download and import published weights."""


@weights.command("list")
@verbosity
def weights_list() -> None:
    """List the published weights and which are already downloaded."""
    from linnaeus.models.weights.store import render_list

    echo(render_list())


@weights.command("pull")
@click.argument("name")
@verbosity
def weights_pull(name: str) -> None:
    """Download weights and verify them. An interrupted download is resumed."""
    from linnaeus.data.download import fetch
    from linnaeus.models.weights.store import pull

    with make_console(sys.stderr).progress(name, "bytes") as advance:
        path = pull(name, fetch=fetch, progress=advance)
    echo(path)


@weights.command("import")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@verbosity
def weights_import(name: str, file: Path) -> None:
    """Import a weights file that was downloaded by other means.

    NAME is a name from `linnaeus weights list`. Weights that are not in this list need no import: use
    `linnaeus train --weights FILE`.
    """
    from linnaeus.models.weights.store import import_file

    path, notes = import_file(name, file)
    console = make_console(sys.stderr)
    for note in notes:
        console.say(note)
    echo(path)


@click.group()
def data() -> None:
    """List and download datasets, write shards, manage the cache."""


@data.command("list")
@verbosity
def data_list() -> None:
    """List the datasets that can be used by name."""
    from linnaeus.data.readers.known_sources import known_sources

    for dataset in known_sources():
        size = f"{dataset.size / 1e6:,.0f} MB" if dataset.size else ""
        status = "present" if dataset.present else "download"
        echo(f"{dataset.name:14} {status:9} {size:>8}  {dataset.description}")


@data.command("pull")
@click.argument("name")
@verbosity
def data_pull(name: str) -> None:
    """Download a dataset. An interrupted download is resumed."""
    from linnaeus.data.readers.known_sources import pull

    with make_console(sys.stderr).progress(name, "bytes") as advance:
        path = pull(name, progress=advance)
    echo(path)


@data.command("shard")
@click.argument("source")
@click.option("--out", metavar="DIR", required=True, help="New folder for the shards and their index.")
@click.option("--size", default=256, show_default=True, type=click.IntRange(1), metavar="MB", help="Size of a shard.")
@click.option("--resize", type=click.IntRange(1), metavar="PIXELS", help="Shrink larger images to this short side.")
@verbosity
def data_shard(source: str, out: str, size: int, resize: int | None) -> None:
    """Write a dataset as tar shards in WebDataset format.

    An index is written beside the shards. `linnaeus train` reads images directly from the shards, given DIR or its URL
    on a web server. The dataset may be larger than the disk: nothing is unpacked and no pixel store is built.
    """
    from linnaeus.data.readers.shardwriter import write_shards
    from linnaeus.data.sources import open_source, refuse_inside

    console = make_console(sys.stderr)
    table = open_source(source)
    refuse_inside(out, table)
    with console.progress("writing") as advance:
        summary = write_shards(table, out, size=size, resize=resize, progress=advance)
    if summary.left_out:
        n, example = len(summary.left_out), ": ".join(summary.left_out[0])
        console.warn(f"{counted(n, 'unreadable image')} skipped{such_as(n, example)}")
    images, shards = counted(summary.images, "image"), counted(summary.shards, "shard")
    echo(f"{images} in {shards}, {summary.bytes / 1e6:,.1f} MB, in {out}")


@data.command("cache")
@click.option("--clear", is_flag=True, help="Delete all entries. They are recomputed when needed.")
@verbosity
def data_cache(clear: bool) -> None:
    """List or clear the cache.

    The cache holds decoded images, activations and decompressed archives.
    """
    from linnaeus.cache import default_cache

    cache = default_cache()
    if clear:
        echo(f"{cache.clear() / 1e6:,.0f} MB freed in {cache.root}")
        return
    entries = cache.entries()
    for entry in entries:
        used = local_time(entry.used).strftime("%Y-%m-%d %H:%M")
        # A build in progress has no header yet, and embeddings call their rows `n`.
        rows = "unfinished" if entry.unfinished else f"{entry.about.get('rows', entry.about.get('n', '?'))} rows"
        content = "archive" if "archive" in entry.about else rows
        echo(f"{used}  {entry.bytes / 1e6:>10,.1f} MB  {content:>14}  {entry.name}")
    total = sum(entry.bytes for entry in entries) / 1e9
    echo(f"{total:.2f} of {cache.budget / 1e9:g} GB in {cache.root} (LINNAEUS_CACHE, LINNAEUS_CACHE_GB)")
