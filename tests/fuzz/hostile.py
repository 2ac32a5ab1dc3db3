"""Hostile input (names, mutated files, archives), and the limits that reading it must keep.

`watched` checks them: only UserError may be raised, processor time is limited, and an audit hook sees every file that
Python opens for writing, creates, moves or links.
"""

from __future__ import annotations

import io
import os
import signal
import struct
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from linnaeus.errors import UserError

SECONDS = 20.0  # of processor time for one example: generous, because it is to find endless loops and quadratic costs
DIRTY = Path(__file__).resolve().parents[3] / "shared" / "data" / "dirty"

NAMES = (
    "..",
    ".",
    "../x",
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../b",
    "C:\\x",
    "..\\..\\x",
    "~",
    "~root/x",
    "con",
    "NUL",
    "aux.txt",
    "com1",
    "a\x00b",
    "a\nb",
    "a\rb",
    "a\tb",
    " ",
    "",
    "x ",
    " x",
    ".hidden",
    "-rf",
    "--help",
    "$(id)",
    "`id`",
    "%s%n",
    "{0}",
    "a,b",
    'a"b',
    "=1+1",
    "a;b",
    "<script>alert(1)</script>",
    "&amp;",
    "\u202egnp.exe",
    "a\u200bb",
    "\ufeffa",
    "e\u0301",
    "\xe9",
    "\ud800",
    "\udcff",
    "\U0001f339",
    "x" * 300,
    "\u0660\u0661",
    "\xb2",
    "1e999",
    "nan",
    "0",
    "-1",
    "\x1b[31m",
    "\u2028",
    "\x85",
    "\ufb01",
    "train",
    "test",
    "cat_to_name.json",
    "classes.txt",
    "None",
    "__class__",
)
"""Names that have hurt somebody: they climb, end a string, run, hide, or mean something to some system."""

name = st.one_of(st.sampled_from(NAMES), st.text(max_size=12))
file_name = name.map(lambda text: text.replace("/", "\u2215").replace("\0", "0") or "empty").map(
    lambda text: text if text not in (".", "..") else text + "x"
)
"""What Linux takes as the name of one file: all but a slash and a zero byte."""


class EscapeError(AssertionError):
    """Something was written outside of the allowed folders."""


_ALLOWED: list[str] | None = None
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_MADE = {  # audit event -> places of (a path, the folder it is relative to) among what it is given
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, 1),),
}


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if _ALLOWED is None:
        return
    found: list[tuple[Any, Any]] = []
    if event == "open":
        path, _, flags = given
        found = [(path, -1)] if isinstance(flags, int) and flags & _WRITING else []
    else:
        for at, relative in _MADE.get(event, ()):
            found.append((given[at], given[relative] if relative < len(given) and event != "os.truncate" else -1))
    for path, folder in found:
        if not isinstance(path, str | bytes | os.PathLike):
            continue  # a file that is open already
        above = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else ""
        text = os.path.realpath(os.path.join(above, os.fsdecode(path)))  # noqa: PTH118
        if not text.startswith(tuple(_ALLOWED)) and "__pycache__" not in text:
            raise EscapeError(f"{event} {text}")


@cache
def _listen() -> None:
    sys.addaudithook(_hook)  # once for the process: an audit hook cannot be removed


@contextmanager
def watched(*folders: Path, seconds: float = SECONDS) -> Iterator[list[UserError]]:
    """Run something hostile that may write below `folders` only. The list holds the UserError that ended it, if any."""
    global _ALLOWED
    _listen()
    said: list[UserError] = []

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {seconds:g} s of processor time")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    allowed = [os.path.realpath(folder) + os.sep for folder in folders]
    _ALLOWED = [*allowed, *(folder.removesuffix(os.sep) for folder in allowed), "/dev/null"]
    try:
        yield said
    except UserError as error:
        said.append(error)
        text = str(error)
        assert text, "an error says something"
        assert "\n" not in text, f"one line: {text!r}"
        text.encode("utf-8")  # can be printed and put into JSON
        assert len(text) < 5000, f"a line that a person reads, not {len(text)} characters"
    finally:
        _ALLOWED = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@st.composite
def mutated(draw: st.DrawFn, seed: bytes) -> bytes:
    """`seed` with a few of the changes that break parsers: bits, numbers, cuts, repeats."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(0, 6))):
        if not data:
            break
        at = draw(st.integers(0, min(len(data), draw(st.sampled_from([64, 1024, 1 << 30]))) - 1))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            data[at] = draw(st.integers(0, 255))
        elif kind == 1:
            number = struct.pack(draw(st.sampled_from(["<I", ">I", "<H", ">H"])), 0)
            value = draw(st.sampled_from(NUMBERS)) & ((1 << 8 * len(number)) - 1)
            data[at : at + len(number)] = value.to_bytes(len(number), draw(st.sampled_from(["little", "big"])))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == 4:
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        else:
            data[at:at] = draw(st.binary(max_size=16))
    return bytes(data)


@cache
def images() -> tuple[bytes, ...]:
    """A small image in every format that is read, and the small ones of the dirty corpus where it lies beside."""
    generator = np.random.default_rng(0)
    found = []
    for mode, formats in {
        "RGB": ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA"),
        "L": ("JPEG", "PNG", "TIFF"),
        "RGBA": ("PNG", "WEBP", "TIFF"),
        "CMYK": ("JPEG", "TIFF"),
        "I;16": ("PNG", "TIFF"),
        "P": ("PNG", "GIF"),
    }.items():
        for kind in formats:
            pixels = generator.integers(0, 255, (9, 14, 4), dtype=np.uint8)
            image = Image.fromarray(pixels).convert("RGB")
            image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
            stream = io.BytesIO()
            try:
                image.save(stream, kind)
            except (OSError, KeyError):  # a build of Pillow without that codec
                continue
            found.append(stream.getvalue())
    if DIRTY.is_dir():
        files = sorted(path for path in DIRTY.rglob("*") if path.is_file() and path.stat().st_size < 20_000)
        found += [path.read_bytes() for path in files]
    return tuple(found)


@st.composite
def image_bytes(draw: st.DrawFn) -> bytes:
    return draw(mutated(draw(st.sampled_from(images()))))


MEMBERS = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)


def tar_of(members: list[tuple[str, bytes, bytes, str, int | None]], **more: Any) -> bytes:
    """A tar of (name, type, bytes, what it links to, size that its header claims or None)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=more.get("format", tarfile.PAX_FORMAT)) as archive:
        for name, kind, data, link, claimed in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            if claimed is not None:
                block = bytearray(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
                block[124:136] = f"{claimed & 0o77777777777:011o}\0".encode()
                block[148:156] = b" " * 8
                block[148:156] = f"{sum(block[:512]):06o}\0 ".encode()
                stream.write(bytes(block) + data + b"\0" * (-len(data) % 512))
                continue
            archive.addfile(info, io.BytesIO(data) if kind == tarfile.REGTYPE else None)
    return stream.getvalue()


@st.composite
def archives(draw: st.DrawFn, wanted: tuple[str, ...], contents: tuple[bytes, ...]) -> bytes:
    """A tar in which `wanted` files lie among others: climbing, linking, claiming a wrong size; mutated."""
    members = []
    for _ in range(draw(st.integers(0, 4))):
        base = draw(st.sampled_from(wanted))
        place = draw(st.sampled_from(["", "../", "/", "a/../../", "./", draw(name) + "/"]))
        label = place + (base if draw(st.integers(0, 3)) else draw(name))
        label = label.replace("\0", "").encode("utf-8", "surrogateescape" if label.isascii() else "replace").decode()
        kind = draw(st.sampled_from([tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, *MEMBERS]))
        data = draw(st.sampled_from(contents)) if draw(st.integers(0, 3)) else draw(st.binary(max_size=600))
        claimed = draw(st.none() | st.sampled_from(NUMBERS)) if draw(st.integers(0, 3)) == 0 else None
        members.append((label or "x", kind, data, draw(st.sampled_from(["/etc/passwd", "..", base])), claimed))
    return draw(mutated(tar_of(members)))
