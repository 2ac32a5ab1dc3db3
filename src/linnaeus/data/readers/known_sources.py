"""Datasets known by name: digits, mnist, fashion-mnist, cifar10, flowers102."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnaeus.data.download import FetchError, Progress, Wanted, fetch, within
from linnaeus.data.readers.cifar import find_cifar, open_cifar
from linnaeus.data.readers.flowers import open_flowers
from linnaeus.data.readers.idx import open_idx
from linnaeus.data.table import Table
from linnaeus.environment import cache_dir
from linnaeus.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """A published file: name, size in bytes, published MD5, and the base addresses to download it from."""

    file: str
    size: int | None
    md5: str
    at: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """A dataset that can be downloaded. `files` is empty if a Python package contains the data."""

    description: str
    files: tuple[Remote, ...] = ()


@dataclass(frozen=True)
class KnownSource:
    """A line of `linnaeus data list`."""

    name: str
    description: str
    size: int  # bytes to download; 0 if none
    present: bool
    path: Path | None  # where it is or will be stored; None if nothing is downloaded


# Checksums: the authors' pages (CIFAR-10, Fashion-MNIST), and what torchvision 0.28 verifies (MNIST, Flowers102).
_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
_FASHION = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
_CIFAR = ("https://www.cs.toronto.edu/~kriz", "https://cave.cs.toronto.edu/kriz")
_FLOWERS = ("https://www.robots.ox.ac.uk/~vgg/data/flowers/102", "https://thor.robots.ox.ac.uk/flowers/102")

KNOWN = {
    "digits": Known("1,797 handwritten digits, 8x8 gray, 10 classes (Alpaydin 1998; comes with scikit-learn)"),
    "mnist": Known(
        "70,000 handwritten digits, 28x28 gray, 10 classes (LeCun et al. 1998)",
        (
            Remote("train-images-idx3-ubyte.gz", 9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873", _MNIST),
            Remote("train-labels-idx1-ubyte.gz", 28_881, "d53e105ee54ea40749a09fcbcd1e9432", _MNIST),
            Remote("t10k-images-idx3-ubyte.gz", 1_648_877, "9fb629c4189551a2d022fa330f9573f3", _MNIST),
            Remote("t10k-labels-idx1-ubyte.gz", 4_542, "ec29112dd5afa0611ce80d1b7f02629c", _MNIST),
        ),
    ),
    "fashion-mnist": Known(
        "70,000 articles of clothing, 28x28 gray, 10 classes (Xiao et al. 2017)",
        (
            Remote("train-images-idx3-ubyte.gz", 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d", _FASHION),
            Remote("train-labels-idx1-ubyte.gz", 29_515, "25c81989df183df01b3e8a0aad5dffbe", _FASHION),
            Remote("t10k-images-idx3-ubyte.gz", 4_422_102, "bef4ecab320f06d8554ea6380940ec79", _FASHION),
            Remote("t10k-labels-idx1-ubyte.gz", 5_148, "bb300cfdad3c16e7a12a480ee83cd310", _FASHION),
        ),
    ),
    "cifar10": Known(
        "60,000 photographs, 32x32 color, 10 classes (Krizhevsky 2009)",
        (Remote("cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530", _CIFAR),),
    ),
    "flowers102": Known(
        "8,189 photographs of flowers, 102 classes, in the authors' split (Nilsback and Zisserman 2008)",
        (
            Remote("imagelabels.mat", None, "e0620be6f572b9609742df49c70aed4d", _FLOWERS),
            Remote("setid.mat", None, "a5357ecc9cb78c4bef273ce3793fc85c", _FLOWERS),
            Remote("102flowers.tgz", 344_862_509, "52808999861908f626f3c1f4e79d11fa", _FLOWERS),
        ),
    ),
}
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
                progress=within(progress, done, total),
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
        raise UserError(
            'digits: part of scikit-learn, which is not installed; pip install "linnaeus[digits]"'
        ) from None
    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    classes = tuple(str(i) for i in range(10))
    return Table("digits", "digits", classes, classes, data.target, np.full(len(images), "", "<U5"), images=images)
