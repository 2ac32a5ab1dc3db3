"""The members of a tar that nobody has vouched for, with where their bytes lie; nothing is unpacked.

POSIX.1-2001 (pax), ustar and GNU headers are read, as tar, Python and WebDataset write them; the standard library's
reader takes whatever a header claims into memory, and does not refuse what an image's shard has no use for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from linnaeus.errors import UserError, visible

BLOCK = 512
HEADER_LIMIT = 64 << 10  # bytes of a pax or long-name header: a path has 4,096
TEXT_LIMIT = 1 << 20  # bytes of a label's file
MEMBER_LIMIT = 1 << 30  # bytes, as of an image's file
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


class Source(Protocol):
    """A file from front to back."""

    def read(self, size: int) -> bytes: ...

    def skip(self, size: int) -> None:
        """Go on `size` bytes further. Raises EOFError where that is past the end."""
        ...


@dataclass(frozen=True)
class Member:
    name: str
    offset: int
    size: int
    data: bytes | None
    """Its bytes, where they were wanted."""


def scan(tar: str, source: Source, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """The regular files of a tar, in order; `wanted(name)` says whose bytes to read.

    Raises UserError, naming the tar and the member, for what is cut short or damaged, and for a name that climbs or is
    absolute, a link, a device, and a header that claims more than any image has.
    """
    at = 0
    long: dict[str, str] = {}  # what an extended header says of the next member
    while True:
        block = _exactly(tar, source, BLOCK, at, at_end=True)
        if not block or not block.strip(b"\0"):
            return
        at += BLOCK
        kind, name, size = _header(tar, block, at - BLOCK)
        if kind in (b"x", b"g", b"L", b"K"):
            if size > HEADER_LIMIT:
                raise UserError(f"{tar}: a header at byte {at - BLOCK} claims {size:,} bytes; it is not read further")
            data = _exactly(tar, source, size, at)
            _pad(tar, source, size, at)
            at += _padded(size)
            if kind == b"L":
                long["path"] = data.split(b"\0")[0].decode("utf-8", "surrogateescape")
            elif kind == b"x":
                long |= _pax(tar, data, at)
            continue
        name = long.get("path", name)
        if "size" in long:
            size = _number(tar, long["size"], at)
        long = {}
        _refuse(tar, name, kind, size)
        if kind == b"5":
            continue  # a folder has no bytes, whatever it says
        text: bytes | None = None
        if wanted(name):
            if size > TEXT_LIMIT:
                raise UserError(f"{tar}: member {visible(name)!r} has {size:,} bytes, too many for a label")
            text = _exactly(tar, source, size, at)
        else:
            _skip(tar, source, size, name)
        yield Member(name, at, size, text)
        _pad(tar, source, size, at)
        at += _padded(size)


def _header(tar: str, block: bytes, at: int) -> tuple[bytes, str, int]:
    """Kind, name and size of a header block."""
    stated = block[148:156].strip(b"\0 ")
    found = sum(block[:148]) + sum(block[156:]) + 8 * 32
    if not stated or not stated.isalnum() or _octal(stated) != found:
        raise UserError(f"{tar}: no tar header at byte {at}; it is damaged, or not a tar: fetch or write it again")
    raw = block[124:136]
    size = int.from_bytes(raw[1:], "big") if raw[0] == 0x80 else _octal(raw.strip(b"\0 ") or b"0")
    if size is None or size < 0 or raw[0] == 0xFF:
        raise UserError(f"{tar}: the header at byte {at} has no size; it is damaged: fetch or write it again")
    name = block[:100].split(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345] != 0:
        name = block[345:500].split(b"\0")[0] + b"/" + name
    return block[156:157], name.decode("utf-8", "surrogateescape"), size


def _octal(digits: bytes) -> int | None:
    try:
        return int(digits, 8)
    except ValueError:
        return None


def _pax(tar: str, data: bytes, at: int) -> dict[str, str]:
    """path and size of a pax header: records `length key=value\\n`."""
    found: dict[str, str] = {}
    rest = data
    while rest.strip(b"\0"):
        digits, blank, _ = rest.partition(b" ")
        length = int(digits) if blank and digits.isdigit() and len(digits) < 8 else 0
        record = rest[len(digits) + 1 : length]
        key, equals, value = record.rstrip(b"\n").partition(b"=")
        if length <= len(digits) + 1 or length > len(rest) or not equals:
            raise UserError(f"{tar}: an extended header before byte {at} is damaged: fetch or write it again")
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
        rest = rest[length:]
    return found


def _number(tar: str, text: str, at: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise UserError(f"{tar}: an extended header before byte {at} has size {visible(text[:40])!r}; it is damaged")
    return int(text)


def _refuse(tar: str, name: str, kind: bytes, size: int) -> None:
    shown = repr(visible(name if len(name) <= 200 else name[:200] + "…"))
    if kind in _KINDS:
        raise UserError(f"{tar}: member {shown} is {_KINDS[kind]}; shards hold plain files: write it again without")
    if kind not in (b"0", b"\0", b"5", b"7"):
        raise UserError(f"{tar}: member {shown} is of a kind that is not read ({kind!r}); write it again")
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or not name or parts[0][1:2] == ":":
        raise UserError(f"{tar}: member {shown} has a name that leads out of the shard; it is refused")
    if size > MEMBER_LIMIT:
        raise UserError(f"{tar}: member {shown} claims {size:,} bytes, more than any image; it is refused")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _pad(tar: str, source: Source, size: int, at: int) -> None:
    _exactly(tar, source, _padded(size) - size, at + size)


def _skip(tar: str, source: Source, size: int, name: str) -> None:
    try:
        source.skip(size)
    except EOFError:
        raise UserError(f"{tar}: cut short inside {visible(name)[:200]!r}; fetch or write it again") from None


def _exactly(tar: str, source: Source, size: int, at: int, *, at_end: bool = False) -> bytes:
    """`size` bytes, or none where the file may end here."""
    data = source.read(size) if size else b""
    if len(data) != size and not (at_end and not data):
        raise UserError(f"{tar}: cut short at byte {at + len(data)}; fetch or write it again")
    return data
