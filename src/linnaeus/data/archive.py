"""Reading tar archives that nobody has vouched for."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from linnaeus.errors import UserError


class _Limited(io.RawIOBase):
    """A stream that refuses to go on past a length: what an archive claims of itself is not to be believed."""

    def __init__(self, stream: BinaryIO, limit: int):
        self.stream, self.limit, self.left = stream, limit, limit

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.ReadError(f"it unpacks to more than {self.limit} bytes")
        return data


def members(path: Path, wanted: Callable[[str], bool], limit: int) -> Iterator[tuple[str, bytes]]:
    """Base name and bytes of each wanted regular file in a tar, gzipped or not.

    Nothing is written, and a member's folder is no matter: a hostile name has nowhere to go. The archive is read once,
    front to back, up to `limit` bytes unpacked: neither a bomb nor a false length can take more memory than that.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: Any = gzip.GzipFile(fileobj=raw) if zipped else raw
            limited: Any = _Limited(stream, limit)
            with tarfile.open(fileobj=limited, mode="r|") as opened:
                archive: Any = opened
                for member in archive:
                    name = member.name.rsplit("/", 1)[-1]
                    file = archive.extractfile(member) if member.isreg() and wanted(name) else None
                    if file is not None:
                        yield name, file.read()  # raises where the archive ends early
                    archive.members = []  # it would keep a record of every member that has passed
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a readable tar archive ({error}); fetch it again") from None
