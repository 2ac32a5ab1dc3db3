"""`classes`: change the classes of a finished run. torch is imported when the command runs."""

from __future__ import annotations

from pathlib import Path

import click

from linnaeus.cli.options import make_console, show_next, verbosity
from linnaeus.errors import UserError


@click.command()
@click.argument("run")
@click.option("--rename", multiple=True, metavar="OLD=NEW", help="Rename a class. Repeatable.")
@click.option("--merge", multiple=True, metavar="A,B=C", help="Merge classes. Repeatable.")
@click.option("--drop", multiple=True, metavar="CLASS", help="Leave out a class and its images. Repeatable.")
@click.option(
    "--add",
    multiple=True,
    metavar="DIR",
    help="Add images of a folder, to a new class or an existing one. Repeatable.",
)
@click.option("--name", multiple=True, metavar="CLASS", help="Class of each --add.  [default: name of the folder]")
@click.option("--out", metavar="DIR", help="New run folder.  [default: RUN-classes-<n>]")
@verbosity
def classes(
    run: str,
    rename: tuple[str, ...],
    merge: tuple[str, ...],
    drop: tuple[str, ...],
    add: tuple[str, ...],
    name: tuple[str, ...],
    out: str | None,
) -> None:
    """Make a new run with other classes from a finished run.

    The stored features of images that stay are used again, and only added images go through the network. The head, the
    calibration and the thresholds are computed anew, and images stay in their split. RUN is not changed. It
    must have a frozen network and a solved head (head = "auto"), as runs with the recipes for few images do.
    """
    if name and len(name) != len(add):
        raise UserError(
            f"--name {name[0]}: names the class of added images; give it once for each --add, in their order, or leave "
            "it out"
        )
    from linnaeus.training.derived.class_changes import ClassChanges, change_classes

    changes = ClassChanges(rename, merge, drop, tuple(map(Path, add)), name)
    console = make_console()
    changed = change_classes(run, changes, out=out, console=console)
    console.say(changed.changes.render())
    console.say(f"report    {changed.run.path / 'report.html'}")
    show_next(changed.run.path, console)
