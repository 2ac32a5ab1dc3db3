"""`forget`: a run whose head has never seen some images. torch is imported when the command runs."""

from __future__ import annotations

import click

from linnaeus.cli.options import device_option, make_console, show_next, verbosity


@click.command()
@click.argument("run")
@click.option("--images", metavar="LIST", help="File with the path of an image on each line, or - for standard input.")
@click.option("--group", "groups", multiple=True, metavar="VALUE", help="Images of a group. Repeatable.")
@click.option("--class", "classes", multiple=True, metavar="CLASS", help="Images of a class. Repeatable.")
@click.option("--out", metavar="DIR", help="New run folder.  [default: RUN-forget-<n>]")
@device_option
@verbosity
def forget(
    run: str, images: str | None, groups: tuple[str, ...], classes: tuple[str, ...], out: str | None, device: str
) -> None:
    """Make a new run that has never seen some images.

    The new run is identical, bit for bit, to a run that is trained without these images and without copies with the
    same content. All of them, and everything computed from them, are removed from the cache. The new model file states
    how many images were removed. RUN is not changed, and still depends on these images until you remove it. It must
    have a frozen network and a solved head (head = "auto"), as runs with the recipes for few images do.
    """
    from linnaeus.cli import early
    from linnaeus.training.derived.forget import Forgotten
    from linnaeus.training.derived.forget import forget as forget_images

    early.check_device(device)
    console = make_console()
    result = forget_images(run, Forgotten(images, groups, classes), out=out, device=device, console=console)
    console.say(result.render())
    console.say(f"report    {result.run.path / 'report.html'}")
    show_next(result.run.path, console)
    if result.purged.left:
        raise SystemExit(1)
