"""Read tar archives from unknown sources with `tarfile`, under limits on what they may claim; nothing is unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from linnaeus.data.archives.compression import DAMAGE, open_compressed
from linnaeus.errors import UserError, visible

HEADER_LIMIT = 64 << 10  # bytes of all headers of one member; a path has at most 4,096
CHUNK = 1 << 20  # bytes read at a time
FILE_LIMIT = 1 << 30  # bytes of one file
ANY_LENGTH = 1 << 62  # bytes: an archive may have any length that its file proves
LINKS = "write it again (tar --dereference --hard-dereference)"
_REFUSED = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    offset: int  # bytes from the start of the archive: to the file in a tar, to its header in a zip
    packed: int  # bytes in the archive
    size: int
    crc32: int = -1  # -1 where the archive has none
    method: int = -1  # how it is packed, as in a zip; -1: a tar, whose files have no header of their own
    is_folder: bool = False
    is_legacy: bool = False  # whether the encoding of its name is a guess


class _LimitedFile:
    """The file as `tarfile` sees it: bounded headers, and no position beyond `limit`.

    `tarfile` reads into memory as many bytes as a header claims, and follows any number of extended headers.
    """

    def __init__(self, file: BinaryIO, limit: int):
        self.file, self.limit = file, limit
        self.left = HEADER_LIMIT
        self.last = b""  # the block read last

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header at byte {self.tell():,} claims {size:,} bytes")
        self.left -= size
        self.last = self.file.read(size)
        return self.last

    def seek(self, position: int) -> int:
        if not 0 <= position <= self.limit:
            raise tarfile.ReadError(f"it unpacks to more than {self.limit:,} bytes")
        return self.file.seek(position)

    def tell(self) -> int:
        return self.file.tell()


def members(name: str, file: BinaryIO, limit: int) -> Iterator[tarfile.TarInfo]:
    """The members of the tar in `file`, in order, with `offset_data` and `size` of each; `name` is for messages.

    Raises UserError if the archive is damaged, cut short, or longer than `limit` bytes.
    """
    limited: Any = _LimitedFile(file, limit)
    with _errors(name), tarfile.open(fileobj=limited, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        archive: Any = tar  # typeshed omits `members`, and has a read-only `pax_headers`
        while (member := tar.next()) is not None:
            if member.size < 0:  # tarfile would go backwards, for ever
                raise tarfile.ReadError(f"member {visible(member.name)[:200]!r} has a negative size")
            if member.offset_data + member.size > limit:
                raise tarfile.ReadError(f"it unpacks to more than {limit:,} bytes")
            yield member
            limited.left = HEADER_LIMIT
            archive.members.clear()  # tarfile keeps every member it has read
            archive.pax_headers.clear()
        # tarfile takes a damaged header for the end of the archive, which is a block of zeros or the end of the file.
        if limited.last.strip(b"\0"):
            raise tarfile.ReadError(f"no tar header at byte {tar.offset:,}")


def safe_members(place: str, file: BinaryIO, container: str) -> Iterator[tarfile.TarInfo]:
    """The files and folders of a tar, called `what` in messages. Anything else is refused by name."""
    for member in members(place, file, ANY_LENGTH):
        shown = repr(visible(member.name if len(member.name) <= 200 else member.name[:200] + "…"))
        parts = member.name.replace("\\", "/").split("/")
        if member.type in _REFUSED:
            kind = _REFUSED[member.type]
            raise UserError(f"{place}: member {shown} is {kind}, but {container} holds plain files only; {LINKS}")
        if member.issparse() or not (member.isreg() or member.isdir()):
            raise UserError(f"{place}: member {shown} has the unsupported type {member.type!r}; write it again")
        # Absolute paths, parents and drives could write outside the target folder when unpacked.
        if member.name.startswith(("/", "\\")) or ".." in parts or parts[0][1:2] == ":" or member.name == "":
            raise UserError(f"{place}: member {shown} has a name that leads out of {container}; rename it")
        if member.size > FILE_LIMIT:
            raise UserError(f"{place}: member {shown} claims {member.size:,} bytes, more than any image; remove it")
        yield member


def content(name: str, file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    """The bytes of a regular member. Raises UserError if the archive ends inside it."""
    chunks: list[bytes] = []
    with _errors(name):
        file.seek(member.offset_data)
        left = member.size
        while left:  # in chunks: the claimed size may be larger than the archive
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                raise tarfile.ReadError(f"unexpected end of data in {visible(member.name)[:200]!r}")
            chunks.append(chunk)
            left -= len(chunk)
    return b"".join(chunks)


def read_files(path: Path, wanted: Callable[[str], bool], limit: int) -> Iterator[tuple[str, bytes]]:
    """Base name and bytes of each wanted regular file in a tar, compressed or not.

    Folders in member names are ignored, so that a hostile name cannot lead anywhere. The archive is read once, front to
    back, up to `limit` bytes unpacked, so that neither a bomb nor a false size takes more memory than that.
    """
    with _errors(str(path)), open_compressed(path) as file:
        for member in members(str(path), file, limit):
            name = member.name.rpartition("/")[2]
            if member.isreg() and not member.issparse() and wanted(name):
                yield name, content(str(path), file, member)
        # The checksum stands behind the end of the archive. Nothing but padding is left, bounded as the rest is.
        while file.read(CHUNK):
            if file.tell() > limit:
                raise tarfile.ReadError(f"it unpacks to more than {limit:,} bytes")


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn everything that a hostile archive provokes, in tarfile or below it, into one UserError."""
    try:
        yield
    except (*DAMAGE, tarfile.TarError, OverflowError, RecursionError) as error:
        raise unreadable(name, error) from None


def unreadable(name: str, error: Exception) -> UserError:
    """What to say of a tar whose bytes are damaged, in it or in what compresses it."""
    return UserError(f"{name}: not a readable tar archive ({error}); download it again, or write it again")
