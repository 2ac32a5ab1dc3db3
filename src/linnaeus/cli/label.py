"""`label`: label images in the browser while a classifier learns. Heavy modules are imported when the command runs."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from linnaeus.cli import early
from linnaeus.cli.address import address, address_options
from linnaeus.cli.options import device_option, make_console, verbosity
from linnaeus.console import Console, counted
from linnaeus.errors import UserError, install

if TYPE_CHECKING:
    from linnaeus.label.backbone import Backbone
    from linnaeus.label.features import Features
    from linnaeus.label.labels_csv import LabelStore

ORDERS = ("mixed", "margin", "diverse", "random", "file")


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="[RUN] FOLDER")
@click.option(
    "--backbone",
    metavar="NAME",
    help="Network or weights that compute the features, or colors.  [default: local weights, else colors]",
)
@click.option("--labels", metavar="CSV", help="Labels to start from: a CSV with the columns path and label.")
@click.option("--out", metavar="CSV", help="File for the labels.  [default: FOLDER/labels.csv]")
@click.option("--classes", metavar="A,B,C", help="Classes to begin with; more can be added on the page.")
@click.option(
    "--order",
    default="mixed",
    show_default=True,
    type=click.Choice(ORDERS),
    help="Which image comes next: uncertain (margin), unlike the others (diverse), both (mixed), random, or by name.",
)
@address_options("default: none for this machine, else a random one; env: LINNAEUS_TOKEN")
@device_option
@verbosity
def label(
    sources: tuple[str, ...],
    backbone: str | None,
    labels: str | None,
    out: str | None,
    classes: str | None,
    order: str,
    device: str,
) -> None:
    """Label images in the browser while a classifier learns.

    FOLDER holds the images, in any subfolders. Each answer is written at once to labels.csv, a source for
    `linnaeus train`. Open the folder again to continue. With RUN before FOLDER, you review the answers of its model.
    Only this machine can connect unless --host says otherwise. Ctrl-C exits.
    """
    run, folder = _places(sources)
    place = address()
    token = place.token
    early.check_device(device)
    early.check_token(token)
    try:
        from linnaeus.label.app import LabelServer
        from linnaeus.label.server import serve
        from linnaeus.serve.access import is_loopback
        from linnaeus.serve.limits import Limits
        from linnaeus.serve.server import bind
    except ImportError as error:
        raise UserError(f"labelling needs {error.name}: {install('serve')}") from None
    from linnaeus.label.finish import Finish
    from linnaeus.label.session import Session
    from linnaeus.label.thumbnails import Thumbnails

    console = make_console(sys.stderr)
    if run is not None and backbone:
        raise UserError(f"{run}: a review uses the network of the run; leave out --backbone")
    if token is None and not is_loopback(place.host):
        token = secrets.token_urlsafe(16)
    # The port is taken first: an address in use must not be found out after minutes of decoding.
    listener = bind(place.host, place.port)
    store = _open_store(folder, out, labels, console)
    features = _open_features(folder, run, backbone, device, console)
    session = Session.open(store, features, order, console)
    # In a review the classes of the model are offered before those of the command line.
    model = () if session.learner.model is None else session.learner.model.classes
    for name in (*model, *(classes or "").split(",")):
        if name.strip():
            session.add_class(name)
    finish = Finish(session, _runs(folder), device)
    shown = Thumbnails(folder, features.paths)
    serve(LabelServer(session, shown, finish, Limits(), folder.name, features.backbone.notes), listener, token, console)


def _places(sources: tuple[str, ...]) -> tuple[Path | None, Path]:
    """(run or None, folder of images)."""
    if len(sources) > 2:
        raise UserError(f"{sources[2]}: one folder of images is labelled at a time; give [RUN] FOLDER")
    folder = Path(sources[-1]).expanduser()
    if not folder.is_dir():
        raise UserError(f"{sources[-1]}: no such folder of images; give [RUN] FOLDER")
    if len(sources) == 1:
        early.check_not_a_run(sources[0])
        return None, folder.resolve()
    early.check_model(sources[0])
    return Path(sources[0]), folder.resolve()


def _runs(folder: Path) -> Path:
    """Folder for the runs of Finish: `runs`, but not inside the folder of images, or its plots would be images."""
    runs = Path("runs").absolute()
    return folder.parent / "runs" if runs.resolve().is_relative_to(folder) else runs


def _open_store(folder: Path, out: str | None, labels: str | None, console: Console) -> LabelStore:
    from linnaeus.label.labels_csv import LabelStore

    file = folder / "labels.csv" if out is None else Path(out).expanduser().absolute()
    early.check_output("--out", str(file), (".csv",))
    store = LabelStore.open(folder, file)
    if store.journal.damaged:
        console.warn(f"{store.journal.path}: skipped {counted(store.journal.damaged, 'damaged line')}")
    if store.journal.labels:
        console.say(f"labels    {file}: {counted(len(store.journal.labels), 'image')}, continued")
    if labels is not None:
        console.say(f"labels    {store.import_csv(Path(labels).expanduser())} imported from {labels}")
    return store


def _open_features(folder: Path, run: Path | None, name: str | None, device: str, console: Console) -> Features:
    from linnaeus.label.backbone import of_run, open_backbone, unseen_images, warn_of_trained_images
    from linnaeus.label.features import Features
    from linnaeus.label.session import list_images

    paths = list_images(folder)
    backbone: Backbone = of_run(run, device) if run is not None else open_backbone(name, device)
    if run is not None and backbone.about is not None:
        paths = unseen_images(folder, paths, run, backbone.about, console)
    else:
        warn_of_trained_images(folder, paths, backbone, console)
    console.say(f"images    {len(paths):,} in {folder}")
    console.say(f"backbone  {backbone.name}")
    for note in backbone.notes:
        console.say(f"          {note}")
    return Features(folder, paths, backbone)
