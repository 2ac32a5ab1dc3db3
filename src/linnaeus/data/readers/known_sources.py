"""Download and read the datasets that are known by name."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnaeus.data.catalog import KNOWN, Remote
from linnaeus.data.download import FetchError, Progress, Wanted, fetch
from linnaeus.data.readers.cifar import find_cifar, open_cifar
from linnaeus.data.readers.flowers import open_flowers
from linnaeus.data.readers.idx import open_idx
from linnaeus.data.table import Table
from linnaeus.environment import cache_dir
from linnaeus.errors import UserError, install

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownSource:
    """A line of `linnaeus data list`."""

    name: str
    description: str
    size: int  # bytes to download; 0 if none
    present: bool
    path: Path | None  # where it is or will be stored; None if nothing is downloaded


FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def known_sources() -> list[KnownSource]:
    """All datasets known by name, and whether each is available without a download."""
    return [
        KnownSource(
            name,
            known.description,
            sum(file.size or 0 for file in known.files),
            not missing(name),
            home(name) if known.files else None,
        )
        for name, known in KNOWN.items()
    ]


def home(name: str) -> Path:
    """The folder for the files of a known dataset."""
    return cache_dir() / "data" / name


def missing(name: str) -> list[Remote]:
    """The files of a known dataset that have to be downloaded. Unpacked files count as well as archives."""
    folder = home(name)

    def there(file: Remote) -> bool:
        if (folder / file.file).is_file():
            return True
        if name == "cifar10":
            return folder.is_dir() and find_cifar(folder) is not None
        if name == "flowers102":
            return file.file == "102flowers.tgz" and (folder / "jpg").is_dir()
        return (folder / file.file.removesuffix(".gz")).is_file()

    return [file for file in KNOWN[name].files if not there(file)]


def pull(name: str, progress: Progress | None = None) -> Path:
    """Download the missing files of a known dataset and return its folder; `progress` counts over all files.

    Files that were put there by hand are kept. If a download fails, the error says which files to put where by hand.
    """
    if name not in KNOWN:
        raise UserError(f"{name}: not a known dataset; choose one of {', '.join(KNOWN)}")
    files = missing(name)
    total = sum(file.size or 0 for file in files)
    done = 0
    for k, file in enumerate(files):
        try:
            path = fetch(
                [f"{at}/{file.file}" for at in file.at],
                home(name) / file.file,
                md5=file.md5,
                size=file.size,
                progress=_within(progress, done, total),
            )
        except FetchError as error:
            # Files before this one are complete and are not fetched again.
            rest = ", ".join(f"{left.file} (from {left.at[0]}/)" for left in files[k:])
            raise FetchError(
                error.reason,
                f"{name}: {error.reason}; fetch {rest} by other means, put into {home(name)}, and try again",
            ) from None
        done += path.stat().st_size
    return home(name)


def _within(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one file, reported as that of several of `total` bytes, of which `before` came with earlier files."""
    return None if progress is None else lambda done, _: progress(before + done, max(total, before + done))


def open_known(name: str) -> Table:
    """The table of a known dataset, which is downloaded first if necessary."""
    if name == "digits":
        return open_digits()
    folder = pull(name)
    _compare(name)
    if name == "flowers102":
        return open_flowers(folder)
    if name == "cifar10":
        path = find_cifar(folder)
        assert path is not None
        return open_cifar(name, path)
    table = open_idx(name, folder)
    return dataclasses.replace(table, names=FASHION_NAMES) if name == "fashion-mnist" else table


def _compare(name: str) -> None:
    """Warn about files that differ from the published ones. `fetch` verifies them, so these were put there by hand."""
    for file in KNOWN[name].files:
        path = home(name) / file.file
        if path.is_file():
            fault = Wanted(path, None, file.md5, file.size).fault(path)
            if fault is not None:
                log.warning(
                    "%s: differs from the published file (%s), but is used, because it was put there by hand",
                    path,
                    fault,
                )


def open_digits() -> Table:
    """scikit-learn's digits: (1797, 8, 8) gray, 0..16 stretched to 0..255, not yet split."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(f"digits: part of scikit-learn, which is not installed: {install('digits')}") from None
    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    classes = tuple(str(i) for i in range(10))
    return Table("digits", "digits", classes, classes, data.target, np.full(len(images), "", "<U5"), images=images)
