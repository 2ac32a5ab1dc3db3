"""Write shards: tar files that WebDataset can read, and an index for reading them in any order."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from linnaeus.data import tree
from linnaeus.data.archives.archive import MemberError
from linnaeus.data.background import Progress
from linnaeus.data.images.decode import IMAGE_SUFFIXES, MAX_BYTES, RowSpec, UnreadableError, header_size, load_row
from linnaeus.data.readers.shards import FORMAT, INDEX
from linnaeus.data.table import SPLITS, Table
from linnaeus.errors import UserError
from linnaeus.files import disk_errors, remove_scratch, scratch, sync

JPEG_QUALITY = 95
SEED = 0


@dataclass
class Written:
    """Counts of shards, images and bytes written, and (name, reason) of the images that could not be read."""

    shards: int = 0
    images: int = 0
    bytes: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)


def write_shards(
    table: Table,
    out: str | Path,
    *,
    size: int = 256,
    resize: int | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write the images of `table` as shards of about `size` megabytes in the new folder `out`, with their index.

    Files are copied unchanged, unless `resize` is given: then larger images are scaled to this short side in pixels
    (JPEG, quality 95). Arrays are encoded as PNG. Each split has its own shards. Samples are in a random order that
    depends only on the table, so that the shards can be read sequentially. The folder is written atomically.
    Raises UserError if `out` already exists.
    """
    table.require_one_label("data shards")
    out = Path(out)
    remove_scratch(out.absolute().parent)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: already exists; choose another --out")
    # Written beside the target and renamed, so that an interrupted run leaves no partial dataset.
    with disk_errors(out), scratch(out.absolute().parent) as folder:
        temporary = folder / out.name
        temporary.mkdir()
        written = _Writer(table, temporary, size * 1_000_000, resize).write(progress)
        if not written.images:
            raise UserError(f"{table.source}: none of its {len(table)} images can be read; no shards were written")
        if out.exists():
            out.rmdir()
        temporary.rename(out)
        sync(out.absolute().parent)
    return written


class _Writer:
    def __init__(self, table: Table, folder: Path, limit: int, resize: int | None):
        self.table, self.folder, self.limit, self.resize = table, folder, limit, resize
        self.shards: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.done = Written()

    def write(self, progress: Progress | None) -> Written:
        for split in (*SPLITS, ""):
            indices = self.table.where(split)
            if len(indices):
                self._split(split, np.random.default_rng(SEED).permutation(indices), progress)
        head = {"format": FORMAT, "classes": self.table.classes, "names": self.table.names, "shards": self.shards}
        texts = [json.dumps(head, ensure_ascii=False), *self.lines]
        (self.folder / INDEX).write_text("\n".join(texts) + "\n", encoding="utf-8")
        sync(self.folder / INDEX)
        self.done.shards = len(self.shards)
        return self.done

    def _split(self, split: str, indices: np.ndarray, progress: Progress | None) -> None:
        images = self._images(indices, progress)
        for number, first in enumerate(images):
            path = self.folder / f"{split or 'all'}-{number:05d}.tar"
            with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for image in chain([first], images):
                    self._add(tar, file, split, *image)
                    # Checked after a sample, so that the files of one sample stay in one shard.
                    if file.tell() >= self.limit:
                        break
            sync(path)
            self.shards.append({"file": path.name, "bytes": path.stat().st_size})
            self.done.bytes += path.stat().st_size

    def _add(self, tar: tarfile.TarFile, file: Any, split: str, i: int, suffix: str, data: bytes) -> None:
        """Add one sample: the image, `.cls` with the class index as WebDataset has it, and `.json` with the names."""
        label = int(self.table.labels[i])
        stem = f"{self.done.images:09d}"
        about = {"label": self.table.classes[label], "name": self.table.sample_id(i), "split": split}
        rest = ((".cls", str(label).encode()), (".json", json.dumps(about, ensure_ascii=False).encode()))
        for end, content in ((suffix, data), *rest):
            info = tarfile.TarInfo(stem + end)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            # tarfile pads to blocks of 512 bytes; the content begins before the padding.
            if end == suffix:
                offset = file.tell() - (-(-len(content) // 512) * 512)
        line = {"name": about["name"], "label": label, "split": split, "shard": len(self.shards)}
        line |= {"offset": offset, "size": len(data), "crc32": zlib.crc32(data)}
        self.lines.append(json.dumps(line, ensure_ascii=False))
        self.done.images += 1

    def _images(self, indices: np.ndarray, progress: Progress | None) -> Iterator[tuple[int, str, bytes]]:
        """(sample, suffix, content) of each image that can be read; the others are added to `left_out`."""
        for i in indices.tolist():
            try:
                yield i, *self._file(i)
            except UnreadableError as error:
                self.done.left_out.append((self.table.sample_id(i), error.reason))
            if progress is not None:
                progress(self.done.images + len(self.done.left_out), len(self.table))

    def _file(self, i: int) -> tuple[str, bytes]:
        image = self.table.image(i)
        if isinstance(image, np.ndarray):
            return ".png", _encoded(image, "PNG")
        if isinstance(image, str):
            suffix = os.path.splitext(image)[1].lower()
            data = _read(image)
        else:
            suffix, data = PurePosixPath(self.table.sample_id(i)).suffix.lower(), image
        suffix = suffix if suffix in IMAGE_SUFFIXES else ".jpg"
        if self.resize is not None:
            # An unreadable header is left to the decoder, which reports the file.
            size = header_size(data)
            if size is None or min(size) > self.resize:
                row = load_row(data, RowSpec(self.resize, "crop", "bilinear", 3))
                return ".jpg", _encoded(row, "JPEG")
        return suffix, data


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    image.save(stream, kind, quality=JPEG_QUALITY)  # PNG, which is lossless, ignores the quality
    return stream.getvalue()


def _read(path: str) -> bytes:
    try:
        if not tree.is_file(path):
            raise UnreadableError(path, "not a file", passing=True)
        if tree.size(path) > MAX_BYTES:
            raise UnreadableError(path, f"too large: over {MAX_BYTES:,} bytes", kind="too-large")
        return tree.read(path)
    except MemberError as error:
        raise UnreadableError(path, error.reason) from None
    except OSError as error:
        raise UnreadableError(path, error.strerror or str(error), passing=True) from None
