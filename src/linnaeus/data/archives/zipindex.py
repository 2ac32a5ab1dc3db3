"""Read the directory of a zip with `zipfile` under limits: its claims are checked before they are used."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from linnaeus.data.archives.tar import Member
from linnaeus.errors import UserError, visible

STORED, DEFLATED, BZIP2 = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2
NAMES = {9: "Deflate64", 14: "LZMA", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "AES encryption"}
MOST_DIRECTORY = 256 << 20  # bytes of the directory; `zipfile` holds it in memory
SUSPICIOUS = 64 << 20  # bytes of one file from which its ratio is checked
RATIO = 200
"""Bytes per packed byte of one large file, or of all together; photographs have 1, drawings without noise up to 100."""
LOCAL_HEADER = 30  # bytes before the name of each file (APPNOTE.TXT 4.3.7)
_END, _END64, _FILE = b"PK\5\6", b"PK\6\6", b"PK\1\2"
_ENCRYPTED, _UTF8 = 1, 0x800


def data_offset(path: str, header: bytes) -> int:
    """Bytes from the start of a file's local header to its content. Raises UserError if there is no such header."""
    if len(header) != LOCAL_HEADER or header[:4] != b"PK\3\4":
        raise UserError(f"{path}: damaged in the archive: it does not begin where the directory says")
    name, extra = struct.unpack("<HH", header[26:30])
    return LOCAL_HEADER + name + extra


def zip_entries(place: str, most: int) -> Iterator[Member]:
    """The files of a zip, as its directory lists them.

    Raises UserError if it is damaged, encrypted, packed by a method that is not read, or claims more bytes than
    anything but a bomb would unpack to.
    """
    with open(place, "rb") as file:
        length = file.seek(0, os.SEEK_END)
        _check_directory(place, file, length, most)
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, EOFError) as error:
            raise UserError(f"{place}: not a readable zip ({error}); download it again, or pack it again") from None
    _check_overlaps(place, infos, length)
    # Old programs for Windows separate folders by backslashes, which the format forbids (APPNOTE.TXT 4.4.17).
    has_backslashes = not any("/" in info.filename for info in infos)
    for info in infos:
        _check(place, info)
        name, is_legacy = _name(info)
        name = name.replace("\\", "/") if has_backslashes else name
        place_in_zip = (info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type)
        yield Member(name, *place_in_zip, name.endswith("/"), is_legacy)


def _check_directory(place: str, file: BinaryIO, length: int, most: int) -> None:
    """Bound the entries before `zipfile` makes an object of each."""
    # The end record, its longest comment, and the locator of Zip64 before it.
    tail_size = min(length, (1 << 16) + 22 + 76)
    file.seek(length - tail_size)
    tail = file.read(tail_size)
    end = tail.rfind(_END)
    if end < 0 or len(tail) < end + 22:
        problem = "starts like one, but its end is missing: the download may be incomplete" if length else "it is empty"
        file.seek(0)
        if file.read(2) != b"PK" and length:
            problem = "it has no directory of files"
        raise UserError(f"{place}: not a readable zip ({problem}); download it again, or pack it again")
    disk, first_disk, _, _, size, _ = struct.unpack("<4H2L", tail[end + 4 : end + 20])
    # 0xFFFFFFFF refers to the Zip64 record, which holds the real size.
    if (end64 := tail.rfind(_END64, 0, end)) >= 0 and len(tail) >= end64 + 56 and size == 0xFFFF_FFFF:
        size = struct.unpack("<Q", tail[end64 + 40 : end64 + 48])[0]
    if disk not in (0, 0xFFFF) or first_disk not in (0, 0xFFFF):
        raise UserError(
            f"{place}: one part of a multi-part zip; join the parts first (zip -s 0 parts.zip --out one.zip)"
        )
    if size > MOST_DIRECTORY:
        raise UserError(f"{place}: its directory of files has {size:,} bytes (at most {MOST_DIRECTORY:,}); unpack it")
    # Counted in the bytes, because the number stated in the end record can be false.
    file.seek(max(0, length - tail_size - size))
    if file.read(size + tail_size).count(_FILE) > most:
        raise UserError(f"{place}: holds more than {most:,} files; unpack it, and give its folder")


def _check_overlaps(place: str, files: list[zipfile.ZipInfo], length: int) -> None:
    """Refuse files that share bytes: a bomb of a few kilobytes claims petabytes in that way (Fifield 2019)."""
    end, before = 0, ""
    for info in sorted(files, key=lambda info: info.header_offset):
        shown = visible(info.filename)[:200]
        if info.header_offset < end:
            raise UserError(f"{place}: {shown!r} overlaps {before!r} in it, as in a zip bomb; pack the folder again")
        end, before = info.header_offset + LOCAL_HEADER + info.compress_size, shown
    if end > length:
        raise UserError(f"{place}: ends inside {before!r}: the download may be incomplete; download it again")
    # Each file may pass on its own while all together fill the disk.
    total = sum(info.file_size for info in files)
    if total > max(SUSPICIOUS, RATIO * length):
        raise UserError(
            f"{place}: unpacks to {total:,} bytes, {RATIO} times its size, like a decompression bomb; unpack it "
            "yourself"
        )


def _check(place: str, info: zipfile.ZipInfo) -> None:
    shown = f"{place}: {visible(info.filename)[:200]!r}"
    if info.flag_bits & _ENCRYPTED or info.compress_type == 99:
        raise UserError(f"{shown} is encrypted; unpack it with its password, and give the folder")
    if info.compress_type not in (STORED, DEFLATED, BZIP2):
        method = NAMES.get(info.compress_type, f"method {info.compress_type}")
        raise UserError(f"{shown} is packed with {method}, which is not supported; pack the folder again with Deflate")
    # The upper 16 bits hold the Unix mode; 0o120000 is a symbolic link.
    if (info.external_attr >> 16) & 0o170000 == 0o120000:
        raise UserError(f"{shown} is a symbolic link, and an archive must hold the file itself; pack it without -y")
    if info.file_size > max(SUSPICIOUS, RATIO * info.compress_size):
        raise UserError(
            f"{shown} claims {info.file_size:,} bytes from {info.compress_size:,}, like a decompression bomb; remove it"
        )


def _name(info: zipfile.ZipInfo) -> tuple[str, bool]:
    """The name as text, and whether its encoding is a guess: most programs write UTF-8 without saying so."""
    name, is_legacy = info.filename, False
    if not info.flag_bits & _UTF8 and not name.isascii():
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            is_legacy = True
    if info.create_system == 0 and "/" not in name:  # old .NET on Windows
        name = name.replace("\\", "/")
    return name, is_legacy
