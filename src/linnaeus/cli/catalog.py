"""`models`, `recipes`, `weights`, `data`: what there is to train, with what, on what."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from linnaeus.cli.options import verbosity
from linnaeus.console import Console, counted


@click.command()
@click.argument("name", required=False)
@click.option(
    "--size", default=0, type=click.IntRange(0), help="Pixels of the image's side.  [default: 224, or what suits]"
)
@click.option("--classes", type=click.IntRange(1), help="Outputs of the head.  [default: as the list has it]")
@click.option("--channels", type=click.IntRange(1), help="1 gray, 3 color.  [default: as the list has it]")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="An argument of the network: stem=small.")
@verbosity
def models(
    name: str | None, size: int, classes: int | None, channels: int | None, settings: tuple[str, ...], quiet: bool,
    verbose: bool,
) -> None:  # fmt: skip
    """List the networks; or show one, layer by layer, with shapes, parameters and multiply-adds.

    A convolution from c_in to c_out channels with a k x k kernel, in g groups, giving H x W outputs, has
    k * k * c_in / g * c_out weights and does H * W multiply-adds with each. Its output's side is
    floor((side + 2 * padding - k) / stride) + 1.
    """
    from linnaeus.models import create
    from linnaeus.models.layers import COSTS, layer_table, render, summary, totals
    from linnaeus.recipe import parse_setting

    if name is None:
        click.echo(summary())
        return
    usual = COSTS.get(name, COSTS["resnet50"])  # create() reports an unknown name
    network = create(name, classes or usual.classes, channels or usual.channels, **dict(map(parse_setting, settings)))
    table = layer_table(network, size or None)
    click.echo(render(table))
    apart = sum(p.numel() for p in network.parameters()) - totals(table)[0]
    if apart:
        click.echo(f"and {apart:,} parameters of auxiliary heads, which train and do not answer")


@click.command()
@click.argument("name", required=False)
@verbosity
def recipes(name: str | None, quiet: bool, verbose: bool) -> None:
    """List the recipes; or print one, ready to edit."""
    from linnaeus.recipe import recipe_names, recipe_text

    if name is not None:
        click.echo(recipe_text(name)[1], nl=False)
        return
    for each in recipe_names():
        first = recipe_text(each)[1].splitlines()[0].lstrip("# ")
        click.echo(f"{each:16} {first}")


@click.group()
def weights() -> None:
    """Published weights: list, download, import."""


@weights.command("list")
@verbosity
def weights_list(quiet: bool, verbose: bool) -> None:
    """List the published weights, and which are at hand."""
    from linnaeus.models.weight_store import render_list

    click.echo(render_list())


@weights.command("pull")
@click.argument("name")
@verbosity
def weights_pull(name: str, quiet: bool, verbose: bool) -> None:
    """Download weights, verified; an interrupted download goes on where it stopped."""
    from linnaeus.data.download import fetch
    from linnaeus.models.weight_store import pull

    with Console(quiet=quiet, verbose=verbose, stream=sys.stderr).progress(name, "bytes") as advance:
        path = pull(name, fetch=fetch, progress=advance)
    click.echo(path)


@weights.command("import")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@verbosity
def weights_import(name: str, file: Path, quiet: bool, verbose: bool) -> None:
    """Take in a weights FILE that you brought, under the NAME that `linnaeus weights list` has for them.

    A file that nobody published needs no import: `linnaeus train --weights FILE` takes it as it is.
    """
    from linnaeus.models.weight_store import import_file

    path, notes = import_file(name, file)
    for note in notes:
        Console(quiet=quiet, stream=sys.stderr).say(note)
    click.echo(path)


@click.group()
def data() -> None:
    """Known data sets, shards, and the cache of decoded images."""


@data.command("list")
@verbosity
def data_list(quiet: bool, verbose: bool) -> None:
    """List the sources that have a name."""
    from linnaeus.data.known_sources import known_sources

    for known in known_sources():
        size = f"{known.size / 1e6:,.0f} MB" if known.size else ""
        at_hand = "at hand" if known.present else "to fetch"
        click.echo(f"{known.name:14} {at_hand:9} {size:>8}  {known.description}")


@data.command("pull")
@click.argument("name")
@verbosity
def data_pull(name: str, quiet: bool, verbose: bool) -> None:
    """Fetch a known source; an interrupted download goes on where it stopped."""
    from linnaeus.data.known_sources import pull

    with Console(quiet=quiet, verbose=verbose, stream=sys.stderr).progress(name, "bytes") as advance:
        path = pull(name, progress=advance)
    click.echo(path)


@data.command("shard")
@click.argument("source")
@click.option("--out", metavar="DIR", required=True, help="A new folder for the shards and their index.")
@click.option("--size", default=256, show_default=True, type=click.IntRange(1), metavar="MB", help="Of a shard, about.")
@click.option("--resize", type=click.IntRange(1), metavar="PIXELS", help="Bring larger images' short side down to it.")
@verbosity
def data_shard(source: str, out: str, size: int, resize: int | None, quiet: bool, verbose: bool) -> None:
    """Write SOURCE as tar shards, as WebDataset has them, with an index.

    `linnaeus train DIR`, or the address of DIR on a web server, reads them image by image, however large they are
    together: nothing is unpacked, and no store of pixels is kept.
    """
    from linnaeus.data.shardwriter import write_shards
    from linnaeus.data.sources import open_source

    console = Console(quiet=quiet, verbose=verbose, stream=sys.stderr)
    table = open_source(source)
    with console.progress("writing") as advance:
        done = write_shards(table, out, size=size, resize=resize, progress=advance)
    if done.left_out:
        first = ": ".join(done.left_out[0])
        console.warn(f"{len(done.left_out)} image(s) could not be read and are left out, such as {first}")
    click.echo(
        f"{counted(done.images, 'image')} in {counted(done.shards, 'shard')}, {done.bytes / 1e6:,.1f} MB, in {out}"
    )


@data.command("cache")
@click.option("--clear", is_flag=True, help="Empty it; what is needed again is computed again.")
@verbosity
def data_cache(clear: bool, quiet: bool, verbose: bool) -> None:
    """Show what is kept of decoded images and frozen networks, newest first; or empty it."""
    from datetime import datetime

    from linnaeus.stores import default_cache

    cache = default_cache()
    if clear:
        click.echo(f"{cache.clear() / 1e6:,.0f} MB freed in {cache.root}")
        return
    entries = cache.entries()
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        rows = "unfinished" if entry.unfinished else f"{entry.about.get('rows', entry.about.get('n', '?'))} rows"
        click.echo(f"{used}  {entry.bytes / 1e6:>10,.1f} MB  {rows:>14}  {entry.name}")
    held = sum(entry.bytes for entry in entries) / 1e9
    click.echo(f"{held:.2f} of {cache.budget / 1e9:g} GB in {cache.root} (LINNAEUS_CACHE, LINNAEUS_CACHE_GB)")
