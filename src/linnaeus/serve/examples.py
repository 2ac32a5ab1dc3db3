"""Example images that visitors of the page can click: read once, reduced, and without metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from linnaeus.data.class_names import printable
from linnaeus.data.images.decode import decode
from linnaeus.data.images.encode import data_uri, to_pillow
from linnaeus.errors import UserError
from linnaeus.inference.inputs import expand
from linnaeus.preprocess import Preprocessing

FILE = "examples.json"
MOST = 24
LONGEST = 1024  # pixels of a side, unless the network needs more
LOSSLESS = 256  # pixels of a side up to which an image is stored as PNG
QUALITY = 92


def read_examples(folder: str, preprocessing: Preprocessing) -> tuple[dict[str, str], ...]:
    """The images below a folder as {"name", "image"}: the file's name, and the image as a `data:` URI.

    They are encoded again as JPEG or PNG: browsers cannot show every format, a photograph has ten times the pixels that
    the network needs, and its metadata can hold the place where it was taken. 16-bit images are reduced to 8 bits as
    for the network. Raises UserError for more than MOST images, and for one that cannot be read.
    """
    paths = list(expand([folder]))
    if len(paths) > MOST:
        raise UserError(f"--examples {folder}: {len(paths)} images; a page shows at most {MOST}")
    side = max(LONGEST, 2 * preprocessing.row_spec.size)
    examples = []
    for path in paths:
        image = to_pillow(decode(path, at_least=side // 2, bits=preprocessing.row_spec.bits))
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        form = "PNG" if max(image.size) <= LOSSLESS else "JPEG"
        examples.append({"name": Path(path).name, "image": data_uri(image, form, quality=QUALITY, optimize=True)})
    return tuple(examples)


def to_json(examples: Sequence[dict[str, str]]) -> bytes:
    """The file that the page loads."""
    return printable(json.dumps(examples, ensure_ascii=False)).encode()
