"""Images that lie inside tar files, each read by its offset."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

import numpy as np

from linnaeus.data.archives.remote import LocalFiles, fetch_range, is_address
from linnaeus.data.images.decode import UnreadableError

_FILES = LocalFiles()


@dataclass(frozen=True, eq=False)
class ShardMembers:
    """n images in the tar files `places`, as `Table.members`."""

    places: tuple[str, ...]  # path or address of each shard
    stamps: tuple[str, ...]  # version of each shard: changes when its content may have changed
    names: tuple[str, ...]  # name of each image, unique in the source
    shard: np.ndarray  # (n,) int32, an index into places
    offset: np.ndarray  # (n,) int64, bytes from the start of the shard
    sizes: np.ndarray  # (n,) int64, bytes
    crc32: np.ndarray  # (n,) int64; -1 where it is unknown

    def __len__(self) -> int:
        return len(self.names)

    @property
    def local(self) -> bool:
        """Whether all shards lie on this machine."""
        return not any(map(is_address, self.places))

    def key(self, i: int) -> bytes:
        """What image i is known again by: changes when the image may have."""
        crc = int(self.crc32[i])
        stamp = "" if crc >= 0 else f"{self.stamps[self.shard[i]]} {self.offset[i]}"
        return f"{self.names[i]}\0{self.sizes[i]} {crc} {stamp}".encode("utf-8", "surrogateescape")

    def read(self, i: int) -> bytes:
        """The file of image i. Raises JobError if the shard is gone or replaced, UnreadableError if it is damaged."""
        place, offset, size = self.places[self.shard[i]], int(self.offset[i]), int(self.sizes[i])
        # Bytes of another shard at this offset would be noticed by their checksum, where there is one.
        version = () if self.crc32[i] >= 0 or is_address(place) else tuple(json.loads(self.stamps[self.shard[i]]))
        data = fetch_range(place, offset, size) if is_address(place) else _FILES.read(place, offset, size, version)
        if len(data) != size:
            raise UnreadableError(self.names[i], f"{place} ends before this image", kind="truncated")
        if self.crc32[i] >= 0 and zlib.crc32(data) != self.crc32[i]:
            raise UnreadableError(self.names[i], f"its bytes in {place} do not match the checksum in the index")
        return data

    def take(self, indices: np.ndarray) -> ShardMembers:
        return ShardMembers(
            self.places,
            self.stamps,
            tuple(self.names[i] for i in indices),
            self.shard[indices],
            self.offset[indices],
            self.sizes[indices],
            self.crc32[indices],
        )
