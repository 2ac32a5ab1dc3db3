"""The datasets known by name: digits, mnist, fashion-mnist, cifar10, flowers102. Importing it takes no time."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


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


def not_found(text: str) -> str:
    """The message for a source that is neither on the disk nor in the catalog."""
    if "://" in text:
        return (
            f"{text}: only shards can be read from an address, by http:// or https://; download it, and give the folder"
        )
    near = difflib.get_close_matches(text.lower(), KNOWN, 1, 0.7)
    hint = f"did you mean {near[0]}?" if near else f"check the path (known names: {', '.join(KNOWN)})"
    return f"{text}: no such file or folder; {hint}"
