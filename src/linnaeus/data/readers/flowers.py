"""Read Oxford 102 Flowers as published: an archive of JPEG files and two MATLAB files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.data.archives.tar import read_files
from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.files import disk_errors, scratch

IMAGE = re.compile(r"image_[0-9]{5}\.jpg")
COUNT = 8189
ARCHIVE_LIMIT = 1 << 30  # bytes unpacked; the published archive has about 350 million
PARTS = {"trnid": "train", "valid": "valid", "tstid": "test"}  # 1020, 1020 and 6149 images
NAMES = """
pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, moon orchid, bird
of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle, yellow iris, globe-flower,
purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily, pincushion flower, fritillary, red
ginger, grape hyacinth, corn poppy, prince of wales feathers, stemless gentian, artichoke, sweet william, carnation,
garden phlox, love in the mist, mexican aster, alpine sea holly, ruby-lipped cattleya, cape flower, great masterwort,
siam tulip, lenten rose, barbeton daisy, daffodil, sword lily, poinsettia, bolero deep blue, wallflower, marigold,
buttercup, oxeye daisy, common dandelion, petunia, wild pansy, primula, sunflower, pelargonium, bishop of llandaff,
gaura, geranium, orange dahlia, pink-yellow dahlia, cautleya spicata, japanese anemone, black-eyed susan, silverbush,
californian poppy, osteospermum, spring crocus, bearded iris, windflower, tree poppy, gazania, azalea, water lily,
rose, thorn apple, morning glory, passion flower, lotus, toad lily, anthurium, frangipani, clematis, hibiscus,
columbine, desert-rose, tree mallow, magnolia, cyclamen, watercress, canna lily, hippeastrum, bee balm, ball moss,
foxglove, bougainvillea, camellia, mallow, mexican petunia, bromelia, blanket flower, trumpet creeper, blackberry lily
"""


def open_flowers(folder: Path) -> Table:
    """The table of all images, which are unpacked on first use, in the authors' split. Classes are "1" to "102"."""
    labels = _matlab(folder / "imagelabels.mat", "labels", 102)
    if len(labels) != COUNT:
        raise UserError(f"{folder / 'imagelabels.mat'}: {len(labels)} labels instead of {COUNT}; download it again")
    split = np.full(COUNT, "", dtype="<U5")
    for key, name in PARTS.items():
        # MATLAB counts from 1.
        split[_matlab(folder / "setid.mat", key, COUNT) - 1] = name
    if not (folder / "jpg").is_dir():
        unpack(folder / "102flowers.tgz", folder / "jpg")
    there = set(os.listdir(folder / "jpg"))
    images = [f"image_{i:05d}.jpg" for i in range(1, COUNT + 1)]
    # An interrupted unpacking must not shorten the dataset silently.
    lost = next((image for image in images if image not in there), None)
    if lost:
        raise UserError(f"{folder / 'jpg' / lost}: missing; remove {folder / 'jpg'} to unpack 102flowers.tgz again")
    classes = tuple(str(i) for i in range(1, 103))
    names = tuple(name.strip() for name in NAMES.split(","))
    paths = tuple(os.path.join(folder, "jpg", image) for image in images)
    return Table("flowers102", "list", classes, names, labels - 1, split, paths=paths, root=str(folder))


def unpack(archive: Path, folder: Path) -> None:
    """Write the images of the archive to `folder`, atomically: it is complete or does not exist."""
    with disk_errors(folder), scratch(folder.parent) as parent:
        temporary = parent / folder.name
        temporary.mkdir()
        count = 0
        for name, data in read_files(archive, lambda name: IMAGE.fullmatch(name) is not None, ARCHIVE_LIMIT):
            (temporary / name).write_bytes(data)
            count += 1
        if count != COUNT:
            raise UserError(f"{archive}: holds {count} images instead of {COUNT}; remove it to download it again")
        temporary.rename(folder)


def _matlab(path: Path, key: str, largest: int) -> np.ndarray:
    """The vector `key` (n,) int64 of a MATLAB file, with values in 1..largest."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(
            f"{path}: reading MATLAB files needs SciPy, which is not installed: pip install scipy"
        ) from None
    try:
        values: Any = np.asarray(loadmat(path, variable_names=[key])[key]).reshape(-1).astype(np.int64)
    except Exception as error:  # the parser raises many types for damaged files
        raise UserError(f"{path}: no MATLAB file with {key!r} ({type(error).__name__}); download it again") from None
    if not len(values) or values.min() < 1 or values.max() > largest:
        raise UserError(f"{path}: {key!r} has values outside 1..{largest}; download it again")
    return values
