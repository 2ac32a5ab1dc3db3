"""Synthetic photographs, smooth, colored and all different, and the kinds of copies that occur in datasets."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def scene(seed: int, width: int = 240, height: int = 200) -> Image.Image:
    """Random shapes at several scales."""
    generator = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells, weight in ((3, 1.0), (6, 0.8), (12, 0.5), (30, 0.3), (90, 0.3)):
        grid = generator.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        total += weight * np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    total = (total - total.min()) / (total.max() - total.min()) * 255
    return Image.fromarray(total.astype(np.uint8))


def encoded(image: Image.Image, quality: int = 90) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Cut `share` of the width off the left and the right side, and of the height off the top and the bottom."""
    x, y = round(share * image.width), round(share * image.height)
    return image.crop((x, y, image.width - x, image.height - y))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half": lambda image: encoded(image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)),
    "quality 60": lambda image: encoded(image, 60),
    "mirrored": lambda image: encoded(ImageOps.mirror(image)),
    "turned": lambda image: encoded(image.rotate(90, expand=True)),
    "upside down": lambda image: encoded(image.rotate(180)),
    "mirrored and turned": lambda image: encoded(ImageOps.mirror(image).rotate(270, expand=True)),
    "cropped by 5 %": lambda image: encoded(cropped(image, 0.05)),
    "central square": lambda image: encoded(ImageOps.fit(image, (128, 128))),
    "center crop of 224 of 256": lambda image: encoded(cropped(ImageOps.fit(image, (256, 256)), 1 / 16)),
}
PADDED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "padded to a square": lambda image: encoded(ImageOps.pad(image, (200, 200))),
    "padded and turned": lambda image: encoded(ImageOps.pad(image, (200, 200), color="white").rotate(90)),
    "white border": lambda image: encoded(ImageOps.expand(image, 10, "white")),
}


def write_scenes(folder: Path, classes: tuple[str, ...] = ("oak", "pine"), each: int = 6, seed: int = 0) -> Path:
    """Write `each` different images per class: `folder/oak/0.jpg` …"""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            scene(1000 * seed + 100 * label + i).save(folder / name / f"{i}.jpg", quality=92)
    return folder


def bomb(path: Path, side: int = 20_000) -> None:
    """A PNG whose header claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
